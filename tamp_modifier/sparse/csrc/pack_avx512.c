/* Moves of elements with AVX-512 and VBMI2. */
#include "tamp_sparse.h"

#ifdef TAMP_X86
#include <immintrin.h>

static TARGET_AVX512 uint32_t nonzero_avx512(const char *at, int size, int floating) {
    if (size == 2)
        return _mm512_test_epi16_mask(_mm512_loadu_si512(at), _mm512_set1_epi16(floating ? 0x7fff : -1));
    if (size == 1)
        return _mm256_test_epi8_mask(_mm256_loadu_si256((const __m256i *)at),
                                     _mm256_set1_epi8(floating ? 0x7f : -1));
    const __m512i significant = _mm512_set1_epi32(floating ? 0x7fffffff : -1);
    const uint32_t low = _mm512_test_epi32_mask(_mm512_loadu_si512(at), significant);
    const uint32_t high = _mm512_test_epi32_mask(_mm512_loadu_si512(at + 64), significant);
    return high << 16 | low;
}

/* Writes up to 64 bytes past the values it appends. */
static TARGET_AVX512 void compress_avx512(const char *at, uint32_t mask, int size, char *to) {
    if (size == 2) {
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi16(mask, _mm512_loadu_si512(at)));
    } else if (size == 1) {
        const __m256i dense = _mm256_loadu_si256((const __m256i *)at);
        _mm256_storeu_si256((__m256i *)to, _mm256_maskz_compress_epi8(mask, dense));
    } else {
        const uint16_t low = (uint16_t)mask, high = (uint16_t)(mask >> 16);
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(low, _mm512_loadu_si512(at)));
        to += 4 * __builtin_popcount(low);
        _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(high, _mm512_loadu_si512(at + 64)));
    }
}

static TARGET_AVX512 void expand_avx512(const char *values, uint32_t mask, int size, char *to) {
    if (size == 2) {
        _mm512_storeu_si512(to, _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values)));
    } else if (size == 1) {
        const __m256i packed = _mm256_loadu_si256((const __m256i *)values);
        _mm256_storeu_si256((__m256i *)to, _mm256_maskz_expand_epi8(mask, packed));
    } else {
        const uint16_t low = (uint16_t)mask, high = (uint16_t)(mask >> 16);
        _mm512_storeu_si512(to, _mm512_maskz_expand_epi32(low, _mm512_loadu_si512(values)));
        values += 4 * __builtin_popcount(low);
        _mm512_storeu_si512(to + 64, _mm512_maskz_expand_epi32(high, _mm512_loadu_si512(values)));
    }
}

const tamp_moves tamp_moves_avx512 = {nonzero_avx512, compress_avx512, expand_avx512};
#endif
