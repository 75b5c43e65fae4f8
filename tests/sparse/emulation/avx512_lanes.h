/* Part of the stand-in for <immintrin.h>: permutations, conversions, casts between widths, sums of all
 * elements, and what works on general registers. */
#ifndef EMULATED_LANES_H
#define EMULATED_LANES_H

/* Permutations across the whole vector: V by index vectors. */
#define PERMUTE(P, V, B, BITS)                                                                     \
    EACH2(P##_permutexvar_epi##BITS, V, u##BITS##_##B, V, V, u##BITS##_##B, u##BITS##_##B,         \
          b[a[i] & (8 * B / BITS - 1)])                                                            \
    EMULATED V P##_permutex2var_epi##BITS(V x, V index, V y) {                                     \
        const u##BITS##_##B a = (u##BITS##_##B)x, b = (u##BITS##_##B)y, at = (u##BITS##_##B)index; \
        u##BITS##_##B to;                                                                          \
        const unsigned n = 8 * B / BITS;                                                           \
        for (unsigned i = 0; i < n; i++) to[i] = (at[i] & n ? b : a)[at[i] & (n - 1)];             \
        return (V)to;                                                                              \
    }
PERMUTE(_mm512, __m512i, 64, 8)
PERMUTE(_mm512, __m512i, 64, 16)
PERMUTE(_mm512, __m512i, 64, 32)
PERMUTE(_mm256, __m256i, 32, 8)
PERMUTE(_mm256, __m256i, 32, 16)
PERMUTE(_mm256, __m256i, 32, 32)
EACH2(_mm512_permutexvar_ps, __m512, f32_64, __m512i, __m512, u32_64, f32_64, b[a[i] & 15])
EACH2(_mm256_permutevar8x32_ps, __m256, f32_32, __m256, __m256i, f32_32, u32_32, a[b[i] & 7])
EACH2(_mm256_permutevar8x32_epi32, __m256i, u32_32, __m256i, __m256i, u32_32, u32_32, a[b[i] & 7])
EMULATED __m256i _mm256_permute4x64_epi64(__m256i x, int order) {
    return (__m256i){x[order & 3], x[order >> 2 & 3], x[order >> 4 & 3], x[order >> 6 & 3]};
}
EMULATED __m256 _mm256_blendv_ps(__m256 x, __m256 y, __m256 choice) {
    for (int i = 0; i < 8; i++) x[i] = ((i32_32)choice)[i] < 0 ? y[i] : x[i];
    return x;
}
EMULATED __m128i _mm_blendv_epi8(__m128i x, __m128i y, __m128i choice) {
    const i8_16 k = (i8_16)choice;
    return (__m128i)(((i8_16)x & ~(k >> 7)) | ((i8_16)y & (k >> 7)));
}
EMULATED __m256i _mm256_blendv_epi8(__m256i x, __m256i y, __m256i choice) {
    const i8_32 k = (i8_32)choice < 0;
    return (__m256i)(((i8_32)y & k) | ((i8_32)x & ~k));
}

/* Conversions: elements of FROM bits become wider ones. R has twice or four times the bytes of V. */
#define WIDEN(P, R, RB, V, VB, FROM, TO)                    \
    EMULATED R P##_cvtepi##FROM##_epi##TO(V x) {            \
        const i##FROM##_##VB a = (i##FROM##_##VB)x;         \
        i##TO##_##RB to;                                    \
        for (int i = 0; i < 8 * RB / TO; i++) to[i] = a[i]; \
        return (R)to;                                       \
    }                                                       \
    EMULATED R P##_cvtepu##FROM##_epi##TO(V x) {            \
        const u##FROM##_##VB a = (u##FROM##_##VB)x;         \
        i##TO##_##RB to;                                    \
        for (int i = 0; i < 8 * RB / TO; i++) to[i] = a[i]; \
        return (R)to;                                       \
    }
