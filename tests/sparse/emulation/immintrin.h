/* A stand-in for <immintrin.h> in plain C, so that the kernels for AVX2, AVX-512, VNNI and AMX compile and
 * run on any machine: `cc -I tests/sparse/emulation -DTAMP_EMULATED`. It holds what csrc/ uses. Each
 * function does what Intel's reference says of the intrinsic of its name; sums are rounded as there. */
#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __builtin_cpu_init() ((void)0)
#define __builtin_cpu_supports(FEATURE) 1

#define EMULATED static inline __attribute__((always_inline, unused))

#define VECTOR(NAME, TYPE, BYTES) typedef TYPE NAME __attribute__((vector_size(BYTES), may_alias));
#define VECTORS(BYTES)                                                               \
    VECTOR(i8_##BYTES, int8_t, BYTES)                                                \
    VECTOR(u8_##BYTES, uint8_t, BYTES)                                               \
    VECTOR(i16_##BYTES, int16_t, BYTES) VECTOR(u16_##BYTES, uint16_t, BYTES)         \
        VECTOR(i32_##BYTES, int32_t, BYTES) VECTOR(u32_##BYTES, uint32_t, BYTES)     \
            VECTOR(i64_##BYTES, int64_t, BYTES) VECTOR(u64_##BYTES, uint64_t, BYTES) \
                VECTOR(f32_##BYTES, float, BYTES) VECTOR(f64_##BYTES, double, BYTES)
VECTORS(8)
VECTORS(16)
VECTORS(32)
VECTORS(64)
VECTOR(__m128, float, 16)
VECTOR(__m128i, long long, 16)
VECTOR(__m128d, double, 16)
VECTOR(__m128bh, uint16_t, 16)
VECTOR(__m256, float, 32)
VECTOR(__m256i, long long, 32)
VECTOR(__m256d, double, 32)
VECTOR(__m256bh, uint16_t, 32)
VECTOR(__m512, float, 64)
VECTOR(__m512i, long long, 64)
VECTOR(__m512d, double, 64)
VECTOR(__m512bh, uint16_t, 64)
typedef uint8_t __mmask8;
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;
typedef uint64_t __mmask64;

#define _CMP_UNORD_Q 3
#define _MM_HINT_T0 3
#define _MM_HINT_T1 2
#define _MM_HINT_T2 1
#define _MM_HINT_NTA 0
#define _mm_prefetch(ADDRESS, HINT) ((void)(ADDRESS), (void)(HINT))

/* x and y as vectors a and b of the elements TYPE. */
#define UNARY(NAME, R, V, TYPE, VALUE) \
    EMULATED R NAME(V x) {             \
        const TYPE a = (TYPE)x;        \
        return (R)(VALUE);             \
    }
#define BINARY(NAME, V, TYPE, VALUE)         \
    EMULATED V NAME(V x, V y) {              \
        const TYPE a = (TYPE)x, b = (TYPE)y; \
        return (V)(VALUE);                   \
    }
/* The same, one element i of R (vector type RTYPE) after the other; `to` is the result. */
#define EACH(NAME, R, RTYPE, V, TYPE, VALUE)                                       \
    EMULATED R NAME(V x) {                                                         \
        const TYPE a = (TYPE)x;                                                    \
        RTYPE to;                                                                  \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++) to[i] = (VALUE); \
        return (R)to;                                                              \
    }
#define EACH2(NAME, R, RTYPE, V, W, TYPE, TYPE2, VALUE)                            \
    EMULATED R NAME(V x, W y) {                                                    \
        const TYPE a = (TYPE)x;                                                    \
        const TYPE2 b = (TYPE2)y;                                                  \
        RTYPE to;                                                                  \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++) to[i] = (VALUE); \
        return (R)to;                                                              \
    }
/* Sums: each element c[i] plus products of x and y. */
#define SUM(NAME, V, CTYPE, W, ATYPE, BTYPE, VALUE)                                \
    EMULATED V NAME(V sum, W x, W y) {                                             \
        const CTYPE c = (CTYPE)sum;                                                \
        const ATYPE a = (ATYPE)x;                                                  \
        const BTYPE b = (BTYPE)y;                                                  \
        CTYPE to;                                                                  \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++) to[i] = (VALUE); \
        return (V)to;                                                              \
    }

#define LOAD(NAME, V)                 \
    EMULATED V NAME(const void *at) { \
        V to;                         \
        memcpy(&to, at, sizeof to);   \
        return to;                    \
    }
#define STORE(NAME, V) \
    EMULATED void NAME(void *at, V x) { memcpy(at, &x, sizeof x); }
/* As hardware does: elements that the mask leaves out are not touched in memory. */
#define MASKED_MEMORY(P, V, TYPE, MASK, E)                                                                 \
    EMULATED V P##_maskz_loadu_##E(MASK k, const void *at) {                                               \
        TYPE to = {0};                                                                                     \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++)                                          \
            if (k >> i & 1)                                                                                \
                memcpy((char *)&to + i * sizeof to[0], (const char *)at + i * sizeof to[0], sizeof to[0]); \
        return (V)to;                                                                                      \
    }                                                                                                      \
    EMULATED void P##_mask_storeu_##E(void *at, MASK k, V x) {                                             \
        const TYPE from = (TYPE)x;                                                                         \
        for (int i = 0; i < (int)(sizeof from / sizeof from[0]); i++)                                      \
            if (k >> i & 1)                                                                                \
                memcpy((char *)at + i * sizeof from[0], (const char *)&from + i * sizeof from[0],          \
                       sizeof from[0]);                                                                    \
    }
