// The passes over a tile of logits z[vocabulary block, token]: statistics of every token's softmax, and its gradient.
//
// Tokens lie in the lanes of a vector, so that no sum crosses lanes. Threads share the rows of a tile; each keeps its
// own totals, which are added once at the end. A tile ends with kLanes spare elements: the last vector of a row may
// read into the next row, and what it finds there is never used.
#include <cmath>

#include "../vector.h"

using vec::floats;
using vec::kLanes;

namespace {

constexpr int kStrip = 32;  // rows whose maximum is found before their exponentials are summed: 8 KiB, in the L1 cache

// What is kept of a token, in float64: the maximum m, s = sum e^(z-m), q = sum e^(z-m) (z-m); with a reference also
// its maximum, its sum, and u = sum e^(z-m) (z - z_reference).
enum { kMax, kSum, kFirst, kRefMax, kRefSum, kDifference, kKept };

// Adds (m, s, q, u) to a token's totals, all of them brought to the larger maximum.
void merge(double* max, double* sum, double* first, double* difference, double m, double s, double q, double u) {
    const double top = *max > m ? *max : m;
    const double old = *max == top ? 1.0 : std::exp(*max - top), now = m == top ? 1.0 : std::exp(m - top);
    if (first) *first = (*first + *sum * (*max - top)) * old + (q + s * (m - top)) * now;
    if (difference) *difference = *difference * old + u * now;
    *sum = *sum * old + s * now;
    *max = top;
}

template <class T, bool kPair, int C>
void statistics_columns(const T* z, const T* ref, int64_t rows, int64_t stride, const float* bias, float scale,
                        double* kept, int64_t padded, int64_t lanes) {
    floats m[C], s[C], q[C], rm[C], rs[C], u[C];
    for (int c = 0; c < C; ++c) {
        m[c] = rm[c] = vec::all(-FLT_MAX);
        s[c] = q[c] = rs[c] = u[c] = floats{};
    }
    for (int64_t begin = 0; begin < rows; begin += kStrip) {
        const int64_t end = begin + kStrip < rows ? begin + kStrip : rows;
        floats top[C], ref_top[C];
        for (int c = 0; c < C; ++c) top[c] = m[c], ref_top[c] = rm[c];
        for (int64_t i = begin; i < end; ++i) {
            const float offset = bias ? bias[i] * scale : 0.0f;
            for (int c = 0; c < C; ++c) {
                top[c] = vec::max(vec::load(z + i * stride + c * kLanes) * scale + offset, top[c]);
                if (kPair) ref_top[c] = vec::max(vec::load(ref + i * stride + c * kLanes) * scale + offset, ref_top[c]);
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
            const float offset = bias ? bias[i] * scale : 0.0f;
            for (int c = 0; c < C; ++c) {
                const floats x = vec::load(z + i * stride + c * kLanes);
                const floats under = x * scale + offset - m[c], e = vec::exp(under);
                const floats below = vec::not_below_nothing(under);
                ds[c] += e;
                dq[c] += e * below;
                if (kPair) {
                    const floats y = vec::load(ref + i * stride + c * kLanes);
                    drs[c] += vec::exp(y * scale + offset - rm[c]);
                    du[c] += e * ((x - y) * scale);  // the difference first: of close numbers it is exact
                }
            }
        }
        for (int c = 0; c < C; ++c) s[c] += ds[c], q[c] += dq[c], rs[c] += drs[c], u[c] += du[c];
    }
    for (int64_t j = 0; j < lanes; ++j) {
        const int c = j / kLanes, l = j % kLanes;
        double* const k = kept + j;
        merge(k + kMax * padded, k + kSum * padded, k + kFirst * padded, kPair ? k + kDifference * padded : nullptr,
              m[c][l], s[c][l], q[c][l], u[c][l]);
        if (kPair) merge(k + kRefMax * padded, k + kRefSum * padded, nullptr, nullptr, rm[c][l], rs[c][l], 0, 0);
    }
}

template <class T, bool kPair>
void statistics(const T* z, const T* ref, int64_t rows, int64_t tokens, const float* bias, float scale, double* kept,
                const int64_t* target, int64_t first_id, double* target_logit, int threads) {
    constexpr int kWide = kPair ? 2 : 4;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads, count = rows * (t + 1) / threads - first;
        double* const mine = kept + t * kKept * tokens;
        const T* const zt = z + first * tokens;
        const T* const rt = kPair ? ref + first * tokens : nullptr;
        const float* const bt = bias ? bias + first : nullptr;
        int64_t j = 0;
        for (; count && j + kWide * kLanes <= tokens; j += kWide * kLanes)
            statistics_columns<T, kPair, kWide>(zt + j, kPair ? rt + j : nullptr, count, tokens, bt, scale, mine + j,
                                                tokens, kWide * kLanes);
        for (; count && j < tokens; j += kLanes)
            statistics_columns<T, kPair, 1>(zt + j, kPair ? rt + j : nullptr, count, tokens, bt, scale, mine + j,
                                            tokens, tokens - j < kLanes ? tokens - j : kLanes);
        for (j = 0; j < tokens; ++j) {
            const int64_t row = target[j] - first_id;
            if (row < first || row >= first + count) continue;
            const float offset = bias ? bias[row] * scale : 0.0f;
            target_logit[j] = vec::load(z + row * tokens + j)[0] * scale + offset;
            if (kPair) target_logit[tokens + j] = vec::load(ref + row * tokens + j)[0] * scale + offset;
        }
    }
}

// Rows of per_token: the logsumexp in two parts (a maximum m, so that z - m is exact, and the rest), a, b, c, and the
// difference of the two logsumexps, policy's less reference's.
enum { kTop, kLogSum, kA, kB, kC, kApart, kPerToken };

// dz = p (a + b log p + c (log p - log p_reference)) in place of z.
template <class T, bool kPair>
void gradient_columns(T* z, const T* ref, int64_t rows, int64_t stride, const float* bias, float scale,
                      const float* per_token, int64_t tokens, int lanes) {
    float held[kPerToken][kLanes] = {};
    for (int k = 0; k < kPerToken; ++k) memcpy(held[k], per_token + k * tokens, 4 * lanes);
    const floats top = vec::load(held[kTop]), log_sum = vec::load(held[kLogSum]);
    const floats a = vec::load(held[kA]), b = vec::load(held[kB]);
    const floats c = vec::load(held[kC]), apart = vec::load(held[kApart]);
    for (int64_t i = 0; i < rows; ++i) {
        const float offset = bias ? bias[i] * scale : 0.0f;
        const floats x = vec::load(z + i * stride);
        const floats logprob = x * scale + offset - top - log_sum;
        floats weight = a + b * vec::not_below_nothing(logprob);
        if (kPair) weight += c * ((x - vec::load(ref + i * stride)) * scale - apart);
        vec::store(z + i * stride, vec::exp(logprob) * weight, lanes);
    }
}

template <class T, bool kPair>
void gradient(T* z, const T* ref, int64_t rows, int64_t tokens, const float* bias, float scale, const float* per_token,
              const int64_t* target, int64_t first_id, const float* target_dz, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads, last = rows * (t + 1) / threads;
        for (int64_t j = 0; j < tokens; j += kLanes)
            gradient_columns<T, kPair>(z + first * tokens + j, kPair ? ref + first * tokens + j : nullptr, last - first,
                                       tokens, bias ? bias + first : nullptr, scale, per_token + j, tokens,
                                       tokens - j < kLanes ? tokens - j : kLanes);
        for (int64_t j = 0; j < tokens; ++j) {
            const int64_t row = target[j] - first_id;
            if (row >= first && row < last) vec::store(z + row * tokens + j, vec::all(target_dz[j]), 1);
        }
    }
}

}  // namespace

