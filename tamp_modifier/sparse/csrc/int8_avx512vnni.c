/* INT8 with AVX-512 VNNI and VBMI2. Two rows of a tile are adjacent in mask and values: one vpexpandb gives
 * both, 64 weights, which vpdpbusd multiplies with 32 columns of x, twice the same. It takes x as unsigned
 * bytes, so x is x + 128 here, and 128 times the sum of each row of the weight is subtracted at the end;
 * what exceeds 32 bits in between wraps around and comes back.
 *
 * 4 rows of the weight by up to 8 rows of x are summed in registers. More rows of x are cut into panels:
 * the first one also stores the expanded values, a chunk that stays in the level-1 cache, and the other
 * panels find them there. */
#include <string.h>

#include "tamp_int8.h"

#ifdef TAMP_X86

#define INLINE static inline TARGET_VNNI __attribute__((always_inline))
#define PANEL_ROWS 8
#define STRIP_ROWS 192 /* x in a chunk of columns stays in the level-2 cache */
#define CHUNK_TILES 32 /* 4 rows of 1024 columns are kept expanded: 4 KB */
#define TILE (BLOCK_ROWS * TILE_COLUMNS)
#define PAIR (2 * TILE_COLUMNS)
/* In bytes of the values, see avx512bf16.h; a mask is a quarter of them at 50 %. */
#define FAR 8192
#define NEAR 3072

typedef struct {
    __m512i low[PANEL_ROWS], high[PANEL_ROWS]; /* rows 0 and 1 of the weight, and 2 and 3 */
} panel_sums;

INLINE void clear(panel_sums *sums, const int m) {
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) sums->low[i] = sums->high[i] = _mm512_setzero_si512();
}

INLINE __m512i expand(const uint64_t *mask, const int8_t *values) {
    return _mm512_maskz_expand_epi8(_load_mask64((__mmask64 *)mask), _mm512_loadu_si512(values));
}

INLINE void multiply_tile(panel_sums *sums, __m512i low, __m512i high, const uint8_t *x, const int m) {
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        const __m256i columns = _mm256_loadu_si256((const __m256i *)(x + i * TILE_COLUMNS));
        const __m512i input = _mm512_broadcast_i64x4(columns);
        sums->low[i] = _mm512_dpbusd_epi32(sums->low[i], input, low);
        sums->high[i] = _mm512_dpbusd_epi32(sums->high[i], input, high);
    }
}

/* In the lanes of a total stand sums of the rows 0 2 0 2, 0 2 0 2, 1 3 1 3, 1 3 1 3. */
INLINE void add_to(__m512i *totals, const panel_sums *sums, const int m) {
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        const __m512i half = _mm512_add_epi32(_mm512_unpacklo_epi32(sums->low[i], sums->high[i]),
                                              _mm512_unpackhi_epi32(sums->low[i], sums->high[i]));
        totals[i] = _mm512_add_epi32(totals[i], half);
    }
}

INLINE __m128i add_halves(__m256i lanes) {
    return _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
}

INLINE void store_total(const tamp_weight *w, const tamp_int8_product *p, int64_t block, int64_t i,
                        __m512i total) {
    const __m128i even = add_halves(_mm512_castsi512_si256(total));
    const __m128i odd = add_halves(_mm512_extracti64x4_epi64(total, 1));
    const __m128i sums = _mm_add_epi32(_mm_unpacklo_epi32(even, odd), _mm_unpackhi_epi32(even, odd));
    const int64_t row = block * BLOCK_ROWS, left = w->rows - row;
    const __mmask8 inside = (__mmask8)(left < BLOCK_ROWS ? (1 << left) - 1 : 15);
    const __m128i rows = _mm_maskz_loadu_epi32(inside, p->sums + row);
    store_int8_avx2(w, p, block, i, _mm_sub_epi32(sums, _mm_slli_epi32(rows, 7)));
}

