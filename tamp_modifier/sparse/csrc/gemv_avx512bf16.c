/* bf16 x bf16 with AVX-512 BF16 and VBMI2: a mask word expands 32 packed values into one register
 * (vpexpandw), which vdpbf16ps multiplies with 32 entries of x. */
#include "tamp_sparse.h"

#ifdef TAMP_X86
#include <immintrin.h>

/* Without this the kernel waits for memory: the hardware prefetcher alone does not keep up. */
#ifndef PREFETCH_BYTES
#define PREFETCH_BYTES 2048
#endif

#define INLINE static inline TARGET_AVX512BF16 __attribute__((always_inline))

INLINE __m512bh expand(uint32_t mask, const uint16_t *values) {
    return (__m512bh)_mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values));
}

INLINE __m512bh load_x(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

/* The sums of four registers, as one. */
INLINE __m128 reduce4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 abcd = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
                                _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* All four rows of a block at once: 4 * m accumulators. */
INLINE int rows4(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end,
                 const int first, const int m) {
    const uint16_t *x = (const uint16_t *)p->x + first * p->ldx;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint64_t *mask = (const uint64_t *)(w->mask + block * w->tiles * BLOCK_ROWS);
        const uint16_t *values = (const uint16_t *)w->values + w->offsets[block];
        __m512 sums[4][MAX_M];
#pragma GCC unroll 8
        for (int i = 0; i < m; i++)
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) sums[r][i] = _mm512_setzero_ps();
        for (int64_t tile = 0; tile < w->tiles; tile++) {
            const uint64_t low = mask[2 * tile], high = mask[2 * tile + 1];
            const uint16_t *second = values + __builtin_popcount((uint32_t)low);
            const uint16_t *third = values + popcount64(low);
            const uint16_t *fourth = third + __builtin_popcount((uint32_t)high);
            const __m512bh w0 = expand((uint32_t)low, values), w1 = expand(low >> 32, second);
            const __m512bh w2 = expand((uint32_t)high, third), w3 = expand(high >> 32, fourth);
            _mm_prefetch((const char *)values + PREFETCH_BYTES, _MM_HINT_T0);
            _mm_prefetch((const char *)third + PREFETCH_BYTES, _MM_HINT_T0);
            values = third + popcount64(high);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++) {
                const __m512bh input = load_x(x + i * p->ldx + tile * TILE_COLUMNS);
                sums[0][i] = _mm512_dpbf16_ps(sums[0][i], w0, input);
                sums[1][i] = _mm512_dpbf16_ps(sums[1][i], w1, input);
                sums[2][i] = _mm512_dpbf16_ps(sums[2][i], w2, input);
                sums[3][i] = _mm512_dpbf16_ps(sums[3][i], w3, input);
            }
        }
        if (values != (const uint16_t *)w->values + w->offsets[block + 1]) return 1;
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            float result[4];
            _mm_storeu_ps(result, reduce4(sums[0][i], sums[1][i], sums[2][i], sums[3][i]));
            store_sums(w, p, block, first + i, result);
        }
    }
    return 0;
}

#define CASE(M) \
    static TARGET_AVX512BF16 int rows4_##M(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) { \
        return rows4(w, p, begin, end, 0, M);                                            \
    }
CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)

static TARGET_AVX512BF16 int rows4_7(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    return rows4(w, p, begin, end, 0, 4) | rows4(w, p, begin, end, 4, 3);
}
static TARGET_AVX512BF16 int rows4_8(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    return rows4(w, p, begin, end, 0, 4) | rows4(w, p, begin, end, 4, 4);
}

int tamp_gemv_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    static const tamp_kernel kernels[MAX_M] = {rows4_1, rows4_2, rows4_3, rows4_4,
                                               rows4_5, rows4_6, rows4_7, rows4_8};
    return kernels[p->m - 1](w, p, begin, end);
}
#endif
