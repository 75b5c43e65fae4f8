/* Packing, unpacking and checking. Elements are moved as integers of 1, 2 or 4 bytes. */
#include <string.h>

#include "tamp_sparse.h"

typedef struct {
    const char *dense; /* source of packing */
    char *target;      /* target of unpacking; its first row is row `first_row` */
    int64_t stride, first_row;
    int size, floating;
    tamp_weight weight;
    int64_t *offsets;
    int corrupt;
} pack_task;

ALWAYS_INLINE uint32_t *mask_of(const pack_task *t, int64_t block) {
    return (uint32_t *)t->weight.mask + block * t->weight.tiles * BLOCK_ROWS;
}

/* Which of `count` elements are not zero; -0 is zero too for floating types. */
#define DEFINE_NONZERO(TYPE, SIZE)                                                                 \
    static uint32_t nonzero_##SIZE(const char *at, int count, int floating) {                      \
        const TYPE *elements = (const TYPE *)at;                                                   \
        const TYPE significant = (TYPE)(floating ? (TYPE) - 1 >> 1 : (TYPE) - 1);                  \
        uint32_t bits = 0;                                                                         \
        for (int c = 0; c < count; c++) bits |= (uint32_t)((elements[c] & significant) != 0) << c; \
        return bits;                                                                               \
    }
DEFINE_NONZERO(uint8_t, 1)
DEFINE_NONZERO(uint16_t, 2)
DEFINE_NONZERO(uint32_t, 4)

ALWAYS_INLINE uint32_t nonzero(const char *at, int size, int count, int floating) {
    return size == 2   ? nonzero_2(at, count, floating)
           : size == 4 ? nonzero_4(at, count, floating)
                       : nonzero_1(at, count, floating);
}

static void mask_blocks(void *context, int64_t begin, int64_t end) {
    const pack_task *t = context;
    const tamp_weight *w = &t->weight;
    const tamp_moves *fast = tamp_current_path()->moves;
    for (int64_t block = begin; block < end; block++) {
        uint32_t *mask = mask_of(t, block);
        int64_t kept = 0;
        for (int r = 0; r < BLOCK_ROWS; r++) {
            const int64_t row = block * BLOCK_ROWS + r;
            const char *dense = t->dense + row * t->stride * t->size;
            for (int64_t tile = 0; tile < w->tiles; tile++) {
                const int64_t column = tile * TILE_COLUMNS, left = w->columns - column;
                const char *at = dense + column * t->size;
                uint32_t bits = 0;
                if (row < w->rows) {
                    if (fast && left >= TILE_COLUMNS) bits = fast->nonzero(at, t->size, t->floating);
                    else
                        bits = nonzero(at, t->size, left < TILE_COLUMNS ? (int)left : TILE_COLUMNS,
                                       t->floating);
                }
                mask[tile * BLOCK_ROWS + r] = bits;
                kept += __builtin_popcount(bits);
            }
        }
        t->offsets[block + 1] = kept;
    }
}

ALWAYS_INLINE void copy_kept(const char *at, uint32_t mask, int size, char *to) {
    for (; mask; mask &= mask - 1, to += size) memcpy(to, at + __builtin_ctz(mask) * size, size);
}

static void pack_blocks(void *context, int64_t begin, int64_t end) {
    const pack_task *t = context;
    const tamp_weight *w = &t->weight;
    const tamp_moves *fast = tamp_current_path()->moves;
    const int size = t->size;
    for (int64_t block = begin; block < end; block++) {
        const uint32_t *mask = mask_of(t, block);
        char *to = t->target + w->offsets[block] * size;
        const char *stop = t->target + w->offsets[block + 1] * size;
        for (int64_t tile = 0; tile < w->tiles; tile++)
            for (int r = 0; r < BLOCK_ROWS; r++) {
                const uint32_t bits = mask[tile * BLOCK_ROWS + r];
                if (!bits) continue; /* the rows that fill up the last block are not there to be read */
                const int64_t row = block * BLOCK_ROWS + r, column = tile * TILE_COLUMNS;
                const char *at = t->dense + (row * t->stride + column) * size;
                /* Never past this block: what follows belongs to another thread. */
                if (fast && stop - to >= 128 && w->columns - column >= TILE_COLUMNS)
                    fast->compress(at, bits, size, to);
                else if (size == 2) copy_kept(at, bits, 2, to);
                else if (size == 4) copy_kept(at, bits, 4, to);
                else copy_kept(at, bits, 1, to);
                to += __builtin_popcount(bits) * size;
            }
    }
}

ALWAYS_INLINE void scatter_kept(const char *values, uint32_t mask, int size, char *to) {
    for (; mask; mask &= mask - 1, values += size) memcpy(to + __builtin_ctz(mask) * size, values, size);
}

