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

constexpr int64_t PAD = 32;  // dimensions per step

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

// Loads 32 elements as two vectors: floats in order, bfloat16 as its even and its odd elements, which takes one
// instruction each. Widening bfloat16 in order takes five (GCC 12).
inline void split(const float* at, floats* x) {
    x[0] = load(at);
    x[1] = load(at + 16);
}

inline void split(const bf16* at, floats* x) {
    vec::words pairs;
    memcpy(&pairs, at, sizeof pairs);
    x[0] = (floats)(pairs << 16);
    x[1] = (floats)(pairs & 0xffff0000);
}

// Returns the index of element d in the order of `split`.
template <typename T>
inline int64_t split_index(int64_t d) {
    return sizeof(T) == 4 ? d : d / 32 * 32 + d % 2 * 16 + d % 32 / 2;
}

const vec::ints LOW = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, HIGH = LOW + 8;
const vec::ints EVEN = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, ODD = EVEN + 1;

template <typename T>
inline void store_split(float* at, floats a, floats b) {
    const bool in_order = sizeof(T) == 4;
    store(at, in_order ? a : __builtin_shuffle(a, b, LOW));
    store(at + 16, in_order ? b : __builtin_shuffle(a, b, HIGH));
}

template <typename T>
inline void load_split(const float* at, floats* x) {
    const floats a = load(at), b = load(at + 16);
    x[0] = sizeof(T) == 4 ? a : __builtin_shuffle(a, b, EVEN);
    x[1] = sizeof(T) == 4 ? b : __builtin_shuffle(a, b, ODD);
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

// Returns the sum of r[i]'s lanes in lane i.
inline floats sums(floats* r) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) r[i] = fold<8>(r[i], r[i + 8]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) r[i] = fold<4>(r[i], r[i + 4]);
    for (int i = 0; i < 2; i++) r[i] = fold<2>(r[i], r[i + 2]);
    return fold<1>(r[0], r[1]);
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
    floats acc[vec::kLanes] = {};
    const T* key[vec::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < vec::kLanes; i++) key[i] = k + std::min<int64_t>(i, count - 1) * stride;
    for (int64_t d = 0; d < head_size; d += 32) {
        const floats q0 = load(q + d), q1 = load(q + d + 16);
#pragma GCC unroll 16
        for (int i = 0; i < vec::kLanes; i++) {
            floats x[2];
            prefetch(then + i * stride + d);
            split(key[i] + d, x);
            acc[i] += q0 * x[0];
            acc[i] += q1 * x[1];
        }
    }
    return sums(acc);
}

// acc = acc * rescale + the sum of p[n] * value n, for W * 32 dimensions; even and odd n have separate sums. Prefetches
// from `then`, with the same strides.
template <int W, typename T>
inline void add_values(const float* p, const T* v, int64_t stride, int64_t count, float rescale, float* acc, const T* then) {
    floats even[2 * W], odd[2 * W] = {}, x[2];
    for (int w = 0; w < W; w++) {
        load_split<T>(acc + 32 * w, even + 2 * w);
        for (int i = 0; i < 2; i++) even[2 * w + i] *= rescale;
    }
    int64_t n = 0;
    for (; n + 1 < count; n += 2, v += 2 * stride, then += 2 * stride)
        for (int w = 0; w < W; w++) {
            prefetch(then + 32 * w);
            prefetch(then + stride + 32 * w);
            split(v + 32 * w, x);
            for (int i = 0; i < 2; i++) even[2 * w + i] += p[n] * x[i];
            split(v + stride + 32 * w, x);
            for (int i = 0; i < 2; i++) odd[2 * w + i] += p[n + 1] * x[i];
        }
    if (n < count)
        for (int w = 0; w < W; w++) {
            split(v + 32 * w, x);
            for (int i = 0; i < 2; i++) even[2 * w + i] += p[n] * x[i];
        }
    for (int w = 0; w < W; w++)
        store_split<T>(acc + 32 * w, even[2 * w] + odd[2 * w], even[2 * w + 1] + odd[2 * w + 1]);
}

}  // namespace