INLINE void prefetch(const uint64_t *mask, const int8_t *values, const int wide) {
    const char *start = (const char *)values;
    _mm_prefetch(start + NEAR, _MM_HINT_T0);
    _mm_prefetch(start + FAR, _MM_HINT_T1);
    if (wide) {
        _mm_prefetch(start + NEAR + 64, _MM_HINT_T0);
        _mm_prefetch(start + FAR + 64, _MM_HINT_T1);
    }
    _mm_prefetch((const char *)mask + NEAR / 4, _MM_HINT_T0);
    _mm_prefetch((const char *)mask + FAR / 4, _MM_HINT_T1);
}

/* Multiplies `tiles` tiles of a block with a panel of m rows of x; stores them in `dense` if `keep`.
 * Returns where the values of the next tile begin. */
INLINE const int8_t *expand_and_multiply(const uint64_t *mask, const int8_t *values, int64_t tiles,
                                         const int wide, const uint8_t *x, int8_t *dense, __m512i *totals,
                                         const int m, const int keep) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, mask += 2, x += m * TILE_COLUMNS) {
        const int8_t *third = values + popcount64(mask[0]);
        const __m512i low = expand(mask, values), high = expand(mask + 1, third);
        prefetch(mask, values, wide);
        if (keep) {
            _mm512_store_si512(dense + tile * TILE, low);
            _mm512_store_si512(dense + tile * TILE + PAIR, high);
        }
        multiply_tile(&sums, low, high, x, m);
        values = third + popcount64(mask[1]);
    }
    add_to(totals, &sums, m);
    return values;
}

/* The same with tiles that are expanded already. */
INLINE void multiply_expanded(const int8_t *dense, int64_t tiles, const uint8_t *x, __m512i *totals,
                              const int m) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, dense += TILE, x += m * TILE_COLUMNS)
        multiply_tile(&sums, _mm512_loadu_si512(dense), _mm512_loadu_si512(dense + PAIR), x, m);
    add_to(totals, &sums, m);
}

typedef const int8_t *(*first_kernel)(const uint64_t *, const int8_t *, int64_t, int, const uint8_t *,
                                      int8_t *, __m512i *);
typedef void (*later_kernel)(const int8_t *, int64_t, const uint8_t *, __m512i *);

#define DEFINE_FIRST(NAME, M, KEEP)                                                                        \
    static TARGET_VNNI const int8_t *NAME##_##M(const uint64_t *mask, const int8_t *values, int64_t tiles, \
                                                int wide, const uint8_t *x, int8_t *dense,                 \
                                                __m512i *totals) {                                         \
        return expand_and_multiply(mask, values, tiles, wide, x, dense, totals, M, KEEP);                  \
    }
#define DEFINE_LATER(M)                                                                     \
    static TARGET_VNNI void later_##M(const int8_t *dense, int64_t tiles, const uint8_t *x, \
                                      __m512i *totals) {                                    \
        multiply_expanded(dense, tiles, x, totals, M);                                      \
    }
DEFINE_FIRST(only, 1, 0)
DEFINE_FIRST(only, 2, 0)
DEFINE_FIRST(only, 3, 0)
DEFINE_FIRST(only, 4, 0)
DEFINE_FIRST(only, 5, 0)
DEFINE_FIRST(only, 6, 0)
DEFINE_FIRST(only, 7, 0)
DEFINE_FIRST(only, 8, 0)
/* Panels of nine and more rows have at least four, the first ones at least five. */
DEFINE_FIRST(first, 5, 1)
DEFINE_FIRST(first, 6, 1)
DEFINE_FIRST(first, 7, 1)
DEFINE_FIRST(first, 8, 1)
DEFINE_LATER(4)
DEFINE_LATER(5)
DEFINE_LATER(6)
DEFINE_LATER(7)
DEFINE_LATER(8)

static const first_kernel only[PANEL_ROWS + 1] = {0,      only_1, only_2, only_3, only_4,
                                                  only_5, only_6, only_7, only_8};
