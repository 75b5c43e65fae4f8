/* 4-bit weights with AVX2 and FMA, computing in fp32.
 *
 * A chunk of tiles at a time: its codes, two a byte, become bytes in a buffer, which does not depend on the
 * mask; and the number of kept columns before every 8 columns says where in the buffer their codes begin.
 * A table turns 8 mask bits into the shuffle that puts the codes in their places. */
#include "tamp_int4.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define INLINE static inline TARGET_AVX2 __attribute__((always_inline))
#define PANEL 3        /* rows of x at once: 4 * 3 sums stay in registers */
#define STRIP 48       /* rows of x that share one expansion of the weight */
#define CHUNK_TILES 16 /* 4 rows of 512 columns are kept expanded: 8 KB */
#define CHUNK_COLUMNS (CHUNK_TILES * TILE_COLUMNS)
#define PREFETCH_BYTES 2048

typedef struct {
    uint8_t codes[CHUNK_TILES * 2 * TILE_BYTES + 64]; /* of kept weights: less 8, or with bit 7 set */
    uint8_t before[CHUNK_TILES * TILE_PAIRS * 8];     /* kept in the pair before each 8 columns */
    uint16_t start[CHUNK_TILES * TILE_PAIRS];         /* of each pair, in codes */
} chunk;

/* In each of 4 pairs, how many of its columns are kept before each 8 of them. */
INLINE __m256i count_before(__m256i mask) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i bits = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2,
                                          2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    __m256i sum =
        _mm256_add_epi8(_mm256_shuffle_epi8(bits, _mm256_and_si256(mask, low)),
                        _mm256_shuffle_epi8(bits, _mm256_and_si256(_mm256_srli_epi16(mask, 4), low)));
    sum = _mm256_slli_epi64(sum, 8);
    sum = _mm256_add_epi8(sum, _mm256_slli_epi64(sum, 8));
    sum = _mm256_add_epi8(sum, _mm256_slli_epi64(sum, 16));
    return _mm256_add_epi8(sum, _mm256_slli_epi64(sum, 32));
}

/* Decodes the chunk of `tiles` tiles whose codes begin at `values`; `bias` is added to each. Returns where
 * the next chunk begins. Reads up to 16 bytes more than there are. */
INLINE const uint8_t *decode(chunk *to, const uint64_t *mask, const uint8_t *values, int64_t tiles,
                             char bias) {
    int64_t bytes = 0;
    for (int64_t pair = 0; pair < tiles * TILE_PAIRS; pair++) {
        to->start[pair] = (uint16_t)(2 * bytes);
        bytes += pair_bytes(mask[pair]);
    }
    for (int64_t tile = 0; tile < tiles; tile += 2) {
        const __m128i *pairs = (const __m128i *)mask + tile;
        const __m128i low = _mm_loadu_si128(pairs), high = _mm_loadu_si128(pairs + (tile + 1 < tiles));
        _mm256_storeu_si256((__m256i *)to->before + tile / 2, count_before(_mm256_set_m128i(high, low)));
    }
    const __m256i low = _mm256_set1_epi8(15), add = _mm256_set1_epi8(bias);
    for (int64_t i = 0; i < bytes; i += 16) {
        _mm_prefetch((const char *)values + i + PREFETCH_BYTES, _MM_HINT_T0);
        const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(values + i)));
        const __m256i codes = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), low);
        _mm256_storeu_si256((__m256i *)(to->codes + 2 * i), _mm256_add_epi8(codes, add));
    }
    return values + bytes;
}

/* For one row of a group: the table from a code to code - zero; used where zeros are given. */
INLINE __m128i zero_table(int zero) {
    const __m128i codes = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm_sub_epi8(codes, _mm_set1_epi8((char)zero));
}

/* Code - zero of 8 columns, `part` of those of row `row` of a tile of the chunk. */
INLINE __m256 expand8(const chunk *from, const uint64_t *mask, int64_t tile, const int row, const int part,
                      __m128i table, const int zeros) {
    const int64_t at = tile * 16 + row * 4 + part;
    const uint8_t *codes = from->codes + from->start[tile * TILE_PAIRS + row / 2] + from->before[at];
    const __m128i places = _mm_loadl_epi64((const __m128i *)tamp_places[((const uint8_t *)mask)[at]]);
    __m128i dense = _mm_shuffle_epi8(_mm_loadl_epi64((const __m128i *)codes), places);
    /* Bit 7 marks the codes of kept weights; turned around it makes the table give 0 for the others. */
    if (zeros) dense = _mm_shuffle_epi8(table, _mm_xor_si128(dense, _mm_set1_epi8((char)0x80)));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(dense));
}

