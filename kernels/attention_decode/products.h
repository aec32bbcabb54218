// The two products of attention over one page: scores of its keys, and the weighted sum of its values.
//
// Keys and values are stored as they come, [N, K]. The lanes of sixteen keys' products are summed together, which takes
// two shuffles per key. That is less than scattering each new key to 64 places would take.
#pragma once
#include "../common/vector.h"

#include <algorithm>

namespace {

using vec::bf16;
using vec::floats;
using vec::load;

constexpr int64_t PAD = 32;                          // dimensions per step
constexpr int PARTS = vec::kLanes / vec::kRegister;  // registers of sixteen floats
constexpr bool MANY = vec::kRegister == 16;          // registers: AVX-512 has 32, AVX2 16

inline void store(float* at, floats x) { vec::store(at, x, vec::kLanes); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t wide = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &wide, sizeof y);
    return y;
}

inline float largest(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = std::max(x[i], x[i + width]);
    return x[0];
}

inline float total(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

// Loads 32 elements into the registers of two vectors: floats in order, bfloat16 as its even and its odd elements, which
// takes one instruction each. Widening bfloat16 in order takes five (GCC 12).
inline void split(const float* at, vec::reg* x) {
#pragma GCC unroll 8
    for (int i = 0; i < 2 * PARTS; i++) x[i] = vec::load_reg(at + i * vec::kRegister);
}

inline void split(const bf16* at, vec::reg* x) {
#pragma GCC unroll 4
    for (int i = 0; i < PARTS; i++) {
        vec::reg_words pairs;
        memcpy(&pairs, at + 2 * i * vec::kRegister, sizeof pairs);
        x[i] = (vec::reg)(pairs << 16);
        x[PARTS + i] = (vec::reg)(pairs & 0xffff0000);
    }
}

// Returns the index of element d in the order of `split`.
template <typename T>
inline int64_t split_index(int64_t d) {
    return sizeof(T) == 4 ? d : d / 32 * 32 + d % 2 * 16 + d % 32 / 2;
}

const vec::ints LOW = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, HIGH = LOW + 8;
const vec::ints EVEN = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, ODD = EVEN + 1;

// Stores what `split` would have loaded, and loads it in the order of `split`; `at` is float32 and in order.
template <typename T>
inline void store_split(float* at, const vec::reg* x) {
    if constexpr (sizeof(T) == 4) {
#pragma GCC unroll 8
        for (int i = 0; i < 2 * PARTS; i++) vec::store_reg(at + i * vec::kRegister, x[i]);
    } else {
        floats a, b;
        memcpy(&a, x, sizeof a);
        memcpy(&b, x + PARTS, sizeof b);
        store(at, __builtin_shuffle(a, b, LOW));
        store(at + 16, __builtin_shuffle(a, b, HIGH));
    }
}

template <typename T>
inline void load_split(const float* at, vec::reg* x) {
    if constexpr (sizeof(T) == 4) return split(at, x);
    const floats a = load(at), b = load(at + 16), even = __builtin_shuffle(a, b, EVEN), odd = __builtin_shuffle(a, b, ODD);
    memcpy(x, &even, sizeof even);
    memcpy(x + PARTS, &odd, sizeof odd);
}

// One level of summing the lanes of sixteen vectors: adds neighbouring groups of `width` lanes, a's first, then b's.
template <int width>
inline floats fold(floats a, floats b) {
    constexpr auto from = [](int i, int half) {
        const int pair = i / (2 * width), within = i % width + half * width;
        return pair * 2 * width + within + (i / width % 2 ? vec::kLanes : 0);
    };
    constexpr vec::ints low = {from(0, 0), from(1, 0), from(2, 0), from(3, 0), from(4, 0), from(5, 0), from(6, 0), from(7, 0),
                               from(8, 0), from(9, 0), from(10, 0), from(11, 0), from(12, 0), from(13, 0), from(14, 0), from(15, 0)};
    constexpr vec::ints high = {from(0, 1), from(1, 1), from(2, 1), from(3, 1), from(4, 1), from(5, 1), from(6, 1), from(7, 1),
                                from(8, 1), from(9, 1), from(10, 1), from(11, 1), from(12, 1), from(13, 1), from(14, 1), from(15, 1)};
    return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// Sums the lanes of eight registers of AVX2, in the order of `sums`: lanes of r[i] are added in lane i.
inline vec::reg sums_of_eight(const vec::reg* r) {
    using vec::reg;
    reg found = {};
#if defined(__AVX2__) && !defined(__AVX512F__)
    typedef int32_t order __attribute__((vector_size(32)));
    constexpr order LOW_HALF = {0, 1, 2, 3, 8, 9, 10, 11}, HIGH_HALF = {4, 5, 6, 7, 12, 13, 14, 15};
    constexpr order LOW_PAIR = {0, 1, 8, 9, 4, 5, 12, 13}, HIGH_PAIR = {2, 3, 10, 11, 6, 7, 14, 15};
    constexpr order FIRST = {0, 2, 8, 10, 4, 6, 12, 14}, SECOND = {1, 3, 9, 11, 5, 7, 13, 15};
    const auto add = [](reg a, reg b, order one, order other) __attribute__((always_inline)) {
        return __builtin_shuffle(a, b, one) + __builtin_shuffle(a, b, other);
    };
    reg halves[4], pairs[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) halves[i] = add(r[i], r[i + 4], LOW_HALF, HIGH_HALF);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) pairs[i] = add(halves[2 * i], halves[2 * i + 1], LOW_PAIR, HIGH_PAIR);
    found = add(pairs[0], pairs[1], FIRST, SECOND);
#endif
    return found;
}

// Returns the sum of r[i]'s lanes in lane i: lanes that are 8 apart first, then those 4, 2 and 1 apart.
inline floats sums(vec::reg (*r)[PARTS]) {
    floats found;
    if constexpr (PARTS == 2) {
        vec::reg both[vec::kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < vec::kLanes; i++) both[i] = r[i][0] + r[i][1];
        const vec::reg out[2] = {sums_of_eight(both), sums_of_eight(both + 8)};
        memcpy(&found, out, sizeof found);
        return found;
    }
    floats whole[vec::kLanes];
    memcpy(whole, r, sizeof whole);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) whole[i] = fold<8>(whole[i], whole[i + 8]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) whole[i] = fold<4>(whole[i], whole[i + 4]);
    for (int i = 0; i < 2; i++) whole[i] = fold<2>(whole[i], whole[i + 2]);
    return fold<1>(whole[0], whole[1]);
}

