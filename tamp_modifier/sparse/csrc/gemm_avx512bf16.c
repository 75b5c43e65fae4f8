/* bf16 x bf16 for many rows of x: parts of the weight are expanded into the cache, once for all rows
 * of x, and multiplied there. A dot product needs no other layout than the rows as they are. */
#include "avx512bf16.h"

#ifdef TAMP_X86

#define GROUP_BLOCKS 2  /* 8 rows of the weight ... */
#define CHUNK_TILES 128 /* ... by 4096 columns are expanded at once: 64 KB */
#define ROWS 6          /* rows of x at once: 4 * 6 sums stay in registers */
#define PANEL_ROWS 96   /* rows of x that share one expansion */

typedef struct {
    uint16_t weight[GROUP_BLOCKS][BLOCK_ROWS][CHUNK_TILES * TILE_COLUMNS];
    __m128 sums[PANEL_ROWS][GROUP_BLOCKS];
} gemm_scratch;

/* Expands tiles [tile, end) of a block; returns where the values of the next tile begin. */
static TARGET_AVX512BF16 const uint16_t *expand_chunk(const tamp_weight *w, int64_t block,
                                                      int64_t tile, int64_t end,
                                                      const uint16_t *values,
                                                      uint16_t (*dense)[CHUNK_TILES * TILE_COLUMNS]) {
    const uint64_t *mask = mask_pairs(w, block) + 2 * tile;
    for (int64_t column = 0; tile < end; tile++, mask += 2, column += TILE_COLUMNS) {
        const uint64_t low = mask[0], high = mask[1];
        const uint16_t *second = values + count32(low), *third = values + popcount64(low);
        const uint16_t *fourth = third + count32(high);
        prefetch(values);
        prefetch(third);
        _mm512_store_si512(dense[0] + column, (__m512i)expand(load_mask(mask, 0), values));
        _mm512_store_si512(dense[1] + column, (__m512i)expand(load_mask(mask, 1), second));
        _mm512_store_si512(dense[2] + column, (__m512i)expand(load_mask(mask, 2), third));
        _mm512_store_si512(dense[3] + column, (__m512i)expand(load_mask(mask, 3), fourth));
        values = third + popcount64(high);
    }
    return values;
}

INLINE void multiply_chunk(uint16_t (*dense)[CHUNK_TILES * TILE_COLUMNS], const uint16_t *x,
                           int64_t ldx, int64_t columns, __m128 (*totals)[GROUP_BLOCKS],
                           const int m) {
    __m512 sums[4][ROWS];
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
        sums[0][i] = sums[1][i] = sums[2][i] = sums[3][i] = _mm512_setzero_ps();
    for (int64_t column = 0; column < columns; column += TILE_COLUMNS) {
        const __m512bh w0 = load_x(dense[0] + column), w1 = load_x(dense[1] + column);
        const __m512bh w2 = load_x(dense[2] + column), w3 = load_x(dense[3] + column);
#pragma GCC unroll 6
        for (int i = 0; i < m; i++) {
            const __m512bh input = load_x(x + i * ldx + column);
            sums[0][i] = _mm512_dpbf16_ps(sums[0][i], w0, input);
            sums[1][i] = _mm512_dpbf16_ps(sums[1][i], w1, input);
            sums[2][i] = _mm512_dpbf16_ps(sums[2][i], w2, input);
            sums[3][i] = _mm512_dpbf16_ps(sums[3][i], w3, input);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < m; i++)
        totals[i][0] = _mm_add_ps(totals[i][0],
                                  reduce4(sums[0][i], sums[1][i], sums[2][i], sums[3][i]));
}

#define DEFINE_CHUNK(M)                                                                            \
    static TARGET_AVX512BF16 void chunk_##M(uint16_t (*dense)[CHUNK_TILES * TILE_COLUMNS],         \
                                            const uint16_t *x, int64_t ldx, int64_t columns,       \
                                            __m128 (*totals)[GROUP_BLOCKS]) {                      \
        multiply_chunk(dense, x, ldx, columns, totals, M);                                         \
    }
DEFINE_CHUNK(1)
DEFINE_CHUNK(2)
DEFINE_CHUNK(3)
DEFINE_CHUNK(4)
DEFINE_CHUNK(5)
DEFINE_CHUNK(6)

static TARGET_AVX512BF16 int multiply_group(const tamp_weight *w, const tamp_product *p,
                                            int64_t group, int blocks, gemm_scratch *scratch) {
    typedef void (*chunk_kernel)(uint16_t (*)[CHUNK_TILES * TILE_COLUMNS], const uint16_t *, int64_t,
                                 int64_t, __m128 (*)[GROUP_BLOCKS]);
    static const chunk_kernel kernels[ROWS] = {chunk_1, chunk_2, chunk_3, chunk_4, chunk_5, chunk_6};
    const uint16_t *values[GROUP_BLOCKS];
    for (int b = 0; b < blocks; b++) {
        if (!block_is_safe(w, group + b)) return 1;
        values[b] = block_values(w, group + b);
    }
    for (int m = 0; m < p->m; m++)
        for (int b = 0; b < blocks; b++) scratch->sums[m][b] = _mm_setzero_ps();
    for (int64_t tile = 0; tile < w->tiles; tile += CHUNK_TILES) {
        const int64_t end = w->tiles - tile < CHUNK_TILES ? w->tiles : tile + CHUNK_TILES;
        for (int b = 0; b < blocks; b++)
            values[b] = expand_chunk(w, group + b, tile, end, values[b], scratch->weight[b]);
        for (int m = 0; m < p->m; m += ROWS) {
            const int rows = p->m - m < ROWS ? p->m - m : ROWS;
            const uint16_t *x = (const uint16_t *)p->x + m * p->ldx + tile * TILE_COLUMNS;
            for (int b = 0; b < blocks; b++) /* the chunk of x stays in the level-1 cache */
                kernels[rows - 1](scratch->weight[b], x, p->ldx, (end - tile) * TILE_COLUMNS,
                                  (__m128(*)[GROUP_BLOCKS]) & scratch->sums[m][b]);
        }
    }
    for (int b = 0; b < blocks; b++) {
        if (values[b] != block_values(w, group + b + 1)) return 1;
        for (int m = 0; m < p->m; m++) store_block(w, p, group + b, m, scratch->sums[m][b]);
    }
    return 0;
}

TARGET_AVX512BF16 int tamp_gemm_avx512bf16(const tamp_weight *w, const tamp_product *p,
                                           int64_t begin, int64_t end) {
    _Alignas(64) gemm_scratch scratch;
    for (int64_t group = begin; group < end; group += GROUP_BLOCKS) {
        const int blocks = end - group < GROUP_BLOCKS ? (int)(end - group) : GROUP_BLOCKS;
        for (int first = 0; first < p->m; first += PANEL_ROWS) {
            tamp_product panel = *p;
            panel.m = p->m - first < PANEL_ROWS ? p->m - first : PANEL_ROWS;
            panel.x = (const uint16_t *)p->x + first * p->ldx;
            panel.y = (uint16_t *)p->y + first * p->ldy;
            if (multiply_group(w, &panel, group, blocks, &scratch)) return 1;
        }
    }
    return 0;
}
#endif
