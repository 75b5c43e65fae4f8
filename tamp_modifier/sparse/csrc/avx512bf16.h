/* What the files of the path avx512bf16 share. */
#ifndef AVX512BF16_H
#define AVX512BF16_H

#include "tamp_sparse.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define PANEL_ROWS 6  /* rows of x that are multiplied at once: 4 * 6 sums stay in registers */
#define STRIP_ROWS 66 /* rows of x that share one expansion of the weight */

/* Prefetching, in bytes of the values: into the level-2 cache early, as that can wait for more lines of
 * memory at once, and into the level-1 cache later. Either alone is slower, and so is every line left
 * out. A mask word is two bytes for every 16 of the values at 50 %. */
#define FAR 8192
#define NEAR 3072
#define MASK_FAR (FAR / 8)
#define MASK_NEAR (NEAR / 8)

#define INLINE static inline TARGET_AVX512BF16 __attribute__((always_inline))

/* Rows of the next panel of x where `left` rows are left: panels of nearly the same size. */
ALWAYS_INLINE int panel_rows(int left) {
    const int panels = (left + PANEL_ROWS - 1) / PANEL_ROWS;
    return (left + panels - 1) / panels;
}

/* Mask word `row` of a tile, straight from memory: cheaper than through a general register. */
INLINE __mmask32 load_mask(const uint64_t *tile_mask, int row) {
    return _load_mask32((__mmask32 *)tile_mask + row);
}

INLINE __m512bh expand(__mmask32 mask, const uint16_t *values) {
    return (__m512bh)_mm512_maskz_expand_epi16(mask, _mm512_loadu_si512(values));
}

INLINE __m512bh load_x(const uint16_t *x) { return (__m512bh)_mm512_loadu_si512(x); }

/* For one tile. `third` is where the values of its third row begin. */
INLINE void prefetch(const uint64_t *mask, const uint16_t *values, const uint16_t *third, const int wide) {
    const char *start = (const char *)values;
    _mm_prefetch(start + NEAR, _MM_HINT_T0);
    _mm_prefetch((const char *)third + NEAR, _MM_HINT_T0);
    _mm_prefetch(start + FAR, _MM_HINT_T1);
    _mm_prefetch(start + FAR + 64, _MM_HINT_T1);
    if (wide) {
        _mm_prefetch((const char *)third + NEAR + 64, _MM_HINT_T0);
        _mm_prefetch(start + FAR + 128, _MM_HINT_T1);
    }
    _mm_prefetch((const char *)mask + MASK_NEAR, _MM_HINT_T0);
    _mm_prefetch((const char *)mask + MASK_FAR, _MM_HINT_T1);
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

/* Four sums in each of four lanes; fold adds the lanes up. */
INLINE __m512 transpose_add(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return unpack_add_pd(ab, cd);
}
INLINE __m128 fold(__m512 sums) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps(sums, 1));
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
    _mm_storel_epi64((__m128i *)((uint16_t *)p->y + m * p->ldy + row), _mm_packus_epi32(result, result));
}

/* Any number of rows of x up to STRIP_ROWS. */
int tamp_expanded_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);
/* One row of x; and whether that is faster then. */
int tamp_compressing_pays(const tamp_weight *w, const tamp_product *p);
int tamp_compressed_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);

#endif
#endif
