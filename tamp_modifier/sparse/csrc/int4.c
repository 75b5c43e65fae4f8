/* The entry points for products with 4-bit weights: which kernel multiplies, and x as it wants it. */
#include <math.h>
#include <stdlib.h>

#include "tamp_int4.h"

#define PLACES_4(C) (C) / 4, 8 + (C) / 4, 16 + (C) / 4, 24 + (C) / 4
#define PLACES_2(C) (C) / 2, 16 + (C) / 2
const uint8_t tamp_places_of_2[TILE_COLUMNS] = {PLACES_2(0),  PLACES_2(2),  PLACES_2(4),  PLACES_2(6),
                                                PLACES_2(8),  PLACES_2(10), PLACES_2(12), PLACES_2(14),
                                                PLACES_2(16), PLACES_2(18), PLACES_2(20), PLACES_2(22),
                                                PLACES_2(24), PLACES_2(26), PLACES_2(28), PLACES_2(30)};
const uint8_t tamp_places_of_4[TILE_COLUMNS] = {PLACES_4(0),  PLACES_4(4),  PLACES_4(8),  PLACES_4(12),
                                                PLACES_4(16), PLACES_4(20), PLACES_4(24), PLACES_4(28)};
static const uint8_t as_they_are[TILE_COLUMNS] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                                  11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                                  22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

static int usable(const tamp_int4_kernel *kernel, int64_t m) {
    return kernel && m >= kernel->least_rows && (!kernel->supported || kernel->supported());
}

/* The kernel for m rows of x; the last one asked, plain C in fp32, takes everything. */
static const tamp_int4_kernel *kernel_for(int dtype, int64_t m, int quantize) {
    const tamp_path *path = tamp_current_path();
    if (quantize)
        for (const tamp_path *at = path; at; at = at->base)
            if (at->int4 && usable(at->int4->int8, m)) return at->int4->int8;
    for (const tamp_path *at = path; at; at = at->base) {
        if (!at->int4) continue;
        if (dtype == DTYPE_BF16 && !quantize && usable(at->int4->bf16, m)) return at->int4->bf16;
        if (usable(at->int4->fp32, m)) return at->int4->fp32;
    }
    return NULL;
}

/* Rows of x up to which the kernel beats a dense fp32 product with the expanded weight. */
EXPORT int64_t tamp_int4_most_rows(int dtype, int quantize) {
    return kernel_for(dtype, INT64_MAX, quantize)->most_rows;
}

typedef struct {
    tamp_int4_weight weight;
    const tamp_int4_kernel *kernel;
    const void *x; /* [m, x_stride] as the caller gives it */
    const int64_t *order;
    int64_t m, x_stride;
    int dtype, corrupt;
    char *panels;    /* x as the kernel wants it */
    float *x_scale;  /* [m], or NULL: x is not quantized */
    int32_t *x_sums; /* [m, groups] */
    const float *bias;
    void *y;
    float *dense; /* of expand */
    int64_t begin, stride;
} int4_task;

static void fail(int4_task *task) { __atomic_store_n(&task->corrupt, 1, __ATOMIC_RELAXED); }

static const size_t entry_bytes[] = {[ENTRY_FP32] = 4, [ENTRY_BF16] = 2, [ENTRY_INT8] = 1};

/* Scale of each row of x in int8, its largest magnitude / 127; NaN where that is not finite. */
static void find_scales(void *context, int64_t begin, int64_t end) {
    const int4_task *task = context;
    for (int64_t row = begin; row < end; row++) {
        float most = 0, poison = 0;
        for (int64_t c = 0; c < task->weight.columns; c++) {
            const float magnitude = fabsf(load_float(task->x, row * task->x_stride + c, task->dtype));
            if (magnitude > most) most = magnitude;
            poison += magnitude - magnitude; /* NaN for Inf and NaN */
        }
        task->x_scale[row] = most / 127 + poison;
    }
}

ALWAYS_INLINE float quantized(float x, float scale) {
    const float level = nearbyintf(x / scale);
    return fabsf(level) <= 127 ? level : 0; /* 0 for a scale of 0 or NaN */
}

