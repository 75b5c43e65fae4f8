/* bf16, fp16 and the bits of fp32, without instructions of any processor. */
#ifndef NUMBERS_H
#define NUMBERS_H

#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE float float_of_bits(uint32_t bits) {
    union {
        uint32_t u;
        float f;
    } value = {bits};
    return value.f;
}

ALWAYS_INLINE uint32_t bits_of_float(float number) {
    union {
        float f;
        uint32_t u;
    } value = {number};
    return value.u;
}

ALWAYS_INLINE float float_of_bf16(uint16_t bits) { return float_of_bits((uint32_t)bits << 16); }

ALWAYS_INLINE uint16_t bf16_of_float(float number) { /* to nearest, ties to even */
    const uint32_t bits = bits_of_float(number);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16) | 0x40; /* NaN */
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

static inline float float_of_fp16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    if (magnitude >= 0x0400u) return float_of_bits(sign | ((magnitude << 13) + 0x38000000u));
    const float small = (float)magnitude * 0x1p-24f; /* subnormal, exact */
    return sign ? -small : small;
}

static inline uint16_t fp16_of_float(float number) { /* to nearest, ties to even */
    const uint32_t bits = bits_of_float(number), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;  /* NaN */
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u; /* rounds to 65536 or more */
    if (magnitude >= 0x38800000u)
        return sign | (uint16_t)((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
    if (magnitude < 0x33000000u) return sign; /* below half of the smallest subnormal */
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = 126 - (magnitude >> 23); /* 14 .. 24 */
    const uint32_t half = 1u << (shift - 1), rest = mantissa & ((1u << shift) - 1);
    uint32_t result = mantissa >> shift;
    result += rest > half || (rest == half && (result & 1));
    return sign | (uint16_t)result;
}

#endif
