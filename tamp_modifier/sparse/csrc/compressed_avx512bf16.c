/* One row of x and a sparse bf16 weight: the mask compresses x (vpcompressw) instead of expanding the
 * weight. The packed values are multiplied as they are, 16 at once, half a register and half the work.
 *
 * vpcompressw also waits for the old contents of its target, hence four targets here. */
#include "avx512bf16.h"

#ifdef TAMP_X86

/* Pays where 32 columns rarely keep more than 16 values. */
#define MOST_KEPT 0.39

/* Values of the next row stand behind the `count` ones of a row; zeros in the compressed x cancel them,
 * but not Inf and NaN: the caller looks for these. */
INLINE __m256 multiply_low(__m256 sum, __m512i x, const uint16_t *values) {
    return _mm256_dpbf16_ps(sum, (__m256bh)_mm512_castsi512_si256(x),
                            (__m256bh)_mm256_loadu_si256((const __m256i *)values));
}
INLINE __m256 multiply_high(__m256 sum, __m512i x, const uint16_t *values) {
    return _mm256_dpbf16_ps(sum, (__m256bh)_mm512_extracti64x4_epi64(x, 1),
                            (__m256bh)_mm256_loadu_si256((const __m256i *)(values + 16)));
}

static TARGET_AVX512BF16 int is_finite(const uint16_t *x, int64_t count) {
    const __m512i exponent = _mm512_set1_epi16(0x7f80);
    __mmask32 found = 0;
    for (int64_t i = 0; i < count; i += TILE_COLUMNS) {
        const __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x + i), exponent);
        found |= _mm512_cmpeq_epi16_mask(bits, exponent);
    }
    return !found;
}

int tamp_compressing_pays(const tamp_weight *w, const tamp_product *p) {
    const double weights = (double)w->rows * (double)w->columns;
    /* An Inf or NaN in x must meet the zeros of the weight too, as in a dense product. */
    return (double)w->kept <= MOST_KEPT * weights && is_finite(p->x, w->tiles * TILE_COLUMNS);
}

TARGET_AVX512BF16 int tamp_compressed_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin,
                                                 int64_t end) {
    const uint16_t *x = p->x;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint64_t *mask = mask_pairs(w, block);
        const uint16_t *values = block_values(w, block);
        __m256 sum0 = _mm256_setzero_ps(), sum1 = sum0, sum2 = sum0, sum3 = sum0;
        for (int64_t tile = 0; tile < w->tiles; tile++, mask += 2) {
            const uint64_t low = mask[0], high = mask[1];
            const uint16_t *second = values + count32(low), *third = values + popcount64(low);
            const uint16_t *fourth = third + count32(high), *next = third + popcount64(high);
            const __m512i input = _mm512_loadu_si512(x + tile * TILE_COLUMNS);
            __m512i x0 = _mm512_maskz_compress_epi16(load_mask(mask, 0), input);
            __m512i x1 = _mm512_maskz_compress_epi16(load_mask(mask, 1), input);
            __m512i x2 = _mm512_maskz_compress_epi16(load_mask(mask, 2), input);
            __m512i x3 = _mm512_maskz_compress_epi16(load_mask(mask, 3), input);
#ifndef TAMP_EMULATED
            __asm__("" : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3)); /* four registers, see above */
#endif
            prefetch(mask, values, third, 0);
            sum0 = multiply_low(sum0, x0, values);
            sum1 = multiply_low(sum1, x1, second);
            sum2 = multiply_low(sum2, x2, third);
            sum3 = multiply_low(sum3, x3, fourth);
            if (__builtin_expect((second - values > 16) | (third - second > 16) | (fourth - third > 16) |
                                     (next - fourth > 16),
                                 0)) {
                sum0 = multiply_high(sum0, x0, values);
                sum1 = multiply_high(sum1, x1, second);
                sum2 = multiply_high(sum2, x2, third);
                sum3 = multiply_high(sum3, x3, fourth);
            }
            values = next;
        }
        if (values != block_values(w, block + 1)) return 1;
        const __m128 sums = fold(transpose_add(_mm512_zextps256_ps512(sum0), _mm512_zextps256_ps512(sum1),
                                               _mm512_zextps256_ps512(sum2), _mm512_zextps256_ps512(sum3)));
        if (_mm_fpclass_ps_mask(sums, 0x99)) { /* an Inf or NaN, perhaps of another row's value */
            if (tamp_expanded_avx512bf16(w, p, block, block + 1)) return 1;
        } else {
            store_block(w, p, block, 0, sums);
        }
    }
    return 0;
}
#endif
