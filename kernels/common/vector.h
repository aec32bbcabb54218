// Vectors of sixteen floats for any processor: the compiler maps them to one AVX-512 register, two of AVX2 or four of
// NEON. Also loads and rounded stores of bfloat16, and a fast exponential for arguments up to 88.
#pragma once
#include <cfloat>
#include <cstdint>
#include <cstring>

namespace vec {

constexpr int kLanes = 16;
typedef float floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t words __attribute__((vector_size(4 * kLanes)));
typedef uint16_t halves __attribute__((vector_size(2 * kLanes)));

struct bf16 {
    uint16_t bits;
};

static inline floats all(float x) { return x - floats{}; }

static inline floats load(const float* at) {
    floats x;
    memcpy(&x, at, sizeof x);
    return x;
}

static inline floats load(const bf16* at) {
    halves x;
    memcpy(&x, at, sizeof x);
    return (floats)(__builtin_convertvector(x, words) << 16);
}

// Rounds x to bfloat16 in the upper halves of words, to nearest with ties to even; NaN stays NaN. The caller masks the
// lower halves.
static inline words rounded(floats x) {
    const words bits = (words)x;
    return x == x ? bits + 0x7fff + ((bits >> 16) & 1) : words{} + 0x7fc00000u;
}

static inline halves narrow(floats x) { return __builtin_convertvector(rounded(x) >> 16, halves); }

// Stores the first `lanes` of x; a whole vector takes one instruction.
static inline void store(float* at, floats x, int lanes) {
    if (lanes == kLanes) memcpy(at, &x, sizeof x);
    else memcpy(at, &x, 4 * lanes);
}

static inline void store(bf16* at, floats x, int lanes) {
    const halves y = narrow(x);
    if (lanes == kLanes) memcpy(at, &y, sizeof y);
    else memcpy(at, &y, 2 * lanes);
}

static inline floats max(floats a, floats b) { return a > b ? a : b; }

// Below this argument an exponential is zero. 1e-30 changes no sum that is at least 1, and products with it never are
// denormal numbers, which cost a hundred cycles each.
constexpr float kNothing = -69.0f;

// max(x, kNothing); NaN stays NaN.
static inline floats not_below_nothing(floats x) { return x < kNothing ? all(kNothing) : x; }

// Returns e^x for x <= 88, zero below kNothing, NaN for NaN; within 1.1 units in the last place.
// x = n ln2 + r; 1 + r + r^2 p(r), p fitted by weighted least squares to a relative error of 3e-9 on |r| <= ln2 / 2.
static inline floats exp(floats x) {
    const floats clamped = not_below_nothing(x);
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const floats shifted = clamped * 1.44269504f + round;
    const floats n = shifted - round;
    const floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts; the first product is exact
    floats p = r * 1.3814582e-3f + 8.368718e-3f;
    p = p * r + 4.166839e-2f;
    p = p * r + 1.6666521e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * (r * r) + r + 1.0f;
    const floats scaled = (floats)((words)p + ((words)shifted << 23));
    return x < kNothing ? floats{} : scaled;
}

}  // namespace vec
