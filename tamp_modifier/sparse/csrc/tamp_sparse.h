/* What the files of the native part share: the format (see docs/sparse-format.md), a product, and a path,
 * which is how one kind of processor multiplies. */
#ifndef TAMP_SPARSE_H
#define TAMP_SPARSE_H

#include <stddef.h>
#include <stdint.h>

#include "numbers.h"

#define BLOCK_ROWS 4
#define TILE_COLUMNS 32
#define PADDING_BYTES 64
#define MAX_M 8 /* rows of x in one call of a kernel with the layout fp32_rows */

#ifdef TAMP_EMULATED /* tests/sparse/emulation stands in for the instructions, on any processor */
#define TAMP_X86 1
#define TARGET_AVX2
#define TARGET_AVX512
#define TARGET_AVX512BF16
#define TAMP_AMX 1
#define TARGET_AMX
#elif (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define TAMP_X86 1
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi,popcnt")))
#define TARGET_AVX512                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,fma," \
                          "f16c,bmi,popcnt")))
#define TARGET_AVX512BF16                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2," \
                          "avx512bf16,fma,f16c,bmi,popcnt")))
#if defined(__linux__) && (__GNUC__ >= 11 || (defined(__clang__) && __clang_major__ >= 12))
#define TAMP_AMX 1
#define TARGET_AMX                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2," \
                          "avx512bf16,amx-tile,amx-bf16,amx-int8,fma,f16c,bmi,popcnt")))
#endif
#endif

#if defined(__GNUC__) || defined(__clang__)
#define EXPORT __attribute__((visibility("default")))
#else
#error "tamp_sparse needs GCC or Clang"
#endif

enum { DTYPE_BF16 = 0, DTYPE_FP16 = 1, DTYPE_FP32 = 2, DTYPES = 3 };

typedef struct {
    const uint32_t *mask;   /* [blocks, tiles, 4] */
    const void *values;     /* [kept] and 64 bytes of padding */
    const int64_t *offsets; /* [blocks + 1] */
    int64_t kept, rows, columns, blocks, tiles;
} tamp_weight;

/* Some rows of x, as `layout` of the path has them, with the weight. y: [m, ldy] in the weight's dtype.
 * bias: fp32 [rows] or NULL. */
typedef struct {
    const void *x;
    int64_t ldx;
    int m, dtype;
    const float *bias;
    void *y;
    int64_t ldy;
} tamp_product;

/* Multiplies blocks [begin, end). Returns 0, 1 if mask and offsets disagree, 2 without memory. */
typedef int (*tamp_kernel)(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);

/* x as the caller gives it: [m, columns] of dtype, rows `stride` entries apart; and how it is cut. */
typedef struct {
    const void *x;
    int64_t m, stride, columns, tiles;
    int64_t strip; /* rows of x in one call of the kernel */
    int dtype;
} tamp_input;

/* How a kernel wants x: whole tiles of columns, filled up with zeros, the strips one after another. */
typedef struct {
    size_t entry;                          /* bytes of one entry */
    int64_t (*strip)(int64_t m);           /* rows of x, of m, in one call of the kernel */
    size_t (*bytes)(const tamp_input *in); /* size of the copy of x, 0 where x is used as it is */
    void (*prepare)(const tamp_input *in, void *copy, int64_t begin, int64_t end); /* tiles [begin, end) */
} tamp_layout;

extern const tamp_layout tamp_fp32_rows; /* fp32 [m, ldx], strips of MAX_M rows */

/* Moves 32 elements of 1, 2 or 4 bytes between a dense row and the stream of kept values. */
typedef struct {
    /* Bit c: element c is not zero; for floating types -0 is zero too. */
    uint32_t (*nonzero)(const char *at, int size, int floating);
    /* Writes the elements that mask keeps, and up to 128 bytes from `to` on. */
    void (*compress)(const char *at, uint32_t mask, int size, char *to);
    void (*expand)(const char *values, uint32_t mask, int size, char *to);
} tamp_moves;

extern const tamp_moves tamp_moves_avx512;

