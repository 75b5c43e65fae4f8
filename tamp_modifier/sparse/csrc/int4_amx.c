/* 4-bit weights and x in bf16 with AMX, for more rows of x than registers are good at.
 *
 * 16 rows of the weight, a strip, are four blocks side by side. Each tile of them is expanded to bf16 once,
 * in the level-1 cache, while the one before it is multiplied with the first 64 rows of x; further rows
 * find a chunk of tiles expanded. Where a group ends, the sums go through memory to be scaled. */
#include "amx.h"
#include "int4_codes.h"

#ifdef TAMP_AMX

#define MOST_GROUPS 4 /* groups of 16 rows of x whose sums tiles 0 to 3 hold */
#define CHUNK_TILES 16
#define STRIP (16 * TILE_ROWS) /* rows of x */
#define FAR_BYTES 2048         /* prefetched ahead, in each of the four streams */

typedef struct {
    const tamp_int4_weight *weight;
    int64_t block[STRIP_BLOCKS];
    const uint8_t *values[STRIP_BLOCKS]; /* up to where they have been read */
    _Alignas(64) uint16_t dense[CHUNK_TILES][TILE_ENTRIES];
    _Alignas(64) float totals[STRIP / TILE_ROWS][TILE_SUMS]; /* [rows of the weight, rows of x] */
} int4_strip;

/* Writes columns 32 * tile .. of the strip to `dense`, [16, 32], even columns before odd ones. */
INLINE_AMX void expand_codes_tile(int4_strip *s, int64_t tile, uint16_t *dense) {
    const tamp_int4_weight *w = s->weight;
    const int64_t group = tile / w->group_tiles;
#pragma GCC unroll 4
    for (int i = 0; i < STRIP_BLOCKS; i++) {
        const uint64_t *mask = int4_mask(w, s->block[i]) + tile * TILE_PAIRS;
        const uint8_t *values = s->values[i];
#pragma GCC unroll 2
        for (int pair = 0; pair < TILE_PAIRS; pair++, dense += 2 * TILE_COLUMNS) {
            const bf16_pair n = expand_bf16(values, mask[pair], pair_zero(w, s->block[i], group, pair));
            values += pair_bytes(mask[pair]);
            __m256i *rows = (__m256i *)dense;
            _mm256_storeu_si256(rows, _mm512_castsi512_si256(n.even));
            _mm256_storeu_si256(rows + 1, _mm512_castsi512_si256(n.odd));
            _mm256_storeu_si256(rows + 2, _mm512_extracti64x4_epi64(n.even, 1));
            _mm256_storeu_si256(rows + 3, _mm512_extracti64x4_epi64(n.odd, 1));
        }
        _mm_prefetch((const char *)values + FAR_BYTES, _MM_HINT_T0);
        _mm_prefetch((const char *)mask + FAR_BYTES / 2, _MM_HINT_T0);
        s->values[i] = values;
    }
}

/* Adds scaled sums of a group, [rows of the weight, rows of x]. */
INLINE_AMX void add_scaled(const int4_strip *s, int64_t group, const float *sums, float *totals) {
#pragma GCC unroll 4
    for (int r = 0; r < TILE_ROWS; r++) {
        const __m512 scale =
            _mm512_set1_ps(int4_scale(s->weight, s->block[r / BLOCK_ROWS], group, r % BLOCK_ROWS));
        float *total = totals + r * TILE_ROWS;
        _mm512_storeu_ps(
            total, _mm512_fmadd_ps(_mm512_loadu_ps(sums + r * TILE_ROWS), scale, _mm512_loadu_ps(total)));
    }
}

/* The chunk of `tiles` tiles from `first` on with up to 64 rows of x, groups of 16 from `at` on. Tiles of
 * the processor: 0 to 3 sums, 4 the weight, 5 to 7 x. */
