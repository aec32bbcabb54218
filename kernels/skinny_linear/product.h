// The product of a few rows with a weight matrix, and the packing of the rows before it, including their norm.
//
// With a few rows, streaming the weights from memory takes all the time. Two things make that fast:
// - A tile is 12 rows of W by up to 32 rows of x. Lanes lie across the rows of x, and every weight is read once, by a
//   broadcast. An output is the same chain of multiply-adds for any number of rows: the same bits in any batch.
// - The 12 rows of a tile are far apart, each at the start of its own stretch of W; the next tile takes the rows after
//   them. So a thread reads 12 sequential streams, and the processor's prefetcher runs ahead of each. It does not run
//   ahead for 12 adjacent rows, which are streams in the same few memory pages. On the processor this was written for,
//   the difference is 28 against 15 GB/s.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "matrix.h"

using vec::all;

namespace {

constexpr int kTileRows = 12;    // rows of W
constexpr int kPanel = 32;       // rows of x
constexpr int kVeryFew = 4;      // up to so many rows of x, lanes lie across rows of W instead
constexpr int kChain = 64;       // products per accumulator before it is added to the sum: less rounding

enum Norm { kNoNorm, kRms, kLayer, kCentredRms };

// Returns what is added to the weights of a norm: centred ones are stored as their difference from 1.
inline float offset_of(Norm norm) { return norm == kCentredRms ? 1.0f : 0.0f; }

struct Buffer {
    float* at = nullptr;
    size_t size = 0;
    float* get(size_t n) {
        if (n > size) {
            free(at);
            at = (float*)aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
            size = n;
        }
        return at;
    }
};

// One round of a transpose: vectors i and i + d exchange lanes, so that bit d of row and lane index swap places.
template <int d>
inline __attribute__((always_inline)) void swap_halves(floats* r) {
    constexpr auto low = [](int i) { return i & d ? kLanes + i - d : i; };
    constexpr auto high = [](int i) { return i & d ? kLanes + i : i + d; };
    constexpr vec::ints lows = {low(0), low(1), low(2), low(3), low(4), low(5), low(6), low(7),
                                low(8), low(9), low(10), low(11), low(12), low(13), low(14), low(15)};
    constexpr vec::ints highs = {high(0), high(1), high(2), high(3), high(4), high(5), high(6), high(7),
                                 high(8), high(9), high(10), high(11), high(12), high(13), high(14), high(15)};
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) {
        if (i & d) continue;
        const floats a = r[i], b = r[i + d];
        r[i] = __builtin_shuffle(a, b, lows);
        r[i + d] = __builtin_shuffle(a, b, highs);
    }
}

// Transposes 16 x 16.
inline __attribute__((always_inline)) void transpose(floats* r) {
    swap_halves<1>(r);
    swap_halves<2>(r);
    swap_halves<4>(r);
    swap_halves<8>(r);
}

template <bool Full>
inline void store_lanes(float* at, floats x, int lanes) {
    if (Full) store(at, x);
    else memcpy(at, &x, sizeof(float) * lanes);
}

inline float sum(floats x) {
    for (int width = kLanes / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

// Normed x as [panels][K][width]: panels are kPanel wide, the last one 16 or 32. Up to kVeryFew rows are stored as
// [rows][K].
struct Panels {
    float* at;
    int64_t rows, K;
    int64_t count() const { return (rows + kPanel - 1) / kPanel; }
    int width(int64_t p) const { return rows - p * kPanel > kLanes ? kPanel : kLanes; }
    float* panel(int64_t p) const { return at + p * kPanel * K; }
};

struct Statistics {
    float mean, scale;
};

Statistics statistics(const float* x, int64_t K, Norm norm, float eps) {
    const int64_t whole = K / kLanes * kLanes;
    float mean = 0.0f;
    if (norm == kLayer) {
        floats total = {};
        for (int64_t k = 0; k < whole; k += kLanes) total += load(x + k);
        total += load_lanes<false>(x + whole, K - whole);
        mean = sum(total) / K;
    }
    floats squares = {};
    for (int64_t k = 0; k < whole; k += kLanes) {
        const floats d = load(x + k) - mean;
        squares += d * d;
    }
    floats last = load_lanes<false>(x + whole, K - whole) - mean;
    for (int i = K - whole; i < kLanes; i++) last[i] = 0.0f;
    squares += last * last;
    return {mean, 1.0f / std::sqrt(sum(squares) / K + eps)};
}

// Packs columns k to k+15 of 16 rows. `Full`: all 16 columns exist.
template <bool Full>
inline void pack_columns(const float* const* from, float* to, int width, int64_t k, int lanes, Norm norm,
                         const Statistics* const* stats, const float* weight, const float* bias) {
    const floats w = weight ? load_lanes<Full>(weight + k, lanes) + offset_of(norm) : all(1.0f);
    const floats b = bias ? load_lanes<Full>(bias + k, lanes) : floats{};
    floats r[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) r[i] = load_lanes<Full>(from[i] + k, lanes);
    if (norm != kNoNorm) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) r[i] = (r[i] - stats[i]->mean) * stats[i]->scale * w + b;
    }
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++)
        if (Full || i < lanes) store(to + (k + i) * width, r[i]);
}

