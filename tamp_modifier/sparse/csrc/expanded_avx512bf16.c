/* bf16 x bf16 with AVX-512 BF16 and VBMI2, any number of rows of x.
 *
 * A mask word expands 32 packed values into a register (vpexpandw), which vdpbf16ps multiplies with 32
 * entries of each row of x; 4 rows of the weight by up to 6 rows of x are summed in registers. More rows
 * of x are cut into panels (see panel_rows): the first one also stores the expanded values, a chunk that
 * stays in the level-1 cache, and the other panels find them there. That store costs no time.
 *
 * On Zen 4 the mask move and the expansion take 1.6 cycles of the two ports that the products need, and
 * a product of 32 columns takes 1: m + 1.6 cycles for m rows of x, 32 columns of the weight. */
#include "avx512bf16.h"

#ifdef TAMP_X86

#define CHUNK_TILES 32 /* 4 rows of 1024 columns are kept expanded: 8 KB */
#define TILE (BLOCK_ROWS * TILE_COLUMNS)

typedef struct {
    __m512 rows[BLOCK_ROWS][PANEL_ROWS];
} panel_sums;

INLINE void clear(panel_sums *sums, const int m) {
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
        sums->rows[0][i] = sums->rows[1][i] = sums->rows[2][i] = sums->rows[3][i] = _mm512_setzero_ps();
}

INLINE void multiply_tile(panel_sums *sums, __m512bh w0, __m512bh w1, __m512bh w2, __m512bh w3,
                          const uint16_t *x, const int m) {
#pragma GCC unroll 6
    for (int i = 0; i < m; i++) {
        const __m512bh input = load_x(x + i * TILE_COLUMNS);
        sums->rows[0][i] = _mm512_dpbf16_ps(sums->rows[0][i], w0, input);
        sums->rows[1][i] = _mm512_dpbf16_ps(sums->rows[1][i], w1, input);
        sums->rows[2][i] = _mm512_dpbf16_ps(sums->rows[2][i], w2, input);
        sums->rows[3][i] = _mm512_dpbf16_ps(sums->rows[3][i], w3, input);
    }
}

INLINE void add_to(__m512 *totals, const panel_sums *sums, const int m) {
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
        totals[i] = _mm512_add_ps(totals[i], transpose_add(sums->rows[0][i], sums->rows[1][i],
                                                           sums->rows[2][i], sums->rows[3][i]));
}

/* Multiplies `tiles` tiles of a block with a panel of m rows of x; stores them in `dense` if that is not
 * NULL. Returns where the values of the next tile begin. */
INLINE const uint16_t *expand_and_multiply(const uint64_t *mask, const uint16_t *values, int64_t tiles,
                                           const int wide, const uint16_t *x, uint16_t *dense,
                                           __m512 *totals, const int m, const int keep) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, mask += 2, x += m * TILE_COLUMNS) {
        const uint64_t low = mask[0], high = mask[1];
        const uint16_t *second = values + count32(low), *third = values + popcount64(low);
        const uint16_t *fourth = third + count32(high);
        const __m512bh w0 = expand(load_mask(mask, 0), values), w1 = expand(load_mask(mask, 1), second);
        const __m512bh w2 = expand(load_mask(mask, 2), third), w3 = expand(load_mask(mask, 3), fourth);
        prefetch(mask, values, third, wide);
        values = third + popcount64(high);
        if (keep) {
            _mm512_store_si512(dense + tile * TILE, (__m512i)w0);
            _mm512_store_si512(dense + tile * TILE + TILE_COLUMNS, (__m512i)w1);
            _mm512_store_si512(dense + tile * TILE + 2 * TILE_COLUMNS, (__m512i)w2);
            _mm512_store_si512(dense + tile * TILE + 3 * TILE_COLUMNS, (__m512i)w3);
        }
        multiply_tile(&sums, w0, w1, w2, w3, x, m);
    }
    add_to(totals, &sums, m);
    return values;
}

/* The same with tiles that are expanded already. */
INLINE void multiply_expanded(const uint16_t *dense, int64_t tiles, const uint16_t *x, __m512 *totals,
                              const int m) {
    panel_sums sums;
    clear(&sums, m);
    for (int64_t tile = 0; tile < tiles; tile++, dense += TILE, x += m * TILE_COLUMNS)
        multiply_tile(&sums, load_x(dense), load_x(dense + TILE_COLUMNS), load_x(dense + 2 * TILE_COLUMNS),
                      load_x(dense + 3 * TILE_COLUMNS), x, m);
    add_to(totals, &sums, m);
}

