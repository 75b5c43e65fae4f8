/* What the two AVX-512 BF16 files share. */
#ifndef AVX512BF16_H
#define AVX512BF16_H

#include "tamp_sparse.h"

#ifdef TAMP_X86
#include <immintrin.h>

/* Without this the kernels wait for memory: the hardware prefetcher alone does not keep up. */
#define PREFETCH_BYTES 2048

#define INLINE static inline TARGET_AVX512BF16 __attribute__((always_inline))

/* Mask word `row` of a tile, straight from memory: cheaper than through a general register. */
INLINE __mmask32 load_mask(const uint64_t *tile_mask, int row) {
    return _load_mask32((__mmask32 *)tile_mask + row);
}

INLINE __m512bh expand(__mmask32 mask, const uint16_t *values) {
    return (__m512bh)_mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values));
}

INLINE __m512bh load_x(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

INLINE void prefetch(const uint16_t *values) {
    _mm_prefetch((const char *)values + PREFETCH_BYTES, _MM_HINT_T0);
}

INLINE int64_t count32(uint64_t word) { return __builtin_popcount((uint32_t)word); }

INLINE const uint64_t *mask_pairs(const tamp_weight *w, int64_t block) {
    return (const uint64_t *)(w->mask + block * w->tiles * BLOCK_ROWS);
}

INLINE const uint16_t *block_values(const tamp_weight *w, int64_t block) {
    return (const uint16_t *)w->values + w->offsets[block];
}

INLINE __m512 unpack_add_pd(__m512 a, __m512 b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* The sums of four registers. */
INLINE __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 abcd = unpack_add_pd(ab, cd);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* store_sums for bf16, four at once. vcvtneps2bf16 would flush subnormals, integers do not. */
INLINE void store_block(const tamp_weight *w, const tamp_product *p, int64_t block, int64_t m,
                        __m128 sums) {
    const int64_t row = block * BLOCK_ROWS;
    if (w->rows - row < BLOCK_ROWS) {
        float values[BLOCK_ROWS];
        _mm_storeu_ps(values, sums);
        store_sums(w, p, block, m, values);
        return;
    }
    if (p->bias) sums = _mm_add_ps(sums, _mm_loadu_ps(p->bias + row));
    const __m128i bits = _mm_castps_si128(sums), upper = _mm_srli_epi32(bits, 16);
    const __m128i odd = _mm_and_si128(upper, _mm_set1_epi32(1));
    const __m128i half = _mm_add_epi32(odd, _mm_set1_epi32(0x7fff));
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, half), 16);
    const __mmask8 nan = _mm_cmp_ps_mask(sums, sums, _CMP_UNORD_Q);
    const __m128i quiet = _mm_or_si128(upper, _mm_set1_epi32(0x40));
    const __m128i result = _mm_mask_blend_epi32(nan, rounded, quiet);
    _mm_storel_epi64((__m128i *)((uint16_t *)p->y + m * p->ldy + row),
                     _mm_packus_epi32(result, result));
}

#endif
#endif