INLINE float reduce8(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

INLINE void store_panel(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block, int first,
                        __m256 totals[BLOCK_ROWS][PANEL], const int m) {
    for (int i = 0; i < m; i++) {
        float result[BLOCK_ROWS];
        for (int r = 0; r < BLOCK_ROWS; r++) result[r] = reduce8(totals[r][i]);
        int4_store(w, p, block, first + i, result);
    }
}

/* Up to PANEL rows of x: every code is expanded into a register, and multiplied there. */
INLINE int one_panel(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block, const int m,
                     const int zeros) {
    const uint64_t *mask = int4_mask(w, block);
    const uint8_t *values = w->values + w->offsets[block];
    const float *x = p->x;
    chunk part;
    __m256 totals[BLOCK_ROWS][PANEL];
    for (int r = 0; r < BLOCK_ROWS; r++)
        for (int i = 0; i < m; i++) totals[r][i] = _mm256_setzero_ps();
    for (int64_t first = 0; first < w->tiles; first += CHUNK_TILES, mask += CHUNK_TILES * TILE_PAIRS) {
        const int64_t tiles = w->tiles - first < CHUNK_TILES ? w->tiles - first : CHUNK_TILES;
        values = decode(&part, mask, values, tiles, zeros ? (char)0x80 : -SYMMETRIC_ZERO);
        for (int64_t tile = 0; tile < tiles;) {
            const int64_t group = (first + tile) / w->group_tiles;
            const int64_t stop = group_stop(w, first + tile, first + tiles) - first;
            __m256 sums[BLOCK_ROWS][PANEL];
            __m128i table[BLOCK_ROWS];
            for (int r = 0; r < BLOCK_ROWS; r++) {
                table[r] = zero_table(zeros ? int4_zero(w, block, group, r) : 0);
                for (int i = 0; i < m; i++) sums[r][i] = _mm256_setzero_ps();
            }
            for (; tile < stop; tile++)
#pragma GCC unroll 4
                for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
                    for (int eight = 0; eight < 4; eight++) {
                        const __m256 dense = expand8(&part, mask, tile, r, eight, table[r], zeros);
                        const float *input = x + (first + tile) * m * TILE_COLUMNS + 8 * eight;
#pragma GCC unroll 3
                        for (int i = 0; i < m; i++)
                            sums[r][i] = _mm256_fmadd_ps(dense, _mm256_loadu_ps(input + i * TILE_COLUMNS),
                                                         sums[r][i]);
                    }
            for (int r = 0; r < BLOCK_ROWS; r++) {
                const __m256 scale = _mm256_set1_ps(int4_scale(w, block, group, r));
                for (int i = 0; i < m; i++) totals[r][i] = _mm256_fmadd_ps(sums[r][i], scale, totals[r][i]);
            }
        }
    }
    if (values != w->values + w->offsets[block + 1]) return 1;
    store_panel(w, p, block, 0, totals, m);
    return 0;
}

/* Writes the weights of the chunk of `tiles` tiles that begins at tile `first` to [4, stride]. */
INLINE const uint8_t *expand_chunk(const tamp_int4_weight *w, int64_t block, int64_t first, int64_t tiles,
                                   const uint8_t *values, float *dense, int64_t stride, const int zeros) {
    const uint64_t *mask = int4_mask(w, block) + first * TILE_PAIRS;
    chunk part;
    values = decode(&part, mask, values, tiles, zeros ? (char)0x80 : -SYMMETRIC_ZERO);
    for (int64_t tile = 0; tile < tiles;) {
        const int64_t group = (first + tile) / w->group_tiles;
        const int64_t stop = group_stop(w, first + tile, first + tiles) - first;
        __m256 scale[BLOCK_ROWS];
        __m128i table[BLOCK_ROWS];
        for (int r = 0; r < BLOCK_ROWS; r++) {
            table[r] = zero_table(zeros ? int4_zero(w, block, group, r) : 0);
            scale[r] = _mm256_set1_ps(int4_scale(w, block, group, r));
        }
        for (; tile < stop; tile++)
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 4
                for (int eight = 0; eight < 4; eight++) {
                    const __m256 codes = expand8(&part, mask, tile, r, eight, table[r], zeros);
                    _mm256_storeu_ps(dense + r * stride + tile * TILE_COLUMNS + 8 * eight,
                                     _mm256_mul_ps(codes, scale[r]));
                }
    }
    return values;
}

static TARGET_AVX2 const uint8_t *expand_symmetric(const tamp_int4_weight *w, int64_t block, int64_t first,
                                                   int64_t tiles, const uint8_t *values, float *dense,
                                                   int64_t stride) {
    return expand_chunk(w, block, first, tiles, values, dense, stride, 0);
}
static TARGET_AVX2 const uint8_t *expand_with_zeros(const tamp_int4_weight *w, int64_t block, int64_t first,
                                                    int64_t tiles, const uint8_t *values, float *dense,
                                                    int64_t stride) {
    return expand_chunk(w, block, first, tiles, values, dense, stride, 1);
}

/* Adds the products of 4 rows of `columns` expanded weights with m rows of x to the totals. */
INLINE void multiply_expanded(__m256 totals[BLOCK_ROWS][PANEL], const float *dense, const float *x,
                              int64_t tiles, const int m) {
    __m256 sums[BLOCK_ROWS][PANEL];
#pragma GCC unroll 4
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 3
        for (int i = 0; i < m; i++) sums[r][i] = totals[r][i];
    for (int64_t tile = 0; tile < tiles; tile++, dense += TILE_COLUMNS, x += m * TILE_COLUMNS)
        for (int c = 0; c < TILE_COLUMNS; c += 8) {
            __m256 input[PANEL];
#pragma GCC unroll 3
            for (int i = 0; i < m; i++) input[i] = _mm256_loadu_ps(x + i * TILE_COLUMNS + c);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) {
                const __m256 weight = _mm256_load_ps(dense + r * CHUNK_COLUMNS + c);
#pragma GCC unroll 3
                for (int i = 0; i < m; i++) sums[r][i] = _mm256_fmadd_ps(weight, input[i], sums[r][i]);
            }
        }
#pragma GCC unroll 4
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 3
        for (int i = 0; i < m; i++) totals[r][i] = sums[r][i];
}