WIDEN(_mm512, __m512i, 64, __m256i, 32, 8, 16)
WIDEN(_mm512, __m512i, 64, __m128i, 16, 8, 32)
WIDEN(_mm512, __m512i, 64, __m256i, 32, 16, 32)
WIDEN(_mm256, __m256i, 32, __m128i, 16, 8, 16)
WIDEN(_mm256, __m256i, 32, __m128i, 16, 8, 32)
WIDEN(_mm256, __m256i, 32, __m128i, 16, 16, 32)
WIDEN(_mm, __m128i, 16, __m128i, 16, 8, 16)
WIDEN(_mm, __m128i, 16, __m128i, 16, 8, 32)
WIDEN(_mm, __m128i, 16, __m128i, 16, 16, 32)
EACH(_mm512_cvtepi32_epi8, __m128i, i8_16, __m512i, i32_64, (int8_t)a[i])
EACH(_mm512_cvtepi32_epi16, __m256i, i16_32, __m512i, i32_64, (int16_t)a[i])
EACH(_mm512_cvtepi16_epi8, __m256i, i8_32, __m512i, i16_64, (int8_t)a[i])
EACH(_mm512_cvtsepi32_epi8, __m128i, i8_16, __m512i, i32_64, (int8_t)CLAMP(a[i], -128, 127))
EACH(_mm256_cvtepi16_epi8, __m128i, i8_16, __m256i, i16_32, (int8_t)a[i])
EACH(_mm512_cvtph_ps, __m512, f32_64, __m256i, u16_32, emulated_fp16(a[i]))
EACH(_mm256_cvtph_ps, __m256, f32_32, __m128i, u16_16, emulated_fp16(a[i]))
#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_NO_EXC 8
/* To nearest, ties to even. */
EMULATED uint16_t emulated_to_fp16(float number) {
    const uint16_t sign = signbit(number) ? 0x8000 : 0;
    const float size = fabsf(number);
    int exponent;
    if (isnan(number)) return sign | 0x7e00;
    if (size >= 65520) return sign | 0x7c00;
    frexpf(size, &exponent); /* size < 2^exponent */
    if (exponent < -13 || size == 0) exponent = -13;
    /* A mantissa of 1024 .. 2048, or less for a subnormal; 2048 carries into the exponent. */
    const int mantissa = (int)nearbyintf(ldexpf(size, 11 - exponent));
    return (uint16_t)(sign | (((exponent + 13) << 10) + mantissa));
}
EACH(emulated_cvtps_ph_512, __m256i, u16_32, __m512, f32_64, emulated_to_fp16(a[i]))
EACH(emulated_cvtps_ph_256, __m128i, u16_16, __m256, f32_32, emulated_to_fp16(a[i]))
#define _mm512_cvtps_ph(X, ROUNDING) emulated_cvtps_ph_512(X)
#define _mm256_cvtps_ph(X, ROUNDING) emulated_cvtps_ph_256(X)
EMULATED __m128i emulated_cvtps_ph_128(__m128 x) {
    u16_16 to = {0};
    for (int i = 0; i < 4; i++) to[i] = emulated_to_fp16(x[i]);
    return (__m128i)to;
}
#define _mm_cvtps_ph(X, ROUNDING) emulated_cvtps_ph_128(X)

/* Doubles. */
EACH(_mm256_cvtepi32_pd, __m256d, f64_32, __m128i, i32_16, a[i])
EACH(_mm256_cvtpd_ps, __m128, f32_16, __m256d, f64_32, (float)a[i])
SET1(_mm256_set1_pd, __m256d, f64_32, double)
BINARY(_mm256_sub_pd, __m256d, f64_32, a - b)
BINARY(_mm256_mul_pd, __m256d, f64_32, a *b)
EMULATED __m128 _mm_cmpunord_ps(__m128 x, __m128 y) {
    i32_16 to;
    for (int i = 0; i < 4; i++) to[i] = -(isnan(x[i]) || isnan(y[i]));
    return (__m128)to;
}
EACH2(_mm_packus_epi32, __m128i, u16_16, __m128i, __m128i, i32_16, i32_16,
      (uint16_t)CLAMP((i < 4 ? a : b)[i % 4], 0, 65535))

/* Between widths. */
#define PARTS(NAME, R, V)                                                    \
    EMULATED R NAME(V x, int part) {                                         \
        R to;                                                                \
        memcpy(&to, (const char *)&x + (size_t)part * sizeof to, sizeof to); \
        return to;                                                           \
    }
#define INSERT(NAME, V, R)                                          \
    EMULATED V NAME(V x, R y, int part) {                           \
        memcpy((char *)&x + (size_t)part * sizeof y, &y, sizeof y); \
        return x;                                                   \
    }
#define LOW(NAME, R, V)             \
    EMULATED R NAME(V x) {          \
        R to;                       \
        memcpy(&to, &x, sizeof to); \
        return to;                  \
    }
#define EXTEND(NAME, R, V)         \
    EMULATED R NAME(V x) {         \
        R to = {0};                \
        memcpy(&to, &x, sizeof x); \
        return to;                 \
    }
