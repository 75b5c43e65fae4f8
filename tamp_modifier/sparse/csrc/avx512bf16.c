/* The path for bf16 with AVX-512 BF16 and VBMI2: which of its kernels multiplies, and how x lies for them.
 */
#include <string.h>

#include "avx512bf16.h"
#include "tamp_int4.h"

#ifdef TAMP_X86

/* Strips of nearly the same size. */
static int64_t strip(int64_t m) {
    const int64_t strips = (m + STRIP_ROWS - 1) / STRIP_ROWS;
    return (m + strips - 1) / strips;
}

static size_t bytes(const tamp_input *in) {
    const int64_t width = in->tiles * TILE_COLUMNS;
    if (in->m == 1 && in->columns == width) return 0;
    return (size_t)(in->m * width) * sizeof(uint16_t);
}

/* Panels of up to PANEL_ROWS rows, [tiles, rows, 32] each, so that a kernel reads one sequential stream. */
static void prepare(const tamp_input *in, void *copy, int64_t begin, int64_t end) {
    uint16_t *panel = copy;
    for (int64_t first = 0; first < in->m; first += in->strip) {
        const int64_t stop = first + in->strip < in->m ? first + in->strip : in->m;
        for (int64_t row = first; row < stop;) {
            const int rows = panel_rows((int)(stop - row));
            for (int64_t tile = begin; tile < end; tile++) {
                const int64_t column = tile * TILE_COLUMNS, left = in->columns - column;
                uint16_t *to = panel + tile * rows * TILE_COLUMNS;
                const uint16_t *from = (const uint16_t *)in->x + row * in->stride + column;
                for (int i = 0; i < rows; i++, to += TILE_COLUMNS, from += in->stride) {
                    if (left >= TILE_COLUMNS) {
                        memcpy(to, from, TILE_COLUMNS * sizeof *to);
                    } else {
                        memset(to, 0, TILE_COLUMNS * sizeof *to);
                        memcpy(to, from, (size_t)left * sizeof *to);
                    }
                }
            }
            panel += rows * in->tiles * TILE_COLUMNS;
            row += rows;
        }
    }
}

static const tamp_layout panels = {sizeof(uint16_t), strip, bytes, prepare};

static int multiply_blocks(const tamp_weight *w, const tamp_product *p, int64_t begin, int64_t end) {
    if (p->m == 1 && tamp_compressing_pays(w, p)) return tamp_compressed_avx512bf16(w, p, begin, end);
    return tamp_expanded_avx512bf16(w, p, begin, end);
}

static int supported(void) { return tamp_path_avx512.supported() && __builtin_cpu_supports("avx512bf16"); }

static int takes(int dtype, int64_t m) {
    (void)m;
    return dtype == DTYPE_BF16;
}

const tamp_path tamp_path_avx512bf16 = {
    .name = "avx512bf16",
    .supported = supported,
    .takes = takes,
    .base = &tamp_path_avx512,
    .kernel = multiply_blocks,
    .layout = &panels,
    /* Measured on Zen 4: it is a dense product of its own. */
    .most_rows = {INT64_MAX, INT64_MAX, INT64_MAX},
    .moves = &tamp_moves_avx512,
    .int4 = &tamp_int4_avx512bf16,
};
#else
TAMP_ABSENT_PATH(avx512bf16);
#endif
