/* The loops of the kernels for 4-bit weights with AVX-512, for each kind of numbers in x. The file that
 * includes this defines before:
 *   INLINE              a function that may use its instructions
 *   TARGET              the same for one that is called
 *   PANEL, STRIP        rows of x at once, and that share one expansion of the weight
 *   entry               type of an entry of x
 *   numbers             the weights of a pair, ready to be multiplied
 *   sums                of the two rows of a pair: 16 lanes, the first 8 of the first row
 * and after, what these declare. x lies as `place` of its kernel says. */
#ifndef INT4_AVX512_H
#define INT4_AVX512_H

#define CHUNK_TILES 32 /* that are kept expanded for more rows of x than a panel has: 4 to 16 KB */
/* Prefetching, in bytes of the values; a mask is half of them at 50 %. */
#define FAR 6144
#define NEAR 2048

static INLINE numbers expand_pair(const uint8_t *values, __mmask64 mask, __m512i zero);
static INLINE sums multiply_pair(sums sum, const numbers *weights, const entry *x);
/* Sums of row `row` of x and a group before its first product, and when it is complete. */
static INLINE sums start_group(const tamp_int4_product *p, int64_t row, int64_t groups, int64_t group,
                               __m512i zero);
static INLINE __m512 finish_group(sums sum);

typedef enum { EXPAND, EXPAND_AND_KEEP, REUSE } way;

/* Adds the products of a chunk of a block with m rows of x, from `row` on, to the totals. `kept`: the
 * chunk, expanded. Returns where the values of the next chunk begin. */
static INLINE const uint8_t *multiply_chunk(const tamp_int4_weight *w, const tamp_int4_product *p,
                                            int64_t block, int64_t first, int64_t tiles,
                                            const uint8_t *values, numbers *kept, int64_t row,
                                            __m512 (*totals)[TILE_PAIRS], const int m, const way how) {
    const entry *x = (const entry *)p->x + (row * w->tiles + first * m) * TILE_COLUMNS;
    const uint64_t *mask = int4_mask(w, block) + first * TILE_PAIRS;
    for (int64_t tile = first; tile < first + tiles;) {
        const int64_t group = tile / w->group_tiles, stop = group_stop(w, tile, first + tiles);
        __m512i zero[TILE_PAIRS];
        sums sum[TILE_PAIRS][PANEL];
#pragma GCC unroll 2
        for (int pair = 0; pair < TILE_PAIRS; pair++) {
            zero[pair] = pair_zero(w, block, group, pair);
#pragma GCC unroll 8
            for (int i = 0; i < m; i++)
                sum[pair][i] =
                    start_group(p, row + i, w->groups, tile % w->group_tiles ? -1 : group, zero[pair]);
        }
        for (; tile < stop; tile++, mask += TILE_PAIRS, x += m * TILE_COLUMNS) {
#pragma GCC unroll 2
            for (int pair = 0; pair < TILE_PAIRS; pair++) {
                numbers weights;
                if (how == REUSE) weights = *kept++;
                else {
                    weights = expand_pair(values, mask[pair], zero[pair]);
                    values += pair_bytes(mask[pair]);
                    if (how == EXPAND_AND_KEEP) *kept++ = weights;
                }
#pragma GCC unroll 8
                for (int i = 0; i < m; i++)
                    sum[pair][i] = multiply_pair(sum[pair][i], &weights, x + i * TILE_COLUMNS);
            }
            if (how != REUSE) {
                _mm_prefetch((const char *)values + NEAR, _MM_HINT_T0);
                _mm_prefetch((const char *)values + FAR, _MM_HINT_T1);
                _mm_prefetch((const char *)mask + NEAR / 2, _MM_HINT_T0);
                _mm_prefetch((const char *)mask + FAR / 2, _MM_HINT_T1);
            }
        }
#pragma GCC unroll 2
        for (int pair = 0; pair < TILE_PAIRS; pair++) {
            const __m256 first_scale = _mm256_set1_ps(int4_scale(w, block, group, 2 * pair));
            const __m256 second_scale = _mm256_set1_ps(int4_scale(w, block, group, 2 * pair + 1));
            const __m512 scale = _mm512_castsi512_ps(
                halves(_mm256_castps_si256(first_scale), _mm256_castps_si256(second_scale)));
#pragma GCC unroll 8
            for (int i = 0; i < m; i++)
                totals[i][pair] = _mm512_fmadd_ps(finish_group(sum[pair][i]), scale, totals[i][pair]);
        }
    }
    return values;
}

static INLINE float add_lanes(__m256 sum) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

