// The product of a few rows with a weight matrix on AVX2, which has half as many registers of half the size of AVX-512:
// the tiles of product.h do not fit there.
//
// An output is a dot product: its lanes lie along the inputs, and weights are read as they lie in memory. Eight partial
// sums run over 512 inputs, are added in a fixed order, and then to the output. That is the same for any number of rows
// of x and W: the same bits in any batch. With one row of x, eight rows of W that are far apart are read at once (see
// product.h); with more, four rows of W times up to three of x. From four rows on, codes are dequantised once for all.
#pragma once
#include "product.h"

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
#include <immintrin.h>
#include <type_traits>

namespace {

constexpr int kEight = 8;           // floats in a register
constexpr int kBlock = 512;         // inputs of a partial sum
constexpr int kMostDirectRows = 3;  // of x, for which codes are dequantised in registers

inline int64_t whole_groups(int64_t k) { return (k + kGroup - 1) / kGroup * kGroup; }

inline __m256 scale_of(const uint16_t* bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_set1_epi16(*bf16), 16)); }
inline __m256 floats_of(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }

// The values of columns k to k + 31, k a multiple of 32.
inline void group(const CodeRow<8>& row, int64_t k, __m256* to) {
    const __m256 scale = scale_of(row.scales + k / kGroup);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        to[i] = floats_of(_mm_loadl_epi64((const __m128i*)(row.codes + k + i * kEight))) * scale;
}

inline void group(const CodeRow<4>& row, int64_t k, __m256* to) {
    const __m256 scale = scale_of(row.scales + k / kGroup);
    const __m256i to_the_top = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {  // eight codes are one integer; each lane moves its own to the top, and back with its sign
        int32_t eight;
        memcpy(&eight, row.codes + k / 2 + i * 4, 4);
        const __m256i code = _mm256_srai_epi32(_mm256_sllv_epi32(_mm256_set1_epi32(eight), to_the_top), 28);
        to[i] = _mm256_cvtepi32_ps(code) * scale;
    }
}

// Adds `length` inputs, a multiple of 32, of R rows of W times M rows of x, which are x_step apart, to the sums.
template <int R, int M>
inline __attribute__((always_inline)) void add(const FloatRow* w, int64_t k, int64_t length, const float* x, int64_t x_step,
                                               __m256 (&sums)[R][M]) {
    for (const int64_t stop = k + length; k < stop; k += 2 * kEight, x += 2 * kEight) {
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) w[j].prefetch(k);
#pragma GCC unroll 2
        for (int h = 0; h < 2 * kEight; h += kEight) {
            __m256 xs[M];
#pragma GCC unroll 3
            for (int m = 0; m < M; m++) xs[m] = _mm256_loadu_ps(x + m * x_step + h);
#pragma GCC unroll 8
            for (int j = 0; j < R; j++) {
                const __m256 weight = _mm256_loadu_ps(w[j].at + k + h);
#pragma GCC unroll 3
                for (int m = 0; m < M; m++) sums[j][m] = _mm256_fmadd_ps(weight, xs[m], sums[j][m]);
            }
        }
    }
}

template <int R, int M, int Bits>
inline __attribute__((always_inline)) void add(const CodeRow<Bits>* w, int64_t k, int64_t length, const float* x,
                                               int64_t x_step, __m256 (&sums)[R][M]) {
    for (const int64_t stop = k + length; k < stop; k += kGroup, x += kGroup) {
#pragma GCC unroll 8
        for (int j = 0; j < R; j++) {
            __m256 weights[4];
            w[j].prefetch(k);
            group(w[j], k, weights);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
#pragma GCC unroll 3
                for (int m = 0; m < M; m++)
                    sums[j][m] = _mm256_fmadd_ps(weights[i], _mm256_loadu_ps(x + m * x_step + i * kEight), sums[j][m]);
        }
    }
}

// The sums of four registers, each in the same order.
inline __m128 totals(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 quarters = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
}

// y[m * y_step + j * stretch] += the dot product of `length` inputs of rows j of W and m of x; = for the first inputs.
template <int R, int M, typename Row>
__attribute__((noinline)) void dots(const Row* w, int64_t k, int64_t length, const float* x, int64_t x_step, float* y,
                                    int64_t y_step, int64_t stretch, bool first) {
    __m256 sums[R][M];
#pragma GCC unroll 8
    for (int j = 0; j < R; j++)
#pragma GCC unroll 3
        for (int m = 0; m < M; m++) sums[j][m] = _mm256_setzero_ps();
    add<R, M>(w, k, length, x, x_step, sums);
    const auto add_to = [first](float* to, float found) { *to = first ? found : *to + found; };
#pragma GCC unroll 3
    for (int m = 0; m < M; m++, y += y_step) {
        if constexpr (R == 1) {
            add_to(y, totals(sums[0][m], sums[0][m], sums[0][m], sums[0][m])[0]);
        } else {
#pragma GCC unroll 2
            for (int j = 0; j < R; j += 4) {
                const __m128 found = totals(sums[j][m], sums[j + 1][m], sums[j + 2][m], sums[j + 3][m]);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) add_to(y + (j + i) * stretch, found[i]);
            }
        }
    }
}

