/* INT8 with AMX: tdpbssd multiplies signed bytes with signed bytes, exactly. The kernels are those of
 * amx.c and amx_many.c; this is how x lies for them, and what becomes of the sums. */
#include "amx.h"
#include "tamp_int8.h"

#ifdef TAMP_AMX

/* Fewer rows of x stay in the registers of int8_avx512vnni.c, which waits for memory alone up to there. */
#define FEWEST_ROWS 9
#define MOST_STRIP 512 /* as in amx.c */

static const tamp_int8 *const few = &tamp_int8_avx512vnni;

static size_t bytes(const tamp_input *in) {
    if (in->m < FEWEST_ROWS) return few->bytes(in);
    return (size_t)((in->m + TILE_ROWS - 1) / TILE_ROWS * ((in->tiles + 1) / 2)) * TILE_BYTES;
}

/* [groups, tiles of 64 columns, 16 fours of columns, 16 rows of x, 4]. A range of tiles of 32 columns
 * begins where the one before it ends, so whoever has the first half of a wide tile does it. */
static TARGET_AMX void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    if (in->m < FEWEST_ROWS) {
        few->prepare(in, copy, begin, end);
        return;
    }
    const int64_t tiles = (in->tiles + 1) / 2;
    for (int64_t first = 0; first < in->m; first += TILE_ROWS)
        for (int64_t tile = (begin + 1) / 2; tile < (end + 1) / 2; tile++) {
            const int64_t column = tile * 64, left = in->columns - column;
            const __mmask64 inside = left < 64 ? ((__mmask64)1 << left) - 1 : ~(__mmask64)0;
            const int8_t *from = (const int8_t *)in->x + first * in->stride + column;
            char *to = (char *)copy + (first / TILE_ROWS * tiles + tile) * TILE_BYTES;
            __m512i v[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++)
                v[i] = first + i < in->m ? _mm512_maskz_loadu_epi8(inside, from + i * in->stride)
                                         : _mm512_setzero_si512();
            transpose16(v);
            for (int i = 0; i < TILE_ROWS; i++) _mm512_store_si512(to + i * 64, v[i]);
        }
}

typedef struct {
    const tamp_weight *weight;
    const tamp_int8_product *product;
} bound_product;

/* See tamp_tiles. */
static TARGET_AMX void store(const void *product, int64_t row, int64_t rows, int first, const void *sums) {
    const bound_product *bound = product;
    const tamp_int8_product *p = bound->product;
    __m512i v[TILE_ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++) v[i] = _mm512_loadu_si512((const int32_t *)sums + i * TILE_ROWS);
    transpose16(v);
    for (int i = 0; i < TILE_ROWS && first + i < p->m; i++) {
        _Alignas(64) int32_t own[TILE_ROWS];
        _mm512_store_si512(own, v[i]);
        for (int64_t r = 0; r < rows; r += BLOCK_ROWS)
            store_int8_avx2(bound->weight, p, (row + r) / BLOCK_ROWS, first + i,
                            _mm_loadu_si128((const __m128i *)(own + r)));
    }
}

static int kernel(const tamp_weight *w, const tamp_int8_product *p, int64_t begin, int64_t end) {
    if (p->m < FEWEST_ROWS) return few->kernel(w, p, begin, end);
    const bound_product bound = {w, p};
    const tamp_tiles tiles = {p->x, p->m, KIND_INT8, &bound, store};
    return tamp_multiply_tiles(w, &tiles, begin, end);
}

static int supported(void) { return few->supported(); }

const tamp_int8 tamp_int8_amx = {
    .supported = supported,
    .strip = MOST_STRIP,
    .group = STRIP_BLOCKS,
    .bytes = bytes,
    .prepare = prepare,
    .kernel = kernel,
};
#endif
