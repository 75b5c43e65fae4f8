/* INT8: packed int8 weights times int8 activations. What its kernels share. */
#ifndef TAMP_INT8_H
#define TAMP_INT8_H

#include "tamp_sparse.h"

/* y[i, r] = (sum over k of (x[i, k] - x_zero[i]) * w[r, k]) * weight_scale[r] * x_scale[i] + bias[r].
 * The sum is exact: columns are at most MOST_INT8_COLUMNS, so that it fits 32 bits without x_zero. */
typedef struct {
    const void *x; /* m rows as `prepare` left them */
    int64_t m;
    const float *x_scale;
    const int32_t *x_zero; /* NULL: 0 */
    int64_t x_step; /* entries of x_scale and x_zero for each row of x: 1, or 0 where all share one */
    const float *weight_scale;
    int64_t weight_step; /* likewise for each row of the weight */
    const int32_t *sums; /* [rows], of each row of the weight */
    const float *bias;   /* [rows] or NULL */
    void *y;             /* [m, ldy] of dtype */
    int64_t ldy;
    int dtype;
} tamp_int8_product;

#define MOST_INT8_COLUMNS 131071

enum { INT8_OK = 0, INT8_CORRUPT = 1, INT8_NO_MEMORY = 2 };

/* How a path multiplies int8. */
typedef struct tamp_int8 {
    int (*supported)(void); /* NULL: wherever the path is supported; else the path's base is asked */
    int64_t strip;          /* most rows of x in one call of the kernel */
    int64_t group;          /* the ranges of blocks that the kernel is given begin at multiples of it */
    size_t (*bytes)(const tamp_input *in);                                         /* of the copy of x */
    void (*prepare)(const tamp_input *in, void *copy, int64_t begin, int64_t end); /* tiles [begin, end) */
    /* Multiplies blocks [begin, end) with all m rows of x. */
    int (*kernel)(const tamp_weight *w, const tamp_int8_product *p, int64_t begin, int64_t end);
} tamp_int8;

extern const tamp_int8 tamp_int8_portable, tamp_int8_avx2, tamp_int8_avx512vnni, tamp_int8_amx;

/* Rows of the next of several shares of nearly the same size, each at most `most`. */
ALWAYS_INLINE int64_t even_share(int64_t m, int64_t most) {
    const int64_t strips = (m + most - 1) / most;
    return (m + strips - 1) / strips;
}

/* Writes the sums of row `i` of x with the rows of one block. */
ALWAYS_INLINE void store_int8(const tamp_weight *w, const tamp_int8_product *p, int64_t block, int64_t i,
                              const int32_t *sums) {
    const int64_t row = block * BLOCK_ROWS;
    const int rows = w->rows - row < BLOCK_ROWS ? (int)(w->rows - row) : BLOCK_ROWS;
    const int64_t zero = p->x_zero ? p->x_zero[i * p->x_step] : 0;
    const float x_scale = p->x_scale[i * p->x_step];
    for (int r = 0; r < rows; r++) {
        const float sum = (float)(sums[r] - zero * p->sums[row + r]);
        const float scaled = sum * p->weight_scale[(row + r) * p->weight_step] * x_scale;
        const float result = p->bias ? scaled + p->bias[row + r] : scaled;
        const int64_t at = i * p->ldy + row + r;
        if (p->dtype == DTYPE_BF16) ((uint16_t *)p->y)[at] = bf16_of_float(result);
        else if (p->dtype == DTYPE_FP16) ((uint16_t *)p->y)[at] = fp16_of_float(result);
        else ((float *)p->y)[at] = result;
    }
}

#ifdef TAMP_X86
#include <immintrin.h>

#ifdef TAMP_EMULATED
#define TARGET_VNNI
#else
#define TARGET_VNNI                                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2," \
                          "avx512vnni,fma,f16c,bmi,popcnt")))
#endif
#define INLINE_AVX2 static inline TARGET_AVX2 __attribute__((always_inline))

INLINE_AVX2 __m128i bf16_of_floats(__m128 numbers) { /* four, each in 32 bits */
    const __m128i bits = _mm_castps_si128(numbers), upper = _mm_srli_epi32(bits, 16);
    const __m128i odd = _mm_and_si128(upper, _mm_set1_epi32(1));
    const __m128i half = _mm_add_epi32(odd, _mm_set1_epi32(0x7fff));
    const __m128i rounded = _mm_srli_epi32(_mm_add_epi32(bits, half), 16);
    const __m128i quiet = _mm_or_si128(upper, _mm_set1_epi32(0x40));
    const __m128i nan = _mm_castps_si128(_mm_cmpunord_ps(numbers, numbers));
    return _mm_blendv_epi8(rounded, quiet, nan);
}

/* store_int8, four at once. Sums minus zero points are exact in double. */
INLINE_AVX2 void store_int8_avx2(const tamp_weight *w, const tamp_int8_product *p, int64_t block, int64_t i,
                                 __m128i sums) {
    const int64_t row = block * BLOCK_ROWS;
    if (w->rows - row < BLOCK_ROWS) {
        int32_t values[BLOCK_ROWS];
        _mm_storeu_si128((__m128i *)values, sums);
        store_int8(w, p, block, i, values);
        return;
    }
    __m128 result;
    if (p->x_zero) {
        const __m256d zero = _mm256_set1_pd((double)p->x_zero[i * p->x_step]);
        const __m256d rows = _mm256_cvtepi32_pd(_mm_loadu_si128((const __m128i *)(p->sums + row)));
        result = _mm256_cvtpd_ps(_mm256_sub_pd(_mm256_cvtepi32_pd(sums), _mm256_mul_pd(zero, rows)));
    } else {
        result = _mm_cvtepi32_ps(sums);
    }
    const __m128 scale =
        p->weight_step ? _mm_loadu_ps(p->weight_scale + row) : _mm_set1_ps(p->weight_scale[0]);
    result = _mm_mul_ps(_mm_mul_ps(result, scale), _mm_set1_ps(p->x_scale[i * p->x_step]));
    if (p->bias) result = _mm_add_ps(result, _mm_loadu_ps(p->bias + row));
    const int64_t at = i * p->ldy + row;
    if (p->dtype == DTYPE_FP32) {
        _mm_storeu_ps((float *)p->y + at, result);
        return;
    }
    __m128i half;
    if (p->dtype == DTYPE_BF16) {
        const __m128i wide = bf16_of_floats(result);
        half = _mm_packus_epi32(wide, wide);
    } else {
        half = _mm_cvtps_ph(result, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    _mm_storel_epi64((__m128i *)((uint16_t *)p->y + at), half);
}
#endif
#endif