INLINE_AMX void multiply_chunk(int4_strip *s, const tamp_int4_product *p, int64_t first, int64_t tiles,
                               int at, int groups, const int expand) {
    const tamp_int4_weight *w = s->weight;
    const int64_t group = w->tiles * TILE_ENTRIES;
    const uint16_t *x = (const uint16_t *)p->x + at * group + first * TILE_ENTRIES;
    _Alignas(64) float sums[MOST_GROUPS][TILE_SUMS];
    if (expand) expand_codes_tile(s, first, s->dense[0]);
    for (int64_t tile = 0; tile < tiles;) {
        const int64_t stop = group_stop(w, first + tile, first + tiles) - first, begin = tile;
        CLEAR_SUMS();
        for (; tile < stop; tile++, x += TILE_ENTRIES) {
            if (expand && tile + 1 < tiles) expand_codes_tile(s, first + tile + 1, s->dense[tile + 1]);
            TILE_LOAD(4, s->dense[tile]);
            TILE_LOAD(5, x);
            _tile_dpbf16ps(0, 4, 5);
            if (groups > 1) {
                TILE_LOAD(6, x + group);
                _tile_dpbf16ps(1, 4, 6);
            }
            if (groups > 2) {
                TILE_LOAD(7, x + 2 * group);
                _tile_dpbf16ps(2, 4, 7);
            }
            if (groups > 3) {
                TILE_LOAD(5, x + 3 * group);
                _tile_dpbf16ps(3, 4, 5);
            }
        }
        TILE_STORE(0, sums[0]);
        if (groups > 1) TILE_STORE(1, sums[1]);
        if (groups > 2) TILE_STORE(2, sums[2]);
        if (groups > 3) TILE_STORE(3, sums[3]);
        READ_BARRIER(sums);
        for (int g = 0; g < groups; g++)
            add_scaled(s, (first + begin) / w->group_tiles, sums[g], s->totals[at + g]);
    }
}

static TARGET_AMX void expand_and_multiply(int4_strip *s, const tamp_int4_product *p, int64_t first,
                                           int64_t tiles, int groups) {
    multiply_chunk(s, p, first, tiles, 0, groups, 1);
}
static TARGET_AMX void multiply_again(int4_strip *s, const tamp_int4_product *p, int64_t first,
                                      int64_t tiles, int at, int groups) {
    multiply_chunk(s, p, first, tiles, at, groups, 0);
}

/* Blocks [block, stop) of one strip; where they are fewer than four the last one fills it up. */
static TARGET_AMX int multiply_strip(int4_strip *s, const tamp_int4_product *p, int64_t block,
                                     int64_t stop) {
    const tamp_int4_weight *w = s->weight;
    const int groups = (p->m + TILE_ROWS - 1) / TILE_ROWS;
    for (int i = 0; i < STRIP_BLOCKS; i++) {
        s->block[i] = block + i < stop ? block + i : stop - 1;
        if (!int4_block_is_safe(w, s->block[i])) return 1;
        s->values[i] = w->values + w->offsets[s->block[i]];
    }
    for (int g = 0; g < groups; g++)
        for (int i = 0; i < TILE_SUMS; i += TILE_ROWS)
            _mm512_storeu_ps(s->totals[g] + i, _mm512_setzero_ps());
    for (int64_t first = 0; first < w->tiles; first += CHUNK_TILES) {
        const int64_t tiles = w->tiles - first < CHUNK_TILES ? w->tiles - first : CHUNK_TILES;
        expand_and_multiply(s, p, first, tiles, groups < MOST_GROUPS ? groups : MOST_GROUPS);
        for (int at = MOST_GROUPS; at < groups; at += MOST_GROUPS)
            multiply_again(s, p, first, tiles, at, groups - at < MOST_GROUPS ? groups - at : MOST_GROUPS);
    }
    for (int i = 0; i < STRIP_BLOCKS; i++)
        if (s->values[i] != w->values + w->offsets[s->block[i] + 1]) return 1;
    const int64_t row = block * BLOCK_ROWS;
    const int64_t rows = (stop * BLOCK_ROWS < w->rows ? stop * BLOCK_ROWS : w->rows) - row;
    const tamp_product product = {.m = p->m, .dtype = p->dtype, .bias = p->bias, .y = p->y, .ldy = p->ldy};
    for (int g = 0; g < groups; g++) tamp_store_tile(&product, row, rows, g * TILE_ROWS, s->totals[g]);
    return 0;
}

static TARGET_AMX int multiply_blocks(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t begin,
                                      int64_t end) {
    int4_strip strip;
    strip.weight = w;
    int corrupt = 0;
    configure_tiles();
    for (int64_t block = begin; block < end && !corrupt; block += STRIP_BLOCKS)
        corrupt = multiply_strip(&strip, p, block, block + STRIP_BLOCKS < end ? block + STRIP_BLOCKS : end);
    _tile_release();
    return corrupt;
}

static const tamp_int4_kernel bf16 = {
    .entry = ENTRY_BF16,
    .panel = TILE_ROWS,
    .strip = STRIP,
    .paired = 1,
    .least_rows =
        6, /* estimated, not measured: fewer wait for the expansion, which tiles do not speed up */
    .most_rows = INT64_MAX,
    .place = tamp_places_of_2,
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_amx = {.bf16 = &bf16};
#endif
