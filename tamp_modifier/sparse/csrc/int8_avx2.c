/* INT8 with AVX2. A table turns 8 mask bits into the shuffle that puts 8 packed values in their places,
 * each as the upper byte of 16 bits: 256 times the value, without a conversion. vpmaddwd multiplies them
 * with x in 16 bits, exactly (vpmaddubsw would saturate), and the factor is shifted out of the sums of a
 * chunk.
 *
 * 4 rows of the weight by up to 3 rows of x are summed in registers. More rows of x are cut into panels:
 * the first one also stores the expanded values, a chunk that stays in the level-1 cache, and the other
 * panels find them there. What limits this is the expansion, not memory: prefetching costs more than it
 * brings. */
#include <string.h>

#include "tamp_int8.h"

#ifdef TAMP_X86

#define INLINE INLINE_AVX2
#define PANEL_ROWS 3
#define STRIP_ROWS 192
/* A lane sums 128 pairs of products, 256 times as large as they are: at most 2^30. */
#define CHUNK_TILES 64
#define TILE (BLOCK_ROWS * TILE_COLUMNS)

static _Alignas(64) uint8_t places[256][16]; /* for _mm_shuffle_epi8 */

__attribute__((constructor)) static void fill_table(void) {
    for (int mask = 0; mask < 256; mask++)
        for (int bit = 0, next = 0; bit < 8; bit++) {
            places[mask][2 * bit] = 0x80;
            places[mask][2 * bit + 1] = mask >> bit & 1 ? (uint8_t)next++ : 0x80;
        }
}

#ifdef TAMP_EMULATED
#define IN_ORDER(SUM)
#define count_bits __builtin_popcount
#else
/* Additions in any other order than written need more registers than there are. */
#define IN_ORDER(SUM) __asm__("" : "+x"(SUM))
INLINE uint64_t count_bits(uint64_t bits) { /* GCC clears `count` first, for the sake of old processors */
    uint64_t count;
    __asm__("popcnt %1, %0" : "=r"(count) : "r"(bits));
    return count;
}
#endif

/* 8 columns; moves on to the values of the next ones. `place` is 16 times the mask. */
INLINE __m128i expand8(const int8_t **values, uint32_t place) {
    const __m128i packed = _mm_loadl_epi64((const __m128i *)*values);
    *values += count_bits(place);
    return _mm_shuffle_epi8(packed, _mm_load_si128((const __m128i *)(&places[0][0] + place)));
}

INLINE __m256i expand16(const int8_t **values, const uint8_t *mask) {
    const __m128i low = expand8(values, (uint32_t)mask[0] << 4);
    const __m128i high = expand8(values, (uint32_t)mask[1] << 4);
    return _mm256_set_m128i(high, low);
}

typedef struct {
    __m256i rows[BLOCK_ROWS][PANEL_ROWS];
} panel_sums;

INLINE void clear(panel_sums *sums, const int m) {
#pragma GCC unroll 3
    for (int i = 0; i < m; i++)
        sums->rows[0][i] = sums->rows[1][i] = sums->rows[2][i] = sums->rows[3][i] = _mm256_setzero_si256();
}

INLINE __m256i load(const int16_t *at) { return _mm256_loadu_si256((const __m256i *)at); }

/* The next 16 columns of m rows of x, and their products with one row of the weight. */
INLINE void load_x(__m256i *inputs, const int16_t *x, const int m) {
#pragma GCC unroll 3
    for (int i = 0; i < m; i++) inputs[i] = load(x + i * TILE_COLUMNS);
}
INLINE void multiply16(__m256i *sums, __m256i weights, __m256i *inputs, const int m) {
#pragma GCC unroll 3
    for (int i = 0; i < m; i++) {
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(weights, inputs[i]));
        IN_ORDER(sums[i]);
    }
}

INLINE __m256i add_lanes(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

/* Adds the sums of a chunk: in each half of a total stand the sums of the four rows. */
INLINE void add_to(__m256i *totals, panel_sums *sums, const int m) {
#pragma GCC unroll 3
    for (int i = 0; i < m; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK_ROWS; r++) sums->rows[r][i] = _mm256_srai_epi32(sums->rows[r][i], 8);
        const __m256i a = add_lanes(sums->rows[0][i], sums->rows[1][i]);
        const __m256i b = add_lanes(sums->rows[2][i], sums->rows[3][i]);
        const __m256i all = _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
        totals[i] = _mm256_add_epi32(totals[i], all);
    }
}

/* Multiplies `tiles` tiles of a block with a panel of m rows of x; stores them in `dense` if `keep`.
 * Returns where the values of the next tile begin. */
INLINE const int8_t *expand_and_multiply(const uint32_t *mask, const int8_t *values, int64_t tiles,
                                         const int16_t *x, int16_t *dense, __m256i *totals, const int m,
                                         const int keep) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, mask += BLOCK_ROWS, x += m * TILE_COLUMNS) {
        __m256i inputs[2 * PANEL_ROWS];
        load_x(inputs, x, m);
        load_x(inputs + m, x + 16, m);
#pragma GCC unroll 4
        for (int r = 0; r < BLOCK_ROWS; r++) {
            const uint8_t *bits = (const uint8_t *)(mask + r);
            const __m256i low = expand16(&values, bits), high = expand16(&values, bits + 2);
            if (keep) {
                int16_t *to = dense + tile * TILE + r * TILE_COLUMNS;
                _mm256_store_si256((__m256i *)to, low);
                _mm256_store_si256((__m256i *)(to + 16), high);
            }
            multiply16(sums.rows[r], low, inputs, m);
            multiply16(sums.rows[r], high, inputs + m, m);
        }
    }
    add_to(totals, &sums, m);
    return values;
}

