/* 4-bit weights with AVX-512 and VBMI2, computing in fp32: x in fp16 and fp32 everywhere, in bf16 where the
 * processor has no AVX-512 BF16. Of the four bytes of each 32 bits every one becomes a register of fp32
 * through a table (vpermi2ps): x lies by remainders of 4. */
#include "int4_codes.h"

#ifdef TAMP_X86

#define INLINE inline TARGET_AVX512 __attribute__((always_inline))
#define TARGET TARGET_AVX512
#define PANEL 4
#define STRIP 32

typedef float entry;
typedef struct {
    __m512 part[4];
} numbers;
typedef __m512 sums;
#include "int4_avx512.h"

/* fp32 of code - zero modulo 32, which is -15 to 15. */
static const float differences[32] = {0,   1,  2,  3,  4,  5,   6,   7,   8,   9,   10,
                                      11,  12, 13, 14, 15, -16, -15, -14, -13, -12, -11,
                                      -10, -9, -8, -7, -6, -5,  -4,  -3,  -2,  -1};

static INLINE numbers expand_pair(const uint8_t *values, __mmask64 mask, __m512i zero) {
    const __m512i bytes = expand_differences(values, mask, zero);
    const __m512i low = _mm512_loadu_si512(differences), high = _mm512_loadu_si512(differences + 16);
    numbers n;
#pragma GCC unroll 4
    for (unsigned i = 0; i < 4; i++)
        n.part[i] =
            _mm512_castsi512_ps(_mm512_permutex2var_epi32(low, _mm512_srli_epi32(bytes, 8 * i), high));
    return n;
}

static INLINE sums multiply_pair(sums sum, const numbers *weights, const entry *x) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        sum = _mm512_fmadd_ps(weights->part[i], _mm512_broadcast_f32x8(_mm256_loadu_ps(x + 8 * i)), sum);
    return sum;
}

static INLINE sums start_group(const tamp_int4_product *p, int64_t row, int64_t groups, int64_t group,
                               __m512i zero) {
    (void)p, (void)row, (void)groups, (void)group, (void)zero;
    return _mm512_setzero_ps();
}

static INLINE __m512 finish_group(sums sum) { return sum; }

DEFINE_CHUNK(only, 1, EXPAND)
DEFINE_CHUNK(only, 2, EXPAND)
DEFINE_CHUNK(only, 3, EXPAND)
DEFINE_CHUNK(only, 4, EXPAND)
DEFINE_CHUNK(keep, 4, EXPAND_AND_KEEP)
DEFINE_CHUNK(later, 1, REUSE)
DEFINE_CHUNK(later, 2, REUSE)
DEFINE_CHUNK(later, 3, REUSE)
DEFINE_CHUNK(later, 4, REUSE)

static TARGET_AVX512 int multiply_blocks(const tamp_int4_weight *w, const tamp_int4_product *p,
                                         int64_t begin, int64_t end) {
    static const chunk_kernel only[PANEL] = {only_1, only_2, only_3, only_4};
    static const chunk_kernel later[PANEL] = {later_1, later_2, later_3, later_4};
    return multiply_all(w, p, begin, end, only, keep_4, later);
}

static const tamp_int4_kernel fp32 = {
    .entry = ENTRY_FP32,
    .panel = PANEL,
    .strip = STRIP,
    .most_rows = 32,
    .place = tamp_places_of_4,
    .multiply = multiply_blocks,
};
const struct tamp_int4 tamp_int4_avx512 = {.fp32 = &fp32, .int8 = &tamp_int4_vnni};
#endif
