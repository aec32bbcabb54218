// The two products of attention over one page: scores of its keys, and the weighted sum of its values.
//
// Keys lie as [K, N], so that a register holds neighbouring positions and no product is summed across a register.
#pragma once
#include "../vector.h"

#include <algorithm>

namespace {

using vec::bf16;
using vec::floats;
using vec::load;

constexpr int64_t PAD = 32;  // positions and dimensions are worked on so many at a time

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

// Thirty-two elements as two vectors, and two vectors as thirty-two in order. Of bfloat16 the even and the odd elements,
// each one instruction away from a float: widening in order takes five (GCC 12).
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

// out[n] = the dot product of q and key n, for W * 32 keys. Even and odd dimensions have sums of their own: the
// processor does not wait for one addition before it begins the next.
template <int W, typename T>
inline void dots(const float* q, const T* k, int64_t stride, int64_t head_size, float* out) {
    floats even[2 * W] = {}, odd[2 * W] = {}, x[2];
    int64_t d = 0;
    for (; d + 1 < head_size; d += 2, k += 2 * stride)
        for (int w = 0; w < W; w++) {
            split(k + 32 * w, x);
            for (int i = 0; i < 2; i++) even[2 * w + i] += q[d] * x[i];
            split(k + stride + 32 * w, x);
            for (int i = 0; i < 2; i++) odd[2 * w + i] += q[d + 1] * x[i];
        }
    if (d < head_size)
        for (int w = 0; w < W; w++) {
            split(k + 32 * w, x);
            for (int i = 0; i < 2; i++) even[2 * w + i] += q[d] * x[i];
        }
    for (int w = 0; w < W; w++)
        store_split<T>(out + 32 * w, even[2 * w] + odd[2 * w], even[2 * w + 1] + odd[2 * w + 1]);
}

// acc = acc * rescale + the sum of p[n] times value n, for W * 32 dimensions; even and odd n apart as above.
template <int W, typename T>
inline void add_values(const float* p, const T* v, int64_t stride, int64_t count, float rescale, float* acc) {
    floats even[2 * W], odd[2 * W] = {}, x[2];
    for (int w = 0; w < W; w++) {
        load_split<T>(acc + 32 * w, even + 2 * w);
        for (int i = 0; i < 2; i++) even[2 * w + i] *= rescale;
    }
    int64_t n = 0;
    for (; n + 1 < count; n += 2, v += 2 * stride)
        for (int w = 0; w < W; w++) {
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