#define DEFINE(M)                                                                                \
    static TARGET_AVX2 int symmetric_##M(const tamp_int4_weight *w, const tamp_int4_product *p,  \
                                         int64_t block) {                                        \
        return one_panel(w, p, block, M, 0);                                                     \
    }                                                                                            \
    static TARGET_AVX2 int with_zeros_##M(const tamp_int4_weight *w, const tamp_int4_product *p, \
                                          int64_t block) {                                       \
        return one_panel(w, p, block, M, 1);                                                     \
    }                                                                                            \
    static TARGET_AVX2 void expanded_##M(__m256 totals[BLOCK_ROWS][PANEL], const float *dense,   \
                                         const float *x, int64_t tiles) {                        \
        multiply_expanded(totals, dense, x, tiles, M);                                           \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)

/* More rows of x: a chunk of the weight is expanded once, stays in the level-1 cache, and meets them all.
 */
static TARGET_AVX2 int many_panels(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block) {
    typedef void (*expanded_kernel)(__m256[BLOCK_ROWS][PANEL], const float *, const float *, int64_t);
    static const expanded_kernel kernels[PANEL] = {expanded_1, expanded_2, expanded_3};
    _Alignas(32) float dense[BLOCK_ROWS * CHUNK_COLUMNS];
    __m256 totals[STRIP / PANEL][BLOCK_ROWS][PANEL];
    const int panels = (p->m + PANEL - 1) / PANEL;
    for (int i = 0; i < panels * BLOCK_ROWS * PANEL; i++) (&totals[0][0][0])[i] = _mm256_setzero_ps();
    const uint8_t *values = w->values + w->offsets[block];
    for (int64_t first = 0; first < w->tiles; first += CHUNK_TILES) {
        const int64_t tiles = w->tiles - first < CHUNK_TILES ? w->tiles - first : CHUNK_TILES;
        values = w->zeros ? expand_with_zeros(w, block, first, tiles, values, dense, CHUNK_COLUMNS)
                          : expand_symmetric(w, block, first, tiles, values, dense, CHUNK_COLUMNS);
        for (int panel = 0; panel < panels; panel++) {
            const int m = p->m - panel * PANEL < PANEL ? p->m - panel * PANEL : PANEL;
            const float *x = (const float *)p->x + (panel * PANEL * w->tiles + first * m) * TILE_COLUMNS;
            kernels[m - 1](totals[panel], dense, x, tiles);
        }
    }
    if (values != w->values + w->offsets[block + 1]) return 1;
    for (int panel = 0; panel < panels; panel++) {
        const int m = p->m - panel * PANEL < PANEL ? p->m - panel * PANEL : PANEL;
        store_panel(w, p, block, panel * PANEL, totals[panel], m);
    }
    return 0;
}

static int multiply_blocks(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t begin,
                           int64_t end) {
    typedef int (*block_kernel)(const tamp_int4_weight *, const tamp_int4_product *, int64_t);
    static const block_kernel kernels[2][PANEL] = {{symmetric_1, symmetric_2, symmetric_3},
                                                   {with_zeros_1, with_zeros_2, with_zeros_3}};
    const block_kernel kernel = p->m > PANEL ? many_panels : kernels[w->zeros != NULL][p->m - 1];
    for (int64_t block = begin; block < end; block++)
        if (!int4_block_is_safe(w, block) || kernel(w, p, block)) return 1;
    return 0;
}

static int expand(const tamp_int4_weight *w, int64_t block, float *dense, int64_t stride) {
    if (!int4_block_is_safe(w, block)) return 1;
    const uint8_t *values = w->values + w->offsets[block];
    for (int64_t first = 0; first < w->tiles; first += CHUNK_TILES) {
        const int64_t tiles = w->tiles - first < CHUNK_TILES ? w->tiles - first : CHUNK_TILES;
        float *to = dense + first * TILE_COLUMNS;
        values = w->zeros ? expand_with_zeros(w, block, first, tiles, values, to, stride)
                          : expand_symmetric(w, block, first, tiles, values, to, stride);
    }
    return values != w->values + w->offsets[block + 1];
}

static const tamp_int4_kernel fp32 = {
    .entry = ENTRY_FP32,
    .panel = PANEL,
    .strip = STRIP,
    .most_rows = 16,
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_avx2 = {.fp32 = &fp32, .expand = expand};
#endif
