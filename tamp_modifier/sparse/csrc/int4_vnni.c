/* 4-bit weights and x rounded to int8, with VNNI: codes are the unsigned bytes of vpdpbusd, where nothing
 * is kept the zero code, so that the sum over a group is too large by zero * the sum of x over it. */
#include "int4_codes.h"
#include "tamp_int8.h"

#ifdef TAMP_X86

#define TARGET TARGET_VNNI
#define INLINE inline TARGET __attribute__((always_inline))
#define PANEL 8
#define STRIP 64

typedef int8_t entry;
typedef __m512i numbers;
typedef __m512i sums;
#include "int4_avx512.h"

static INLINE numbers expand_pair(const uint8_t *values, __mmask64 mask, __m512i zero) {
    return expand_codes(values, mask, zero);
}

static INLINE sums multiply_pair(sums sum, const numbers *weights, const entry *x) {
    const __m512i both_rows = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_dpbusd_epi32(sum, *weights, both_rows);
}

/* The zero codes stand in lane 0 and lane 8. A later part of a group begins with nothing. */
static INLINE sums start_group(const tamp_int4_product *p, int64_t row, int64_t groups, int64_t group,
                               __m512i zero) {
    if (group < 0) return _mm512_setzero_si512();
    const __m512i once = _mm512_maskz_mov_epi8((__mmask64)1 << 32 | 1, zero);
    return _mm512_mullo_epi32(once, _mm512_set1_epi32(-p->x_sums[row * groups + group]));
}

static INLINE __m512 finish_group(sums sum) { return _mm512_cvtepi32_ps(sum); }

DEFINE_PANELS_OF_8

static int supported(void) { return __builtin_cpu_supports("avx512vnni"); }

const tamp_int4_kernel tamp_int4_vnni = {
    .entry = ENTRY_INT8,
    .panel = PANEL,
    .strip = STRIP,
    .most_rows = INT64_MAX,
    .supported = supported,
    .multiply = multiply_blocks,
};
#endif
