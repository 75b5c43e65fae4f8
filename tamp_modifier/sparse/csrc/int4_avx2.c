/* 4-bit weights with AVX2 and FMA, computing in fp32.
 *
 * A chunk of tiles at a time: its codes become bf16 numbers in a buffer, which does not depend on the mask.
 * A table turns 8 mask bits into the shuffle that puts 8 of these numbers in the upper halves of 8 lanes,
 * where they are fp32. With zeros the numbers are -16 - code, negative where a weight is kept and 0
 * elsewhere; 16 + zero is added to the negative ones, and the scale turned around. */
#include "tamp_int4.h"

#ifdef TAMP_X86
#include <immintrin.h>

#define INLINE static inline TARGET_AVX2 __attribute__((always_inline))
#define PANEL 6        /* rows of x that meet a weight in its register */
#define HALF 3         /* and an expanded one: 4 * 3 sums stay in registers */
#define STRIP 48       /* rows of x that share one expansion of the weight */
#define CHUNK_TILES 16 /* 4 rows of 512 columns are kept expanded: 8 KB */
#define CHUNK_COLUMNS (CHUNK_TILES * TILE_COLUMNS)
#define PREFETCH_BYTES 2048
#define BIAS 16 /* greater than any zero */

typedef struct {
    uint16_t
        numbers[CHUNK_TILES * 2 * INT4_TILE_BYTES + 32]; /* of kept weights, and what 16 bytes more give */
} chunk;

static _Alignas(32) uint8_t upper_places[256][32];               /* shuffle for 8 mask bits */
static _Alignas(16) uint8_t low_bytes[2][16], high_bytes[2][16]; /* of the numbers for codes */

/* Bytes 0-3 and 8-11 into the lower lane, the others into the upper one, each into 16 bits: the order in
 * which unpacking leaves them in place. */
static const int8_t spread_bytes[32] = {0, -1, 1, -1, 2, -1, 3, -1, 8,  -1, 9,  -1, 10, -1, 11, -1,
                                        4, -1, 5, -1, 6, -1, 7, -1, 12, -1, 13, -1, 14, -1, 15, -1};

__attribute__((constructor)) static void fill_tables(void) {
    for (int mask = 0; mask < 256; mask++)
        for (int bit = 0, next = 0; bit < 8; bit++) {
            const int kept = mask >> bit & 1;
            uint8_t *lane = upper_places[mask] + 4 * bit;
            lane[0] = lane[1] = 0x80;
            lane[2] = kept ? (uint8_t)(2 * next) : 0x80;
            lane[3] = kept ? (uint8_t)(2 * next + 1) : 0x80;
            next += kept;
        }
    for (int code = 0; code < 16; code++)
        for (int zeros = 0; zeros < 2; zeros++) {
            const uint16_t bits = bf16_of_float((float)(zeros ? -BIAS - code : code - SYMMETRIC_ZERO));
            low_bytes[zeros][code] = (uint8_t)bits;
            high_bytes[zeros][code] = (uint8_t)(bits >> 8);
        }
}

/* Decodes the chunk of `tiles` tiles whose codes begin at `values`. Returns where the next chunk begins.
 * Reads up to 15 bytes more than there are. */
INLINE const uint8_t *decode(chunk *to, const uint64_t *mask, const uint8_t *values, int64_t tiles,
                             const int zeros) {
    int64_t bytes = 0;
    for (int64_t pair = 0; pair < tiles * TILE_PAIRS; pair++) bytes += pair_bytes(mask[pair]);
    const __m256i spread = _mm256_loadu_si256((const __m256i *)spread_bytes);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)low_bytes[zeros]));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)high_bytes[zeros]));
    for (int64_t i = 0; i < bytes; i += 16) {
        _mm_prefetch((const char *)values + i + PREFETCH_BYTES, _MM_HINT_T0);
        const __m128i packed = _mm_loadu_si128((const __m128i *)(values + i));
        const __m256i wide = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), spread);
        const __m256i codes = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), nibble);
        const __m256i l = _mm256_shuffle_epi8(low, codes), h = _mm256_shuffle_epi8(high, codes);
        __m256i *place = (__m256i *)(to->numbers + 2 * i);
        _mm256_storeu_si256(place, _mm256_unpacklo_epi8(l, h));
        _mm256_storeu_si256(place + 1, _mm256_unpackhi_epi8(l, h));
    }
    return values + bytes;
}

/* What the rows of a group share, in all lanes. */
typedef struct {
    __m256 scale[BLOCK_ROWS], zero[BLOCK_ROWS];
} group_of_rows;

INLINE group_of_rows load_group(const tamp_int4_weight *w, int64_t block, int64_t group, const int zeros) {
    group_of_rows rows;
    for (int r = 0; r < BLOCK_ROWS; r++) {
        const float scale = int4_scale(w, block, group, r);
        rows.scale[r] = _mm256_set1_ps(zeros ? -scale : scale);
        rows.zero[r] = _mm256_set1_ps(zeros ? (float)(BIAS + int4_zero(w, block, group, r)) : 0);
    }
    return rows;
}

/* Code - zero of 8 columns, the other way round with `zeros`. Their numbers begin at `place`, which moves
 * on: an index, as adding to it takes half the time of adding to a pointer, and each waits for the one
 * before. */
INLINE __m256 expand8(const chunk *part, int64_t *place, uint8_t mask, __m256 zero, const int zeros) {
    const __m256i places = _mm256_load_si256((const __m256i *)upper_places[mask]);
    const __m256i kept =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(part->numbers + *place)));
    const __m256i dense = _mm256_shuffle_epi8(kept, places);
    *place += __builtin_popcount(mask);
    if (!zeros) return _mm256_castsi256_ps(dense);
    const __m256i added = _mm256_and_si256(_mm256_srai_epi32(dense, 31), _mm256_castps_si256(zero));
    return _mm256_add_ps(_mm256_castsi256_ps(dense), _mm256_castsi256_ps(added));
}

