/* x for the kernels that compute in fp32. */
#include "tamp_sparse.h"

static int64_t strip(int64_t m) {
    (void)m;
    return MAX_M;
}

static size_t bytes(const tamp_input *in) {
    const int64_t width = in->tiles * TILE_COLUMNS;
    if (in->dtype == DTYPE_FP32 && in->columns == width) return 0;
    return (size_t)(in->m * width) * sizeof(float);
}

static void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    for (int64_t row = 0; row < in->m; row++) {
        float *to = (float *)copy + row * in->tiles * TILE_COLUMNS;
        for (int64_t c = begin * TILE_COLUMNS; c < end * TILE_COLUMNS; c++)
            to[c] = c < in->columns ? load_float(in->x, row * in->stride + c, in->dtype) : 0;
    }
}

const tamp_layout tamp_fp32_rows = {sizeof(float), strip, bytes, prepare};
