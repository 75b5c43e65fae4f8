/* 4-bit codes into the bytes, or the bf16 numbers, of a pair of rows, with AVX-512 and VBMI2. */
#ifndef INT4_CODES_H
#define INT4_CODES_H

#include "tamp_int4.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define INLINE_CODES static inline TARGET_AVX512 __attribute__((always_inline))

/* 64 codes of a pair in their places, what is not kept of `others`. */
INLINE_CODES __m512i expand_codes(const uint8_t *values, __mmask64 mask, __m512i others) {
    const __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)values));
    const __m512i low = _mm512_set1_epi8(15); /* (wide | wide << 4) & 15 in each byte */
    const __m512i codes = _mm512_ternarylogic_epi32(wide, _mm512_slli_epi16(wide, 4), low, 0xa8);
    return _mm512_mask_expand_epi8(others, mask, codes);
}

/* Code - zero, 0 where nothing is kept. */
INLINE_CODES __m512i expand_differences(const uint8_t *values, __mmask64 mask, __m512i zero) {
    const __m512i codes = expand_codes(values, mask, _mm512_setzero_si512());
    return _mm512_mask_sub_epi8(codes, mask, codes, zero);
}

/* Even and odd columns, 16 of the first row before 16 of the second. */
typedef struct {
    __m512i even, odd;
} bf16_pair;

/* bf16 of a number modulo 32, which is -16 to 15: vpermw takes the lowest five bits. */
static const uint16_t bf16_of_difference[32] = {
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
    0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130,
    0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};

INLINE_CODES bf16_pair expand_bf16(const uint8_t *values, __mmask64 mask, __m512i zero) {
    const __m512i bytes = expand_differences(values, mask, zero);
    const __m512i table = _mm512_loadu_si512(bf16_of_difference);
    return (bf16_pair){_mm512_permutexvar_epi16(bytes, table),
                       _mm512_permutexvar_epi16(_mm512_srli_epi16(bytes, 8), table)};
}

/* The first half of the lanes for the first row of a pair, the others for the second. */
INLINE_CODES __m512i halves(__m256i first, __m256i second) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

/* The zero codes of a pair of rows, each 32 times. */
INLINE_CODES __m512i pair_zero(const tamp_int4_weight *w, int64_t block, int64_t group, int pair) {
    if (!w->zeros) return _mm512_set1_epi8(SYMMETRIC_ZERO);
    return halves(_mm256_set1_epi8((char)int4_zero(w, block, group, 2 * pair)),
                  _mm256_set1_epi8((char)int4_zero(w, block, group, 2 * pair + 1)));
}

#endif
#endif
