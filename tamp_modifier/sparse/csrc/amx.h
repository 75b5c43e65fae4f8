/* What the files of the path amx share: tiles of the processor, and packed weights expanded into them.
 *
 * A tile holds 16 rows of 64 bytes. One is a piece of the weight, 16 rows by 32 columns: four blocks of
 * the format side by side, called a strip. Another is a piece of x, 16 rows by the same 32 columns, which
 * the layout has transposed in pairs of columns. Their product adds to 16 x 16 sums in fp32, a third. Of
 * int8 a tile holds twice as many columns, x is transposed in fours of them, and the sums are int32. */
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
/* What is multiplied: one of these, or DTYPE_BF16 or DTYPE_FP16. */
#define KIND_INT8 3
#define TILE_MULTIPLY(KIND, SUMS, A, B)                         \
    do {                                                        \
        if ((KIND) == KIND_INT8) _tile_dpbssd(SUMS, A, B);      \
        else if ((KIND) == DTYPE_FP16) TILE_DPFP16(SUMS, A, B); \
        else _tile_dpbf16ps(SUMS, A, B);                        \
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
    const char *values[STRIP_BLOCKS];
    const char *stop[STRIP_BLOCKS]; /* of the values */
    ptrdiff_t jump[STRIP_BLOCKS];   /* from there to the same stream of the next strip */
    int64_t left;                   /* tiles of the format that have not been read */
} tamp_strip;

/* What a strip is multiplied with and where the sums go. */
typedef struct {
    const void *x; /* [groups, tiles of a strip] */
    int64_t m;
    int kind;
    const void *product; /* a tamp_product, or what else `store` wants */
    /* Writes the sums of the `rows` rows of the weight from `row` on with the 16 rows of x from `first` on,
     * or as many as there are. sums: [rows of the weight, rows of x]. */
    void (*store)(const void *product, int64_t row, int64_t rows, int first, const void *sums);
} tamp_tiles;

/* Tiles in a strip, and groups of 16 rows of x. */
ALWAYS_INLINE int64_t count_tiles(const tamp_weight *w, int kind) {
    return kind == KIND_INT8 ? (w->tiles + 1) / 2 : w->tiles;
}
ALWAYS_INLINE int count_groups(const tamp_tiles *p) { return (int)((p->m + TILE_ROWS - 1) / TILE_ROWS); }

/* Returns 0 where a block must not be read. Where [block, end) is shorter than a strip its last block
 * takes the missing places: what is computed there is not stored. */
INLINE_AMX int open_strip(const tamp_weight *w, int kind, tamp_strip *s, int64_t block, int64_t end) {
    const int64_t size = kind == KIND_INT8 ? 1 : 2;
    const char *all = w->values;
    s->left = w->tiles;
    for (int i = 0; i < STRIP_BLOCKS; i++) {
        const int64_t own = block + i < end ? block + i : end - 1;
        if (!block_is_safe(w, own)) return 0;
        int64_t next = own + STRIP_BLOCKS; /* nobody has checked that one yet */
        if (next >= w->blocks || w->offsets[next] < 0 || w->offsets[next] > w->kept) next = own + 1;
        s->mask[i] = mask_pairs(w, own);
        s->values[i] = all + w->offsets[own] * size;
        s->stop[i] = all + w->offsets[own + 1] * size;
        s->jump[i] = (w->offsets[next] - w->offsets[own + 1]) * size;
    }
    return 1;
}

/* Whether the masks announced exactly the values of each block. */
INLINE_AMX int strip_is_read(const tamp_strip *s) {
    int equal = 1;
    for (int i = 0; i < STRIP_BLOCKS; i++) equal &= s->values[i] == s->stop[i];
    return equal;
}

INLINE_AMX const char *ahead(const tamp_strip *s, int i, ptrdiff_t bytes) {
    const char *at = s->values[i] + bytes;
    return at < s->stop[i] ? at : at + s->jump[i];
}

