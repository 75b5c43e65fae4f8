/* What the files of the path amx share: tiles of the processor, and packed weights expanded into them.
 *
 * A tile holds 16 rows of 64 bytes. One is a piece of the weight, 16 rows by 32 columns: four blocks of
 * the format side by side, called a strip. Another is a piece of x, 16 rows by the same 32 columns, which
 * the layout has transposed in pairs of columns. Their product adds to 16 x 16 sums in fp32, a third. */
#ifndef AMX_H
#define AMX_H

#include "avx512bf16.h"

#ifdef TAMP_AMX

#define TILE_ROWS 16
#define TILE_ENTRIES 512 /* of 16 bits */
#define TILE_SUMS 256
#define TILE_BYTES 1024
#define STRIP_BLOCKS (TILE_ROWS / BLOCK_ROWS)
/* Share of x in a level-2 cache of 2 MB, which all processors with AMX have. */
#define X_BYTES (1 << 20)

#define INLINE_AMX static inline TARGET_AMX __attribute__((always_inline))

/* The intrinsics of GCC do not tell the compiler which memory they read, hence the barriers. */
#define READ_BARRIER(FROM) __asm__ volatile("" ::"r"(FROM) : "memory")
#define TILE_LOAD(TILE, FROM)        \
    do {                             \
        READ_BARRIER(FROM);          \
        _tile_loadd(TILE, FROM, 64); \
    } while (0)
#define TILE_STORE(TILE, TO) _tile_stored(TILE, TO, 64)
/* Tiles 0 to 3, which hold sums in both kernels. */
#define CLEAR_SUMS()   \
    do {               \
        _tile_zero(0); \
        _tile_zero(1); \
        _tile_zero(2); \
        _tile_zero(3); \
    } while (0)

#ifdef TAMP_EMULATED
#define TILE_DPFP16(SUMS, A, B) _tile_dpfp16ps(SUMS, A, B)
#else /* by its encoding: compilers and assemblers know tdpfp16ps since 2023 only */
#define TILE_DPFP16(SUMS, A, B)                                                     \
    __asm__ volatile(".byte 0xc4, 0xe2, %c0, 0x5c, %c1" ::"i"((15 - (B)) << 3 | 3), \
                     "i"(0xc0 | (SUMS) << 3 | (A)))
#endif
#define TILE_MULTIPLY(FP16, SUMS, A, B)    \
    do {                                   \
        if (FP16) TILE_DPFP16(SUMS, A, B); \
        else _tile_dpbf16ps(SUMS, A, B);   \
    } while (0)

/* All eight tiles in full size. The caller releases them when it is done: a thread that keeps them makes
 * every switch to it save 8 KB. */
INLINE_AMX void configure_tiles(void) {
    struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) config.row_bytes[tile] = 64, config.rows[tile] = TILE_ROWS;
    READ_BARRIER(&config);
    _tile_loadconfig(&config);
}

