/* Plain C: expands one tile of a row at a time. Correct everywhere, fast nowhere. */
#include "tamp_sparse.h"

float tamp_float_of_fp16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
    const float small = (float)magnitude * 0x1p-24f; /* subnormal, exact */
    return sign ? -small : small;
}

uint16_t tamp_fp16_of_float(float number) { /* to nearest, ties to even */
    const uint32_t bits = bits_of_float(number), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;  /* NaN */
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* rounds to 65536 or more */
    if (magnitude >= 0x38800000u)
        return sign | (uint16_t)((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
    if (magnitude < 0x33000000u) return sign; /* below half of the smallest subnormal */
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - (magnitude >> 23); /* 14 .. 24 */
    const uint32_t half = 1u << (shift - 1), rest = mantissa & ((1u << shift) - 1);
    uint32_t result = mantissa >> shift;
    result += rest > half || (rest == half && (result & 1));
    return sign | (uint16_t)result;
}

static const char *expand(uint32_t mask, const char *values, int dtype, float *dense) {
    for (int c = 0; c < TILE_COLUMNS; c++) dense[c] = 0.0f;
    for (; mask; mask &= mask - 1) {
        const int column = __builtin_ctz(mask);
        if (dtype == DTYPE_FP32) {
            dense[column] = *(const float *)values;
            values += 4;
        } else {
            const uint16_t bits = *(const uint16_t *)values;
            dense[column] = dtype == DTYPE_BF16 ? float_of_bf16(bits) : tamp_float_of_fp16(bits);
            values += 2;
        }
    }
    return values;
}

int tamp_gemv_portable(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
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