// Prefetches 32 elements.
template <typename T>
inline void prefetch(const T* at) {
    for (int64_t b = 0; b < 32; b += 64 / sizeof(T)) __builtin_prefetch(at + b, 0, 2);
}

// Returns the dot products of q, ordered by `split`, with sixteen keys `stride` apart. Only the first `count` keys
// exist; the last of them replaces the others. head_size is a multiple of 32. Prefetches from `then`, with the same
// strides.
template <typename T>
inline floats dots(const float* q, const T* k, int64_t stride, int64_t head_size, int64_t count, const T* then) {
    constexpr int at_once = MANY ? vec::kLanes : 4;
    vec::reg all[vec::kLanes][PARTS];
#pragma GCC unroll 4
    for (int first = 0; first < vec::kLanes; first += at_once) {
        vec::reg acc[at_once][PARTS] = {};
        const T* key[at_once];
#pragma GCC unroll 16
        for (int i = 0; i < at_once; i++) key[i] = k + std::min<int64_t>(first + i, count - 1) * stride;
        for (int64_t d = 0; d < head_size; d += 32) {
            vec::reg qs[2 * PARTS];
            split(q + d, qs);
#pragma GCC unroll 16
            for (int i = 0; i < at_once; i++) {
                vec::reg x[2 * PARTS];
                prefetch(then + (first + i) * stride + d);
                split(key[i] + d, x);
#pragma GCC unroll 4
                for (int j = 0; j < 2 * PARTS; j++) acc[i][j % PARTS] += qs[j] * x[j];
            }
        }
        if constexpr (at_once == vec::kLanes) return sums(acc);
#pragma GCC unroll 4
        for (int i = 0; i < at_once; i++)
            for (int j = 0; j < PARTS; j++) all[first + i][j] = acc[i][j];
    }
    return sums(all);
}

// acc = acc * rescale + the sum of p[n] * value n, for W * 32 dimensions; even and odd n have separate sums. Prefetches
// from `then`, with the same strides.
template <int W, typename T>
inline void add_values(const float* p, const T* v, int64_t stride, int64_t count, float rescale, float* acc, const T* then) {
    vec::reg even[W][2 * PARTS], odd[W][2 * PARTS] = {};
    const auto add = [](vec::reg* to, float weight, const T* from) __attribute__((always_inline)) {
        vec::reg x[2 * PARTS];
        split(from, x);
#pragma GCC unroll 8
        for (int j = 0; j < 2 * PARTS; j++) to[j] += weight * x[j];
    };
    for (int w = 0; w < W; w++) {
        load_split<T>(acc + 32 * w, even[w]);
#pragma GCC unroll 8
        for (int j = 0; j < 2 * PARTS; j++) even[w][j] *= rescale;
    }
    int64_t n = 0;
    for (; n + 1 < count; n += 2, v += 2 * stride, then += 2 * stride)
#pragma GCC unroll 2
        for (int w = 0; w < W; w++) {
            prefetch(then + 32 * w);
            prefetch(then + stride + 32 * w);
            add(even[w], p[n], v + 32 * w);
            add(odd[w], p[n + 1], v + stride + 32 * w);
        }
    if (n < count)
        for (int w = 0; w < W; w++) add(even[w], p[n], v + 32 * w);
    for (int w = 0; w < W; w++) {
#pragma GCC unroll 8
        for (int j = 0; j < 2 * PARTS; j++) even[w][j] += odd[w][j];
        store_split<T>(acc + 32 * w, even[w]);
    }
}

}  // namespace
