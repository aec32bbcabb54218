// What is computed of a tile of float32 logits: statistics of every token's softmax, and the gradient in its place.
//
// Tokens lie in the lanes of a vector, so that no sum crosses lanes. A tile is groups of 16 tokens: element (row, token)
// stands at row * stride + token / 16 * group + token % 16, which says rows of tokens (group 16) and panels (stride 16).
#pragma once
#include <cmath>

#include "../common/vector.h"

namespace passes {

using vec::floats;
using vec::kLanes;

constexpr int kStrip = 32;  // rows whose maximum is found before their exponentials are summed: they stay in the L1 cache

// What is kept of a token, in float64: the maximum m, s = sum e^(z-m), q = sum e^(z-m) (z-m); with a reference also
// its maximum, its sum, and u = sum e^(z-m) (z - z_reference).
enum { kMax, kSum, kFirst, kRefMax, kRefSum, kDifference, kKept };

// Rows of per_token in the gradient: the logsumexp in two parts (a maximum m, so that z - m is exact, and the rest), a,
// b, c, and the difference of the two logsumexps, policy's less reference's.
enum { kTop, kLogSum, kA, kB, kC, kApart, kPerToken };

struct Tile {
    const float* z;
    const float* ref;  // null without a reference
    int64_t rows, tokens, stride, group;
    const float* bias;  // of the rows, or null
    double inverse;     // 1 / temperature
    float scale = inverse;               // in two parts: of its rounding alone, large logits would lose two digits
    float scale_low = inverse - scale;

