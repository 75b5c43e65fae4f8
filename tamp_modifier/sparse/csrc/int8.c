/* Packed int8 weights times int8 activations: the entry points. */
#include <stdlib.h>

#include "tamp_int8.h"

static const tamp_int8 *int8_of(const tamp_path *path) {
    for (; path; path = path->base) {
        const tamp_int8 *int8 = path->int8;
        if (int8 && (!int8->supported || int8->supported())) return int8;
    }
    return &tamp_int8_portable;
}

typedef struct {
    tamp_weight weight;
    tamp_int8_product product;
    const tamp_int8 *int8;
    tamp_input input;
    void *copy; /* of some rows of x, as the kernel wants them */
    int status;
} int8_task;

static void prepare_tiles(void *context, int64_t begin, int64_t end) {
    const int8_task *task = context;
    task->int8->prepare(&task->input, task->copy, begin, end);
}

static void multiply_groups(void *context, int64_t begin, int64_t end) {
    int8_task *task = context;
    const int64_t group = task->int8->group, last = end * group;
    const int64_t stop = last < task->weight.blocks ? last : task->weight.blocks;
    const int status = task->int8->kernel(&task->weight, &task->product, begin * group, stop);
    if (status) __atomic_store_n(&task->status, status, __ATOMIC_RELAXED);
}

/* Rows [first, first + input.m) of x. */
static void multiply_strip(int8_task *task, int64_t first) {
    const tamp_int8_product whole = task->product;
    const int64_t m = task->input.m, tiles = task->weight.tiles;
    tamp_int8_product *part = &task->product;
    part->x = task->copy;
    part->m = m;
    part->x_scale += first * whole.x_step;
    if (whole.x_zero) part->x_zero += first * whole.x_step;
    part->y = (char *)whole.y + first * whole.ldy * (whole.dtype == DTYPE_FP32 ? 4 : 2);
    tamp_parallel(prepare_tiles, task, tiles, m * tiles * TILE_COLUMNS);
    const int64_t groups = (task->weight.blocks + task->int8->group - 1) / task->int8->group;
    tamp_parallel(multiply_groups, task, groups, task->weight.rows * task->weight.columns * m);
    task->product = whole;
}

/* Returns one of INT8_OK, INT8_CORRUPT (mask and offsets disagree, y is not to be used) and
 * INT8_NO_MEMORY. x: [m, columns], bias: [rows] of dtype or NULL; all else as in tamp_int8_product. */
EXPORT int tamp_linear_int8(const int8_t *x, int64_t m, int64_t x_stride, const float *x_scale,
                            const int32_t *x_zero, int64_t x_step, const uint32_t *mask,
                            const int8_t *values, const int64_t *offsets, int64_t kept, int64_t rows,
                            int64_t columns, const float *weight_scale, int64_t weight_step,
                            const int32_t *sums, const void *bias, int dtype, void *y) {
    if (m < 1) return INT8_OK;
    int8_task task = {
        .weight = weight_of(mask, values, offsets, kept, rows, columns),
        .product = {.x_scale = x_scale,
                    .x_zero = x_zero,
                    .x_step = x_step,
                    .weight_scale = weight_scale,
                    .weight_step = weight_step,
                    .sums = sums,
                    .y = y,
                    .ldy = rows,
                    .dtype = dtype},
        .int8 = int8_of(tamp_current_path()),
    };
    const int64_t strip = even_share(m, task.int8->strip);
    task.input = (tamp_input){x, strip, x_stride, columns, task.weight.tiles, strip, dtype};
    const size_t x_bytes = (task.int8->bytes(&task.input) + 63) & ~(size_t)63;
    char *scratch = malloc(x_bytes + (bias ? (size_t)rows * sizeof(float) : 0) + 64);
    if (!scratch) return INT8_NO_MEMORY;
    char *aligned = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    task.copy = aligned;
    if (bias) {
        float *converted = (float *)(aligned + x_bytes);
        for (int64_t r = 0; r < rows; r++) converted[r] = load_float(bias, r, dtype);
        task.product.bias = converted;
    }
    for (int64_t first = 0; first < m && task.status == INT8_OK; first += strip) {
        task.input.x = x + first * x_stride;
        task.input.m = m - first < strip ? m - first : strip;
        multiply_strip(&task, first);
    }
    free(scratch);
    return task.status;
}

typedef struct {
    tamp_weight weight;
    int32_t *sums;
    int corrupt;
} sums_task;

static void sum_blocks(void *context, int64_t begin, int64_t end) {
    sums_task *task = context;
    const tamp_weight *w = &task->weight;
    for (int64_t block = begin; block < end; block++) {
        if (!block_is_safe(w, block)) {
            __atomic_store_n(&task->corrupt, 1, __ATOMIC_RELAXED);
            return;
        }
        const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
        const int8_t *values = (const int8_t *)w->values + w->offsets[block];
        int32_t sums[BLOCK_ROWS] = {0};
        for (int64_t word = 0; word < w->tiles * BLOCK_ROWS; word++) {
            const int count = __builtin_popcount(mask[word]);
            for (int i = 0; i < count; i++) sums[word % BLOCK_ROWS] += values[i];
            values += count;
        }
        for (int r = 0; r < BLOCK_ROWS && block * BLOCK_ROWS + r < w->rows; r++)
            task->sums[block * BLOCK_ROWS + r] = sums[r];
    }
}

/* The sum of each row of a packed int8 weight, [rows]. Returns INT8_OK or INT8_CORRUPT. */
EXPORT int tamp_row_sums(const uint32_t *mask, const int8_t *values, const int64_t *offsets, int64_t kept,
                         int64_t rows, int64_t columns, int32_t *sums) {
    sums_task task = {weight_of(mask, values, offsets, kept, rows, columns), sums, 0};
    tamp_parallel(sum_blocks, &task, task.weight.blocks, rows * columns);
    return task.corrupt ? INT8_CORRUPT : INT8_OK;
}
