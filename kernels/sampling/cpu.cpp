// Sampling on CPU: one token per row of logits from one pass over memory; the later steps stay in the L2 cache.
//
// The row's scores are written to scratch in blocks of 256. Each block's largest score and sum of exponentials tell
// later which blocks matter, so top-k and top-p read few blocks and sort nothing.
#include "../common/vector.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

using vec::bf16;
using vec::floats;
using vec::load;

namespace {

constexpr int64_t BLOCK = 256;

// Filled in by Python.
struct Call {
    const void* logits;
    const double* uniform;
    const int64_t* history;  // [rows, history_width], -1 for none; or null
    const uint8_t* mask_eos;  // [rows], or null
    const int64_t* eos_ids;
    int64_t* token;
    float *logprob, *logsumexp;
    int64_t rows, row_stride, vocabulary, history_width, num_eos_ids, top_k, threads;
    float temperature, repetition_penalty;
    double top_p, min_p;
};

float largest(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = std::max(x[i], x[i + width]);
    return x[0];
}

float total(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

struct Row {
    std::vector<float> score;  // padded to whole blocks with -inf
    std::vector<float> max, sum;  // of each block; sum of exp(score - max)
    std::vector<float> found, order;
    std::vector<uint8_t> changed;
    float most;    // the largest score of the row
    double whole;  // the sum of exp(score - most) over the row

    int64_t blocks() const { return (int64_t)max.size(); }
    const float* at(int64_t block) const { return score.data() + block * BLOCK; }

    void summarize(int64_t b) {
        floats top = vec::all(-INFINITY), mass = {};
        for (int i = 0; i < BLOCK; i += 16) top = vec::max(load(at(b) + i), top);
        max[b] = largest(top);
        const float base = max[b] > -INFINITY ? max[b] : 0.0f;
        for (int i = 0; i < BLOCK; i += 16) mass += vec::exp(load(at(b) + i) - base);
        sum[b] = total(mass);
    }

    double share(int64_t b) const { return sum[b] == 0 ? 0.0 : sum[b] * std::exp((double)max[b] - most); }

    void combine_blocks() {
        most = *std::max_element(max.begin(), max.end());
        whole = 0;
        for (int64_t b = 0; b < blocks(); b++) whole += share(b);
    }

    template <typename T>
    void fill(const T* logits, int64_t vocabulary, float temperature) {
        const int64_t count = (vocabulary + BLOCK - 1) / BLOCK;
        score.resize(count * BLOCK);
        max.resize(count);
        sum.resize(count);
        std::fill(score.begin() + vocabulary, score.end(), -INFINITY);
        for (int64_t b = 0; b < count; b++) {
            float* to = score.data() + b * BLOCK;
            const T* from = logits + b * BLOCK;
            const int64_t n = std::min(BLOCK, vocabulary - b * BLOCK), vectors = n / 16;
            for (int64_t i = 0; i < vectors; i++) vec::store(to + 16 * i, load(from + 16 * i) / temperature, 16);
            for (int64_t i = 16 * vectors; i < n; i++) {
                T tail[16] = {};
                tail[0] = from[i];
                to[i] = load(tail)[0] / temperature;
            }
            summarize(b);
        }
        combine_blocks();
    }

    // Writes exp(score - most) of all scores >= `lowest` to `found`. Returns their sum.
    double collect(float lowest) {
        found.clear();
        for (int64_t b = 0; b < blocks(); b++)
            if (max[b] >= lowest)
                for (int64_t i = 0; i < BLOCK; i++)
                    if (at(b)[i] >= lowest) found.push_back(at(b)[i]);
        found.resize((found.size() + 15) / 16 * 16, -INFINITY);
        double mass = 0;
        for (size_t i = 0; i < found.size(); i += 16) {
            const floats weight = vec::exp(load(&found[i]) - most);
            vec::store(&found[i], weight, 16);
            mass += total(weight);
        }
        return mass;
    }

    // Returns the n-th largest block maximum, -inf if there are fewer blocks. At least n scores are this large.
    float level(int64_t n) {
        if (n > blocks()) return -INFINITY;
        order = max;
        std::nth_element(order.begin(), order.begin() + n - 1, order.end(), std::greater<float>());
        return order[n - 1];
    }
};

// Returns the smallest weight w such that the weights above w sum to less than `wanted`. Quickselect by sum.
float nucleus(std::vector<float>& weights, double wanted) {
    float* low = weights.data();
    float* high = low + weights.size();
    double above = 0;
    for (;;) {
        const float a = low[0], b = low[(high - low) / 2], c = high[-1];
        const float pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        float* equal = std::partition(low, high, [=](float x) { return x > pivot; });
        double larger = above;
        for (float* x = low; x < equal; x++) larger += *x;
        if (larger >= wanted) {
            high = equal;
            continue;
        }
        float* rest = std::partition(equal, high, [=](float x) { return x == pivot; });
        above = larger + (double)pivot * (rest - equal);
        if (above >= wanted || rest == high) return pivot;
        low = rest;
    }
}

// Returns the threshold: tokens with a smaller weight are removed.
float threshold(Row& row, const Call& c) {
    float lowest = (float)c.min_p;
    double mass = row.whole;
    const bool limits = 0 < c.top_k && c.top_k < c.vocabulary;
    if (limits) {
        row.collect(row.level(c.top_k));
        std::nth_element(row.found.begin(), row.found.begin() + c.top_k - 1, row.found.end(), std::greater<float>());
        const float kth = row.found[c.top_k - 1];
        row.found.erase(
            std::remove_if(row.found.begin(), row.found.end(), [=](float x) { return x < kth; }), row.found.end());
        mass = 0;
        for (float weight : row.found) mass += weight;
        lowest = std::max(lowest, kth);
    }
    if (c.top_p < 1) {
        if (!limits)
            for (int64_t n = 32; row.collect(row.level(n)) < c.top_p * mass && n <= row.blocks();) n *= 8;
        lowest = std::max(lowest, nucleus(row.found, c.top_p * mass));
    }
    return lowest;
}

// Returns the first token with a cumulative weight above uniform * total, among weights >= `lowest`.
int64_t invert(Row& row, float lowest, double uniform) {
    const float worth = lowest > 0 ? std::log(lowest) + row.most - 1e-3f : -INFINITY;  // blocks with a smaller max have none
    auto kept = [&](int64_t b, int64_t i) {
        const floats weight = vec::exp(load(row.at(b) + i) - row.most);
        return weight >= lowest ? weight : floats{};
    };
    auto mass = [&](int64_t b) {
        if (lowest <= 0) return row.share(b);
        if (row.max[b] < worth) return 0.0;
        floats sum = {};
        for (int64_t i = 0; i < BLOCK; i += 16) sum += kept(b, i);
        return (double)total(sum);
    };
    double whole = 0;
    row.order.resize(row.blocks());
    for (int64_t b = 0; b < row.blocks(); b++) whole += mass(b);
    double left = uniform * whole;
    int64_t block = -1;
    for (int64_t b = 0; b < row.blocks(); b++) {
        const double m = mass(b);
        if (m > 0) block = b;
        if (m > left) break;
        left -= m;
    }
    // If rounding leaves a rest after the last weight, take the last token of positive weight.
    int64_t token = std::max<int64_t>(block, 0) * BLOCK;
    for (int64_t i = 0; block >= 0 && i < BLOCK; i += 16) {
        const floats weight = kept(block, i);
        for (int j = 0; j < 16; j++) {
            if (!(weight[j] > 0)) continue;
            token = block * BLOCK + i + j;
            if (weight[j] > left) return token;
            left -= weight[j];
        }
    }
    return token;
}

template <typename T>
void sample_row(const Call& c, int64_t s, Row& row) {
    row.fill((const T*)c.logits + s * c.row_stride, c.vocabulary, c.temperature > 0 ? c.temperature : 1.0f);
    const float logsumexp = row.most + (float)std::log(row.whole);
    auto original = [&](int64_t token) {
        T one[16] = {};
        one[0] = ((const T*)c.logits)[s * c.row_stride + token];
        return load(one)[0] / (c.temperature > 0 ? c.temperature : 1.0f);
    };
    row.changed.assign(row.blocks(), 0);
    auto change = [&](int64_t token, float score) {
        row.score[token] = score;
        row.changed[token / BLOCK] = 1;
    };
    if (c.history && c.repetition_penalty != 1.0f)
        for (int64_t i = 0; i < c.history_width; i++) {
            const int64_t token = c.history[s * c.history_width + i];
            if (token < 0) continue;
            const float old = original(token);
            change(token, old > 0 ? old / c.repetition_penalty : old * c.repetition_penalty);
        }
    if (c.mask_eos && c.mask_eos[s])
        for (int64_t i = 0; i < c.num_eos_ids; i++) change(c.eos_ids[i], -INFINITY);
    if (std::count(row.changed.begin(), row.changed.end(), 1)) {
        for (int64_t b = 0; b < row.blocks(); b++)
            if (row.changed[b]) row.summarize(b);
        row.combine_blocks();
    }
    int64_t token = 0;
    if (!(row.whole > 0)) {
        // NaN, or no possible token: the log-probability becomes NaN.
    } else if (c.temperature > 0) {
        const bool truncates = c.top_k > 0 || c.top_p < 1 || c.min_p > 0;
        token = invert(row, truncates ? threshold(row, c) : 0.0f, c.uniform[s]);
    } else {
        const int64_t block = std::find(row.max.begin(), row.max.end(), row.most) - row.max.begin();
        if (block < row.blocks()) token = std::find(row.at(block), row.at(block) + BLOCK, row.most) - row.score.data();
    }
    token = std::min(token, c.vocabulary - 1);
    c.token[s] = token;
    c.logprob[s] = row.whole > 0 ? original(token) - logsumexp : NAN;
    c.logsumexp[s] = logsumexp;
}

template <typename T>
void run(const Call& c) {
#pragma omp parallel num_threads(c.threads) if (c.rows > 1)
    {
        static thread_local Row row;
#pragma omp for schedule(dynamic)
        for (int64_t s = 0; s < c.rows; s++) sample_row<T>(c, s, row);
    }
}

}  // namespace

extern "C" void sample(const Call* c, int bytes) { bytes == 4 ? run<float>(*c) : run<bf16>(*c); }
