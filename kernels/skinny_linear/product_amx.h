// The same product on a matrix unit that multiplies bfloat16 (Intel AMX), as exact as float32 up to rounding.
//
// A float32 is exactly the sum of three bfloat16 of 8 bits each. Of the nine products of two such sums, the six largest
// are summed in float32; the other three are smaller than its rounding (Henry, Tang and Heinecke 2019, "Leveraging the
// bfloat16 artificial intelligence datatype for higher-precision computations"). W is split on its way to the unit, 16
// rows by 32 columns at a time, the rows far apart for the reason given in product.h. An infinity in x or W gives NaN,
// and numbers below 1e-30 lose bits.
#pragma once
#include "../common/amx.h"
#include "product.h"

#ifdef __AMX_BF16__
#include <type_traits>

namespace {

constexpr int kStep = 32;          // columns of W, and of x, in one tile
constexpr int kParts = 3;          // bfloat16 per float32
constexpr int kTile = 16 * kStep;  // elements of a tile
constexpr int kMostBlocks = 4;     // blocks of 16 rows of x per pass over W

typedef uint16_t part;  // a bfloat16
typedef part parts __attribute__((vector_size(64)));

// Tile instructions as templates, because the macros of immintrin.h take literals only. Tiles 0 to 3 are sums, 4 to 6
// the parts of W, 7 a part of x.
template <int T>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
inline void tile_load(const part* at, int64_t row_bytes) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(at), "r"(row_bytes) : "memory");
}
template <int T>
inline void tile_store(float* at, int64_t step) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(at), "r"(4 * step) : "memory");
}
template <int C, int A, int B>
inline void tile_multiply() {  // C += A B
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// Calls visit(0), visit(1), ... with compile-time constants.
template <int Count, typename Visit>
inline __attribute__((always_inline)) void constants(Visit&& visit) {
    if constexpr (Count > 0) {
        constants<Count - 1>(visit);
        visit(std::integral_constant<int, Count - 1>());
    }
}

// upper: the upper halves of 32 floats, in pairs of one of a and one of b (any order works if x and W have the same).
// rest: the floats less their upper halves.
inline parts upper(floats a, floats b) { return (parts)((vec::words)a >> 16 | ((vec::words)b & 0xffff0000u)); }
inline floats rest(floats a) { return a - (floats)((vec::words)a & 0xffff0000u); }

// Splits 32 floats into one row of three consecutive tiles.
inline void split(floats a, floats b, part* to) {
    for (int p = 0; p < kParts; p++, a = rest(a), b = rest(b)) *(parts*)(to + p * kTile) = upper(a, b);
}

template <bool Full, typename Row>
inline void split_rows(const Row* w, int64_t k, int64_t lanes, part* to) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++, to += kStep) {
        if (Full) {
            w[i].prefetch(k);
            w[i].prefetch(k + kLanes);
            split(w[i].get(k), w[i].get(k + kLanes), to);
        } else if (lanes > kLanes) split(w[i].get(k), w[i].get_part(k + kLanes, lanes - kLanes), to);
        else split(w[i].get_part(k, lanes), floats{}, to);
    }
}

// y [16 rows of W, y_step apart][Blocks of x] = W x. x is in tiles of `width` rows as in OnMatrixUnit, blocks x_block
// apart.
template <int Blocks, typename Row>
__attribute__((noinline)) void multiply_rows(const Row* w, int64_t K, const part* x, int64_t x_block, int64_t width,
                                             float* y, int64_t y_step) {
    const int64_t x_tile = kStep * width;
    alignas(64) part room[2][kParts * kTile];
    auto prepare = [&](int64_t k) {
        part* to = room[k / kStep % 2];
        if (k + kStep <= K) split_rows<true>(w, k, kStep, to);
        else if (k < K) split_rows<false>(w, k, K - k, to);
    };
    constants<Blocks>([&](auto b) { tile_zero<b>(); });
    prepare(0);
    for (int64_t k = 0; k < K; k += kStep, x += kParts * x_tile) {
        prepare(k + kStep);  // one step ahead: tiles load from memory, where fresh stores arrive late
        constants<kParts>([&](auto p) { tile_load<4 + p>(room[k / kStep % 2] + p * kTile, 64); });
        constants<kParts>([&](auto p) {
            constants<Blocks>([&](auto b) {
                tile_load<7>(x + b * x_block + p * x_tile, 4 * width);
                constants<kParts - p>([&](auto q) { tile_multiply<b, 4 + q, 7>(); });
            });
        });
    }
    constants<Blocks>([&](auto b) { tile_store<b>(y + 16 * b, y_step); });
}