static void unpack_blocks(void *context, int64_t begin, int64_t end) {
    pack_task *t = context;
    const tamp_weight *w = &t->weight;
    const tamp_moves *fast = tamp_current_path()->moves;
    const int size = t->size;
    const int64_t first = t->first_row / BLOCK_ROWS;
    for (int64_t block = first + begin; block < first + end; block++) {
        if (!block_is_safe(w, block)) {
            __atomic_store_n(&t->corrupt, 1, __ATOMIC_RELAXED);
            return;
        }
        const uint32_t *mask = mask_of(t, block);
        const char *values = (const char *)w->values + w->offsets[block] * size;
        for (int64_t tile = 0; tile < w->tiles; tile++) {
            const int64_t column = tile * TILE_COLUMNS, left = w->columns - column;
            const int width = left < TILE_COLUMNS ? (int)left : TILE_COLUMNS;
            for (int r = 0; r < BLOCK_ROWS; r++) {
                uint32_t bits = mask[tile * BLOCK_ROWS + r];
                const int64_t row = block * BLOCK_ROWS + r;
                if (row < w->rows) {
                    char *to = t->target + ((row - t->first_row) * t->stride + column) * size;
                    if (fast && width == TILE_COLUMNS) {
                        fast->expand(values, bits, size, to);
                    } else {
                        const uint32_t inside = width == 32 ? bits : bits & ((1u << width) - 1);
                        memset(to, 0, (size_t)width * size);
                        if (size == 2) scatter_kept(values, inside, 2, to);
                        else if (size == 4) scatter_kept(values, inside, 4, to);
                        else scatter_kept(values, inside, 1, to);
                    }
                }
                values += __builtin_popcount(bits) * size;
            }
        }
        if (values != (const char *)w->values + w->offsets[block + 1] * size)
            __atomic_store_n(&t->corrupt, 1, __ATOMIC_RELAXED);
    }
}

/* First step of packing: mask and offsets; the caller then knows how many values there are. */
EXPORT void tamp_pack_mask(const void *dense, int size, int floating, int64_t rows, int64_t columns,
                           int64_t stride, uint32_t *mask, int64_t *offsets) {
    pack_task task = {.dense = dense,
                      .stride = stride,
                      .size = size,
                      .floating = floating,
                      .offsets = offsets,
                      .weight = weight_of(mask, 0, offsets, 0, rows, columns)};
    offsets[0] = 0;
    tamp_parallel(mask_blocks, &task, task.weight.blocks, rows * columns);
    for (int64_t block = 0; block < task.weight.blocks; block++) offsets[block + 1] += offsets[block];
}

/* Second step of packing: the values. */
EXPORT void tamp_pack_values(const void *dense, int size, int64_t rows, int64_t columns, int64_t stride,
                             const uint32_t *mask, const int64_t *offsets, void *values) {
    pack_task task = {.dense = dense,
                      .target = values,
                      .stride = stride,
                      .size = size,
                      .weight = weight_of(mask, values, offsets, 0, rows, columns)};
    tamp_parallel(pack_blocks, &task, task.weight.blocks, rows * columns);
}

/* Writes rows first_row .. of blocks [begin, end) to dense. Returns 1 where mask and offsets disagree. */
EXPORT int tamp_unpack(const uint32_t *mask, const void *values, const int64_t *offsets, int64_t kept,
                       int size, int64_t rows, int64_t columns, int64_t begin, int64_t end, void *dense,
                       int64_t stride) {
    pack_task task = {.target = dense,
                      .stride = stride,
                      .first_row = begin * BLOCK_ROWS,
                      .size = size,
                      .weight = weight_of(mask, values, offsets, kept, rows, columns)};
    tamp_parallel(unpack_blocks, &task, end - begin, (end - begin) * BLOCK_ROWS * columns);
    return task.corrupt;
}

static void check_blocks(void *context, int64_t begin, int64_t end) {
    pack_task *t = context;
    const tamp_weight *w = &t->weight;
    const int extra = (int)(w->tiles * TILE_COLUMNS - w->columns);
    int corrupt = 0;
    for (int64_t block = begin; block < end; block++) {
        const uint32_t *mask = mask_of(t, block);
        int64_t kept = 0;
        for (int64_t i = 0; i < w->tiles * BLOCK_ROWS; i++) kept += __builtin_popcount(mask[i]);
        corrupt |= (uint64_t)w->offsets[block + 1] - (uint64_t)w->offsets[block] != (uint64_t)kept;
        for (int r = 0; r < BLOCK_ROWS; r++) {
            if (extra) corrupt |= mask[(w->tiles - 1) * BLOCK_ROWS + r] >> (TILE_COLUMNS - extra) != 0;
            for (int64_t tile = 0; block * BLOCK_ROWS + r >= w->rows && tile < w->tiles; tile++)
                corrupt |= mask[tile * BLOCK_ROWS + r] != 0;
        }
    }
    if (corrupt) __atomic_store_n(&t->corrupt, 1, __ATOMIC_RELAXED);
}

/* Returns 0 where offsets, popcounts and the number of values agree and nothing is kept outside. */
EXPORT int tamp_check(const uint32_t *mask, const int64_t *offsets, int64_t kept, int64_t rows,
                      int64_t columns) {
    pack_task task = {.weight = weight_of(mask, 0, offsets, kept, rows, columns)};
    if (offsets[0] != 0 || offsets[task.weight.blocks] != kept) return 1;
    tamp_parallel(check_blocks, &task, task.weight.blocks, rows * columns);
    return task.corrupt;
}
