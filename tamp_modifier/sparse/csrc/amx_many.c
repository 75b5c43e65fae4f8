/* Many rows of x with AMX: tiles of the weight are expanded once for all of them.
 *
 * The columns are cut into chunks, so narrow that a chunk of x and the sums of many rows of the weight
 * stay in the level-2 cache. A chunk of two strips of the weight, expanded into that cache, is multiplied
 * with x, 2 x 2 tiles at once: four loads for four products. Meanwhile the next two strips are expanded
 * into a second buffer, a tile for every step of the product, as these wait for loads and the tile unit. */
#include <stdlib.h>

#include "amx.h"

#ifdef TAMP_AMX

/* Shares of a level-2 cache of 2 MB, besides X_BYTES. */
#define SUM_BYTES (256 << 10)
#define MOST_CHUNK 64 /* tiles; two buffers of two strips are 256 KB then */
#define MOST_STRIPS 64

typedef struct {
    const tamp_weight *weight;
    const tamp_tiles *product;
    int groups, strips, wide, kind; /* groups of rows of x; strips at once, an even number */
    int64_t tiles, chunk;           /* of a strip; at once */
    uint16_t *dense[2];             /* [2, chunk] tiles each */
    float *sums;                    /* [strips, groups] tiles */
} many_task;

/* What remains to be expanded of two strips, or of one. */
typedef struct {
    tamp_strip *strip;
    int64_t tiles, left; /* in a chunk; in the strip at hand */
    int strips;
    uint16_t *to;
} expansion;

INLINE_AMX void expand_next(expansion *e, const int wide, const int kind) {
    if (!e->strips) return;
    expand_tile(e->strip, wide, kind, e->to);
    e->to += TILE_ENTRIES;
    if (--e->left) return;
    e->strip++, e->strips--;
    e->left = e->tiles;
}

/* Adds the product of one or two strips with one or two groups to sums[strip][group]; `strip_sums` floats
 * lie from one strip to the next. Tiles: 0 to 3 sums, 4 and 5 the weight, 6 and 7 x. */
static TARGET_AMX void multiply_chunk(const uint16_t *dense, const uint16_t *x, int64_t group,
                                      int64_t tiles, int two_strips, int two_groups, int first, int wide,
                                      int kind, expansion *next, float *sums, int64_t strip_sums) {
    const uint16_t *second = dense + tiles * TILE_ENTRIES;
    float *second_sums = sums + strip_sums;
    CLEAR_SUMS();
    if (!first) {
        TILE_LOAD(0, sums);
        if (two_groups) TILE_LOAD(1, sums + TILE_SUMS);
        if (two_strips) TILE_LOAD(2, second_sums);
        if (two_strips && two_groups) TILE_LOAD(3, second_sums + TILE_SUMS);
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t at = tile * TILE_ENTRIES;
        expand_next(next, wide, kind);
        TILE_LOAD(4, dense + at);
        TILE_LOAD(6, x + at);
        TILE_MULTIPLY(kind, 0, 4, 6);
        if (two_groups) {
            TILE_LOAD(7, x + group + at);
            TILE_MULTIPLY(kind, 1, 4, 7);
        }
        if (two_strips) {
            TILE_LOAD(5, second + at);
            TILE_MULTIPLY(kind, 2, 5, 6);
            if (two_groups) TILE_MULTIPLY(kind, 3, 5, 7);
        }
    }
    TILE_STORE(0, sums);
    if (two_groups) TILE_STORE(1, sums + TILE_SUMS);
    if (two_strips) TILE_STORE(2, second_sums);
    if (two_strips && two_groups) TILE_STORE(3, second_sums + TILE_SUMS);
}

/* Blocks [begin, end): as many strips as the sums have room for. A step takes a chunk of two strips; the
 * steps go through all strips before the next chunk, so that the chunk of x stays where it is. */