/* The next 32 columns of block i of a strip, 16 bits each, to 4 rows of a tile. */
INLINE_AMX void expand_words(tamp_strip *s, int i, uint16_t *to) {
    const uint64_t *mask = s->mask[i], low = mask[0], high = mask[1];
    const uint16_t *values = (const uint16_t *)s->values[i];
    const uint16_t *second = values + count32(low), *third = values + popcount64(low);
    const uint16_t *fourth = third + count32(high);
    _mm512_store_si512(to, (__m512i)expand(load_mask(mask, 0), values));
    _mm512_store_si512(to + TILE_COLUMNS, (__m512i)expand(load_mask(mask, 1), second));
    _mm512_store_si512(to + 2 * TILE_COLUMNS, (__m512i)expand(load_mask(mask, 2), third));
    _mm512_store_si512(to + 3 * TILE_COLUMNS, (__m512i)expand(load_mask(mask, 3), fourth));
    s->values[i] = (const char *)(third + popcount64(high));
    s->mask[i] = mask + 2;
}

/* Two rows, adjacent in the format, of 32 columns of int8: halves of two rows of a tile. */
INLINE_AMX void expand_byte_rows(const uint64_t *mask, const char *values, char *to) {
    const __m512i rows =
        _mm512_maskz_expand_epi8(_load_mask64((__mmask64 *)mask), _mm512_loadu_si512(values));
    _mm256_store_si256((__m256i *)to, _mm512_castsi512_si256(rows));
    _mm256_store_si256((__m256i *)(to + 64), _mm512_extracti64x4_epi64(rows, 1));
}

/* The next 64 columns of block i, 8 bits each; columns past the last tile of the format are zeros. */
INLINE_AMX void expand_bytes(tamp_strip *s, int i, char *to) {
    const __m256i zero = _mm256_setzero_si256();
    for (int half = 0; half < 2; half++, to += TILE_COLUMNS) {
        if (half == s->left) {
            for (int r = 0; r < BLOCK_ROWS; r++) _mm256_store_si256((__m256i *)(to + r * 64), zero);
            return;
        }
        const uint64_t *mask = s->mask[i];
        const char *third = s->values[i] + popcount64(mask[0]);
        expand_byte_rows(mask, s->values[i], to);
        expand_byte_rows(mask + 1, third, to + 128);
        s->values[i] = third + popcount64(mask[1]);
        s->mask[i] = mask + 2;
    }
}

/* Writes the next columns of a strip to `dense`, [16, 64 bytes]. */
INLINE_AMX void expand_tile(tamp_strip *s, const int wide, const int kind, uint16_t *dense) {
    const int tiles = kind == KIND_INT8 ? 2 : 1;
#pragma GCC unroll 4
    for (int i = 0; i < STRIP_BLOCKS; i++, dense += BLOCK_ROWS * TILE_COLUMNS) {
        const char *mask = (const char *)s->mask[i];
        const char *far = ahead(s, i, STREAM_FAR), *near = ahead(s, i, STREAM_NEAR);
        if (kind == KIND_INT8) expand_bytes(s, i, (char *)dense);
        else expand_words(s, i, dense);
        _mm_prefetch(near, _MM_HINT_T0);
        _mm_prefetch(near + 64, _MM_HINT_T0);
        _mm_prefetch(far, _MM_HINT_T1);
        _mm_prefetch(far + 64, _MM_HINT_T1);
        if (wide) {
            _mm_prefetch(near + 128, _MM_HINT_T0);
            _mm_prefetch(far + 128, _MM_HINT_T1);
        }
        _mm_prefetch(mask + STREAM_FAR / 8 * tiles, _MM_HINT_T0);
    }
    s->left -= tiles;
}

/* Rows of the weight from `block` on, up to the end of a range of blocks. */
INLINE_AMX int64_t rows_until(const tamp_weight *w, int64_t block, int64_t end) {
    const int64_t stop = end * BLOCK_ROWS < w->rows ? end * BLOCK_ROWS : w->rows;
    return stop - block * BLOCK_ROWS;
}

/* `store` of a tamp_product, with sums in fp32. */
void tamp_store_tile(const void *product, int64_t row, int64_t rows, int first, const void *sums);
/* Multiplies blocks [begin, end) of a weight of the kind that `p` says with any number of rows of x. */
int tamp_multiply_tiles(const tamp_weight *w, const tamp_tiles *p, int64_t begin, int64_t end);
/* The same with the tiles configured, for more rows than the level-2 cache holds or four tiles of sums. */
int tamp_many_amx(const tamp_weight *w, const tamp_tiles *p, int64_t begin, int64_t end);

#endif
#endif
