/* What the files for 4-bit weights share: the packed weight (see docs/sparse-format.md), a product, and a
 * kernel, which is how one kind of processor multiplies it.
 *
 * Two rows of a tile, a pair, are one 64-bit mask and at most 32 bytes of codes, two a byte, the lower half
 * first. A pair begins at a whole byte. w = (code - zero) * scale, with one zero and one scale for each row
 * of a group of columns; weights that are not kept are 0. */
#ifndef TAMP_INT4_H
#define TAMP_INT4_H

#include "tamp_sparse.h"

#define TILE_PAIRS 2
#define PAIR_BYTES 32
#define INT4_TILE_BYTES (TILE_PAIRS * PAIR_BYTES)
#define SYMMETRIC_ZERO 8

typedef struct {
    const uint64_t *mask;   /* [blocks, tiles, 2] */
    const uint8_t *values;  /* [bytes] and 64 bytes of padding */
    const int64_t *offsets; /* [blocks + 1], in bytes */
    const void *scale;      /* [blocks, groups, 4] of scale_dtype */
    const uint8_t *zeros;   /* [blocks, groups, 4]; NULL: 8 everywhere */
    int64_t bytes, rows, columns, group_tiles;
    int64_t blocks, tiles, groups; /* these follow from the ones before */
    int32_t scale_dtype;
} tamp_int4_weight;

/* Some rows of x, as the kernel has them, with the weight. y: [m, ldy] of `dtype`. */
typedef struct {
    const void *x;
    const float *x_scale;  /* [m], for x in int8, else NULL */
    const int32_t *x_sums; /* [m, groups], for x in int8: sums of x over each group */
    const float *bias;     /* [rows] or NULL */
    void *y;
    int64_t ldy;
    int m, dtype;
} tamp_int4_product;

enum { ENTRY_FP32, ENTRY_BF16, ENTRY_INT8 };

/* x comes in panels of `panel` rows, the last one of fewer, each [tiles, rows, 32], with the columns of a
 * tile in the order `place`: entry c is at place[c]. `paired` panels are what AMX wants, [tiles, 16, panel,
 * 2]: entries 2 i and 2 i + 1 of all rows beside each other, and rows of zeros up to a whole panel. */
typedef struct {
    int entry, panel, strip; /* rows of x in one call: `strip` at most, a multiple of `panel` */
    int paired;
    int64_t least_rows,
        most_rows;          /* of x: where this kernel is the one to take; beyond, expand the weight */
    const uint8_t *place;   /* [32]; NULL: as they are */
    int (*supported)(void); /* NULL: where its path is */
    /* Multiplies blocks [begin, end). Returns 1 if mask and offsets disagree. */
    int (*multiply)(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t begin, int64_t end);
} tamp_int4_kernel;

/* The kernels of a path; for what is NULL its base is asked. */
struct tamp_int4 {
    const tamp_int4_kernel *bf16, *fp32, *int8;
    /* Writes the weights of a block to [4, stride], whole tiles. Returns 1 if mask and offsets disagree. */
    int (*expand)(const tamp_int4_weight *w, int64_t block, float *dense, int64_t stride);
};
extern const struct tamp_int4 tamp_int4_portable, tamp_int4_avx2, tamp_int4_avx512, tamp_int4_avx512bf16,
    tamp_int4_amx;
/* x in int8 with VNNI, for the path avx512, whose base does not have these instructions. */
extern const tamp_int4_kernel tamp_int4_vnni;
/* Column c of a tile is at place [c]: even columns before odd ones, and by remainders of 4. */
extern const uint8_t tamp_places_of_2[TILE_COLUMNS], tamp_places_of_4[TILE_COLUMNS];

/* The weight with the sizes that follow from others. */
ALWAYS_INLINE tamp_int4_weight int4_sized(const tamp_int4_weight *given) {
    tamp_int4_weight w = *given;
    w.blocks = (w.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    w.tiles = (w.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    w.groups = (w.tiles + w.group_tiles - 1) / w.group_tiles;
    return w;
}

ALWAYS_INLINE int64_t pair_bytes(uint64_t mask) { return (popcount64(mask) + 1) >> 1; }

ALWAYS_INLINE const uint64_t *int4_mask(const tamp_int4_weight *w, int64_t block) {
    return w->mask + block * w->tiles * TILE_PAIRS;
}

/* Whether the values of a block may be read; see block_is_safe. */
ALWAYS_INLINE int int4_block_is_safe(const tamp_int4_weight *w, int64_t block) {
    const int64_t offset = w->offsets[block];
    if (offset < 0 || offset > w->bytes) return 0;
    if (offset + w->tiles * INT4_TILE_BYTES <= w->bytes) return 1;
    const uint64_t *mask = int4_mask(w, block);
    int64_t count = 0;
    for (int64_t i = 0; i < w->tiles * TILE_PAIRS; i++) count += pair_bytes(mask[i]);
    return offset + count <= w->bytes;
}

/* Last tile + 1 of the part of a group that begins at `tile` and ends before `stop`. */
ALWAYS_INLINE int64_t group_stop(const tamp_int4_weight *w, int64_t tile, int64_t stop) {
    const int64_t next = (tile / w->group_tiles + 1) * w->group_tiles;
    return next < stop ? next : stop;
}

ALWAYS_INLINE float int4_scale(const tamp_int4_weight *w, int64_t block, int64_t group, int row) {
    return load_float(w->scale, (block * w->groups + group) * BLOCK_ROWS + row, w->scale_dtype);
}

ALWAYS_INLINE int int4_zero(const tamp_int4_weight *w, int64_t block, int64_t group, int row) {
    return w->zeros ? w->zeros[(block * w->groups + group) * BLOCK_ROWS + row] : SYMMETRIC_ZERO;
}

/* Code - zero of a pair, 0 where nothing is kept. Returns where the next pair begins. */
ALWAYS_INLINE const uint8_t *int4_decode(const uint8_t *values, uint64_t mask, const int zeros[2],
                                         int8_t codes[2 * TILE_COLUMNS]) {
    for (int c = 0; c < 2 * TILE_COLUMNS; c++) codes[c] = 0;
    int64_t place = 0;
    for (uint64_t left = mask; left; left &= left - 1, place++) {
        const int column = __builtin_ctzll(left);
        const int code = values[place >> 1] >> (place & 1 ? 4 : 0) & 15;
        codes[column] = (int8_t)(code - zeros[column >= TILE_COLUMNS]);
    }
    return values + pair_bytes(mask);
}

/* Writes the sums of one row of x with the rows of one block. */
ALWAYS_INLINE void int4_store(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block, int m,
                              const float *sums) {
    const tamp_weight rows = {.rows = w->rows};
    const tamp_product product = {.bias = p->bias, .y = p->y, .ldy = p->ldy, .dtype = p->dtype};
    const float scale = p->x_scale ? p->x_scale[m] : 1;
    float scaled[BLOCK_ROWS];
    for (int r = 0; r < BLOCK_ROWS; r++) scaled[r] = p->x_scale ? sums[r] * scale : sums[r];
    store_sums(&rows, &product, block, m, scaled);
}

#endif