/* Pairs begin at whole bytes, that is at every second number. */
INLINE int64_t next_pair(int64_t place) { return (place + 1) & ~(int64_t)1; }

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
        int64_t place = 0;
        values = decode(&part, mask, values, tiles, zeros);
        for (int64_t tile = 0; tile < tiles;) {
            const group_of_rows rows = load_group(w, block, (first + tile) / w->group_tiles, zeros);
            const int64_t stop = group_stop(w, first + tile, first + tiles) - first;
            __m256 sums[BLOCK_ROWS][PANEL];
            for (int r = 0; r < BLOCK_ROWS; r++)
                for (int i = 0; i < m; i++) sums[r][i] = _mm256_setzero_ps();
            for (; tile < stop; tile++) {
                const uint8_t *bits = (const uint8_t *)(mask + tile * TILE_PAIRS);
                const float *input = x + (first + tile) * m * TILE_COLUMNS;
#pragma GCC unroll 4
                for (int r = 0; r < BLOCK_ROWS; r++) {
#pragma GCC unroll 4
                    for (int eight = 0; eight < 4; eight++) {
                        const __m256 dense =
                            expand8(&part, &place, bits[r * 4 + eight], rows.zero[r], zeros);
#pragma GCC unroll 6
                        for (int i = 0; i < m; i++)
                            sums[r][i] = _mm256_fmadd_ps(
                                dense, _mm256_loadu_ps(input + i * TILE_COLUMNS + 8 * eight), sums[r][i]);
                    }
                    if (r % 2) place = next_pair(place);
                }
            }
            for (int r = 0; r < BLOCK_ROWS; r++)
                for (int i = 0; i < m; i++)
                    totals[r][i] = _mm256_fmadd_ps(sums[r][i], rows.scale[r], totals[r][i]);
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
    int64_t place = 0;
    values = decode(&part, mask, values, tiles, zeros);
    for (int64_t tile = 0; tile < tiles;) {
        const group_of_rows rows = load_group(w, block, (first + tile) / w->group_tiles, zeros);
        const int64_t stop = group_stop(w, first + tile, first + tiles) - first;
        for (; tile < stop; tile++) {
            const uint8_t *bits = (const uint8_t *)(mask + tile * TILE_PAIRS);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) {
#pragma GCC unroll 4
                for (int eight = 0; eight < 4; eight++) {
                    const __m256 codes = expand8(&part, &place, bits[r * 4 + eight], rows.zero[r], zeros);
                    _mm256_storeu_ps(dense + r * stride + tile * TILE_COLUMNS + 8 * eight,
                                     _mm256_mul_ps(codes, rows.scale[r]));
                }
                if (r % 2) place = next_pair(place);
            }
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

/* Adds the products of 4 rows of expanded weights with m rows of x, of a panel of `rows`, to the totals. */
INLINE void multiply_expanded(__m256 *totals[BLOCK_ROWS], const float *dense, const float *x, int rows,
                              int64_t tiles, const int m) {
    __m256 sums[BLOCK_ROWS][HALF];
#pragma GCC unroll 4
    for (int r = 0; r < BLOCK_ROWS; r++)
#pragma GCC unroll 3
        for (int i = 0; i < m; i++) sums[r][i] = totals[r][i];
    for (int64_t tile = 0; tile < tiles; tile++, dense += TILE_COLUMNS, x += rows * TILE_COLUMNS)
        for (int c = 0; c < TILE_COLUMNS; c += 8) {
            __m256 input[HALF];
#pragma GCC unroll 3
            for (int i = 0; i < m; i++) input[i] = _mm256_loadu_ps(x + i * TILE_COLUMNS + c);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++) {
                const __m256 weight = _mm256_loadu_ps(dense + r * CHUNK_COLUMNS + c);
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
    }
#define DEFINE_EXPANDED(M)                                                                               \
    static TARGET_AVX2 void expanded_##M(__m256 *totals[BLOCK_ROWS], const float *dense, const float *x, \
                                         int rows, int64_t tiles) {                                      \
        multiply_expanded(totals, dense, x, rows, tiles, M);                                             \
    }
DEFINE(1)
DEFINE(2)
DEFINE(3)
DEFINE(4)
DEFINE(5)
DEFINE(6)
DEFINE_EXPANDED(1)
DEFINE_EXPANDED(2)
DEFINE_EXPANDED(3)

/* More rows of x: a chunk of the weight is expanded once, stays in the level-1 cache, and meets them all.
 */
static TARGET_AVX2 int many_panels(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block) {
    typedef void (*expanded_kernel)(__m256 **, const float *, const float *, int, int64_t);
    static const expanded_kernel kernels[HALF] = {expanded_1, expanded_2, expanded_3};
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
            for (int i = 0; i < m; i += HALF) {
                __m256(*t)[PANEL] = totals[panel];
                __m256 *sums[BLOCK_ROWS] = {t[0] + i, t[1] + i, t[2] + i, t[3] + i};
                kernels[(m - i < HALF ? m - i : HALF) - 1](sums, dense, x + i * TILE_COLUMNS, m, tiles);
            }
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
    static const block_kernel kernels[2][PANEL] = {
        {symmetric_1, symmetric_2, symmetric_3, symmetric_4, symmetric_5, symmetric_6},
        {with_zeros_1, with_zeros_2, with_zeros_3, with_zeros_4, with_zeros_5, with_zeros_6}};
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
    .most_rows = 48, /* measured on Zen 3, against torch's fp32 product */
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_avx2 = {.fp32 = &fp32, .expand = expand};
#endif