/* Columns of a 16 x 16 matrix of 32 bits become rows. */
INLINE_AMX void transpose16(__m512i *v) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* 128 bits each: even and odd ones of four vectors */
        const __m512i even = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
        const __m512i odd = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
        const __m512i later_even = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
        const __m512i later_odd = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(even, later_even, 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(odd, later_odd, 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(even, later_even, 0xdd);
        t[12 + i] = _mm512_shuffle_i32x4(odd, later_odd, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) v[i] = t[i];
}

/* Prefetching as in avx512bf16.h, shared by the four streams of a strip, in bytes of each. */
#define STREAM_FAR 2048
#define STREAM_NEAR 768

/* The blocks of 16 rows, each with its own stream of values, up to where it has been read. */
typedef struct {
    const uint64_t *mask[STRIP_BLOCKS];
    const uint16_t *values[STRIP_BLOCKS];
    const char *stop[STRIP_BLOCKS]; /* of the values */
    ptrdiff_t jump[STRIP_BLOCKS];   /* from there to the same stream of the next strip */
} tamp_strip;

/* Returns 0 where a block must not be read. Where [block, end) is shorter than a strip its last block
 * takes the missing places: what is computed there is not stored. */
INLINE_AMX int open_strip(const tamp_weight *w, tamp_strip *s, int64_t block, int64_t end) {
    for (int i = 0; i < STRIP_BLOCKS; i++) {
        const int64_t own = block + i < end ? block + i : end - 1;
        if (!block_is_safe(w, own)) return 0;
        int64_t next = own + STRIP_BLOCKS; /* nobody has checked that one yet */
        if (next >= w->blocks || w->offsets[next] < 0 || w->offsets[next] > w->kept) next = own + 1;
        s->mask[i] = mask_pairs(w, own);
        s->values[i] = block_values(w, own);
        s->stop[i] = (const char *)block_values(w, own + 1);
        s->jump[i] = (const char *)block_values(w, next) - s->stop[i];
    }
    return 1;
}

/* Whether the masks announced exactly the values of each block. */
INLINE_AMX int strip_is_read(const tamp_strip *s) {
    int equal = 1;
    for (int i = 0; i < STRIP_BLOCKS; i++) equal &= (const char *)s->values[i] == s->stop[i];
    return equal;
}

INLINE_AMX const char *ahead(const tamp_strip *s, int i, ptrdiff_t bytes) {
    const char *at = (const char *)s->values[i] + bytes;
    return at < s->stop[i] ? at : at + s->jump[i];
}

/* Writes the next 32 columns of a strip to `dense`, [16, 32]. */
INLINE_AMX void expand_tile(tamp_strip *s, const int wide, uint16_t *dense) {
#pragma GCC unroll 4
    for (int i = 0; i < STRIP_BLOCKS; i++, dense += BLOCK_ROWS * TILE_COLUMNS) {
        const uint64_t *mask = s->mask[i], low = mask[0], high = mask[1];
        const uint16_t *values = s->values[i];
        const uint16_t *second = values + count32(low), *third = values + popcount64(low);
        const uint16_t *fourth = third + count32(high);
        _mm512_store_si512(dense, (__m512i)expand(load_mask(mask, 0), values));
        _mm512_store_si512(dense + TILE_COLUMNS, (__m512i)expand(load_mask(mask, 1), second));
        _mm512_store_si512(dense + 2 * TILE_COLUMNS, (__m512i)expand(load_mask(mask, 2), third));
        _mm512_store_si512(dense + 3 * TILE_COLUMNS, (__m512i)expand(load_mask(mask, 3), fourth));
        const char *far = ahead(s, i, STREAM_FAR), *near = ahead(s, i, STREAM_NEAR);
        _mm_prefetch(near, _MM_HINT_T0);
        _mm_prefetch(near + 64, _MM_HINT_T0);
        _mm_prefetch(far, _MM_HINT_T1);
        _mm_prefetch(far + 64, _MM_HINT_T1);
        if (wide) {
            _mm_prefetch(near + 128, _MM_HINT_T0);
            _mm_prefetch(far + 128, _MM_HINT_T1);
        }
        _mm_prefetch((const char *)mask + STREAM_FAR / 8, _MM_HINT_T0);
        s->values[i] = third + popcount64(high);
        s->mask[i] = mask + 2;
    }
}

/* To nearest, ties to even; vcvtneps2bf16 would flush subnormals, integers do not. */
INLINE_AMX __m256i bf16_of_sums(__m512 sums) {
    const __m512i bits = _mm512_castps_si512(sums), upper = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(sums, sums, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, rounded, quiet));
}

/* Writes the sums of the `rows` rows of the weight from `row` on with the 16 rows of x from `first` on,
 * or as many as there are. sums: [rows of the weight, rows of x]. */
INLINE_AMX void store_tile(const tamp_product *p, int64_t row, int64_t rows, int first, const float *sums) {
    const __mmask16 inside = (__mmask16)(rows < TILE_ROWS ? (1u << rows) - 1 : 0xffff);
    const __m512 bias = p->bias ? _mm512_maskz_loadu_ps(inside, p->bias + row) : _mm512_setzero_ps();
    uint16_t *y = (uint16_t *)p->y + first * p->ldy + row;
    __m512i v[TILE_ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++) v[i] = _mm512_loadu_si512(sums + i * TILE_ROWS);
    transpose16(v);
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++) {
        if (first + i >= p->m) break;
        __m512 sum = _mm512_castsi512_ps(v[i]);
        if (p->bias) sum = _mm512_add_ps(sum, bias);
        const __m256i result = p->dtype == DTYPE_FP16
                                   ? _mm512_cvtps_ph(sum, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
                                   : bf16_of_sums(sum);
        _mm256_mask_storeu_epi16(y + i * p->ldy, inside, result);
    }
}

/* Rows of the weight from `block` on, up to the end of a range of blocks. */
INLINE_AMX int64_t rows_until(const tamp_weight *w, int64_t block, int64_t end) {
    const int64_t stop = end * BLOCK_ROWS < w->rows ? end * BLOCK_ROWS : w->rows;
    return stop - block * BLOCK_ROWS;
}

/* Groups of 16 rows of x. */
INLINE_AMX int count_groups(const tamp_product *p) { return (p->m + TILE_ROWS - 1) / TILE_ROWS; }

/* Any number of rows of x. */
int tamp_many_amx(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end);

#endif
#endif