void norm_row(const float* x, float* to, int64_t K, Norm norm, const Statistics& stats, const float* weight,
              const float* bias) {
    if (norm == kNoNorm) return (void)memcpy(to, x, sizeof(float) * K);
    const float offset = offset_of(norm);
    for (int64_t k = 0; k < K; k++)
        to[k] = (x[k] - stats.mean) * stats.scale * (weight[k] + offset) + (bias ? bias[k] : 0.0f);
}

// Packs rows row to row+15 into their panel. The last row replaces rows that do not exist; their results are not
// stored.
void pack_block(const float* x, const Panels& panels, int64_t row, Norm norm,
                const Statistics* all_stats, const float* weight, const float* bias) {
    const int64_t p = row / kPanel;
    const int width = panels.width(p);
    float* to = panels.panel(p) + row % kPanel;
    const float* from[kLanes];
    const Statistics* stats[kLanes];
    for (int i = 0; i < kLanes; i++) {
        const int64_t there = std::min(row + i, panels.rows - 1);
        from[i] = x + there * panels.K;
        stats[i] = all_stats + there;
    }
    int64_t k = 0;
    for (; k + kLanes <= panels.K; k += kLanes) pack_columns<true>(from, to, width, k, kLanes, norm, stats, weight, bias);
    if (k < panels.K) pack_columns<false>(from, to, width, k, panels.K - k, norm, stats, weight, bias);
}

// Rows n, n + stretch, ... of W.
template <int Rows, int Vectors, typename Matrix>
__attribute__((noinline)) void tile(const float* x, const Matrix& w, int64_t n, int64_t stretch, int64_t K, float* y,
                                    int64_t y_step) {
    alignas(64) float room[Matrix::in_memory ? 1 : Rows * kChain];
    constexpr int width = Vectors * kLanes;
    for (int64_t k = 0; k < K;) {
        const bool first = k == 0;
        floats acc[Rows][Vectors] = {};
        const int64_t chain = std::min(K, k + kChain);
        const Window<Rows> from(w, n, stretch, k, chain, room);
        while (k < chain) {
#pragma GCC unroll 12
            for (int j = 0; j < Rows; j++)
                if (Matrix::in_memory) __builtin_prefetch(from.at + j * from.step + k + kAhead, 0, 3);
            for (const int64_t stop = std::min(chain, k + kLanes); k < stop; k++) {
                floats xs[Vectors];
#pragma GCC unroll 2
                for (int v = 0; v < Vectors; v++) xs[v] = load(x + k * width + v * kLanes);
#pragma GCC unroll 12
                for (int j = 0; j < Rows; j++) {
                    const floats weight = all(from.at[j * from.step + k]);
#pragma GCC unroll 2
                    for (int v = 0; v < Vectors; v++) acc[j][v] += weight * xs[v];
                }
            }
        }
#pragma GCC unroll 12
        for (int j = 0; j < Rows; j++)
#pragma GCC unroll 2
            for (int v = 0; v < Vectors; v++) {
                float* to = y + j * y_step + v * kLanes;
                store(to, first ? acc[j][v] : load(to) + acc[j][v]);
            }
    }
}

template <int Rows, typename Matrix>
void tiles(const Panels& x, const Matrix& w, int64_t n, int64_t stretch, float* y, int64_t y_row, int64_t y_step) {
    for (int64_t p = 0; p < x.count(); p++) {
        if (x.width(p) == kPanel) tile<Rows, 2>(x.panel(p), w, n, stretch, x.K, y + p * kPanel, y_step * y_row);
        else tile<Rows, 1>(x.panel(p), w, n, stretch, x.K, y + p * kPanel, y_step * y_row);
    }
}

