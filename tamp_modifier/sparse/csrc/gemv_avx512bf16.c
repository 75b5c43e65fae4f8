/* bf16 x bf16 with AVX-512 BF16 and VBMI2. One idea, three shapes of it:
 *
 *   four_rows   1 to 6 rows of x: a mask word expands 32 packed values into a register (vpexpandw),
 *               which vdpbf16ps multiplies with 32 entries of each row of x.
 *   two_rows    7 and 8 rows of x: the same for half a block at a time, as 32 sums find no registers.
 *   compressed  one row of x, sparse weight: the mask compresses x instead; the packed values are
 *               multiplied as they are, 16 at once, half a register and half the work.
 *
 * On Zen 4 the mask move, the expansion and the product share two ports: 3 cycles for 32 columns of a
 * row. vpcompressw also waits for the old contents of its target, hence four targets there. */
#include "avx512bf16.h"

#ifdef TAMP_X86

/* `compressed` pays where 32 columns rarely keep more than 16 values. */
#define COMPRESSED_DENSITY 0.39

INLINE int four_rows(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end,
                     const int m) {
    const uint16_t *x = p->x;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint64_t *mask = mask_pairs(w, block);
        const uint16_t *values = block_values(w, block);
        __m512 sums[4][6];
#pragma GCC unroll 6
        for (int i = 0; i < m; i++)
            sums[0][i] = sums[1][i] = sums[2][i] = sums[3][i] = _mm512_setzero_ps();
        for (int64_t tile = 0; tile < w->tiles; tile++, mask += 2) {
            const uint64_t low = mask[0], high = mask[1];
            const uint16_t *second = values + count32(low), *third = values + popcount64(low);
            const uint16_t *fourth = third + count32(high);
            const __m512bh w0 = expand(load_mask(mask, 0), values), w1 = expand(load_mask(mask, 1), second);
            const __m512bh w2 = expand(load_mask(mask, 2), third), w3 = expand(load_mask(mask, 3), fourth);
            prefetch(values);
            prefetch(third);
            values = third + popcount64(high);
#pragma GCC unroll 6
            for (int i = 0; i < m; i++) {
                const __m512bh input = load_x(x + i * p->ldx + tile * TILE_COLUMNS);
                sums[0][i] = _mm512_dpbf16_ps(sums[0][i], w0, input);
                sums[1][i] = _mm512_dpbf16_ps(sums[1][i], w1, input);
                sums[2][i] = _mm512_dpbf16_ps(sums[2][i], w2, input);
                sums[3][i] = _mm512_dpbf16_ps(sums[3][i], w3, input);
            }
        }
        if (values != block_values(w, block + 1)) return 1;
#pragma GCC unroll 6
        for (int i = 0; i < m; i++)
            store_block(w, p, block, i, reduce4(sums[0][i], sums[1][i], sums[2][i], sums[3][i]));
    }
    return 0;
}

INLINE int two_rows(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end,
                    const int m) {
    const uint16_t *x = p->x;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint64_t *mask = mask_pairs(w, block);
        __m128 upper[MAX_M / 2]; /* sums of the first two rows, for two rows of x */
        for (int half = 0; half < 2; half++) {
            const uint16_t *values = block_values(w, block);
            __m512 sums[2][MAX_M];
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) sums[0][i] = sums[1][i] = _mm512_setzero_ps();
            for (int64_t tile = 0; tile < w->tiles; tile++) {
                const int64_t before = popcount64(mask[2 * tile]);
                const uint64_t pair = mask[2 * tile + half];
                const uint16_t *first = values + (half ? before : 0);
                const __m512bh w0 = expand(load_mask(mask + 2 * tile, 2 * half), first);
                const __m512bh w1 = expand(load_mask(mask + 2 * tile, 2 * half + 1), first + count32(pair));
                if (half == 0) { /* the other half finds its values in the cache */
                    prefetch(values);
                    prefetch(values + 32);
                }
                values += before + popcount64(mask[2 * tile + 1]);
#pragma GCC unroll 8
                for (int i = 0; i < m; i++) {
                    const __m512bh input = load_x(x + i * p->ldx + tile * TILE_COLUMNS);
                    sums[0][i] = _mm512_dpbf16_ps(sums[0][i], w0, input);
                    sums[1][i] = _mm512_dpbf16_ps(sums[1][i], w1, input);
                }
            }
            if (values != block_values(w, block + 1)) return 1;
#pragma GCC unroll 4
            for (int i = 0; i < m; i += 2) {
                const int other = i + 1 < m ? i + 1 : i;
                const __m128 lower =
                    reduce4(sums[0][i], sums[1][i], sums[0][other], sums[1][other]);
                if (half == 0) {
                    upper[i / 2] = lower;
                } else {
                    store_block(w, p, block, i, _mm_movelh_ps(upper[i / 2], lower));
                    if (i + 1 < m)
                        store_block(w, p, block, i + 1, _mm_movehl_ps(lower, upper[i / 2]));
                }
            }
        }
    }
    return 0;
}

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