// Packs and multiplies the rows of one call.
class OnAvx2 {
    float* x;  // [rows][x_step], filled up with zeros
    int64_t rows, K, x_step;

   public:
    static constexpr bool by_rows = true;

    OnAvx2(int64_t rows, int64_t K) : rows(rows), K(K), x_step(whole_groups(K)) {
        static thread_local Buffer buffer;
        x = buffer.get(rows * x_step);
    }

    void pack(const float* from, Norm norm, const Statistics* stats, const float* weight, const float* bias) {
        for (int64_t r = 0; r < rows; r++) {
            norm_row(from + r * K, x + r * x_step, K, norm, stats[r], weight, bias);
            std::fill(x + r * x_step + K, x + (r + 1) * x_step, 0.0f);
        }
    }

    // y [rows, y_step], its first n1 - n0 columns = x W[n0:n1]^T
    template <typename Matrix>
    void product(const Matrix& w, int64_t n0, int64_t n1, float* y, int64_t y_step) const {
        int64_t n = n0;
        if (rows == 1) n = stretches<8>(w, n, n1, y, y_step);
        n = stretches<4>(w, n, n1, y + (n - n0), y_step);
        stretches<1>(w, n, n1, y + (n - n0), y_step);
    }

   private:
    // Multiplies as many rows of W as are a multiple of R; returns the next one.
    template <int R, typename Matrix>
    int64_t stretches(const Matrix& w, int64_t n0, int64_t n1, float* y, int64_t y_step) const {
        const int64_t stretch = (n1 - n0) / R;
        for (int64_t i = 0; i < stretch; i++) multiply<R>(w, n0 + i, stretch, y + i, y_step);
        return n0 + stretch * R;
    }

    // Multiplies rows n, n + stretch, ... of W, R of them.
    template <int R, typename Matrix>
    void multiply(const Matrix& w, int64_t n, int64_t stretch, float* y, int64_t y_step) const {
        decltype(w.row(0)) from[R];
        for (int j = 0; j < R; j++) from[j] = w.row(n + j * stretch);
        for (int64_t k = 0; k < K; k += kBlock) {
            const int64_t length = std::min<int64_t>(kBlock, x_step - k);
            if (Matrix::in_memory ? k + length <= K : rows <= kMostDirectRows) {
                for_rows<R>(from, k, length, y, y_step, stretch);
                continue;
            }
            alignas(64) float room[R * kBlock];
            FloatRow in_room[R];
            for (int j = 0; j < R; j++) {
                copy(from[j], k, length, room + j * kBlock);
                in_room[j] = {room + j * kBlock - k};
            }
            for_rows<R>(in_room, k, length, y, y_step, stretch);
        }
    }

    void copy(const FloatRow& row, int64_t k, int64_t length, float* to) const {
        const int64_t inside = std::min(length, K - k);
        std::copy(row.at + k, row.at + k + inside, to);
        std::fill(to + inside, to + length, 0.0f);
    }

    template <int Bits>
    void copy(const CodeRow<Bits>& row, int64_t k, int64_t length, float* to) const {
        for (int64_t i = 0; i < length; i += kGroup) {
            __m256 values[4];
            row.prefetch(k + i);
            group(row, k + i, values);
            for (int v = 0; v < 4; v++) _mm256_store_ps(to + i + v * kEight, values[v]);
        }
    }

    template <int R, typename Row>
    void for_rows(const Row* w, int64_t k, int64_t length, float* y, int64_t y_step, int64_t stretch) const {
        const auto dots_of = [&](auto count, int64_t m) {
            dots<R, count>(w, k, length, x + m * x_step + k, x_step, y + m * y_step, y_step, stretch, k == 0);
        };
        if constexpr (R == 8) return dots_of(std::integral_constant<int, 1>(), 0);
        else {
            int64_t m = 0;
            for (; m + 3 <= rows; m += 3) dots_of(std::integral_constant<int, 3>(), m);
            if (rows - m == 2) dots_of(std::integral_constant<int, 2>(), m);
            if (rows - m == 1) dots_of(std::integral_constant<int, 1>(), m);
        }
    }
};

}  // namespace
#endif