// Packs and multiplies the rows of one call on the matrix unit. The calling thread holds its tiles meanwhile.
class OnMatrixUnit {
    part* at;  // [blocks of rows][K / 32][parts][16 pairs of columns][width][2]
    int64_t rows, K, blocks, block_size;
    int width;  // rows of x per tile: 4 or 8 if there are no more, which is less to read
    Tiles tiles;

    // Packs rows row to row + 15 into their tiles. Columns of rows that do not exist stay uninitialised; no one reads
    // their results.
    template <int Width>
    void pack_block(const float* x, int64_t row, Norm norm, const Statistics* stats, const float* weight,
                    const float* bias) {
        alignas(64) part room[kParts * kTile] = {};
        part* to = at + row / 16 * block_size;
        const int64_t x_tile = kStep * Width, stop = std::min(rows, row + 16);
        for (int64_t k = 0; k < K; k += kStep, to += kParts * x_tile) {
            for (int64_t r = row; r < stop; r++) {
                floats halves[2] = {};
                for (int h = 0; h < 2; h++) {
                    const int64_t first = k + h * kLanes, lanes = std::min<int64_t>(kLanes, K - first);
                    if (lanes <= 0) break;
                    auto get = [&](const float* from) {
                        return lanes == kLanes ? load(from + first) : load_lanes<false>(from + first, lanes);
                    };
                    halves[h] = get(x + r * K);
                    if (norm != kNoNorm) halves[h] = (halves[h] - stats[r].mean) * stats[r].scale * (get(weight) + offset_of(norm));
                    if (norm == kLayer) halves[h] += get(bias);
                }
                split(halves[0], halves[1], room + (r - row) * kStep);
            }
            for (int p = 0; p < kParts; p++) {
                floats pairs[kLanes];
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; i++) pairs[i] = load((const float*)(room + p * kTile + i * kStep));
                transpose(pairs);
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; i++) memcpy(to + p * x_tile + 2 * i * Width, &pairs[i], 4 * Width);
            }
        }
    }

   public:
    static constexpr bool by_rows = false;

    OnMatrixUnit(int64_t rows, int64_t K)
        : rows(rows), K(K), blocks((rows + 15) / 16), width(rows <= 4 ? 4 : rows <= 8 ? 8 : 16), tiles(true, 4 * width) {
        static thread_local Buffer buffer;
        block_size = (K + kStep - 1) / kStep * kParts * kStep * width;
        at = (part*)buffer.get(blocks * block_size * sizeof(part) / sizeof(float));
    }

    void pack(const float* x, Norm norm, const Statistics* stats, const float* weight, const float* bias) {
        for (int64_t row = 0; row < rows; row += 16) {
            if (width == 4) pack_block<4>(x, row, norm, stats, weight, bias);
            else if (width == 8) pack_block<8>(x, row, norm, stats, weight, bias);
            else pack_block<16>(x, row, norm, stats, weight, bias);
        }
    }

    // y [n1 - n0, padded rows of x] = W[n0:n1] x. y has room for 15 more rows.
    template <typename Matrix>
    void product(const Matrix& w, int64_t n0, int64_t n1, float* y, int64_t y_row) const {
        const int64_t stretch = (n1 - n0) / 16;
        for (int64_t i = 0; i < stretch; i++) multiply(w, n0 + i, stretch, n1, y + i * y_row, y_row);
        if (const int64_t n = n0 + stretch * 16; n < n1) multiply(w, n, 1, n1, y + (n - n0) * y_row, y_row);
    }

   private:
    // Multiplies sixteen rows n, n + stretch, ... of W. The last row replaces rows from n1 on.
    template <typename Matrix>
    void multiply(const Matrix& w, int64_t n, int64_t stretch, int64_t n1, float* y, int64_t y_row) const {
        decltype(w.row(0)) from[16];
        for (int i = 0; i < 16; i++) from[i] = w.row(std::min(n + i * stretch, n1 - 1));
        for (int64_t b = 0; b < blocks; b += kMostBlocks) {
            const part* x = at + b * block_size;
            float* to = y + 16 * b;
            switch (std::min<int64_t>(kMostBlocks, blocks - b)) {
                case 1: multiply_rows<1>(from, K, x, block_size, width, to, stretch * y_row); break;
                case 2: multiply_rows<2>(from, K, x, block_size, width, to, stretch * y_row); break;
                case 3: multiply_rows<3>(from, K, x, block_size, width, to, stretch * y_row); break;
                default: multiply_rows<4>(from, K, x, block_size, width, to, stretch * y_row);
            }
        }
    }
};

}  // namespace

#else

namespace {

using OnMatrixUnit = OnVectors;  // never used: has_amx() is false

}  // namespace

#endif
