/* AVX-512 with VBMI2, computing in fp32: fp16 and fp32 weights everywhere, bf16 weights where the CPU
 * has no AVX-512 BF16. A mask word expands 32 packed values, which become two registers of fp32. */
#include "tamp_int4.h"
#include "tamp_int8.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define PREFETCH_BYTES 2048
#define INLINE static inline TARGET_AVX512 __attribute__((always_inline))
#define GROUP 4 /* rows of x at once: 16 sums stay in registers */

/* Reads one row of a tile and returns where the next one begins. */
INLINE const char *load_row(const char *values, uint32_t mask, const int dtype, __m512 *low, __m512 *high) {
    if (dtype == DTYPE_FP32) {
        const char *second = values + 4 * __builtin_popcount(mask & 0xffff);
        *low = _mm512_maskz_expand_ps((__mmask16)mask, _mm512_loadu_ps(values));
        *high = _mm512_maskz_expand_ps((__mmask16)(mask >> 16), _mm512_loadu_ps(second));
        return values + 4 * __builtin_popcount(mask);
    }
    const __m512i dense = _mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values));
    const __m256i first = _mm512_castsi512_si256(dense), last = _mm512_extracti64x4_epi64(dense, 1);
    if (dtype == DTYPE_FP16) {
        *low = _mm512_cvtph_ps(first);
        *high = _mm512_cvtph_ps(last);
    } else {
        *low = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(first), 16));
        *high = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(last), 16));
    }
    return values + 2 * __builtin_popcount(mask);
}

INLINE int multiply(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end, int first,
                    const int m, const int dtype) {
    const float *x = (const float *)p->x + first * p->ldx;
    const int64_t size = dtype == DTYPE_FP32 ? 4 : 2;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
        const char *values = (const char *)w->values + w->offsets[block] * size;
        __m512 sums[BLOCK_ROWS][GROUP];
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
            for (int i = 0; i < m; i++) sums[r][i] = _mm512_setzero_ps();
        for (int64_t tile = 0; tile < w->tiles; tile++) {
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) {
                __m512 low, high;
                _mm_prefetch(values + PREFETCH_BYTES, _MM_HINT_T0);
                values = load_row(values, mask[tile * BLOCK_ROWS + r], dtype, &low, &high);
#pragma GCC unroll 4
                for (int i = 0; i < m; i++) {
                    const float *input = x + i * p->ldx + tile * TILE_COLUMNS;
                    sums[r][i] = _mm512_fmadd_ps(low, _mm512_loadu_ps(input), sums[r][i]);
                    sums[r][i] = _mm512_fmadd_ps(high, _mm512_loadu_ps(input + 16), sums[r][i]);
                }
            }
        }
        if (values != (const char *)w->values + w->offsets[block + 1] * size) return 1;
#pragma GCC unroll 4
        for (int i = 0; i < m; i++) {
            float result[BLOCK_ROWS];
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) result[r] = _mm512_reduce_add_ps(sums[r][i]);
            store_sums(w, p, block, first + i, result);
        }
    }
    return 0;
}

#define DEFINE_KERNEL(NAME, M, DTYPE)                                                               \
    static TARGET_AVX512 int NAME##_##M(const tamp_weight *w, const tamp_product *p, int64_t begin, \
                                        int64_t end, int first) {                                   \
        return multiply(w, p, begin, end, first, M, DTYPE);                                         \
    }
#define DEFINE_KERNELS(NAME, DTYPE) \
    DEFINE_KERNEL(NAME, 1, DTYPE)   \
    DEFINE_KERNEL(NAME, 2, DTYPE)   \
    DEFINE_KERNEL(NAME, 3, DTYPE)   \
    DEFINE_KERNEL(NAME, 4, DTYPE)
DEFINE_KERNELS(bf16, DTYPE_BF16)
DEFINE_KERNELS(fp16, DTYPE_FP16)
DEFINE_KERNELS(fp32, DTYPE_FP32)

static int multiply_blocks(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    typedef int (*group_kernel)(const tamp_weight *, const tamp_product *, int64_t, int64_t, int);
    static const group_kernel kernels[3][GROUP] = {{bf16_1, bf16_2, bf16_3, bf16_4},
                                                   {fp16_1, fp16_2, fp16_3, fp16_4},
                                                   {fp32_1, fp32_2, fp32_3, fp32_4}};
    /* Block by block, so that a later group of rows finds the block in the cache. */
    for (int64_t block = begin; block < end; block++)
        for (int first = 0; first < p->m; first += GROUP) {
            const int m = p->m - first < GROUP ? p->m - first : GROUP;
            if (kernels[p->dtype][m - 1](w, p, block, block + 1, first)) return 1;
        }
    return 0;
}

static int supported(void) {
    return tamp_path_avx2.supported() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vbmi2");
}

const tamp_path tamp_path_avx512 = {
    .name = "avx512",
    .supported = supported,
    .base = &tamp_path_avx2,
    .kernel = multiply_blocks,
    .layout = &tamp_fp32_rows,
    /* Measured on Zen 4: up to there it keeps pace with torch's dense product. */
    .most_rows = {64, 64, 64},
    .moves = &tamp_moves_avx512,
    .int8 = &tamp_int8_avx512vnni,

    .int4 = &tamp_int4_avx512,
};
#else
TAMP_ABSENT_PATH(avx512);
#endif