/* Expansion, compression and choice by a mask, and the masks that comparisons give. */
#define BY_MASK(P, V, TYPE, MASK, E)                                                           \
    EMULATED V P##_mask_expand_##E(V source, MASK k, V x) {                                    \
        const TYPE a = (TYPE)x;                                                                \
        TYPE to = (TYPE)source;                                                                \
        for (int i = 0, next = 0; i < (int)(sizeof to / sizeof to[0]); i++)                    \
            if (k >> i & 1) to[i] = a[next++];                                                 \
        return (V)to;                                                                          \
    }                                                                                          \
    EMULATED V P##_maskz_expand_##E(MASK k, V x) { return P##_mask_expand_##E((V){0}, k, x); } \
    EMULATED V P##_maskz_compress_##E(MASK k, V x) {                                           \
        const TYPE a = (TYPE)x;                                                                \
        TYPE to = {0};                                                                         \
        for (int i = 0, next = 0; i < (int)(sizeof to / sizeof to[0]); i++)                    \
            if (k >> i & 1) to[next++] = a[i];                                                 \
        return (V)to;                                                                          \
    }                                                                                          \
    EMULATED V P##_mask_blend_##E(MASK k, V x, V y) {                                          \
        const TYPE b = (TYPE)y;                                                                \
        TYPE to = (TYPE)x;                                                                     \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++)                              \
            if (k >> i & 1) to[i] = b[i];                                                      \
        return (V)to;                                                                          \
    }                                                                                          \
    EMULATED V P##_mask_mov_##E(V x, MASK k, V y) { return P##_mask_blend_##E(k, x, y); }      \
    EMULATED V P##_maskz_mov_##E(MASK k, V y) { return P##_mask_blend_##E(k, (V){0}, y); }     \
    MASKED_MEMORY(P, V, TYPE, MASK, E)
#define MASK_OF(NAME, V, TYPE, MASK, CONDITION)                                                      \
    EMULATED MASK NAME(V x, V y) {                                                                   \
        const TYPE a = (TYPE)x, b = (TYPE)y;                                                         \
        MASK k = 0;                                                                                  \
        for (int i = 0; i < (int)(sizeof a / sizeof a[0]); i++) k |= (MASK)((MASK)(CONDITION) << i); \
        return k;                                                                                    \
    }
