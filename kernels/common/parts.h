// Loads and stores of fewer than sixteen numbers, and a parallel loop over blocks. For any type that vec loads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vector.h"

namespace vec {

// Loads `count` of sixteen numbers, and zeros for the others.
template <class T>
inline floats load_part(const T* at, int64_t count) {
    if (count >= kLanes) return load(at);
    T part[kLanes] = {};
    memcpy(part, at, sizeof(T) * count);
    return load(part);
}

template <class T>
inline void store_part(T* at, floats x, int64_t count) {
    store(at, x, (int)std::min<int64_t>(count, kLanes));
}

constexpr int64_t kBlock = 1 << 14;  // numbers that a thread takes at a time

// Calls of(i, count) for every sixteenth i below `total`; `count` numbers are left in the block of i. The blocks do
// not depend on the number of threads.
template <class F>
void in_blocks(int64_t total, int threads, F of) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < total; block += kBlock)
        for (int64_t i = block, stop = std::min(total, block + kBlock); i < stop; i += kLanes) of(i, stop - i);
}

}  // namespace vec
