/* INT8 in plain C: expands one row of a tile at a time. Correct everywhere, fast nowhere. */
#include <string.h>

#include "tamp_int8.h"

static size_t bytes(const tamp_input *in) { return (size_t)(in->m * in->tiles * TILE_COLUMNS); }

static void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    const int64_t width = in->tiles * TILE_COLUMNS, first = begin * TILE_COLUMNS;
    const int64_t last = end * TILE_COLUMNS, stop = last < in->columns ? last : in->columns;
    for (int64_t row = 0; row < in->m; row++) {
        int8_t *to = (int8_t *)copy + row * width;
        memcpy(to + first, (const int8_t *)in->x + row * in->stride + first, (size_t)(stop - first));
        memset(to + stop, 0, (size_t)(last - stop));
    }
}

static const int8_t *expand(uint32_t mask, const int8_t *values, int8_t *dense) {
    memset(dense, 0, TILE_COLUMNS);
    for (; mask; mask &= mask - 1) dense[__builtin_ctz(mask)] = *values++;
    return values;
}

static int kernel(const tamp_weight *w, const tamp_int8_product *p, int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return INT8_CORRUPT;
        const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
        const int8_t *values = (const int8_t *)w->values + w->offsets[block];
        int32_t sums[MAX_M][BLOCK_ROWS] = {{0}};
        for (int64_t tile = 0; tile < w->tiles; tile++)
            for (int r = 0; r < BLOCK_ROWS; r++) {
                int8_t dense[TILE_COLUMNS];
                values = expand(mask[tile * BLOCK_ROWS + r], values, dense);
                for (int64_t i = 0; i < p->m; i++) {
                    const int8_t *x = (const int8_t *)p->x + (i * w->tiles + tile) * TILE_COLUMNS;
                    int32_t sum = 0;
                    for (int c = 0; c < TILE_COLUMNS; c++) sum += dense[c] * x[c];
                    sums[i][r] += sum;
                }
            }
        if (values != (const int8_t *)w->values + w->offsets[block + 1]) return INT8_CORRUPT;
        for (int64_t i = 0; i < p->m; i++) store_int8(w, p, block, i, sums[i]);
    }
    return INT8_OK;
}

const tamp_int8 tamp_int8_portable = {
    .strip = MAX_M,
    .group = 1,
    .bytes = bytes,
    .prepare = prepare,
    .kernel = kernel,
};
