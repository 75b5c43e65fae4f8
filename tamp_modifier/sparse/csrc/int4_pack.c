/* Packing, unpacking and checking of 4-bit weights. Codes are bytes, [rows, stride]. */
#include "tamp_int4.h"

typedef struct {
    tamp_int4_weight weight;
    const uint8_t *codes; /* source of packing */
    uint8_t *target;      /* values of packing, codes of unpacking */
    int64_t *offsets;
    int64_t stride;
    int corrupt;
} pack_task;

/* The mask of a pair and, where `to` is given, its codes; up to 32 bytes from `to` on are written. */
static uint64_t pack_pair(const pack_task *t, int64_t block, int64_t tile, int pair, uint8_t *to) {
    const tamp_int4_weight *w = &t->weight;
    const int64_t group = tile / w->group_tiles, left = w->columns - tile * TILE_COLUMNS;
    uint64_t mask = 0;
    int place = 0;
    for (int r = 0; r < 2; r++) {
        const int64_t row = block * BLOCK_ROWS + 2 * pair + r;
        if (row >= w->rows) break;
        const uint8_t *codes = t->codes + row * t->stride + tile * TILE_COLUMNS;
        const int zero = int4_zero(w, block, group, 2 * pair + r);
        for (int c = 0; c < TILE_COLUMNS && c < left; c++) {
            if (codes[c] == zero) continue;
            mask |= (uint64_t)1 << (r * TILE_COLUMNS + c);
            if (to) {
                const uint8_t half = codes[c] & 15;
                if (place % 2) to[place / 2] |= (uint8_t)(half << 4);
                else to[place / 2] = half;
                place++;
            }
        }
    }
    return mask;
}

static void mask_blocks(void *context, int64_t begin, int64_t end) {
    const pack_task *t = context;
    const int64_t tiles = t->weight.tiles;
    for (int64_t block = begin; block < end; block++) {
        uint64_t *mask = (uint64_t *)int4_mask(&t->weight, block);
        int64_t bytes = 0;
        for (int64_t i = 0; i < tiles * TILE_PAIRS; i++) {
            mask[i] = pack_pair(t, block, i / TILE_PAIRS, i % TILE_PAIRS, NULL);
            bytes += pair_bytes(mask[i]);
        }
        t->offsets[block + 1] = bytes;
    }
}

static void value_blocks(void *context, int64_t begin, int64_t end) {
    const pack_task *t = context;
    for (int64_t block = begin; block < end; block++) {
        uint8_t *to = t->target + t->weight.offsets[block];
        for (int64_t i = 0; i < t->weight.tiles * TILE_PAIRS; i++)
            to += pair_bytes(pack_pair(t, block, i / TILE_PAIRS, i % TILE_PAIRS, to));
    }
}

/* First step of packing: mask and offsets; the caller then knows how many bytes there are. */
EXPORT void tamp_int4_pack_mask(const uint8_t *codes, int64_t stride, const tamp_int4_weight *weight) {
    pack_task task = {int4_sized(weight), codes, NULL, (int64_t *)weight->offsets, stride, 0};
    task.offsets[0] = 0;
    tamp_parallel(mask_blocks, &task, task.weight.blocks, weight->rows * weight->columns);
    for (int64_t i = 0; i < task.weight.blocks; i++) task.offsets[i + 1] += task.offsets[i];
}

/* Second step of packing: the values. */
EXPORT void tamp_int4_pack_values(const uint8_t *codes, int64_t stride, const tamp_int4_weight *weight) {
    pack_task task = {int4_sized(weight), codes, (uint8_t *)weight->values, NULL, stride, 0};
    tamp_parallel(value_blocks, &task, task.weight.blocks, weight->rows * weight->columns);
}

static void unpack_blocks(void *context, int64_t begin, int64_t end) {
    pack_task *t = context;
    const tamp_int4_weight *w = &t->weight;
    for (int64_t block = begin; block < end; block++) {
        const uint8_t *values = w->values + w->offsets[block];
        if (!int4_block_is_safe(w, block)) {
            __atomic_store_n(&t->corrupt, 1, __ATOMIC_RELAXED);
            return;
        }
        for (int64_t i = 0; i < w->tiles * TILE_PAIRS; i++) {
            const int64_t tile = i / TILE_PAIRS, left = w->columns - tile * TILE_COLUMNS;
            const int row = i % TILE_PAIRS * 2;
            int8_t codes[2 * TILE_COLUMNS];
            const int none[2] = {0, 0};
            const uint64_t mask = int4_mask(w, block)[i];
            values = int4_decode(values, mask, none, codes);
            for (int r = 0; r < 2 && block * BLOCK_ROWS + row + r < w->rows; r++) {
                uint8_t *to = t->target + (block * BLOCK_ROWS + row + r) * w->columns + tile * TILE_COLUMNS;
                const uint8_t zero = (uint8_t)int4_zero(w, block, tile / w->group_tiles, row + r);
                for (int c = 0; c < TILE_COLUMNS && c < left; c++)
                    to[c] =
                        mask >> (r * TILE_COLUMNS + c) & 1 ? (uint8_t)codes[r * TILE_COLUMNS + c] : zero;
            }
        }
        if (values != w->values + w->offsets[block + 1]) __atomic_store_n(&t->corrupt, 1, __ATOMIC_RELAXED);
    }
}

/* Writes the codes of all weights to [rows, columns]. Returns 1 where mask and offsets disagree. */
EXPORT int tamp_int4_unpack(const tamp_int4_weight *weight, uint8_t *codes) {
    pack_task task = {int4_sized(weight), NULL, codes, NULL, 0, 0};
    tamp_parallel(unpack_blocks, &task, task.weight.blocks, weight->rows * weight->columns);
    return task.corrupt;
}
