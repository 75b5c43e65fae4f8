/* AVX2, FMA and F16C, computing in fp32. There is no expand instruction here: a table turns 8 mask bits
 * into the shuffle that puts 8 packed values in their places. */
#include "tamp_int4.h"
#include "tamp_int8.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define INLINE static inline TARGET_AVX2 __attribute__((always_inline))
/* Prefetched into the level-2 cache early and into the level-1 cache later, see avx512bf16.h. */
#define FAR 8192
#define NEAR 3072
#define GROUP 2 /* rows of x at once: 8 sums stay in registers */

static uint8_t byte_places[256][16]; /* 16-bit values: for _mm_shuffle_epi8 */
static uint8_t places[256][8];       /* 32-bit values: index, or 0x80 for a zero */

__attribute__((constructor)) static void fill_tables(void) {
    for (int mask = 0; mask < 256; mask++)
        for (int bit = 0, next = 0; bit < 8; bit++) {
            const int kept = mask >> bit & 1;
            places[mask][bit] = kept ? (uint8_t)next : 0x80;
            byte_places[mask][2 * bit] = kept ? (uint8_t)(2 * next) : 0x80;
            byte_places[mask][2 * bit + 1] = kept ? (uint8_t)(2 * next + 1) : 0x80;
            next += kept;
        }
}

INLINE __m256 expand8(const char *values, uint8_t mask, const int dtype) {
    if (dtype == DTYPE_FP32) {
        const __m256i index = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)places[mask]));
        const __m256 dense = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float *)values), index);
        return _mm256_blendv_ps(dense, _mm256_setzero_ps(),
                                _mm256_castsi256_ps(_mm256_slli_epi32(index, 24)));
    }
    const __m128i shuffle = _mm_loadu_si128((const __m128i *)byte_places[mask]);
    const __m128i dense = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)values), shuffle);
    if (dtype == DTYPE_FP16) return _mm256_cvtph_ps(dense);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(dense), 16));
}

INLINE float reduce8(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

INLINE int multiply(const tamp_weight *w, const tamp_product *p, int64_t block, int first, const int m,
                    const int dtype) {
    const float *x = (const float *)p->x + first * p->ldx;
    const int64_t size = dtype == DTYPE_FP32 ? 4 : 2;
    const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
    const char *values = (const char *)w->values + w->offsets[block] * size;
    __m256 sums[BLOCK_ROWS][GROUP];
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int i = 0; i < m; i++) sums[r][i] = _mm256_setzero_ps();
    for (int64_t tile = 0; tile < w->tiles; tile++) {
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK_ROWS; r++) {
            const uint32_t bits = mask[tile * BLOCK_ROWS + r];
            _mm_prefetch(values + FAR, _MM_HINT_T1);
            _mm_prefetch(values + NEAR, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int part = 0; part < 4; part++) {
                const uint8_t byte = (uint8_t)(bits >> (8 * part));
                const __m256 dense = expand8(values, byte, dtype);
                values += __builtin_popcount(byte) * size;
#pragma GCC unroll 2
                for (int i = 0; i < m; i++) {
                    const float *input = x + i * p->ldx + tile * TILE_COLUMNS + 8 * part;
                    sums[r][i] = _mm256_fmadd_ps(dense, _mm256_loadu_ps(input), sums[r][i]);
                }
            }
        }
    }
    if (values != (const char *)w->values + w->offsets[block + 1] * size) return 1;
    for (int i = 0; i < m; i++) {
        float result[BLOCK_ROWS];
        for (int r = 0; r < BLOCK_ROWS; r++) result[r] = reduce8(sums[r][i]);
        store_sums(w, p, block, first + i, result);
    }
    return 0;
}

#define DEFINE_KERNEL(NAME, M, DTYPE)                                                             \
    static TARGET_AVX2 int NAME##_##M(const tamp_weight *w, const tamp_product *p, int64_t block, \
                                      int first) {                                                \
        return multiply(w, p, block, first, M, DTYPE);                                            \
    }
DEFINE_KERNEL(bf16, 1, DTYPE_BF16)
DEFINE_KERNEL(bf16, 2, DTYPE_BF16)
DEFINE_KERNEL(fp16, 1, DTYPE_FP16)
DEFINE_KERNEL(fp16, 2, DTYPE_FP16)
DEFINE_KERNEL(fp32, 1, DTYPE_FP32)
DEFINE_KERNEL(fp32, 2, DTYPE_FP32)

static int multiply_blocks(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    typedef int (*group_kernel)(const tamp_weight *, const tamp_product *, int64_t, int);
    static const group_kernel kernels[3][GROUP] = {{bf16_1, bf16_2}, {fp16_1, fp16_2}, {fp32_1, fp32_2}};
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        for (int first = 0; first < p->m; first += GROUP) {
            const int m = p->m - first < GROUP ? p->m - first : GROUP;
            if (kernels[p->dtype][m - 1](w, p, block, first)) return 1;
        }
    }
    return 0;
}

static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

const tamp_path tamp_path_avx2 = {
    .name = "avx2",
    .supported = supported,
    .base = &tamp_path_portable,
    .kernel = multiply_blocks,
    .layout = &tamp_fp32_rows,
    /* Measured on Zen 3, where a dense product of 16-bit numbers computes in fp32, too. */
    .most_rows = {32, 32, 8},
    .int8 = &tamp_int8_avx2,
    .int4 = &tamp_int4_avx2,
};
#else
TAMP_ABSENT_PATH(avx2);
#endif
