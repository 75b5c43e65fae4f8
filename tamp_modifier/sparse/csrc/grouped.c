/* The entry point for `linear_grouped`: the rows of x belong to groups, each with a weight of its own. */
#include "tamp_sparse.h"

/* y[r] = x[r] @ weight_of_group(r).T + bias_of_group(r) for the rows of all groups; see `tamp_linear`.
 *
 * The groups' weights are `rows` x `columns` each, stacked to one weight whose groups begin with a block
 * of their own. Group g has the rows bounds[g] .. bounds[g + 1] - 1 of the m rows of x and y, and row g of
 * bias [groups, rows]. Groups of more than `most` rows are left to the caller.
 * Returns 0, 1 and 2 as `tamp_linear`, 3 where the bounds do not ascend from 0 on to m at most. */
EXPORT int tamp_linear_grouped(const void *x, int64_t m, int dtype, const int64_t *bounds, int64_t groups,
                               int64_t most, const uint32_t *mask, const void *values,
                               const int64_t *offsets, int64_t kept, int64_t rows, int64_t columns,
                               const void *bias, void *y) {
    const int64_t size = dtype == DTYPE_FP32 ? 4 : 2;
    const tamp_weight one = weight_of(mask, values, offsets, kept, rows, columns);
    if (bounds[0] < 0 || bounds[groups] > m) return 3;
    for (int64_t g = 0; g < groups; g++)
        if (bounds[g] > bounds[g + 1]) return 3;
    for (int64_t g = 0; g < groups; g++) {
        const int64_t first = bounds[g], count = bounds[g + 1] - first;
        if (!count || count > most) continue;
        const int status = tamp_linear(
            (const char *)x + first * columns * size, count, columns, dtype,
            mask + g * one.blocks * one.tiles * BLOCK_ROWS, values, offsets + g * one.blocks, kept, rows,
            columns, bias ? (const char *)bias + g * rows * size : NULL, (char *)y + first * rows * size);
        if (status) return status;
    }
    return 0;
}
