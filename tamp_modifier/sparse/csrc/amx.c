/* The path for bf16, and fp16 where the processor can, with AMX: how x lies, and the kernel for few rows.
 */
#include "amx.h"
#include "tamp_int4.h"
#include "tamp_int8.h"

#ifdef TAMP_AMX
#ifndef TAMP_EMULATED
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* Fewer rows of x are multiplied in registers (avx512bf16.h), which waits for memory alone up to there:
 * measured on Intel with AMX, 50 %, over the fastest dense kernel, that is 1.5 at 4 rows and 0.9 at 8,
 * where tiles have 1.3. */
#define FEWEST_ROWS 5
/* Rows of x that share one expansion of the weight; x in 32 columns and the sums stay in the level-2 cache
 * (see amx_many.c). */
#define MOST_STRIP 512

/* Strips of nearly the same size, whole groups of 16 rows. */
static int64_t strip(int64_t m) {
    const int64_t strips = (m + MOST_STRIP - 1) / MOST_STRIP;
    return ((m + strips - 1) / strips + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

static size_t bytes(const tamp_input *in) {
    return (size_t)((in->m + TILE_ROWS - 1) / TILE_ROWS * in->tiles) * TILE_BYTES;
}

/* [groups, tiles, 16 pairs of columns, 16 rows of x, 2]. */
static TARGET_AMX void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    for (int64_t first = 0; first < in->m; first += TILE_ROWS)
        for (int64_t tile = begin; tile < end; tile++) {
            const int64_t column = tile * TILE_COLUMNS, left = in->columns - column;
            const __mmask32 inside = left < TILE_COLUMNS ? ((__mmask32)1 << left) - 1 : 0xffffffff;
            const uint16_t *from = (const uint16_t *)in->x + first * in->stride + column;
            uint16_t *to = (uint16_t *)copy + (first / TILE_ROWS * in->tiles + tile) * TILE_ENTRIES;
            __m512i v[TILE_ROWS];
            for (int i = 0; i < TILE_ROWS; i++)
                v[i] = first + i < in->m ? _mm512_maskz_loadu_epi16(inside, from + i * in->stride)
                                         : _mm512_setzero_si512();
            transpose16(v);
            for (int i = 0; i < TILE_ROWS; i++) _mm512_store_si512(to + i * TILE_COLUMNS, v[i]);
        }
}

static const tamp_layout pairs = {sizeof(uint16_t), strip, bytes, prepare};

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

/* See tamp_tiles. */
TARGET_AMX void tamp_store_tile(const void *product, int64_t row, int64_t rows, int first,
                                const void *sums) {
    const tamp_product *p = product;
    const __mmask16 inside = (__mmask16)(rows < TILE_ROWS ? (1u << rows) - 1 : 0xffff);
    const __m512 bias = p->bias ? _mm512_maskz_loadu_ps(inside, p->bias + row) : _mm512_setzero_ps();
    uint16_t *y = (uint16_t *)p->y + first * p->ldy + row;
    __m512i v[TILE_ROWS];
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; i++) v[i] = _mm512_loadu_si512((const float *)sums + i * TILE_ROWS);
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

#define MOST_GROUPS 4 /* of 16 rows of x, in this kernel */

/* Up to MOST_GROUPS groups of rows of x, which stay in the level-2 cache: every tile of the weight is
 * expanded in the level-1 cache, while the one before it is multiplied with all of them. Tiles: 0 to 3
 * sums, 4 the weight, 5 to 7 x. */
static TARGET_AMX int multiply_few(const tamp_weight *w, const tamp_tiles *p, int64_t begin, int64_t end) {
    _Alignas(64) uint16_t dense[2][TILE_ENTRIES];
    _Alignas(64) float sums[MOST_GROUPS][TILE_SUMS];
    const int wide = is_wide(w), kind = p->kind, groups = count_groups(p);
    const int64_t tiles = count_tiles(w, kind), group = tiles * TILE_ENTRIES;
    for (int64_t block = begin; block < end; block += STRIP_BLOCKS) {
        tamp_strip s;
        if (!open_strip(w, kind, &s, block, end)) return 1;
        CLEAR_SUMS();
        expand_tile(&s, wide, kind, dense[0]);
        const uint16_t *x = p->x;
        for (int64_t tile = 0; tile < tiles; tile++, x += TILE_ENTRIES) {
            if (tile + 1 < tiles) expand_tile(&s, wide, kind, dense[(tile + 1) & 1]);
            TILE_LOAD(4, dense[tile & 1]);
            TILE_LOAD(5, x);
            TILE_MULTIPLY(kind, 0, 4, 5);
            if (groups > 1) {
                TILE_LOAD(6, x + group);
                TILE_MULTIPLY(kind, 1, 4, 6);
            }
            if (groups > 2) {
                TILE_LOAD(7, x + 2 * group);
                TILE_MULTIPLY(kind, 2, 4, 7);
            }
            if (groups > 3) {
                TILE_LOAD(5, x + 3 * group);
                TILE_MULTIPLY(kind, 3, 4, 5);
            }
        }
        if (!strip_is_read(&s)) return 1;
        TILE_STORE(0, sums[0]);
        if (groups > 1) TILE_STORE(1, sums[1]);
        if (groups > 2) TILE_STORE(2, sums[2]);
        if (groups > 3) TILE_STORE(3, sums[3]);
        const int64_t rows = rows_until(w, block, end);
        for (int g = 0; g < groups; g++)
            p->store(p->product, block * BLOCK_ROWS, rows, g * TILE_ROWS, sums[g]);
    }
    return 0;
}

TARGET_AMX int tamp_multiply_tiles(const tamp_weight *w, const tamp_tiles *p, int64_t begin, int64_t end) {
    const int groups = count_groups(p);
    const int few = groups <= MOST_GROUPS && groups * count_tiles(w, p->kind) <= X_BYTES / TILE_BYTES;
    configure_tiles();
    const int status = few ? multiply_few(w, p, begin, end) : tamp_many_amx(w, p, begin, end);
    _tile_release();
    return status;
}

static int multiply_blocks(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    const tamp_tiles tiles = {p->x, p->m, p->dtype, p, tamp_store_tile};
    return tamp_multiply_tiles(w, &tiles, begin, end);
}

#ifdef TAMP_EMULATED
static int has_amx(void) { return 1; }
static int has_amx_fp16(void) { return 1; }
static int is_permitted(void) { return 1; }
#else
#define AMX_BF16 (1u << 22)
#define AMX_TILE (1u << 24)
#define AMX_INT8 (1u << 25)
#define AMX_FP16 (1u << 21)

static int has_amx(void) {
    unsigned a, b, c, d;
    const unsigned needed = AMX_TILE | AMX_BF16 | AMX_INT8;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & needed) == needed;
}

static int has_amx_fp16(void) {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AMX_FP16) != 0;
}

/* Linux kills a process that uses tiles without having asked. */
static int is_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

static int supported(void) { return tamp_path_avx512bf16.supported() && has_amx() && is_permitted(); }

static int takes(int dtype, int64_t m) {
    static int fp16 = -1;
    if (fp16 < 0) fp16 = has_amx_fp16();
    return m >= FEWEST_ROWS && (dtype == DTYPE_BF16 || (dtype == DTYPE_FP16 && fp16));
}

const tamp_path tamp_path_amx = {
    .name = "amx",
    .supported = supported,
    .takes = takes,
    .base = &tamp_path_avx512bf16,
    .kernel = multiply_blocks,
    .layout = &pairs,
    /* The same instructions as a dense product, and less to read. */
    .most_rows = {INT64_MAX, INT64_MAX, INT64_MAX},
    .moves = &tamp_moves_avx512,
    .int8 = &tamp_int8_amx,
    .int4 = &tamp_int4_amx,
};
#else
TAMP_ABSENT_PATH(amx);
#endif