/* The same with tiles that are expanded already. */
INLINE void multiply_expanded(const int16_t *dense, int64_t tiles, const int16_t *x, __m256i *totals,
                              const int m) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, dense += TILE, x += m * TILE_COLUMNS)
#pragma GCC unroll 2
        for (int half = 0; half < TILE_COLUMNS; half += 16) {
            __m256i inputs[PANEL_ROWS];
            load_x(inputs, x + half, m);
#pragma GCC unroll 4
            for (int r = 0; r < BLOCK_ROWS; r++)
                multiply16(sums.rows[r], load(dense + r * TILE_COLUMNS + half), inputs, m);
        }
    add_to(totals, &sums, m);
}

typedef const int8_t *(*first_kernel)(const uint32_t *, const int8_t *, int64_t, const int16_t *, int16_t *,
                                      __m256i *);
typedef void (*later_kernel)(const int16_t *, int64_t, const int16_t *, __m256i *);

#define DEFINE_FIRST(NAME, M, KEEP)                                                                        \
    static TARGET_AVX2 const int8_t *NAME##_##M(const uint32_t *mask, const int8_t *values, int64_t tiles, \
                                                const int16_t *x, int16_t *dense, __m256i *totals) {       \
        return expand_and_multiply(mask, values, tiles, x, dense, totals, M, KEEP);                        \
    }
#define DEFINE_LATER(M)                                                                      \
    static TARGET_AVX2 void later_##M(const int16_t *dense, int64_t tiles, const int16_t *x, \
                                      __m256i *totals) {                                     \
        multiply_expanded(dense, tiles, x, totals, M);                                       \
    }
DEFINE_FIRST(only, 1, 0)
DEFINE_FIRST(only, 2, 0)
DEFINE_FIRST(only, 3, 0)
/* Panels of four and more rows have at least two. */
DEFINE_FIRST(first, 2, 1)
DEFINE_FIRST(first, 3, 1)
DEFINE_LATER(2)
DEFINE_LATER(3)

/* Multiplies one chunk of a block with all panels. */
static const int8_t *multiply_chunk(const tamp_weight *w, const tamp_int8_product *p, int64_t block,
                                    int64_t tile, const int8_t *values, int16_t *dense, __m256i *totals) {
    static const first_kernel only[PANEL_ROWS + 1] = {0, only_1, only_2, only_3};
    static const first_kernel first[PANEL_ROWS + 1] = {0, 0, first_2, first_3};
    static const later_kernel later[PANEL_ROWS + 1] = {0, 0, later_2, later_3};
    const uint32_t *mask = w->mask + (block * w->tiles + tile) * BLOCK_ROWS;
    const int64_t tiles = w->tiles - tile < CHUNK_TILES ? w->tiles - tile : CHUNK_TILES;
    const int16_t *panel = p->x;
    for (int64_t row = 0; row < p->m;) {
        const int rows = (int)even_share(p->m - row, PANEL_ROWS);
        const int16_t *x = panel + tile * rows * TILE_COLUMNS;
        if (row) later[rows](dense, tiles, x, totals + row);
        else values = (p->m > PANEL_ROWS ? first : only)[rows](mask, values, tiles, x, dense, totals);
        panel += w->tiles * rows * TILE_COLUMNS;
        row += rows;
    }
    return values;
}

static TARGET_AVX2 int kernel(const tamp_weight *w, const tamp_int8_product *p, int64_t begin,
                              int64_t end) {
    _Alignas(64) int16_t dense[CHUNK_TILES * TILE];
    __m256i totals[STRIP_ROWS];
    const int8_t *all = w->values;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return INT8_CORRUPT;
        const int8_t *values = all + w->offsets[block];
        for (int64_t i = 0; i < p->m; i++) totals[i] = _mm256_setzero_si256();
        for (int64_t tile = 0; tile < w->tiles; tile += CHUNK_TILES)
            values = multiply_chunk(w, p, block, tile, values, dense, totals);
        if (values != all + w->offsets[block + 1]) return INT8_CORRUPT;
        for (int64_t i = 0; i < p->m; i++)
            store_int8_avx2(
                w, p, block, i,
                _mm_add_epi32(_mm256_castsi256_si128(totals[i]), _mm256_extracti128_si256(totals[i], 1)));
    }
    return INT8_OK;
}

static size_t bytes(const tamp_input *in) {
    return (size_t)(in->m * in->tiles * TILE_COLUMNS) * sizeof(int16_t);
}

/* Panels of [tiles, rows, 32] each, so that a kernel reads one sequential stream. */
static TARGET_AVX2 void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    int16_t *panel = copy;
    for (int64_t row = 0; row < in->m;) {
        const int rows = (int)even_share(in->m - row, PANEL_ROWS);
        for (int64_t tile = begin; tile < end; tile++) {
            const int64_t column = tile * TILE_COLUMNS, left = in->columns - column;
            for (int i = 0; i < rows; i++) {
                const int8_t *from = (const int8_t *)in->x + (row + i) * in->stride + column;
                int16_t *to = panel + (tile * rows + i) * TILE_COLUMNS;
                int8_t last[TILE_COLUMNS] = {0};
                if (left < TILE_COLUMNS) from = memcpy(last, from, (size_t)left);
                for (int c = 0; c < TILE_COLUMNS; c++) to[c] = from[c];
            }
        }
        panel += rows * in->tiles * TILE_COLUMNS;
        row += rows;
    }
}

const tamp_int8 tamp_int8_avx2 = {
    .strip = STRIP_ROWS,
    .group = 1,
    .bytes = bytes,
    .prepare = prepare,
    .kernel = kernel,
};
#endif