static TARGET_AVX512BF16 int four_rows_1(const tamp_weight *w, const tamp_product *p, int64_t begin,
                                         int64_t end) {
    return four_rows(w, p, begin, end, 1);
}

static TARGET_AVX512BF16 int compressed(const tamp_weight *w, const tamp_product *p, int64_t begin,
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
            __asm__("" : "+v"(x0), "+v"(x1), "+v"(x2), "+v"(x3)); /* four registers, see above */
            prefetch(values);
            prefetch(third);
            sum0 = multiply_low(sum0, x0, values);
            sum1 = multiply_low(sum1, x1, second);
            sum2 = multiply_low(sum2, x2, third);
            sum3 = multiply_low(sum3, x3, fourth);
            if (__builtin_expect((second - values > 16) | (third - second > 16) |
                                 (fourth - third > 16) | (next - fourth > 16), 0)) {
                sum0 = multiply_high(sum0, x0, values);
                sum1 = multiply_high(sum1, x1, second);
                sum2 = multiply_high(sum2, x2, third);
                sum3 = multiply_high(sum3, x3, fourth);
            }
            values = next;
        }
        if (values != block_values(w, block + 1)) return 1;
        const __m128 sums = reduce4(_mm512_zextps256_ps512(sum0), _mm512_zextps256_ps512(sum1),
                                    _mm512_zextps256_ps512(sum2), _mm512_zextps256_ps512(sum3));
        if (_mm_fpclass_ps_mask(sums, 0x99)) { /* an Inf or NaN, perhaps of another row's value */
            if (four_rows_1(w, p, block, block + 1)) return 1;
        } else {
            store_block(w, p, block, 0, sums);
        }
    }
    return 0;
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

#define DEFINE_KERNEL(SHAPE, M)                                                                    \
    static TARGET_AVX512BF16 int SHAPE##_##M(const tamp_weight *w, const tamp_product *p,          \
                                             int64_t begin, int64_t end) {                         \
        return SHAPE(w, p, begin, end, M);                                                         \
    }
DEFINE_KERNEL(four_rows, 2)
DEFINE_KERNEL(four_rows, 3)
DEFINE_KERNEL(four_rows, 4)
DEFINE_KERNEL(four_rows, 5)
DEFINE_KERNEL(four_rows, 6)
DEFINE_KERNEL(two_rows, 7)
DEFINE_KERNEL(two_rows, 8)

int tamp_gemv_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    static const tamp_kernel kernels[MAX_M] = {four_rows_1, four_rows_2, four_rows_3, four_rows_4,
                                               four_rows_5, four_rows_6, two_rows_7,  two_rows_8};
    const double weights = (double)w->rows * (double)w->columns;
    /* An Inf or NaN in x must meet the zeros of the weight too, as in a dense product. */
    if (p->m == 1 && (double)w->kept <= COMPRESSED_DENSITY * weights &&
        is_finite(p->x, w->tiles * TILE_COLUMNS))
        return compressed(w, p, begin, end);
    return kernels[p->m - 1](w, p, begin, end);
}
#endif