/* One row of one tile of x. Returns 1 where `order` names a column that does not exist. */
ALWAYS_INLINE int convert_row(const int4_task *task, int64_t row, int64_t tile, char *to, const int entry,
                              const int dtype) {
    const uint8_t *place = task->kernel->place ? task->kernel->place : as_they_are;
    const int64_t columns = task->weight.columns, left = columns - tile * TILE_COLUMNS;
    const int width = left < TILE_COLUMNS ? (int)left : TILE_COLUMNS;
    /* Entries 2 i and 2 i + 1 of a paired panel are `panel` pairs behind those before. */
    const int64_t step = task->kernel->paired ? 2 * task->kernel->panel : 2;
    int32_t sum = 0;
    int corrupt = 0;
    for (int c = 0; c < width; c++) {
        int64_t column = tile * TILE_COLUMNS + c;
        if (task->order) {
            column = task->order[column];
            if (column < 0 || column >= columns) {
                corrupt = 1;
                column = 0;
            }
        }
        const int64_t from = row * task->x_stride + column, at = place[c] / 2 * step + place[c] % 2;
        if (entry == ENTRY_BF16) {
            ((uint16_t *)to)[at] = ((const uint16_t *)task->x)[from];
            continue;
        }
        float value = load_float(task->x, from, dtype);
        if (task->x_scale) value = quantized(value, task->x_scale[row]);
        if (entry == ENTRY_INT8) {
            ((int8_t *)to)[at] = (int8_t)value;
            sum += (int8_t)value;
        } else {
            ((float *)to)[at] = value;
        }
    }
    if (entry == ENTRY_INT8)
        task->x_sums[row * task->weight.groups + tile / task->weight.group_tiles] += sum;
    return corrupt;
}

static int convert(const int4_task *task, int64_t row, int64_t tile, char *to) {
    if (task->kernel->entry == ENTRY_BF16) return convert_row(task, row, tile, to, ENTRY_BF16, DTYPE_BF16);
    if (task->kernel->entry == ENTRY_INT8) return convert_row(task, row, tile, to, ENTRY_INT8, task->dtype);
    if (task->dtype == DTYPE_BF16) return convert_row(task, row, tile, to, ENTRY_FP32, DTYPE_BF16);
    return convert_row(task, row, tile, to, ENTRY_FP32, task->dtype);
}

/* Where entry 0 of a row in a tile of the panels begins, in entries. */
static int64_t place_of(const int4_task *task, int64_t row, int64_t tile) {
    const int64_t panel = task->kernel->panel, tiles = task->weight.tiles;
    const int64_t first = row / panel * panel, left = task->m - first;
    const int64_t rows = task->kernel->paired || left > panel ? panel : left;
    const int64_t inside = (row - first) * (task->kernel->paired ? 2 : TILE_COLUMNS);
    return (first * tiles + tile * rows) * TILE_COLUMNS + inside;
}

/* Groups [begin, end) of x: whole ones, for their sums. The memory is zero before. */
static void prepare_groups(void *context, int64_t begin, int64_t end) {
    int4_task *task = context;
    const int64_t tiles = task->weight.tiles, width = task->weight.group_tiles;
    const size_t size = entry_bytes[task->kernel->entry];
    for (int64_t tile = begin * width; tile < tiles && tile < end * width; tile++)
        for (int64_t row = 0; row < task->m; row++)
            if (convert(task, row, tile, task->panels + (size_t)place_of(task, row, tile) * size))
                fail(task);
}