#define MASKED_INTEGER(P, V, B, MASK, BITS)                                        \
    BY_MASK(P, V, u##BITS##_##B, MASK, epi##BITS)                                  \
    MASK_OF(P##_test_epi##BITS##_mask, V, u##BITS##_##B, MASK, (a[i] & b[i]) != 0) \
    MASK_OF(P##_cmpeq_epi##BITS##_mask, V, u##BITS##_##B, MASK, a[i] == b[i])      \
    MASK_OF(P##_cmplt_epi##BITS##_mask, V, i##BITS##_##B, MASK, a[i] < b[i])       \
    MASK_OF(P##_cmpgt_epi##BITS##_mask, V, i##BITS##_##B, MASK, a[i] > b[i])       \
    EMULATED V P##_mask_add_epi##BITS(V source, MASK k, V x, V y) {                \
        return P##_mask_blend_epi##BITS(k, source, P##_add_epi##BITS(x, y));       \
    }                                                                              \
    EMULATED V P##_mask_sub_epi##BITS(V source, MASK k, V x, V y) {                \
        return P##_mask_blend_epi##BITS(k, source, P##_sub_epi##BITS(x, y));       \
    }                                                                              \
    EMULATED V P##_maskz_set1_epi##BITS(MASK k, int64_t value) {                   \
        return P##_maskz_mov_epi##BITS(k, P##_set1_epi##BITS(value));              \
    }

#define SET1(NAME, R, TYPE, C)                                                                      \
    EMULATED R NAME(C value) {                                                                      \
        TYPE to;                                                                                    \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++) to[i] = (__typeof__(to[0]))value; \
        return (R)to;                                                                               \
    }
#define SHIFT(NAME, V, TYPE, OP)                                  \
    EMULATED V NAME(V x, unsigned count) {                        \
        const TYPE a = (TYPE)x;                                   \
        TYPE to;                                                  \
        for (int i = 0; i < (int)(sizeof to / sizeof to[0]); i++) \
            to[i] = (__typeof__(to[0]))(a[i] OP count);           \
        return count < 8 * sizeof to[0] ? (V)to : (V){0};         \
    }
#define ARITHMETIC(P, V, B, BITS)                                                       \
    BINARY(P##_add_epi##BITS, V, u##BITS##_##B, a + b)                                  \
    BINARY(P##_sub_epi##BITS, V, u##BITS##_##B, a - b)                                  \
    SET1(P##_set1_epi##BITS, V, i##BITS##_##B, int64_t)                                 \
    EACH2(P##_unpacklo_epi##BITS, V, u##BITS##_##B, V, V, u##BITS##_##B, u##BITS##_##B, \
          (i & 1 ? b : a)[(i & -(128 / BITS)) + i % (128 / BITS) / 2])                  \
    EACH2(P##_unpackhi_epi##BITS, V, u##BITS##_##B, V, V, u##BITS##_##B, u##BITS##_##B, \
          (i & 1 ? b : a)[(i & -(128 / BITS)) + 64 / BITS + i % (128 / BITS) / 2])
#define SHIFTS(P, V, B, BITS)                       \
    SHIFT(P##_slli_epi##BITS, V, u##BITS##_##B, <<) \
    SHIFT(P##_srli_epi##BITS, V, u##BITS##_##B, >>) \
    SHIFT(P##_srai_epi##BITS, V, i##BITS##_##B, >>)
#define MIN_MAX(P, V, TYPE, E)                                               \
    EACH2(P##_min_##E, V, TYPE, V, V, TYPE, TYPE, a[i] < b[i] ? a[i] : b[i]) \
    EACH2(P##_max_##E, V, TYPE, V, V, TYPE, TYPE, a[i] > b[i] ? a[i] : b[i])
#define CLAMP(X, LOW, HIGH) ((X) < (LOW) ? (LOW) : (X) > (HIGH) ? (HIGH) : (X))
#define BYTES4(A, B)                                                                               \
    ((A)[4 * i] * (B)[4 * i] + (A)[4 * i + 1] * (B)[4 * i + 1] + (A)[4 * i + 2] * (B)[4 * i + 2] + \
     (A)[4 * i + 3] * (B)[4 * i + 3])
#define DAZ(F) emulated_flush(F)
#define BF16(V, I) emulated_flush(emulated_bf16((V)[I]))

EMULATED float emulated_bf16(uint16_t bits) {
    const uint32_t word = (uint32_t)bits << 16;
    float number;
    memcpy(&number, &word, 4);
    return number;
}
/* Subnormal numbers are zero to the instructions for bf16. */
EMULATED float emulated_flush(float number) {
    return fabsf(number) < 0x1p-126f ? copysignf(0, number) : number;
}
EMULATED float emulated_fp16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                       : exponent     ? ldexpf((float)(1024 + mantissa), exponent - 25)
                                      : (float)mantissa * 0x1p-24f;
    return bits & 0x8000 ? -size : size;
}
/* A product of two bf16 is exact in fp32, so that no fused instruction is needed. */
EMULATED float emulated_dot2(float sum, float odd, float even) { return DAZ(DAZ(sum + odd) + even); }

/* What exists in all three widths: P is the prefix, V and F the vectors of integers and fp32, B bytes. */
#define WIDTH(P, V, F, D, H, B, S)                                                                         \
    LOAD(P##_loadu_si##S, V)                                                                               \
    LOAD(P##_load_si##S, V)                                                                                \
    LOAD(P##_loadu_ps, F) STORE(P##_storeu_si##S, V) STORE(P##_store_si##S, V) STORE(P##_storeu_ps, F)     \
        EMULATED V                                                                                         \
        P##_setzero_si##S(void) {                                                                          \
        return (V){0};                                                                                     \
    }                                                                                                      \
    EMULATED F P##_setzero_ps(void) { return (F){0}; }                                                     \
    SET1(P##_set1_ps, F, f32_##B, float)                                                                   \
    ARITHMETIC(P, V, B, 8)                                                                                 \
    ARITHMETIC(P, V, B, 16)                                                                                \
    ARITHMETIC(P, V, B, 32) ARITHMETIC(P, V, B, 64) SHIFTS(P, V, B, 16) SHIFTS(P, V, B, 32) SHIFTS(        \
        P, V, B, 64) BINARY(P##_and_si##S, V, u64_##B, a &b) BINARY(P##_or_si##S, V, u64_##B, a | b)       \
        BINARY(P##_xor_si##S, V, u64_##B, a ^ b) BINARY(P##_andnot_si##S, V, u64_##B, ~a &b)               \
            BINARY(P##_mullo_epi16, V, u16_##B, a *b) BINARY(P##_mullo_epi32, V, u32_##B, a *b) BINARY(    \
                P##_add_ps, F, f32_##B, a + b) BINARY(P##_sub_ps, F, f32_##B, a - b)                       \
                BINARY(P##_mul_ps, F, f32_##B, a *b) BINARY(P##_div_ps, F, f32_##B, a / b) MIN_MAX(        \
                    P, F, f32_##B, ps) MIN_MAX(P, V, i32_##B, epi32)                                       \
                    MIN_MAX(P, V, i16_##B, epi16) MIN_MAX(P, V, u8_##B, epu8) MIN_MAX(P, V, i8_##B, epi8)  \
                        EACH(P##_abs_epi8, V, i8_##B, V, i8_##B, (int8_t)(a[i] < 0 ? -a[i] : a[i]))        \
                            EACH(P##_abs_epi32, V, i32_##B, V, i32_##B, a[i] < 0 ? -a[i] : a[i]) EACH(     \
                                P##_cvtepi32_ps, F, f32_##B, V, i32_##B, (float)a[i])                      \
                                EACH(P##_cvtps_epi32, V, i32_##B, F, f32_##B, (int32_t)lrintf(a[i]))       \
                                    EACH(P##_cvttps_epi32, V, i32_##B, F, f32_##B, (int32_t)a[i]) EACH2(   \
                                        P##_shuffle_epi8, V, u8_##B, V, V, u8_##B, u8_##B,                 \
                                        b[i] & 0x80 ? 0 : a[(i & ~15) + (b[i] & 15)])                      \
                                        EACH2(P##_madd_epi16, V, i32_##B, V, V, i16_##B, i16_##B,          \
                                              a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1])           \
                                            EACH2(P##_maddubs_epi16, V, i16_##B, V, V, u8_##B, i8_##B,     \
                                                  (int16_t)CLAMP(a[2 * i] * b[2 * i] +                     \
                                                                     a[2 * i + 1] * b[2 * i + 1],          \
                                                                 -32768,                                   \
                                                                 32767)) SUM(P##_dpbusd_epi32, V, i32_##B, \
                                                                             V, u8_##B, i8_##B,            \
                                                                             c[i] + BYTES4(a, b))          \
                                                SUM(P##_dpwssd_epi32, V, i32_##B, V, i16_##B, i16_##B,     \
                                                    c[i] + a[2 * i] * b[2 * i] +                           \
                                                        a[2 * i + 1] * b[2 * i + 1])                       \
                                                    SUM(P##_dpbf16_ps, F, f32_##B, H, u16_##B, u16_##B,    \
                                                        emulated_dot2(                                     \
                                                            DAZ(c[i]),                                     \
                                                            BF16(a, 2 * i + 1) * BF16(b, 2 * i + 1),       \
                                                            BF16(a, 2 * i) * BF16(b, 2 * i))) EMULATED F   \
                                                    P##_fmadd_ps(F a, F b, F c) {                          \
        for (int i = 0; i < B / 4; i++) c[i] = (float)((double)a[i] * b[i] + c[i]);                        \
        return c;                                                                                          \
    }                                                                                                      \
    EMULATED F P##_fnmadd_ps(F a, F b, F c) { return P##_fmadd_ps(-a, b, c); }                             \
    EACH2(P##_unpacklo_ps, F, f32_##B, F, F, f32_##B, f32_##B, (i & 1 ? b : a)[(i & -4) + i % 4 / 2])      \
    EACH2(P##_unpackhi_ps, F, f32_##B, F, F, f32_##B, f32_##B, (i & 1 ? b : a)[(i & -4) + 2 + i % 4 / 2])  \
    EACH2(P##_unpacklo_pd, D, f64_##B, D, D, f64_##B, f64_##B, (i & 1 ? b : a)[i & -2])                    \
    EACH2(P##_unpackhi_pd, D, f64_##B, D, D, f64_##B, f64_##B, (i & 1 ? b : a)[(i & -2) + 1])              \
    UNARY(P##_castsi##S##_ps, F, V, V, a)                                                                  \
    UNARY(P##_castps_si##S, V, F, F, a) UNARY(P##_castps_pd, D, F, F, a) UNARY(P##_castpd_ps, F, D, D, a)

WIDTH(_mm, __m128i, __m128, __m128d, __m128bh, 16, 128)
WIDTH(_mm256, __m256i, __m256, __m256d, __m256bh, 32, 256)
WIDTH(_mm512, __m512i, __m512, __m512d, __m512bh, 64, 512)
MASKED_INTEGER(_mm, __m128i, 16, __mmask16, 8)
MASKED_INTEGER(_mm, __m128i, 16, __mmask8, 16)
MASKED_INTEGER(_mm, __m128i, 16, __mmask8, 32)
MASKED_INTEGER(_mm256, __m256i, 32, __mmask32, 8)
MASKED_INTEGER(_mm256, __m256i, 32, __mmask16, 16)
MASKED_INTEGER(_mm256, __m256i, 32, __mmask8, 32)
MASKED_INTEGER(_mm512, __m512i, 64, __mmask64, 8)
MASKED_INTEGER(_mm512, __m512i, 64, __mmask32, 16)
MASKED_INTEGER(_mm512, __m512i, 64, __mmask16, 32)
BY_MASK(_mm, __m128, f32_16, __mmask8, ps)
BY_MASK(_mm256, __m256, f32_32, __mmask8, ps)
BY_MASK(_mm512, __m512, f32_64, __mmask16, ps)

#include "amx_tiles.h"
#include "avx512_lanes.h"

#endif