/* How one kind of processor multiplies. */
typedef struct tamp_path {
    const char *name;
    /* Whether this machine can, and where the system has to permit it, does; NULL where it never can. */
    int (*supported)(void);
    /* Whether this path multiplies m rows of x of dtype; if not, `base` does, which is supported wherever
     * this path is. NULL: whatever there is. */
    int (*takes)(int dtype, int64_t m);
    const struct tamp_path *base;
    tamp_kernel kernel;
    const tamp_layout *layout;
    /* Rows of x up to which this beats a dense product with the expanded weight, by dtype. */
    int64_t most_rows[DTYPES];
    const tamp_moves *moves; /* NULL: plain C */
    /* Products with packed int8 weights, see tamp_int8.h; NULL: as `base` does them. */
    const struct tamp_int8 *int8;
    const struct tamp_int4 *int4; /* 4-bit weights, see tamp_int4.h; NULL: those of `base` */
} tamp_path;

/* All paths, best first: unless one is forced, the first that this machine supports is used. A new path is
 * a file that defines tamp_path_NAME, and a line here. */
#define TAMP_PATHS(PATH) \
    PATH(amx)            \
    PATH(avx512bf16)     \
    PATH(avx512)         \
    PATH(avx2)           \
    PATH(portable)
#define TAMP_DECLARE_PATH(NAME) extern const tamp_path tamp_path_##NAME;
TAMP_PATHS(TAMP_DECLARE_PATH)
/* What a path's file defines where it is compiled for another processor. */
#define TAMP_ABSENT_PATH(NAME) const tamp_path tamp_path_##NAME = {.name = #NAME}

/* y = x @ weight.T + bias; see dispatch.c. */
EXPORT int tamp_linear(const void *x, int64_t m, int64_t x_stride, int dtype, const uint32_t *mask,
                       const void *values, const int64_t *offsets, int64_t kept, int64_t rows,
                       int64_t columns, const void *bias, void *y);
/* The path in use. */
const tamp_path *tamp_current_path(void);
/* Calls work(context, begin, end) on ranges that cover [0, count), in parallel where OpenMP runs. */
typedef void (*tamp_range)(void *context, int64_t begin, int64_t end);
void tamp_parallel(tamp_range work, void *context, int64_t count, int64_t cost);

ALWAYS_INLINE tamp_weight weight_of(const uint32_t *mask, const void *values, const int64_t *offsets,
                                    int64_t kept, int64_t rows, int64_t columns) {
    const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    const int64_t tiles = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    return (tamp_weight){mask, values, offsets, kept, rows, columns, blocks, tiles};
}

ALWAYS_INLINE int64_t popcount64(uint64_t bits) { return __builtin_popcountll(bits); }

/* Whether the values of a block may be read: its offsets lie in the stream, and so do all values that
 * its mask announces. Only blocks near the end can run over it, so that this costs next to nothing. */
ALWAYS_INLINE int block_is_safe(const tamp_weight *w, int64_t block) {
    const int64_t offset = w->offsets[block], next = w->offsets[block + 1];
    if (offset < 0 || next < offset || next > w->kept) return 0;
    if (offset + w->tiles * BLOCK_ROWS * TILE_COLUMNS <= w->kept) return 1;
    const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
    int64_t count = 0;
    for (int64_t i = 0; i < w->tiles * BLOCK_ROWS; i++) count += __builtin_popcount(mask[i]);
    return offset + count <= w->kept;
}

/* Whether tiles keep more than what is prefetched otherwise, two lines of 16 bits or one of 8. */
ALWAYS_INLINE int is_wide(const tamp_weight *w) {
    return (double)w->kept > 0.53 * (double)w->rows * (double)w->columns;
}

ALWAYS_INLINE float load_float(const void *values, int64_t i, int dtype) {
    if (dtype == DTYPE_BF16) return float_of_bf16(((const uint16_t *)values)[i]);
    if (dtype == DTYPE_FP16) return float_of_fp16(((const uint16_t *)values)[i]);
    return ((const float *)values)[i];
}

/* Writes the sums of one row of x with the rows of one block. */
ALWAYS_INLINE void store_sums(const tamp_weight *w, const tamp_product *p, int64_t block, int m,
                              const float *sums) {
    const int64_t row = block * BLOCK_ROWS;
    const int rows = w->rows - row < BLOCK_ROWS ? (int)(w->rows - row) : BLOCK_ROWS;
    for (int r = 0; r < rows; r++) {
        const float sum = p->bias ? sums[r] + p->bias[row + r] : sums[r];
        const int64_t at = m * p->ldy + row + r;
        if (p->dtype == DTYPE_BF16) ((uint16_t *)p->y)[at] = bf16_of_float(sum);
        else if (p->dtype == DTYPE_FP16) ((uint16_t *)p->y)[at] = fp16_of_float(sum);
        else ((float *)p->y)[at] = sum;
    }
}

#endif
