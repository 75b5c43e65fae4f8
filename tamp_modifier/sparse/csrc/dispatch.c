/* Which kernel runs; and the entry points for `linear`. */
#include <stdlib.h>
#include <string.h>

#include "tamp_sparse.h"

#define ABI_VERSION 1

static int current_path = PATH_PORTABLE;

EXPORT int tamp_abi_version(void) { return ABI_VERSION; }

EXPORT int tamp_best_path(void) {
#ifdef TAMP_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PATH_PORTABLE;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512vbmi2"))
        return PATH_AVX2;
    return __builtin_cpu_supports("avx512bf16") ? PATH_AVX512BF16 : PATH_AVX512;
#else
    return PATH_PORTABLE;
#endif
}

EXPORT void tamp_set_path(int path) { current_path = path; }
EXPORT int tamp_path(void) { return current_path; }

static float load_float(const void *values, int64_t i, int dtype) {
    if (dtype == DTYPE_BF16) return float_of_bf16(((const uint16_t *)values)[i]);
    if (dtype == DTYPE_FP16) return float_of_fp16(((const uint16_t *)values)[i]);
    return ((const float *)values)[i];
}

typedef struct {
    tamp_weight weight;
    tamp_product product;
    tamp_kernel kernel;
    const void *x;  /* as the caller gives it */
    char *prepared; /* as the kernel wants it */
    int64_t m, x_stride;
    int64_t strip;         /* rows of x in one call of the kernel */
    size_t x_size, y_size; /* bytes of an entry of the prepared x, of y */
    int corrupt;
} linear_task;

static void multiply_blocks(void *context, int64_t begin, int64_t end) {
    linear_task *task = context;
    for (int64_t first = 0; first < task->m; first += task->strip) {
        tamp_product product = task->product;
        product.m = (int)(task->m - first < task->strip ? task->m - first : task->strip);
        product.x = (const char *)product.x + first * product.ldx * task->x_size;
        product.y = (char *)product.y + first * product.ldy * task->y_size;
        if (task->kernel(&task->weight, &product, begin, end))
            __atomic_store_n(&task->corrupt, 1, __ATOMIC_RELAXED);
    }
}

/* Columns [begin, end) of x, in tiles, for the fp32 kernels: [m, ldx]. */
static void prepare_rows(void *context, int64_t begin, int64_t end) {
    const linear_task *t = context;
    for (int64_t row = 0; row < t->m; row++) {
        float *to = (float *)t->prepared + row * t->product.ldx;
        for (int64_t c = begin * TILE_COLUMNS; c < end * TILE_COLUMNS; c++)
            to[c] = c < t->weight.columns ? load_float(t->x, row * t->x_stride + c, t->product.dtype) : 0;
    }
}

/* The same for PATH_AVX512BF16: bf16 panels, so that its kernel reads one sequential stream. */
static void prepare_panels(void *context, int64_t begin, int64_t end) {
    const linear_task *t = context;
    uint16_t *panel = (uint16_t *)t->prepared;
    for (int64_t first = 0; first < t->m; first += t->strip) {
        const int64_t stop = first + t->strip < t->m ? first + t->strip : t->m;
        for (int64_t row = first; row < stop;) {
            const int rows = panel_rows((int)(stop - row));
            for (int64_t tile = begin; tile < end; tile++) {
                const int64_t column = tile * TILE_COLUMNS, left = t->weight.columns - column;
                uint16_t *to = panel + tile * rows * TILE_COLUMNS;
                const uint16_t *from = (const uint16_t *)t->x + row * t->x_stride + column;
                for (int i = 0; i < rows; i++, to += TILE_COLUMNS, from += t->x_stride) {
                    if (left >= TILE_COLUMNS) {
                        memcpy(to, from, TILE_COLUMNS * sizeof *to);
                    } else {
                        memset(to, 0, TILE_COLUMNS * sizeof *to);
                        memcpy(to, from, (size_t)left * sizeof *to);
                    }
                }
            }
            panel += rows * t->product.ldx;
            row += rows;
        }
    }
}

/* y = x @ weight.T + bias. x: [m, columns], y: [m, rows], all of one dtype.
 * Returns 0, 1 where mask and offsets disagree (y is not to be used then), 2 without memory. */
EXPORT int tamp_linear(const void *x, int64_t m, int64_t x_stride, int dtype, const uint32_t *mask,
                       const void *values, const int64_t *offsets, int64_t kept, int64_t rows,
                       int64_t columns, const void *bias, void *y) {
    static const tamp_kernel kernels[PATHS] = {
        tamp_gemv_portable,
#ifdef TAMP_X86
        tamp_gemv_avx2,
        tamp_gemv_avx512,
        tamp_multiply_avx512bf16,
#endif
    };
    int path = current_path;
    if (path == PATH_AVX512BF16 && dtype != DTYPE_BF16) path = PATH_AVX512;
    const int as_bf16 = path == PATH_AVX512BF16;
    const int64_t tiles = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const int64_t width = tiles * TILE_COLUMNS;
    linear_task task = {
        .weight = {mask, values, offsets, kept, rows, columns, (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, tiles},
        .product = {.dtype = dtype, .y = y, .ldy = rows},
        .kernel = kernels[path],
        .x = x,
        .m = m,
        .x_stride = x_stride,
        .strip = MAX_M,
        .x_size = as_bf16 ? 2 : 4,
        .y_size = dtype == DTYPE_FP32 ? 4 : 2,
    };
    if (as_bf16 && m > 0) { /* strips of nearly the same size */
        const int64_t strips = (m + STRIP_ROWS - 1) / STRIP_ROWS;
        task.strip = (m + strips - 1) / strips;
    }
    const int copy = width != columns || (as_bf16 ? m > 1 : dtype != DTYPE_FP32);
    const size_t x_bytes = copy ? (size_t)(m * width) * task.x_size : 0;
    char *scratch = NULL;
    if (x_bytes || bias) {
        scratch = malloc(x_bytes + (bias ? (size_t)rows * sizeof(float) : 0) + 64);
        if (!scratch) return 2;
    }
    char *aligned = (char *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    task.prepared = aligned;
    task.product.x = copy ? aligned : x;
    task.product.ldx = copy ? width : x_stride;
    if (copy) tamp_parallel(as_bf16 ? prepare_panels : prepare_rows, &task, tiles, m * width);
    if (bias) {
        float *converted = (float *)(aligned + x_bytes);
        for (int64_t r = 0; r < rows; r++) converted[r] = load_float(bias, r, dtype);
        task.product.bias = converted;
    }
    tamp_parallel(multiply_blocks, &task, task.weight.blocks, rows * columns * m);
    free(scratch);
    return task.corrupt;
}
