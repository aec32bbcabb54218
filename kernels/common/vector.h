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

// A register of the processor. GCC lowers comparisons, selections and shuffles of wider vectors lane by lane, and keeps
// arrays of them in memory: what a loop repeats is written for registers.
#ifdef __AVX512F__
constexpr int kRegister = 16;
#elif defined(__AVX2__)
constexpr int kRegister = 8;
#else
constexpr int kRegister = 4;
#endif
typedef float reg __attribute__((vector_size(4 * kRegister)));
typedef uint32_t reg_words __attribute__((vector_size(4 * kRegister)));

static inline reg load_reg(const float* at) {
    reg x;
    memcpy(&x, at, sizeof x);
    return x;
}

static inline void store_reg(float* at, reg x) { memcpy(at, &x, sizeof x); }

// Returns f of each register of its arguments, vectors of sixteen.
template <class F, class... X>
static inline __attribute__((always_inline)) floats by_register(F f, X... x) {
    if constexpr (kRegister == kLanes) return f(x...);
    floats out;
#pragma GCC unroll 4
    for (size_t at = 0; at < sizeof(floats); at += sizeof(reg)) {
        const auto part = [at](const floats& whole) __attribute__((always_inline)) {
            reg one;
            memcpy(&one, (const char*)&whole + at, sizeof one);
            return one;
        };
        const reg found = f(part(x)...);
        memcpy((char*)&out + at, &found, sizeof found);
    }
    return out;
}

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
    return (words)by_register([](reg x) {
        const reg_words bits = (reg_words)x;
        return (reg)(x == x ? bits + 0x7fff + ((bits >> 16) & 1) : reg_words{} + 0x7fc00000u);
    }, x);
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

static inline reg all_of(float x) { return x - reg{}; }

// Returns a > b ? yes : no.
static inline floats where_above(floats a, floats b, floats yes, floats no) {
    return by_register([](reg a, reg b, reg yes, reg no) { return a > b ? yes : no; }, a, b, yes, no);
}

static inline floats max(floats a, floats b) { return where_above(a, b, a, b); }

// Below this argument an exponential is zero. 1e-30 changes no sum that is at least 1, and products with it never are
// denormal numbers, which cost a hundred cycles each.
constexpr float kNothing = -69.0f;

// max(x, kNothing); NaN stays NaN.
static inline floats not_below_nothing(floats x) { return where_above(all(kNothing), x, all(kNothing), x); }

// x = n ln2 + r; 1 + r + r^2 p(r), p fitted by weighted least squares to a relative error of 3e-9 on |r| <= ln2 / 2.
static inline reg exp_of_register(reg x) {
    const reg clamped = x < kNothing ? all_of(kNothing) : x;
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const reg shifted = clamped * 1.44269504f + round;
    const reg n = shifted - round;
    const reg r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts; the first product is exact
    reg p = r * 1.3814582e-3f + 8.368718e-3f;
    p = p * r + 4.166839e-2f;
    p = p * r + 1.6666521e-1f;
    p = p * r + 4.9999994e-1f;
    p = p * (r * r) + r + 1.0f;
    const reg scaled = (reg)((reg_words)p + ((reg_words)shifted << 23));
    return x < kNothing ? reg{} : scaled;
}

// Returns e^x for x <= 88, zero below kNothing, NaN for NaN; within 1.1 units in the last place.
static inline floats exp(floats x) { return by_register(exp_of_register, x); }

}  // namespace vec