#define REPEAT(NAME, R, V)                                                                      \
    EMULATED R NAME(V x) {                                                                      \
        R to;                                                                                   \
        for (size_t i = 0; i < sizeof to; i += sizeof x) memcpy((char *)&to + i, &x, sizeof x); \
        return to;                                                                              \
    }
PARTS(_mm512_extracti64x4_epi64, __m256i, __m512i)
PARTS(_mm512_extracti32x8_epi32, __m256i, __m512i)
PARTS(_mm512_extracti32x4_epi32, __m128i, __m512i)
PARTS(_mm512_extracti64x2_epi64, __m128i, __m512i)
PARTS(_mm512_extractf32x8_ps, __m256, __m512)
PARTS(_mm512_extractf32x4_ps, __m128, __m512)
PARTS(_mm256_extracti128_si256, __m128i, __m256i)
PARTS(_mm256_extractf128_ps, __m128, __m256)
INSERT(_mm512_inserti64x4, __m512i, __m256i)
INSERT(_mm512_inserti32x4, __m512i, __m128i)
INSERT(_mm256_inserti128_si256, __m256i, __m128i)
INSERT(_mm256_insertf128_ps, __m256, __m128)
LOW(_mm512_castsi512_si256, __m256i, __m512i)
LOW(_mm512_castsi512_si128, __m128i, __m512i)
LOW(_mm512_castps512_ps256, __m256, __m512)
LOW(_mm512_castps512_ps128, __m128, __m512)
LOW(_mm256_castsi256_si128, __m128i, __m256i)
LOW(_mm256_castps256_ps128, __m128, __m256)
EXTEND(_mm512_castsi256_si512, __m512i, __m256i)
EXTEND(_mm512_zextsi256_si512, __m512i, __m256i)
EXTEND(_mm512_zextps256_ps512, __m512, __m256)
EXTEND(_mm512_zextsi128_si512, __m512i, __m128i)
EXTEND(_mm512_castsi128_si512, __m512i, __m128i)
EXTEND(_mm256_castsi128_si256, __m256i, __m128i)
EXTEND(_mm256_zextsi128_si256, __m256i, __m128i)
REPEAT(_mm512_broadcast_i32x4, __m512i, __m128i)
REPEAT(_mm512_broadcast_i64x2, __m512i, __m128i)
REPEAT(_mm512_broadcast_i32x8, __m512i, __m256i)
REPEAT(_mm512_broadcast_i64x4, __m512i, __m256i)
REPEAT(_mm512_broadcast_f32x4, __m512, __m128)
REPEAT(_mm512_broadcast_f32x8, __m512, __m256)
REPEAT(_mm256_broadcastsi128_si256, __m256i, __m128i)
EMULATED __m256i _mm256_set_m128i(__m128i high, __m128i low) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
/* Four 128-bit lanes: two of x, then two of y. */
EMULATED __m512i _mm512_shuffle_i64x2(__m512i x, __m512i y, int order) {
    __m512i to;
    for (int lane = 0; lane < 4; lane++)
        memcpy((char *)&to + 16 * lane, (const char *)(lane < 2 ? &x : &y) + 16 * (order >> 2 * lane & 3),
               16);
    return to;
}
#define _mm512_shuffle_i32x4(X, Y, ORDER) _mm512_shuffle_i64x2(X, Y, ORDER)
#define SHUFFLE32(P, V, B)                                                                \
    EMULATED V P##_shuffle_epi32(V x, int order) {                                        \
        const u32_##B a = (u32_##B)x;                                                     \
        u32_##B to;                                                                       \
        for (int i = 0; i < B / 4; i++) to[i] = a[(i & -4) + (order >> 2 * (i & 3) & 3)]; \
        return (V)to;                                                                     \
    }
SHUFFLE32(_mm, __m128i, 16)
SHUFFLE32(_mm256, __m256i, 32)
SHUFFLE32(_mm512, __m512i, 64)

/* Sums of all elements, in the order of the instructions that compilers use: halves. */
EMULATED float _mm512_reduce_add_ps(__m512 x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}
EMULATED int32_t _mm512_reduce_add_epi32(__m512i x) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += ((u32_64)x)[i];
    return (int32_t)sum;
}
EMULATED float _mm512_reduce_max_ps(__m512 x) {
    for (int i = 1; i < 16; i++) x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}

