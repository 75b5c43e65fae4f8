/* Part of the stand-in for <immintrin.h>: AMX. A thread has eight tiles, which exist in the shape that it
 * configures; whatever would be an exception (#UD, #GP) on the processor ends the process here. */
#ifndef EMULATED_TILES_H
#define EMULATED_TILES_H

#include <stdio.h>

typedef struct {
    int configured;
    uint16_t row_bytes[8];
    uint8_t rows[8];
    uint8_t tiles[8][16][64];
} emulated_tile_state;

/* One for all files of the library. */
__attribute__((weak)) _Thread_local emulated_tile_state emulated_tiles;

static inline void emulated_tile_check(int holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "AMX: %s\n", what);
    abort();
}

static inline void emulated_tile_use(int tile) {
    const emulated_tile_state *s = &emulated_tiles;
    emulated_tile_check(s->configured, "tiles are not configured");
    emulated_tile_check(tile >= 0 && tile < 8, "no such tile");
    emulated_tile_check(s->rows[tile] && s->row_bytes[tile], "the tile is not configured");
}

/* 64 bytes: palette, first row, 14 zeros, bytes of a row of 16 tiles (uint16), rows of 16 tiles. */
static inline void _tile_loadconfig(const void *config) {
    const uint8_t *bytes = config;
    emulated_tile_state *s = &emulated_tiles;
    memset(s, 0, sizeof *s);
    if (bytes[0] == 0) return;
    emulated_tile_check(bytes[0] == 1 && bytes[1] == 0, "palette 1, first row 0");
    for (int i = 2; i < 16; i++) emulated_tile_check(bytes[i] == 0, "reserved bytes are zero");
    for (int tile = 0; tile < 16; tile++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, bytes + 16 + 2 * tile, 2);
        const uint8_t rows = bytes[48 + tile];
        emulated_tile_check(tile < 8 ? rows <= 16 && row_bytes <= 64 : !rows && !row_bytes,
                            "shape of a tile");
        emulated_tile_check(!rows == !row_bytes, "a tile has rows and columns or neither");
        if (tile < 8) s->rows[tile] = rows, s->row_bytes[tile] = row_bytes;
    }
    s->configured = 1;
}
static inline void _tile_release(void) { memset(&emulated_tiles, 0, sizeof emulated_tiles); }

static inline void _tile_zero(int tile) {
    emulated_tile_use(tile);
    memset(emulated_tiles.tiles[tile], 0, sizeof emulated_tiles.tiles[tile]);
}
static inline void _tile_loadd(int tile, const void *at, int64_t stride) {
    _tile_zero(tile);
    for (int row = 0; row < emulated_tiles.rows[tile]; row++)
        memcpy(emulated_tiles.tiles[tile][row], (const char *)at + row * stride,
               emulated_tiles.row_bytes[tile]);
}
#define _tile_stream_loadd(TILE, AT, STRIDE) _tile_loadd(TILE, AT, STRIDE)
static inline void _tile_stored(int tile, void *at, int64_t stride) {
    emulated_tile_use(tile);
    for (int row = 0; row < emulated_tiles.rows[tile]; row++)
        memcpy((char *)at + row * stride, emulated_tiles.tiles[tile][row], emulated_tiles.row_bytes[tile]);
}

/* sums [rows, columns] += a [rows, depth] b [depth, columns], each entry of a and b four bytes. */
static inline void emulated_tile_shapes(int sums, int a, int b) {
    const emulated_tile_state *s = &emulated_tiles;
    emulated_tile_use(sums), emulated_tile_use(a), emulated_tile_use(b);
    emulated_tile_check(sums != a && sums != b && a != b, "three different tiles");
    emulated_tile_check(s->rows[a] == s->rows[sums], "rows of a");
    emulated_tile_check(s->row_bytes[b] == s->row_bytes[sums], "columns of b");
    emulated_tile_check(s->row_bytes[a] == 4 * s->rows[b], "columns of a and rows of b");
    emulated_tile_check(s->row_bytes[a] % 4 == 0 && s->row_bytes[b] % 4 == 0, "whole entries");
}
/* Odd and even elements have sums of their own, which are added at the end. */
static inline void emulated_tile_float(int sums, int a, int b, float (*decode)(uint16_t)) {
    emulated_tile_shapes(sums, a, b);
    emulated_tile_state *s = &emulated_tiles;
    const int depth = s->rows[b], columns = s->row_bytes[sums] / 4;
    float right[16][32];
    for (int k = 0; k < depth; k++)
        for (int n = 0; n < 2 * columns; n++) {
            uint16_t bits;
            memcpy(&bits, s->tiles[b][k] + 2 * n, 2);
            right[k][n] = decode(bits);
        }
    for (int m = 0; m < s->rows[sums]; m++) {
        float totals[32] = {0}, row[16];
        for (int k = 0; k < depth; k++) {
            uint16_t bits[2];
            memcpy(bits, s->tiles[a][m] + 4 * k, 4);
            const float left[2] = {decode(bits[0]), decode(bits[1])};
            for (int n = 0; n < 2 * columns; n++)
                totals[n] = emulated_flush((float)((double)left[n & 1] * right[k][n] + totals[n]));
        }
        memcpy(row, s->tiles[sums][m], sizeof row);
        for (int n = 0; n < columns; n++)
            row[n] =
                emulated_flush(emulated_flush(row[n]) + emulated_flush(totals[2 * n] + totals[2 * n + 1]));
        memcpy(s->tiles[sums][m], row, sizeof row);
    }
}
static inline float emulated_tile_bf16(uint16_t bits) { return emulated_flush(emulated_bf16(bits)); }
static inline float emulated_tile_fp16(uint16_t bits) { return emulated_fp16(bits); }
#define _tile_dpbf16ps(SUMS, A, B) emulated_tile_float(SUMS, A, B, emulated_tile_bf16)
#define _tile_dpfp16ps(SUMS, A, B) emulated_tile_float(SUMS, A, B, emulated_tile_fp16)

static inline void emulated_tile_bytes(int sums, int a, int b, int a_signed, int b_signed) {
    emulated_tile_shapes(sums, a, b);
    emulated_tile_state *s = &emulated_tiles;
    for (int m = 0; m < s->rows[sums]; m++) {
        uint32_t row[16];
        memcpy(row, s->tiles[sums][m], sizeof row);
        for (int k = 0; k < s->rows[b]; k++)
            for (int n = 0; n < s->row_bytes[sums]; n++) {
                const uint8_t left = s->tiles[a][m][4 * k + n % 4], right = s->tiles[b][k][n];
                row[n / 4] +=
                    (uint32_t)((a_signed ? (int8_t)left : left) * (b_signed ? (int8_t)right : right));
            }
        memcpy(s->tiles[sums][m], row, sizeof row);
    }
}
#define _tile_dpbssd(SUMS, A, B) emulated_tile_bytes(SUMS, A, B, 1, 1)
#define _tile_dpbsud(SUMS, A, B) emulated_tile_bytes(SUMS, A, B, 1, 0)
#define _tile_dpbusd(SUMS, A, B) emulated_tile_bytes(SUMS, A, B, 0, 1)
#define _tile_dpbuud(SUMS, A, B) emulated_tile_bytes(SUMS, A, B, 0, 0)

#endif