extern "C" {

// z, ref [rows, tokens] (ref may be null), bias [rows] or null; kept [threads, 6, tokens] is added to, and
// target_logit [2, tokens] gets what the tile holds for the targets among its rows, which begin with id first_id.
void logprob_statistics(const void* z, const void* ref, int is_bf16, int64_t rows, int64_t tokens, const float* bias,
                        float scale, double* kept, const int64_t* target, int64_t first_id, double* target_logit,
                        int threads) {
#define PASS(T, PAIR) \
    statistics<T, PAIR>((const T*)z, (const T*)ref, rows, tokens, bias, scale, kept, target, first_id, target_logit, \
                        threads)
    if (is_bf16) ref ? PASS(vec::bf16, true) : PASS(vec::bf16, false);
    else ref ? PASS(float, true) : PASS(float, false);
#undef PASS
}

// per_token [6, tokens], its rows named above; target [tokens] and what stands in its place, target_dz [tokens].
void logprob_gradient(void* z, const void* ref, int is_bf16, int64_t rows, int64_t tokens, const float* bias,
                      float scale, const float* per_token, const int64_t* target, int64_t first_id,
                      const float* target_dz, int threads) {
#define PASS(T, PAIR) \
    gradient<T, PAIR>((T*)z, (const T*)ref, rows, tokens, bias, scale, per_token, target, first_id, target_dz, threads)
    if (is_bf16) ref ? PASS(vec::bf16, true) : PASS(vec::bf16, false);
    else ref ? PASS(float, true) : PASS(float, false);
#undef PASS
}

// y = e^x as the passes compute it, for the test of its error. x and y have kLanes spare elements.
void logprob_exp(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) vec::store(y + i, vec::exp(vec::load(x + i)), kLanes);
}
}
