// The passes over a tile of float32 logits: softmax totals per token, and the gradient with respect to the logits.
//
// Tokens lie across the lanes of a vector, so that no sum crosses lanes. A tile stores tokens in groups of 16: element
// (row, token) is at row * stride + token / 16 * group + token % 16. This covers rows of tokens (group 16) and panels
// (stride 16).
#pragma once
#include <cmath>

#include "../common/vector.h"

namespace passes {

using vec::floats;
using vec::kLanes;

constexpr int kStrip = 32;  // rows read twice, for their maximum and then for exponentials: they stay in the L1 cache

// Totals per token, in float64: the maximum m, s = sum e^(z-m), q = sum e^(z-m) (z-m).
enum { kMax, kSum, kFirst, kTotals };

// Rows of per_token in the gradient: the logsumexp in two parts (a maximum m, so that z - m is exact, and the rest), a
// and b.
enum { kTop, kLogSum, kA, kB, kPerToken };

struct Tile {
    const float* z;
    int64_t rows, tokens, stride, group;
    double inverse;                     // 1 / temperature
    float scale = inverse;              // in two parts: rounded to one float, large logits would lose two digits
    float scale_low = inverse - scale;

    int64_t at(int64_t row, int64_t token) const { return row * stride + token / kLanes * group + token % kLanes; }
    Tile rows_from(int64_t first, int64_t last) const {
        return {z + first * stride, last - first, tokens, stride, group, inverse};
    }
    // x / temperature - top. The two large numbers are subtracted first, in one rounding, so their difference keeps all
    // digits. + 0.0f keeps the compiler from fusing the small product into the sum, which would change recorded results
    // by a rounding.
    floats below(floats x, floats top) const { return (x * scale - top) + (x * scale_low + 0.0f); }
};

// Adds (m, s, q) to a token's totals, both relative to the larger maximum.
static inline void merge(double* max, double* sum, double* first, double m, double s, double q) {
    const double top = *max > m ? *max : m;
    const double old = *max == top ? 1.0 : std::exp(*max - top), now = m == top ? 1.0 : std::exp(m - top);
    *first = (*first + *sum * (*max - top)) * old + (q + s * (m - top)) * now;
    *sum = *sum * old + s * now;
    *max = top;
}

// Adds C groups of tokens, the first at `token`, to the totals; `lanes` of their tokens exist.
template <int C>
void add_columns(const Tile& tile, int64_t token, int64_t lanes, double* totals, int64_t totals_stride) {
    const float* const z = tile.z + tile.at(0, token);
    const int64_t stride = tile.stride, group = tile.group;
    const float scale = tile.scale;
    floats m[C], s[C], q[C];
    for (int c = 0; c < C; ++c) {
        m[c] = vec::all(-FLT_MAX);
        s[c] = q[c] = floats{};
    }
    for (int64_t begin = 0; begin < tile.rows; begin += kStrip) {
        const int64_t end = begin + kStrip < tile.rows ? begin + kStrip : tile.rows;
        floats top[C];
        for (int c = 0; c < C; ++c) top[c] = m[c];
        for (int64_t i = begin; i < end; ++i)
            for (int c = 0; c < C; ++c) top[c] = vec::max(vec::load(z + i * stride + c * group) * scale, top[c]);
        for (int c = 0; c < C; ++c) {
            const floats shrink = vec::exp(m[c] - top[c]);
            q[c] = (q[c] + s[c] * (m[c] - top[c])) * shrink;
            s[c] *= shrink;
            m[c] = top[c];
        }
        floats ds[C] = {}, dq[C] = {};  // sums of this strip alone: shorter sums round less
        for (int64_t i = begin; i < end; ++i)
            for (int c = 0; c < C; ++c) {
                const floats under = tile.below(vec::load(z + i * stride + c * group), m[c]), e = vec::exp(under);
                ds[c] += e;
                dq[c] += e * vec::not_below_nothing(under);
            }
        for (int c = 0; c < C; ++c) s[c] += ds[c], q[c] += dq[c];
    }
    for (int64_t j = 0; j < lanes; ++j) {
        const int c = j / kLanes, l = j % kLanes;
        double* const k = totals + token + j;
        const auto row = [&](int name) { return k + name * totals_stride; };
        merge(row(kMax), row(kSum), row(kFirst), m[c][l], s[c][l], q[c][l]);
    }
}

// Adds a tile to the totals of one thread, and writes the logits of targets in the tile to target_logit. Row 0 of the
// tile is vocabulary entry first_id. The three rows of totals are totals_stride apart. totals and target_logit start at
// the tile's first token.
static inline void add_tile(const Tile& tile, double* totals, int64_t totals_stride, const int64_t* target,
                            int64_t first_id, double* target_logit) {
    constexpr int kWide = 4;
    if (!tile.rows) return;
    int64_t j = 0;
    for (; j + kWide * kLanes <= tile.tokens; j += kWide * kLanes)
        add_columns<kWide>(tile, j, kWide * kLanes, totals, totals_stride);
    for (; j < tile.tokens; j += kLanes)
        add_columns<1>(tile, j, tile.tokens - j < kLanes ? tile.tokens - j : kLanes, totals, totals_stride);
    for (j = 0; j < tile.tokens; ++j) {
        const int64_t row = target[j] - first_id;
        if (row >= 0 && row < tile.rows) target_logit[j] = tile.z[tile.at(row, j)] * tile.inverse;
    }
}

// What the gradient needs of 16 tokens, from column `token` of per_token [kPerToken, tokens] on.
struct Columns {
    floats top, log_sum, a, b;
    Columns(const float* per_token, int64_t tokens, int64_t token) {
        float held[kPerToken][kLanes] = {};
        const int64_t lanes = tokens - token < kLanes ? tokens - token : kLanes;
        for (int k = 0; k < kPerToken; ++k) memcpy(held[k], per_token + k * tokens + token, 4 * lanes);
        top = vec::load(held[kTop]), log_sum = vec::load(held[kLogSum]);
        a = vec::load(held[kA]), b = vec::load(held[kB]);
    }
};

// Returns dz = p (a + b log p) of one row and 16 tokens.
inline floats gradient(const Tile& tile, int64_t row, int64_t token, const Columns& of) {
    const floats logprob = tile.below(vec::load(tile.z + tile.at(row, token)), of.top) - of.log_sum;
    return vec::exp(logprob) * (of.a + of.b * vec::not_below_nothing(logprob));
}

}  // namespace passes