typedef const uint16_t *(*first_kernel)(const uint64_t *, const uint16_t *, int64_t, int, const uint16_t *,
                                        uint16_t *, __m512 *);
typedef void (*later_kernel)(const uint16_t *, int64_t, const uint16_t *, __m512 *);

#define DEFINE_FIRST(NAME, M, KEEP)                                                                   \
    static TARGET_AVX512BF16 const uint16_t *NAME##_##M(const uint64_t *mask, const uint16_t *values, \
                                                        int64_t tiles, int wide, const uint16_t *x,   \
                                                        uint16_t *dense, __m512 *totals) {            \
        return expand_and_multiply(mask, values, tiles, wide, x, dense, totals, M, KEEP);             \
    }
#define DEFINE_LATER(M)                                                                              \
    static TARGET_AVX512BF16 void later_##M(const uint16_t *dense, int64_t tiles, const uint16_t *x, \
                                            __m512 *totals) {                                        \
        multiply_expanded(dense, tiles, x, totals, M);                                               \
    }
DEFINE_FIRST(only, 1, 0)
DEFINE_FIRST(only, 2, 0)
DEFINE_FIRST(only, 3, 0)
DEFINE_FIRST(only, 4, 0)
DEFINE_FIRST(only, 5, 0)
DEFINE_FIRST(only, 6, 0)
/* Panels of seven and more rows have at least three. */
DEFINE_FIRST(first, 3, 1)
DEFINE_FIRST(first, 4, 1)
DEFINE_FIRST(first, 5, 1)
DEFINE_FIRST(first, 6, 1)
DEFINE_LATER(3)
DEFINE_LATER(4)
DEFINE_LATER(5)
DEFINE_LATER(6)

/* Up to 6 rows of x: nothing needs to be kept. */
static TARGET_AVX512BF16 int one_panel(const tamp_weight *w, const tamp_product *p, int64_t begin,
                                       int64_t end) {
    static const first_kernel kernels[PANEL_ROWS] = {only_1, only_2, only_3, only_4, only_5, only_6};
    const first_kernel kernel = kernels[p->m - 1];
    const int wide = is_wide(w);
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        __m512 totals[PANEL_ROWS];
        for (int i = 0; i < p->m; i++) totals[i] = _mm512_setzero_ps();
        const uint16_t *stop =
            kernel(mask_pairs(w, block), block_values(w, block), w->tiles, wide, p->x, NULL, totals);
        if (stop != block_values(w, block + 1)) return 1;
        for (int i = 0; i < p->m; i++) store_block(w, p, block, i, fold(totals[i]));
    }
    return 0;
}

static TARGET_AVX512BF16 int many_panels(const tamp_weight *w, const tamp_product *p, int64_t begin,
                                         int64_t end) {
    static const first_kernel first[PANEL_ROWS + 1] = {0, 0, 0, first_3, first_4, first_5, first_6};
    static const later_kernel later[PANEL_ROWS + 1] = {0, 0, 0, later_3, later_4, later_5, later_6};
    _Alignas(64) uint16_t dense[CHUNK_TILES * TILE];
    __m512 totals[STRIP_ROWS];
    const int wide = is_wide(w);
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint16_t *values = block_values(w, block);
        for (int i = 0; i < p->m; i++) totals[i] = _mm512_setzero_ps();
        for (int64_t tile = 0; tile < w->tiles; tile += CHUNK_TILES) {
            const int64_t tiles = w->tiles - tile < CHUNK_TILES ? w->tiles - tile : CHUNK_TILES;
            const uint16_t *panel = p->x;
            for (int row = 0; row < p->m;) {
                const int rows = panel_rows(p->m - row);
                const uint16_t *x = panel + tile * rows * TILE_COLUMNS;
                if (row == 0)
                    values =
                        first[rows](mask_pairs(w, block) + 2 * tile, values, tiles, wide, x, dense, totals);
                else later[rows](dense, tiles, x, totals + row);
                panel += w->tiles * rows * TILE_COLUMNS;
                row += rows;
            }
        }
        if (values != block_values(w, block + 1)) return 1;
        for (int i = 0; i < p->m; i++) store_block(w, p, block, i, fold(totals[i]));
    }
    return 0;
}

int tamp_expanded_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    return p->m > PANEL_ROWS ? many_panels(w, p, begin, end) : one_panel(w, p, begin, end);
}
#endif
