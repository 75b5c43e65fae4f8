/* 4-bit weights and x in bf16, with AVX-512 BF16. Even and odd bytes each become a register of bf16 through
 * a table (vpermw); even columns of x lie before odd ones. */
#include "int4_codes.h"

#ifdef TAMP_X86

#define INLINE inline TARGET_AVX512BF16 __attribute__((always_inline))
#define TARGET TARGET_AVX512BF16
#define PANEL 8
#define STRIP 64

typedef uint16_t entry;
typedef bf16_pair numbers;
typedef __m512 sums;
#include "int4_avx512.h"

static INLINE numbers expand_pair(const uint8_t *values, __mmask64 mask, __m512i zero) {
    return expand_bf16(values, mask, zero);
}

static INLINE __m512bh both_rows(const entry *x) {
    return (__m512bh)_mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)x));
}

static INLINE sums multiply_pair(sums sum, const numbers *weights, const entry *x) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)weights->even, both_rows(x));
    return _mm512_dpbf16_ps(sum, (__m512bh)weights->odd, both_rows(x + TILE_COLUMNS / 2));
}

static INLINE sums start_group(const tamp_int4_product *p, int64_t row, int64_t groups, int64_t group,
                               __m512i zero) {
    (void)p, (void)row, (void)groups, (void)group, (void)zero;
    return _mm512_setzero_ps();
}

static INLINE __m512 finish_group(sums sum) { return sum; }

DEFINE_PANELS_OF_8

static const tamp_int4_kernel bf16 = {
    .entry = ENTRY_BF16,
    .panel = PANEL,
    .strip = STRIP,
    .most_rows = INT64_MAX, /* it is a dense product of its own, as that of 16-bit weights */
    .place = tamp_places_of_2,
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_avx512bf16 = {.bf16 = &bf16};
#endif
