// Products of bfloat16 matrices with float32 results: with AMX tiles where the processor has them, else with vectors.
//
// C [columns / 16][rows][16] (+)= A [rows, inner] B [inner, columns]; all sizes are multiples of 32. Element (m, k) of
// A is at m * row + k / 32 * step + k % 32. B is in panels of 16 columns, [columns / 16][inner / 2][16] words. A word
// holds two successive inner elements of its column, the lower half first: AMX reads that, vectors shift it apart.
#pragma once
#include "../common/amx.h"
#include "../common/vector.h"

namespace bf16 {

using vec::floats;
using vec::kLanes;
using vec::words;

struct Left {
    const vec::bf16* at;
    int64_t row, step;
};

constexpr int kBlock = 32;
constexpr int64_t kInner = 512;    // per pair of panels of B, 32 KiB: they stay in the L1 cache for all rows of A
constexpr int64_t kColumns = 512;  // of C, 2 KiB per row: they stay in the L2 cache for the whole inner dimension

// Computes a 32 x 32 block of C. block_by_tiles does the same with AMX.
static inline void block_by_vectors(const Left& a, const uint32_t* b, int64_t b_panel, float* c, int64_t c_panel,
                                    int64_t inner, bool add) {
    constexpr int kRows = 4;
    for (int m = 0; m < kBlock; m += kRows) {
        floats sum[kRows][2];
        for (int i = 0; i < kRows; ++i)
            for (int p = 0; p < 2; ++p) sum[i][p] = add ? vec::load(c + p * c_panel + (m + i) * kLanes) : floats{};
        for (int64_t k = 0; k < inner; k += 2) {
            floats low[2], high[2];
            for (int p = 0; p < 2; ++p) {
                words pair;
                memcpy(&pair, b + p * b_panel + k / 2 * kLanes, sizeof pair);
                low[p] = (floats)(pair << 16);
                high[p] = (floats)(pair & 0xffff0000u);
            }
            for (int i = 0; i < kRows; ++i) {
                uint32_t pair;
                memcpy(&pair, a.at + (m + i) * a.row + k / kBlock * a.step + k % kBlock, sizeof pair);
                const words spread = words{} + pair;
                const floats first = (floats)(spread << 16), second = (floats)(spread & 0xffff0000u);
                for (int p = 0; p < 2; ++p) sum[i][p] = sum[i][p] + first * low[p] + second * high[p];
            }
        }
        for (int i = 0; i < kRows; ++i)
            for (int p = 0; p < 2; ++p) vec::store(c + p * c_panel + (m + i) * kLanes, sum[i][p], kLanes);
    }
}

#ifdef __AMX_BF16__

static inline void block_by_tiles(const Left& a, const uint32_t* b, int64_t b_panel, float* c, int64_t c_panel,
                                  int64_t inner, bool add) {
    constexpr int64_t kBytes = 64;
    if (add) {
        _tile_loadd(0, c, kBytes);
        _tile_loadd(1, c + c_panel, kBytes);
        _tile_loadd(2, c + 16 * kLanes, kBytes);
        _tile_loadd(3, c + c_panel + 16 * kLanes, kBytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < inner; k += kBlock) {
        const vec::bf16* const rows = a.at + k / kBlock * a.step;
        _tile_loadd(4, rows, a.row * 2);
        _tile_loadd(6, b + k / 2 * kLanes, kBytes);
        _tile_loadd(7, b + b_panel + k / 2 * kLanes, kBytes);
        _tile_loadd(5, rows + 16 * a.row, a.row * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, kBytes);
    _tile_stored(1, c + c_panel, kBytes);
    _tile_stored(2, c + 16 * kLanes, kBytes);
    _tile_stored(3, c + c_panel + 16 * kLanes, kBytes);
}

#endif

// Computes the whole product on the calling thread, which holds a Tiles(amx).
static inline void product(bool amx, Left a, const uint32_t* b, int64_t b_panel, float* c, int64_t c_panel,
                           int64_t rows, int64_t columns, int64_t inner, bool add) {
    const int64_t panels = columns / kLanes;
    for (int64_t begin = 0; begin < panels; begin += kColumns / kLanes)
        for (int64_t k = 0; k < inner; k += kInner) {
            const int64_t some = inner - k < kInner ? inner - k : kInner;
            for (int64_t n = begin; n < begin + kColumns / kLanes && n < panels; n += 2)
                for (int64_t m = 0; m < rows; m += kBlock) {
                    const Left part{a.at + m * a.row + k / kBlock * a.step, a.row, a.step};
                    const uint32_t* const right = b + n * b_panel + k / 2 * kLanes;
                    float* const out = c + n * c_panel + m * kLanes;
#ifdef __AMX_BF16__
                    if (amx) {
                        block_by_tiles(part, right, b_panel, out, c_panel, some, add || k);
                        continue;
                    }
#endif
                    block_by_vectors(part, right, b_panel, out, c_panel, some, add || k);
                }
        }
}

// Transposes 16 x 16 words: four rounds of exchanges between rows 1, 2, 4 and 8 apart.
static inline void transpose(words* x) {
#define EXCHANGE(APART, EVEN, ODD)                                                  \
    for (int i = 0; i < kLanes; ++i)                                                \
        if (!(i & APART)) {                                                         \
            const words a = x[i], b = x[i + APART];                                 \
            x[i] = __builtin_shufflevector(a, b, EVEN);                             \
            x[i + APART] = __builtin_shufflevector(a, b, ODD);                      \
        }
#define LIST(...) __VA_ARGS__
    EXCHANGE(1, LIST(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
             LIST(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    EXCHANGE(2, LIST(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
             LIST(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    EXCHANGE(4, LIST(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
             LIST(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    EXCHANGE(8, LIST(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
             LIST(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#undef LIST
#undef EXCHANGE
}

// Transposes a [32, columns] to out [columns, 32], so that a column becomes a row of A: 32 successive inner elements.
static inline void transpose_rows(const vec::bf16* a, int64_t row, int64_t columns, vec::bf16* out) {
    for (int64_t j = 0; j < columns; j += kLanes) {
        words pairs[kLanes];
        for (int i = 0; i < kLanes; ++i)
            pairs[i] = ((words)vec::load(a + 2 * i * row + j) >> 16) | (words)vec::load(a + (2 * i + 1) * row + j);
        transpose(pairs);
        for (int i = 0; i < kLanes; ++i) memcpy(out + (j + i) * kBlock, &pairs[i], sizeof pairs[i]);
    }
}

}  // namespace bf16