    int64_t at(int64_t row, int64_t token) const { return row * stride + token / kLanes * group + token % kLanes; }
    float offset(int64_t row) const { return bias ? bias[row] * scale : 0.0f; }
    Tile rows_from(int64_t first, int64_t last) const {
        return {z + first * stride, ref ? ref + first * stride : nullptr, last - first, tokens, stride, group,
                bias ? bias + first : nullptr, inverse};
    }
    // x / temperature + offset - top, the large numbers first, in one rounding: of their difference every digit is kept.
    floats below(floats x, float offset, floats top) const { return (x * scale - top) + (x * scale_low + offset); }
};

// Adds (m, s, q, u) to a token's totals, all of them brought to the larger maximum.
static inline void merge(double* max, double* sum, double* first, double* difference, double m, double s, double q,
                         double u) {
    const double top = *max > m ? *max : m;
    const double old = *max == top ? 1.0 : std::exp(*max - top), now = m == top ? 1.0 : std::exp(m - top);
    if (first) *first = (*first + *sum * (*max - top)) * old + (q + s * (m - top)) * now;
    if (difference) *difference = *difference * old + u * now;
    *sum = *sum * old + s * now;
    *max = top;
}

// The C groups of tokens from `token` on; `lanes` of them exist.
template <bool kPair, int C>
void add_columns(const Tile& tile, int64_t token, int64_t lanes, double* kept, int64_t kept_stride) {
    const float* const z = tile.z + tile.at(0, token);
    const float* const ref = kPair ? tile.ref + tile.at(0, token) : nullptr;
    const int64_t stride = tile.stride, group = tile.group;
    const float scale = tile.scale;
    floats m[C], s[C], q[C], rm[C], rs[C], u[C];
    for (int c = 0; c < C; ++c) {
        m[c] = rm[c] = vec::all(-FLT_MAX);
        s[c] = q[c] = rs[c] = u[c] = floats{};
    }
    for (int64_t begin = 0; begin < tile.rows; begin += kStrip) {
        const int64_t end = begin + kStrip < tile.rows ? begin + kStrip : tile.rows;
        floats top[C], ref_top[C];
        for (int c = 0; c < C; ++c) top[c] = m[c], ref_top[c] = rm[c];
        for (int64_t i = begin; i < end; ++i) {
            const float offset = tile.offset(i);
            for (int c = 0; c < C; ++c) {
                top[c] = vec::max(vec::load(z + i * stride + c * group) * scale + offset, top[c]);
                if (kPair) ref_top[c] = vec::max(vec::load(ref + i * stride + c * group) * scale + offset, ref_top[c]);
            }
        }
        for (int c = 0; c < C; ++c) {
            const floats shrink = vec::exp(m[c] - top[c]);
            q[c] = (q[c] + s[c] * (m[c] - top[c])) * shrink;
            s[c] *= shrink;
            m[c] = top[c];
            if (kPair) {
                u[c] *= shrink;
                rs[c] *= vec::exp(rm[c] - ref_top[c]);
                rm[c] = ref_top[c];
            }
        }
        floats ds[C] = {}, dq[C] = {}, drs[C] = {}, du[C] = {};  // a strip's own sums: shorter sums round less
        for (int64_t i = begin; i < end; ++i) {
            const float offset = tile.offset(i);
            for (int c = 0; c < C; ++c) {
                const floats x = vec::load(z + i * stride + c * group);
                const floats under = tile.below(x, offset, m[c]), e = vec::exp(under);
                ds[c] += e;
                dq[c] += e * vec::not_below_nothing(under);
                if (kPair) {
                    const floats y = vec::load(ref + i * stride + c * group);
                    drs[c] += vec::exp(tile.below(y, offset, rm[c]));
                    du[c] += e * ((x - y) * scale);  // the difference first: of close numbers it is exact
                }
            }
        }
        for (int c = 0; c < C; ++c) s[c] += ds[c], q[c] += dq[c], rs[c] += drs[c], u[c] += du[c];
    }
    for (int64_t j = 0; j < lanes; ++j) {
        const int c = j / kLanes, l = j % kLanes;
        double* const k = kept + token + j;
        const auto row = [&](int name) { return k + name * kept_stride; };
        merge(row(kMax), row(kSum), row(kFirst), kPair ? row(kDifference) : nullptr, m[c][l], s[c][l], q[c][l], u[c][l]);
        if (kPair) merge(row(kRefMax), row(kRefSum), nullptr, nullptr, rm[c][l], rs[c][l], 0, 0);
    }
}

// Adds a tile to kept (one thread's), and writes what it holds of the targets among its rows, the first of which is
// vocabulary entry first_id, to found: the policy's logit, the reference's, and their difference. Rows of kept [6] and
// found [3] are `all` tokens long, and begin at this tile's first.
template <bool kPair>
void add_tile(const Tile& tile, double* kept, int64_t all, const int64_t* target, int64_t first_id, double* found) {
    constexpr int kWide = kPair ? 2 : 4;
    if (!tile.rows) return;
    int64_t j = 0;
    for (; j + kWide * kLanes <= tile.tokens; j += kWide * kLanes)
        add_columns<kPair, kWide>(tile, j, kWide * kLanes, kept, all);
    for (; j < tile.tokens; j += kLanes)
        add_columns<kPair, 1>(tile, j, tile.tokens - j < kLanes ? tile.tokens - j : kLanes, kept, all);
    for (j = 0; j < tile.tokens; ++j) {
        const int64_t row = target[j] - first_id;
        if (row < 0 || row >= tile.rows) continue;
        const double x = tile.z[tile.at(row, j)], offset = tile.offset(row);
        found[j] = x * tile.inverse + offset;
        if (kPair) {
            const double y = tile.ref[tile.at(row, j)];
            found[all + j] = y * tile.inverse + offset;
            found[2 * all + j] = (x - y) * tile.inverse;
        }
    }
}

// The numbers of 16 tokens that the gradient needs.
struct Columns {
    floats top, log_sum, a, b, c, apart;
    Columns(const float* per_token, int64_t tokens, int64_t token) {
        float held[kPerToken][kLanes] = {};
        const int64_t lanes = tokens - token < kLanes ? tokens - token : kLanes;
        for (int k = 0; k < kPerToken; ++k) memcpy(held[k], per_token + k * tokens + token, 4 * lanes);
        top = vec::load(held[kTop]), log_sum = vec::load(held[kLogSum]);
        a = vec::load(held[kA]), b = vec::load(held[kB]), c = vec::load(held[kC]), apart = vec::load(held[kApart]);
    }
};

// dz = p (a + b log p + c (log p - log p_reference)) of one row and 16 tokens.
template <bool kPair>
inline floats gradient(const Tile& tile, int64_t row, int64_t token, const Columns& of) {
    const floats x = vec::load(tile.z + tile.at(row, token));
    const floats logprob = tile.below(x, tile.offset(row), of.top) - of.log_sum;
    floats weight = of.a + of.b * vec::not_below_nothing(logprob);
    if (kPair) weight += of.c * ((x - vec::load(tile.ref + tile.at(row, token))) * tile.scale - of.apart);
    return vec::exp(logprob) * weight;
}

}  // namespace passes