static void multiply_blocks(void *context, int64_t begin, int64_t end) {
    int4_task *task = context;
    const tamp_int4_weight *w = &task->weight;
    const tamp_int4_kernel *kernel = task->kernel;
    const size_t x_row = (size_t)(w->tiles * TILE_COLUMNS) * entry_bytes[kernel->entry];
    const size_t y_row = (size_t)w->rows * (task->dtype == DTYPE_FP32 ? 4 : 2);
    for (int64_t first = 0; first < task->m; first += kernel->strip) {
        const int64_t left = task->m - first;
        const tamp_int4_product product = {
            .x = task->panels + (size_t)first * x_row,
            .x_scale = task->x_scale ? task->x_scale + first : NULL,
            .x_sums = task->x_sums ? task->x_sums + first * w->groups : NULL,
            .bias = task->bias,
            .y = (char *)task->y + (size_t)first * y_row,
            .ldy = w->rows,
            .m = (int)(left < kernel->strip ? left : kernel->strip),
            .dtype = task->dtype,
        };
        if (kernel->multiply(w, &product, begin, end)) fail(task);
    }
}

static void *take(char **memory, size_t bytes) {
    void *result = *memory;
    *memory += (bytes + 63) & ~(size_t)63;
    return result;
}

/* y = x @ weight.T + bias. x: [m, columns], y: [m, rows], bias: [rows], all of one dtype. order: [columns],
 * which column of x belongs to each of the weight, or NULL. With `quantize` each row of x is rounded to
 * int8 first. Returns 0, 1 where mask and offsets disagree (y is not to be used then), 2 without memory. */
EXPORT int tamp_int4_linear(const void *x, int64_t m, int64_t x_stride, int dtype,
                            const tamp_int4_weight *weight, const int64_t *order, const void *bias, void *y,
                            int quantize) {
    if (m < 1) return 0;
    int4_task task = {.weight = int4_sized(weight), .x = x, .order = order, .m = m, .x_stride = x_stride};
    const tamp_int4_weight *w = &task.weight;
    task.dtype = dtype;
    task.y = y;
    task.kernel = kernel_for(dtype, m, quantize);
    const int64_t rows =
        task.kernel->paired ? (m + task.kernel->panel - 1) / task.kernel->panel * task.kernel->panel : m;
    const size_t panels = (size_t)(rows * w->tiles) * TILE_COLUMNS * entry_bytes[task.kernel->entry];
    const size_t floats = (size_t)(bias ? w->rows : 0) * sizeof(float);
    const size_t scales = quantize ? (size_t)m * sizeof(float) : 0;
    const size_t sums = quantize ? (size_t)(m * w->groups) * sizeof(int32_t) : 0;
    char *scratch = calloc(1, panels + floats + scales + sums + 5 * 64);
    if (!scratch) return 2;
    char *memory = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    task.panels = take(&memory, panels);
    if (bias) {
        float *converted = take(&memory, floats);
        for (int64_t r = 0; r < w->rows; r++) converted[r] = load_float(bias, r, dtype);
        task.bias = converted;
    }
    if (quantize) {
        task.x_scale = take(&memory, scales);
        task.x_sums = take(&memory, sums);
        tamp_parallel(find_scales, &task, m, m * w->columns);
    }
    tamp_parallel(prepare_groups, &task, w->groups, m * w->columns);
    if (!task.corrupt) tamp_parallel(multiply_blocks, &task, w->blocks, w->rows * w->columns * m);
    free(scratch);
    return task.corrupt;
}

static void expand_blocks(void *context, int64_t begin, int64_t end) {
    int4_task *task = context;
    const tamp_int4_weight *w = &task->weight;
    const tamp_path *path = tamp_current_path();
    while (!path->int4 || !path->int4->expand) path = path->base;
    for (int64_t block = begin; block < end; block++)
        if (path->int4->expand(w, task->begin + block, task->dense + block * BLOCK_ROWS * task->stride,
                               task->stride))
            fail(task);
}

/* Writes the weights of blocks [begin, end) to dense: [4 * blocks, stride], whole blocks and whole tiles,
 * that is stride >= 32 * tiles. Returns 1 where mask and offsets disagree. */
EXPORT int tamp_int4_expand(const tamp_int4_weight *weight, int64_t begin, int64_t end, float *dense,
                            int64_t stride) {
    int4_task task = {.weight = int4_sized(weight), .dense = dense, .begin = begin, .stride = stride};
    tamp_parallel(expand_blocks, &task, end - begin, (end - begin) * BLOCK_ROWS * weight->columns);
    return task.corrupt;
}
