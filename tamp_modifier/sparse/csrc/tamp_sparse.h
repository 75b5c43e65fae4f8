/* Shared declarations of the native part. The format is described in ../format.py. */
#ifndef TAMP_SPARSE_H
#define TAMP_SPARSE_H

#include <stddef.h>
#include <stdint.h>

#include "numbers.h"

#define BLOCK_ROWS 4
#define TILE_COLUMNS 32
#define PADDING_BYTES 64
#define MAX_M 8       /* rows of x that the fp32 kernels multiply at once */
#define PANEL_ROWS 6  /* and PATH_AVX512BF16: 4 * 6 sums stay in registers */
#define STRIP_ROWS 66 /* rows of x that share one expansion there */

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define TAMP_X86 1
#define TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi,popcnt")))
#define TARGET_AVX512                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,fma," \
                          "f16c,bmi,popcnt")))
#define TARGET_AVX512BF16                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2," \
                          "avx512bf16,fma,f16c,bmi,popcnt")))
#endif

#if defined(__GNUC__) || defined(__clang__)
#define EXPORT __attribute__((visibility("default")))
#else
#error "tamp_sparse needs GCC or Clang"
#endif

enum { PATH_PORTABLE = 0, PATH_AVX2 = 1, PATH_AVX512 = 2, PATH_AVX512BF16 = 3, PATHS = 4 };
enum { DTYPE_BF16 = 0, DTYPE_FP16 = 1, DTYPE_FP32 = 2 };

typedef struct {
    const uint32_t *mask;   /* [blocks, tiles, 4] */
    const void *values;     /* [kept] and 64 bytes of padding */
    const int64_t *offsets; /* [blocks + 1] */
    int64_t kept, rows, columns, blocks, tiles;
} tamp_weight;

/* x: [m, ldx], 1 <= m <= MAX_M, columns padded with zeros to a multiple of 32; fp32. For the bf16 weights
 * of PATH_AVX512BF16 it is bf16 in panels of up to 6 rows, [tiles, rows, 32] each, and m <= STRIP_ROWS.
 * y: [m, ldy] in the weight's dtype. bias: fp32 [rows] or NULL. */
typedef struct {
    const void *x;
    int64_t ldx;
    int m, dtype;
    const float *bias;
    void *y;
    int64_t ldy;
} tamp_product;

/* Multiplies blocks [begin, end). Returns 0, or 1 if mask and offsets disagree. */
typedef int (*tamp_kernel)(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);

int tamp_gemv_portable(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);
int tamp_gemv_avx2(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);
int tamp_gemv_avx512(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);
int tamp_multiply_avx512bf16(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);

/* The path in use; tamp_set_path sets it, the best one of this CPU or a lower one. */
int tamp_path(void);
/* Calls work(context, begin, end) on ranges that cover [0, count), in parallel where OpenMP runs. */
typedef void (*tamp_range)(void *context, int64_t begin, int64_t end);
void tamp_parallel(tamp_range work, void *context, int64_t count, int64_t cost);

/* Rows of the next panel of x where `left` rows are left: panels of nearly the same size. */
ALWAYS_INLINE int panel_rows(int left) {
    const int panels = (left + PANEL_ROWS - 1) / PANEL_ROWS;
    return (left + panels - 1) / panels;
}

ALWAYS_INLINE int64_t popcount64(uint64_t bits) { return __builtin_popcountll(bits); }

/* Whether the values of a block may be read: its offset lies in the stream, and so do all values that
 * its mask announces. Only blocks near the end can run over it, so that this costs next to nothing. */
ALWAYS_INLINE int block_is_safe(const tamp_weight *w, int64_t block) {
    const int64_t offset = w->offsets[block];
    if (offset < 0 || offset > w->kept) return 0;
    if (offset + w->tiles * BLOCK_ROWS * TILE_COLUMNS <= w->kept) return 1;
    const uint32_t *mask = w->mask + block * w->tiles * BLOCK_ROWS;
    int64_t count = 0;
    for (int64_t i = 0; i < w->tiles * BLOCK_ROWS; i++) count += __builtin_popcount(mask[i]);
    return offset + count <= w->kept;
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