static const first_kernel first[PANEL_ROWS + 1] = {[5] = first_5, first_6, first_7, first_8};
static const later_kernel later[PANEL_ROWS + 1] = {[4] = later_4, later_5, later_6, later_7, later_8};

/* Multiplies one chunk of a block with all panels. */
static const int8_t *multiply_chunk(const tamp_weight *w, const tamp_int8_product *p, int64_t block,
                                    int64_t tile, const int8_t *values, int wide, int8_t *dense,
                                    __m512i *totals) {
    const uint64_t *mask = (const uint64_t *)(w->mask + (block * w->tiles + tile) * BLOCK_ROWS);
    const int64_t left = w->tiles - tile;
    /* What is not kept needs no chunks. */
    const int64_t tiles = left < CHUNK_TILES || p->m <= PANEL_ROWS ? left : CHUNK_TILES;
    const uint8_t *panel = p->x;
    for (int64_t row = 0; row < p->m;) {
        const int rows = (int)even_share(p->m - row, PANEL_ROWS);
        const uint8_t *x = panel + tile * rows * TILE_COLUMNS;
        if (row) {
            later[rows](dense, tiles, x, totals + row);
        } else {
            const first_kernel kernel = (p->m > PANEL_ROWS ? first : only)[rows];
            values = kernel(mask, values, tiles, wide, x, dense, totals);
        }
        panel += w->tiles * rows * TILE_COLUMNS;
        row += rows;
    }
    return values;
}

static TARGET_VNNI int kernel(const tamp_weight *w, const tamp_int8_product *p, int64_t begin,
                              int64_t end) {
    _Alignas(64) int8_t dense[CHUNK_TILES * TILE];
    __m512i totals[STRIP_ROWS];
    const int8_t *all = w->values;
    const int wide = is_wide(w);
    const int64_t chunk = p->m > PANEL_ROWS ? CHUNK_TILES : w->tiles;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return INT8_CORRUPT;
        const int8_t *values = all + w->offsets[block];
        for (int64_t i = 0; i < p->m; i++) totals[i] = _mm512_setzero_si512();
        for (int64_t tile = 0; tile < w->tiles; tile += chunk)
            values = multiply_chunk(w, p, block, tile, values, wide, dense, totals);
        if (values != all + w->offsets[block + 1]) return INT8_CORRUPT;
        for (int64_t i = 0; i < p->m; i++) store_total(w, p, block, i, totals[i]);
    }
    return INT8_OK;
}

static size_t bytes(const tamp_input *in) { return (size_t)(in->m * in->tiles * TILE_COLUMNS); }

/* Panels of [tiles, rows, 32] each, so that a kernel reads one sequential stream. */
static void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    uint8_t *panel = copy;
    for (int64_t row = 0; row < in->m;) {
        const int rows = (int)even_share(in->m - row, PANEL_ROWS);
        for (int64_t tile = begin; tile < end; tile++) {
            const int64_t column = tile * TILE_COLUMNS, left = in->columns - column;
            for (int i = 0; i < rows; i++) {
                const int8_t *from = (const int8_t *)in->x + (row + i) * in->stride + column;
                uint8_t *to = panel + (tile * rows + i) * TILE_COLUMNS;
                int8_t last[TILE_COLUMNS] = {0};
                if (left < TILE_COLUMNS) from = memcpy(last, from, (size_t)left);
                for (int c = 0; c < TILE_COLUMNS; c++) to[c] = (uint8_t)(from[c] ^ 0x80);
            }
        }
        panel += rows * in->tiles * TILE_COLUMNS;
        row += rows;
    }
}

static int supported(void) { return __builtin_cpu_supports("avx512vnni"); }

const tamp_int8 tamp_int8_avx512vnni = {
    .supported = supported,
    .strip = STRIP_ROWS,
    .group = 1,
    .bytes = bytes,
    .prepare = prepare,
    .kernel = kernel,
};
#endif
