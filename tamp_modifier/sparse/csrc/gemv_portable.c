/* Plain C: expands one tile of a row at a time. Correct everywhere, fast nowhere. */
#include "tamp_int4.h"
#include "tamp_int8.h"

static const char *expand(uint32_t mask, const char *values, int dtype, float *dense) {
    for (int c = 0; c < TILE_COLUMNS; c++) dense[c] = 0.0f;
    for (; mask; mask &= mask - 1) {
        const int column = __builtin_ctz(mask);
        if (dtype == DTYPE_FP32) {
            dense[column] = *(const float *)values;
            values += 4;
        } else {
            const uint16_t bits = *(const uint16_t *)values;
            dense[column] = dtype == DTYPE_BF16 ? float_of_bf16(bits) : float_of_fp16(bits);
            values += 2;
        }
    }
    return values;
}

static int multiply_blocks(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    const int64_t size = p->dtype == DTYPE_FP32 ? 4 : 2;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) return 1;
        const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
        const char *values = (const char *)w->values + w->offsets[block] * size;
        /* Eight running sums a row: one alone would lose digits over long rows. */
        float sums[MAX_M][BLOCK_ROWS][8] = {{{0}}};
        for (int64_t tile = 0; tile < w->tiles; tile++)
            for (int r = 0; r < BLOCK_ROWS; r++) {
                float dense[TILE_COLUMNS];
                values = expand(mask[tile * BLOCK_ROWS + r], values, p->dtype, dense);
                for (int i = 0; i < p->m; i++) {
                    const float *x = (const float *)p->x + i * p->ldx + tile * TILE_COLUMNS;
                    for (int c = 0; c < TILE_COLUMNS; c += 8)
                        for (int lane = 0; lane < 8; lane++)
                            sums[i][r][lane] += dense[c + lane] * x[c + lane];
                }
            }
        if (values != (const char *)w->values + w->offsets[block + 1] * size) return 1;
        for (int i = 0; i < p->m; i++) {
            float result[BLOCK_ROWS];
            for (int r = 0; r < BLOCK_ROWS; r++) {
                const float *s = sums[i][r];
                result[r] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
            }
            store_sums(w, p, block, i, result);
        }
    }
    return 0;
}

static int supported(void) { return 1; }

const tamp_path tamp_path_portable = {
    .name = "portable",
    .supported = supported,
    .kernel = multiply_blocks,
    .layout = &tamp_fp32_rows,
    .most_rows = {8, 8, 8},
    .int8 = &tamp_int8_portable,
    .int4 = &tamp_int4_portable,
};