/* Single elements, and 128-bit vectors of fp32. */
EMULATED float _mm_cvtss_f32(__m128 x) { return x[0]; }
EMULATED float _mm512_cvtss_f32(__m512 x) { return x[0]; }
EMULATED int32_t _mm_cvtsi128_si32(__m128i x) { return ((i32_16)x)[0]; }
EMULATED int64_t _mm_cvtsi128_si64(__m128i x) { return x[0]; }
EMULATED __m128i _mm_cvtsi32_si128(int32_t value) { return (__m128i)(i32_16){value}; }
EMULATED __m128i _mm_cvtsi64_si128(int64_t value) { return (__m128i){value}; }
EMULATED __m128i _mm_loadl_epi64(const void *at) {
    __m128i to = {0};
    memcpy(&to, at, 8);
    return to;
}
EMULATED __m128i _mm_loadu_si64(const void *at) { return _mm_loadl_epi64(at); }
EMULATED void _mm_storel_epi64(void *at, __m128i x) { memcpy(at, &x, 8); }
EMULATED __m128 _mm_add_ss(__m128 x, __m128 y) {
    x[0] += y[0];
    return x;
}
EMULATED __m128 _mm_movehl_ps(__m128 x, __m128 y) { return (__m128){y[2], y[3], x[2], x[3]}; }
EMULATED __m128 _mm_movehdup_ps(__m128 x) { return (__m128){x[1], x[1], x[3], x[3]}; }
EMULATED __m128i _mm_setr_epi8(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k,
                               int l, int m, int n, int o, int p) {
    const int all[16] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
    i8_16 to;
    for (int at = 0; at < 16; at++) to[at] = (int8_t)all[at];
    return (__m128i)to;
}
/* Of the predicates only "unordered", and of the classes quiet NaN, infinities and signaling NaN. */
#define COMPARE(P, F, MASK)                                     \
    EMULATED MASK P##_cmp_ps_mask(F x, F y, int predicate) {    \
        MASK k = 0;                                             \
        if (predicate != _CMP_UNORD_Q) abort();                 \
        for (int i = 0; i < (int)(sizeof x / sizeof x[0]); i++) \
            k |= (MASK)((isnan(x[i]) || isnan(y[i])) << i);     \
        return k;                                               \
    }
COMPARE(_mm, __m128, __mmask8)
COMPARE(_mm256, __m256, __mmask8)
COMPARE(_mm512, __m512, __mmask16)
EMULATED __mmask8 _mm_fpclass_ps_mask(__m128 x, int classes) {
    __mmask8 k = 0;
    if (classes != 0x99) abort();
    for (int i = 0; i < 4; i++) k |= (__mmask8)(!isfinite(x[i]) << i);
    return k;
}

/* Masks and general registers. */
#define LOAD_MASK(BITS)                                       \
    EMULATED __mmask##BITS _load_mask##BITS(const void *at) { \
        __mmask##BITS k;                                      \
        memcpy(&k, at, sizeof k);                             \
        return k;                                             \
    }
LOAD_MASK(8)
LOAD_MASK(16)
LOAD_MASK(32)
LOAD_MASK(64)
#define _cvtu32_mask32(X) ((__mmask32)(X))
#define _cvtu64_mask64(X) ((__mmask64)(X))
#define _mm_popcnt_u32(X) __builtin_popcount(X)
#define _mm_popcnt_u64(X) __builtin_popcountll(X)
#define _mm_movemask_epi8(X) emulated_movemask((const char *)(__m128i[]){X}, 16)
#define _mm256_movemask_epi8(X) emulated_movemask((const char *)(__m256i[]){X}, 32)
EMULATED int emulated_movemask(const char *bytes, int count) {
    uint32_t k = 0;
    for (int i = 0; i < count; i++) k |= (uint32_t)((uint8_t)bytes[i] >> 7) << i;
    return (int)k;
}
EMULATED uint64_t _pdep_u64(uint64_t bits, uint64_t mask) {
    uint64_t to = 0;
    for (int next = 0; mask; mask &= mask - 1, next++)
        if (bits >> next & 1) to |= mask & -mask;
    return to;
}
EMULATED uint64_t _pext_u64(uint64_t bits, uint64_t mask) {
    uint64_t to = 0;
    for (int next = 0; mask; mask &= mask - 1, next++)
        if (bits & mask & -mask) to |= (uint64_t)1 << next;
    return to;
}

/* Each bit of the result is bit (x << 2 | y << 1 | z) of `table`. */
EMULATED __m512i _mm512_ternarylogic_epi32(__m512i x, __m512i y, __m512i z, int table) {
    __m512i to = {0};
    for (int i = 0; i < 8; i++)
        if (table >> i & 1) to |= (i & 4 ? x : ~x) & (i & 2 ? y : ~y) & (i & 1 ? z : ~z);
    return to;
}

#endif