static TARGET_AMX int multiply_strips(const many_task *t, int64_t begin, int64_t end) {
    const tamp_weight *w = t->weight;
    const tamp_tiles *p = t->product;
    const int strips = (int)((end - begin + STRIP_BLOCKS - 1) / STRIP_BLOCKS), pairs = (strips + 1) / 2;
    const int64_t group = t->tiles * TILE_ENTRIES, strip_sums = t->groups * TILE_SUMS;
    const int64_t steps = (t->tiles + t->chunk - 1) / t->chunk * pairs;
    tamp_strip open[MOST_STRIPS];
    for (int i = 0; i < strips; i++)
        if (!open_strip(w, t->kind, &open[i], begin + i * STRIP_BLOCKS, end)) return 1;
    expansion next = {.strips = 0};
    for (int64_t step = -1; step < steps; step++) {
        while (next.strips)
            expand_next(&next, t->wide, t->kind); /* what found no place in the step before */
        if (step + 1 < steps) {
            const int64_t first = (step + 1) / pairs * t->chunk, left = t->tiles - first;
            const int strip = (int)((step + 1) % pairs) * 2;
            next.tiles = next.left = left < t->chunk ? left : t->chunk;
            next.strip = &open[strip];
            next.strips = strips - strip < 2 ? 1 : 2;
            next.to = t->dense[(step + 1) & 1];
        }
        if (step < 0) continue;
        const int64_t first = step / pairs * t->chunk, left = t->tiles - first;
        const int64_t tiles = left < t->chunk ? left : t->chunk;
        const int strip = (int)(step % pairs) * 2, here = strips - strip < 2 ? 1 : 2;
        const uint16_t *x = (const uint16_t *)p->x + first * TILE_ENTRIES;
        for (int g = 0; g < t->groups; g += 2) {
            float *sums = t->sums + strip * strip_sums + g * TILE_SUMS;
            const int two_groups = g + 1 < t->groups;
            multiply_chunk(t->dense[step & 1], x + g * group, group, tiles, here == 2, two_groups,
                           first == 0, t->wide, t->kind, &next, sums, strip_sums);
            if (left > t->chunk) continue;
            for (int s = 0; s < here; s++) {
                const int64_t block = begin + (strip + s) * STRIP_BLOCKS;
                const int64_t rows = rows_until(w, block, end), row = block * BLOCK_ROWS;
                const float *at = sums + s * strip_sums;
                p->store(p->product, row, rows, g * TILE_ROWS, at);
                if (two_groups) p->store(p->product, row, rows, (g + 1) * TILE_ROWS, at + TILE_SUMS);
            }
        }
    }
    for (int i = 0; i < strips; i++)
        if (!strip_is_read(&open[i])) return 1;
    return 0;
}

static int64_t clamp(int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
}

TARGET_AMX int tamp_many_amx(const tamp_weight *w, const tamp_tiles *p, int64_t begin, int64_t end) {
    const int groups = count_groups(p);
    const int64_t tiles = count_tiles(w, p->kind);
    const int64_t most = clamp(X_BYTES / TILE_BYTES / groups, 1, MOST_CHUNK);
    const int64_t chunks = (tiles + most - 1) / most, chunk = (tiles + chunks - 1) / chunks;
    const int64_t needed = ((end - begin + STRIP_BLOCKS - 1) / STRIP_BLOCKS + 1) / 2;
    const int64_t room = SUM_BYTES / TILE_BYTES / groups / 2; /* pairs of strips, as `needed` */
    const int64_t strips = 2 * clamp(room, 1, needed < MOST_STRIPS / 2 ? needed : MOST_STRIPS / 2);
    char *scratch = malloc((size_t)(4 * chunk + strips * groups) * TILE_BYTES + 64);
    if (!scratch) return 2;
    uint16_t *dense = (uint16_t *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    uint16_t *other = dense + 2 * chunk * TILE_ENTRIES, *sums = other + 2 * chunk * TILE_ENTRIES;
    const many_task task = {
        .weight = w,
        .product = p,
        .groups = groups,
        .strips = (int)strips,
        .wide = is_wide(w),
        .kind = p->kind,
        .tiles = tiles,
        .chunk = chunk,
        .dense = {dense, other},
        .sums = (float *)sums,
    };
    int status = 0;
    for (int64_t block = begin; block < end && !status; block += strips * STRIP_BLOCKS) {
        const int64_t stop = block + strips * STRIP_BLOCKS;
        status = multiply_strips(&task, block, stop < end ? stop : end);
    }
    free(scratch);
    return status;
}
#endif