static INLINE void store_totals(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block,
                                __m512 (*totals)[TILE_PAIRS]) {
    for (int i = 0; i < p->m; i++) {
        float result[BLOCK_ROWS];
#pragma GCC unroll 2
        for (int pair = 0; pair < TILE_PAIRS; pair++) {
            result[2 * pair] = add_lanes(_mm512_castps512_ps256(totals[i][pair]));
            result[2 * pair + 1] = add_lanes(_mm512_extractf32x8_ps(totals[i][pair], 1));
        }
        int4_store(w, p, block, i, result);
    }
}

typedef const uint8_t *(*chunk_kernel)(const tamp_int4_weight *, const tamp_int4_product *, int64_t,
                                       int64_t, int64_t, const uint8_t *, numbers *, int64_t,
                                       __m512 (*)[TILE_PAIRS]);
#define DEFINE_CHUNK(NAME, M, HOW)                                                                       \
    static TARGET const uint8_t *NAME##_##M(                                                             \
        const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block, int64_t first,             \
        int64_t tiles, const uint8_t *values, numbers *kept, int64_t row, __m512(*totals)[TILE_PAIRS]) { \
        return multiply_chunk(w, p, block, first, tiles, values, kept, row, totals, M, HOW);             \
    }

/* One panel: nothing is kept. More: the first one, which is whole, expands each chunk for all. */
static INLINE int multiply_block(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t block,
                                 const chunk_kernel *only, chunk_kernel keep, const chunk_kernel *later) {
    _Alignas(64) numbers kept[CHUNK_TILES * TILE_PAIRS];
    __m512 totals[STRIP][TILE_PAIRS];
    const uint8_t *values = w->values + w->offsets[block];
    for (int i = 0; i < p->m; i++) totals[i][0] = totals[i][1] = _mm512_setzero_ps();
    if (p->m <= PANEL) {
        values = only[p->m - 1](w, p, block, 0, w->tiles, values, NULL, 0, totals);
    } else {
        for (int64_t first = 0; first < w->tiles; first += CHUNK_TILES) {
            const int64_t tiles = w->tiles - first < CHUNK_TILES ? w->tiles - first : CHUNK_TILES;
            values = keep(w, p, block, first, tiles, values, kept, 0, totals);
            for (int row = PANEL; row < p->m; row += PANEL)
                later[(p->m - row < PANEL ? p->m - row : PANEL) - 1](w, p, block, first, tiles, NULL, kept,
                                                                     row, totals + row);
        }
    }
    if (values != w->values + w->offsets[block + 1]) return 1;
    store_totals(w, p, block, totals);
    return 0;
}

static INLINE int multiply_all(const tamp_int4_weight *w, const tamp_int4_product *p, int64_t begin,
                               int64_t end, const chunk_kernel *only, chunk_kernel keep,
                               const chunk_kernel *later) {
    for (int64_t block = begin; block < end; block++)
        if (!int4_block_is_safe(w, block) || multiply_block(w, p, block, only, keep, later)) return 1;
    return 0;
}

/* All kernels of a file whose panels have up to 8 rows of x, and `multiply_blocks`, which takes them. */
#define DEFINE_PANELS_OF_8                                                                   \
    DEFINE_CHUNK(only, 1, EXPAND)                                                            \
    DEFINE_CHUNK(only, 2, EXPAND)                                                            \
    DEFINE_CHUNK(only, 3, EXPAND)                                                            \
    DEFINE_CHUNK(only, 4, EXPAND)                                                            \
    DEFINE_CHUNK(only, 5, EXPAND)                                                            \
    DEFINE_CHUNK(only, 6, EXPAND)                                                            \
    DEFINE_CHUNK(only, 7, EXPAND)                                                            \
    DEFINE_CHUNK(only, 8, EXPAND)                                                            \
    DEFINE_CHUNK(keep, 8, EXPAND_AND_KEEP)                                                   \
    DEFINE_CHUNK(later, 1, REUSE)                                                            \
    DEFINE_CHUNK(later, 2, REUSE)                                                            \
    DEFINE_CHUNK(later, 3, REUSE)                                                            \
    DEFINE_CHUNK(later, 4, REUSE)                                                            \
    DEFINE_CHUNK(later, 5, REUSE)                                                            \
    DEFINE_CHUNK(later, 6, REUSE)                                                            \
    DEFINE_CHUNK(later, 7, REUSE)                                                            \
    DEFINE_CHUNK(later, 8, REUSE)                                                            \
    static TARGET int multiply_blocks(const tamp_int4_weight *w, const tamp_int4_product *p, \
                                      int64_t begin, int64_t end) {                          \
        static const chunk_kernel only[PANEL] = {only_1, only_2, only_3, only_4,             \
                                                 only_5, only_6, only_7, only_8};            \
        static const chunk_kernel later[PANEL] = {later_1, later_2, later_3, later_4,        \
                                                  later_5, later_6, later_7, later_8};       \
        return multiply_all(w, p, begin, end, only, keep_8, later);                          \
    }

#endif
