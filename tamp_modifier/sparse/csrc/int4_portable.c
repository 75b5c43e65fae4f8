/* 4-bit weights in plain C, a pair of rows of a tile at a time. Correct everywhere, fast nowhere. */
#include "tamp_int4.h"

#define PANEL 8
#define LANES 8 /* running sums a row: one alone would lose digits over long rows */

typedef struct {
    float sums[PANEL][BLOCK_ROWS][LANES];
} panel_sums;

static void multiply_pair(panel_sums *group, const int8_t *codes, int row, const float *x, int m) {
    for (int i = 0; i < m; i++, x += TILE_COLUMNS)
        for (int r = 0; r < 2; r++)
            for (int c = 0; c < TILE_COLUMNS; c++)
                group->sums[i][row + r][c % LANES] += (float)codes[r * TILE_COLUMNS + c] * x[c];
}

static void fold(panel_sums *totals, const panel_sums *group, const float *scale, int m) {
    for (int i = 0; i < m; i++)
        for (int r = 0; r < BLOCK_ROWS; r++)
            for (int lane = 0; lane < LANES; lane++)
                totals->sums[i][r][lane] += group->sums[i][r][lane] * scale[r];
}

static int multiply_block(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block) {
    const uint64_t *mask = int4_mask(w, block);
    const uint8_t *values = w->values + w->offsets[block];
    const float *x = p->x;
    panel_sums totals = {0};
    for (int64_t tile = 0; tile < w->tiles;) {
        const int64_t group = tile / w->group_tiles;
        panel_sums sums = {0};
        for (const int64_t stop = group_stop(w, tile, w->tiles); tile < stop; tile++)
            for (int row = 0; row < BLOCK_ROWS; row += 2) {
                int8_t codes[2 * TILE_COLUMNS];
                const int zeros[2] = {int4_zero(w, block, group, row), int4_zero(w, block, group, row + 1)};
                values = int4_decode(values, mask[tile * TILE_PAIRS + row / 2], zeros, codes);
                multiply_pair(&sums, codes, row, x + tile * p->m * TILE_COLUMNS, p->m);
            }
        float scale[BLOCK_ROWS];
        for (int r = 0; r < BLOCK_ROWS; r++) scale[r] = int4_scale(w, block, group, r);
        fold(&totals, &sums, scale, p->m);
    }
    if (values != w->values + w->offsets[block + 1]) return 1;
    for (int i = 0; i < p->m; i++) {
        float result[BLOCK_ROWS];
        for (int r = 0; r < BLOCK_ROWS; r++) {
            const float *s = totals.sums[i][r];
            result[r] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
        }
        int4_store(w, p, block, i, result);
    }
    return 0;
}

static int multiply_blocks(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t begin,
                           int64_t end) {
    for (int64_t block = begin; block < end; block++)
        if (!int4_block_is_safe(w, block) || multiply_block(w, p, block)) return 1;
    return 0;
}

static int expand(const tamp_int4_weight *w, int64_t block, float *dense, int64_t stride) {
    if (!int4_block_is_safe(w, block)) return 1;
    const uint64_t *mask = int4_mask(w, block);
    const uint8_t *values = w->values + w->offsets[block];
    for (int64_t tile = 0; tile < w->tiles; tile++) {
        const int64_t group = tile / w->group_tiles;
        for (int row = 0; row < BLOCK_ROWS; row += 2) {
            int8_t codes[2 * TILE_COLUMNS];
            const int zeros[2] = {int4_zero(w, block, group, row), int4_zero(w, block, group, row + 1)};
            values = int4_decode(values, mask[tile * TILE_PAIRS + row / 2], zeros, codes);
            for (int r = 0; r < 2; r++) {
                const float scale = int4_scale(w, block, group, row + r);
                float *to = dense + (row + r) * stride + tile * TILE_COLUMNS;
                for (int c = 0; c < TILE_COLUMNS; c++) to[c] = (float)codes[r * TILE_COLUMNS + c] * scale;
            }
        }
    }
    return values != w->values + w->offsets[block + 1];
}

static const tamp_int4_kernel fp32 = {
    .entry = ENTRY_FP32,
    .panel = PANEL,
    .strip = PANEL,
    .most_rows = 4,
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_portable = {.fp32 = &fp32, .expand = expand};
