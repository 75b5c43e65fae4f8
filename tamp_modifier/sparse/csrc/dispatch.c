/* Which path multiplies, and the entry points for `linear`. */
#include <stdlib.h>
#include <string.h>

#include "tamp_sparse.h"

#define ABI_VERSION 3

#define ENTRY(NAME) &tamp_path_##NAME,
static const tamp_path *const paths[] = {TAMP_PATHS(ENTRY)};
#define PATHS ((int)(sizeof paths / sizeof *paths))

static const tamp_path *current = &tamp_path_portable;

const tamp_path *tamp_current_path(void) { return current; }

static int is_supported(const tamp_path *path) { return path->supported && path->supported(); }

static const tamp_path *path_for(int dtype, int64_t m) {
    const tamp_path *path = current;
    while (path->takes && !path->takes(dtype, m)) path = path->base;
    return path;
}

EXPORT int tamp_abi_version(void) { return ABI_VERSION; }

/* Name of the path `i` of this machine, best first; NULL where there are no more. */
EXPORT const char *tamp_path_name(int i) {
    for (int p = 0; p < PATHS; p++)
        if (is_supported(paths[p]) && i-- == 0) return paths[p]->name;
    return NULL;
}

/* Returns 0, or 1 where this machine has no such path. */
EXPORT int tamp_use_path(const char *name) {
    for (int p = 0; p < PATHS; p++) {
        if (strcmp(paths[p]->name, name) || !is_supported(paths[p])) continue;
        current = paths[p];
        return 0;
    }
    return 1;
}

EXPORT int64_t tamp_most_rows(int dtype) { return path_for(dtype, INT64_MAX)->most_rows[dtype]; }

typedef struct {
    tamp_weight weight;
    tamp_product product;
    const tamp_path *path;
    tamp_input input;
    void *copy;            /* of x, as the kernel wants it */
    size_t x_size, y_size; /* bytes of an entry of the x and y of `product` */
    int status;
} linear_task;

static void prepare_tiles(void *context, int64_t begin, int64_t end) {
    const linear_task *task = context;
    task->path->layout->prepare(&task->input, task->copy, begin, end);
}

static void multiply_blocks(void *context, int64_t begin, int64_t end) {
    linear_task *task = context;
    const int64_t m = task->input.m, strip = task->input.strip;
    for (int64_t first = 0; first < m; first += strip) {
        tamp_product product = task->product;
        product.m = (int)(m - first < strip ? m - first : strip);
        product.x = (const char *)product.x + first * product.ldx * task->x_size;
        product.y = (char *)product.y + first * product.ldy * task->y_size;
        const int status = task->path->kernel(&task->weight, &product, begin, end);
        if (status) __atomic_store_n(&task->status, status, __ATOMIC_RELAXED);
    }
}

/* y = x @ weight.T + bias. x: [m, columns], at least one column, y: [m, rows], all of one dtype.
 * Returns 0, 1 where mask and offsets disagree (y is not to be used then), 2 without memory. */
EXPORT int tamp_linear(const void *x, int64_t m, int64_t x_stride, int dtype, const uint32_t *mask,
                       const void *values, const int64_t *offsets, int64_t kept, int64_t rows,
                       int64_t columns, const void *bias, void *y) {
    if (m < 1) return 0;
    const tamp_path *path = path_for(dtype, m);
    const tamp_layout *layout = path->layout;
    linear_task task = {
        .weight = weight_of(mask, values, offsets, kept, rows, columns),
        .product = {.x = x, .ldx = x_stride, .dtype = dtype, .y = y, .ldy = rows},
        .path = path,
        .x_size = layout->entry,
        .y_size = dtype == DTYPE_FP32 ? 4 : 2,
    };
    const int64_t tiles = task.weight.tiles, width = tiles * TILE_COLUMNS;
    task.input = (tamp_input){x, m, x_stride, columns, tiles, layout->strip(m), dtype};
    const size_t x_bytes = layout->bytes(&task.input);
    char *scratch = NULL;
    if (x_bytes || bias) {
        scratch = malloc(x_bytes + (bias ? (size_t)rows * sizeof(float) : 0) + 64);
        if (!scratch) return 2;
    }
    char *aligned = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    if (x_bytes) {
        task.product.x = task.copy = aligned;
        task.product.ldx = width;
        tamp_parallel(prepare_tiles, &task, tiles, m * width);
    }
    if (bias) {
        float *converted = (float *)(aligned + x_bytes);
        for (int64_t r = 0; r < rows; r++) converted[r] = load_float(bias, r, dtype);
        task.product.bias = converted;
    }
    tamp_parallel(multiply_blocks, &task, task.weight.blocks, rows * columns * m);
    free(scratch);
    return task.status;
}