// With very few rows of x most lanes of a tile would idle. Here the lanes are 16 rows of W: a block of 16 x 16 weights
// is transposed in registers, which takes half the time of 256 broadcasts. The sums are the same, term by term.
template <int Rows, typename Row>
__attribute__((noinline)) void transposed_tile(const float* x, const Row* w, int64_t K, floats* y) {
    for (int64_t k = 0; k < K;) {
        const bool first = k == 0;
        floats acc[Rows] = {};
        for (const int64_t chain = std::min(K, k + kChain); k < chain; k += kLanes) {
            const int lanes = std::min<int64_t>(kLanes, chain - k);
            floats r[kLanes];
            if (lanes == kLanes) {
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; i++) {
                    w[i].prefetch(k);
                    r[i] = w[i].get(k);
                }
            } else {
                for (int i = 0; i < kLanes; i++) r[i] = w[i].get_part(k, lanes);
            }
            transpose(r);
            if (lanes == kLanes) {
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; i++)
#pragma GCC unroll 4
                    for (int m = 0; m < Rows; m++) acc[m] += r[i] * all(x[m * K + k + i]);
            } else {
                for (int i = 0; i < lanes; i++)
                    for (int m = 0; m < Rows; m++) acc[m] += r[i] * all(x[m * K + k + i]);
            }
        }
#pragma GCC unroll 4
        for (int m = 0; m < Rows; m++) y[m] = first ? acc[m] : y[m] + acc[m];
    }
}

template <typename Matrix>
void product_of_very_few(const float* x, int64_t rows, int64_t K, const Matrix& w, int64_t n0, int64_t n1, float* y,
                         int64_t y_row) {
    const int64_t stretch = std::max<int64_t>(1, (n1 - n0) / kLanes);
    auto tile_at = [&](int64_t n, int64_t step, int count) {  // rows n, n + step, ... of W, `count` of them
        decltype(w.row(0)) from[kLanes];
        for (int i = 0; i < kLanes; i++) from[i] = w.row(n + std::min(i, count - 1) * step);
        floats out[kVeryFew];
        if (rows == 1) transposed_tile<1>(x, from, K, out);
        else if (rows == 2) transposed_tile<2>(x, from, K, out);
        else if (rows == 3) transposed_tile<3>(x, from, K, out);
        else transposed_tile<4>(x, from, K, out);
        for (int i = 0; i < count; i++)
            for (int64_t m = 0; m < rows; m++) y[(n - n0 + i * step) * y_row + m] = out[m][i];
    };
    int64_t done = 0;
    if (n1 - n0 >= kLanes)
        for (; done < stretch; done++) tile_at(n0 + done, stretch, kLanes);
    for (int64_t n = n0 + done * kLanes; n < n1; n += kLanes) tile_at(n, 1, std::min<int64_t>(kLanes, n1 - n));
}

// y [n1 - n0, padded rows of x] = W[n0:n1] x
template <typename Matrix>
void product(const Panels& x, const Matrix& w, int64_t n0, int64_t n1, float* y, int64_t y_row) {
    if (x.rows <= kVeryFew) return product_of_very_few(x.at, x.rows, x.K, w, n0, n1, y, y_row);
    const int64_t stretch = (n1 - n0) / kTileRows;
    for (int64_t i = 0; i < stretch; i++)
        tiles<kTileRows>(x, w, n0 + i, stretch, y + i * y_row, y_row, stretch);
    for (int64_t n = n0 + stretch * kTileRows; n < n1; n++) tiles<1>(x, w, n, 0, y + (n - n0) * y_row, y_row, 0);
}

// Packs and multiplies the rows of one call on vectors.
class OnVectors {
    Panels panels;

   public:
    static constexpr bool by_rows = false;

    OnVectors(int64_t rows, int64_t K) {
        static thread_local Buffer buffer;
        panels = {buffer.get((rows + kLanes - 1) / kLanes * kLanes * K), rows, K};
    }

    void pack(const float* x, Norm norm, const Statistics* stats, const float* weight, const float* bias) {
        const int64_t rows = panels.rows, K = panels.K;
        if (rows <= kVeryFew)
            for (int64_t r = 0; r < rows; r++) norm_row(x + r * K, panels.at + r * K, K, norm, stats[r], weight, bias);
        else for (int64_t row = 0; row < rows; row += kLanes) pack_block(x, panels, row, norm, stats, weight, bias);
    }

    // y [n1 - n0, padded rows of x] = W[n0:n1] x
    template <typename Matrix>
    void product(const Matrix& w, int64_t n0, int64_t n1, float* y, int64_t y_row) const {
        ::product(panels, w, n0, n1, y, y_row);
    }
};

}  // namespace
