// The passes over tiles of float32 logits that torch's product wrote: threads share the rows of a tile.
#include "passes.h"

using passes::Tile;

namespace {

template <bool kPair>
void gradient_in_place(const Tile& tile, float* z, const float* per_token, const int64_t* target, int64_t first_id,
                       const float* target_dz) {
    for (int64_t j = 0; j < tile.tokens; j += vec::kLanes) {
        const passes::Columns columns(per_token, tile.tokens, j);
        const int64_t lanes = tile.tokens - j < vec::kLanes ? tile.tokens - j : vec::kLanes;
        for (int64_t i = 0; i < tile.rows; ++i)
            vec::store(z + tile.at(i, j), passes::gradient<kPair>(tile, i, j, columns), lanes);
    }
    for (int64_t j = 0; j < tile.tokens; ++j) {
        const int64_t row = target[j] - first_id;
        if (row >= 0 && row < tile.rows) z[tile.at(row, j)] = target_dz[j];
    }
}

}  // namespace

extern "C" {

// z, ref [rows, tokens] (ref may be null), each followed by kLanes spare elements: the last vector of a row may read
// into the next, and what it finds there is never used. bias [rows] or null. kept [threads, 6, tokens] is added to.
void logprob_statistics(const float* z, const float* ref, int64_t rows, int64_t tokens, const float* bias, double scale,
                        double* kept, const int64_t* target, int64_t first_id, double* found, int threads) {
    const Tile tile{z, ref, rows, tokens, tokens, vec::kLanes, bias, scale};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads;
        const Tile share = tile.rows_from(first, rows * (t + 1) / threads);
        double* const mine = kept + t * passes::kKept * tokens;
        if (ref) passes::add_tile<true>(share, mine, tokens, target, first_id + first, found);
        else passes::add_tile<false>(share, mine, tokens, target, first_id + first, found);
    }
}

// dz in place of z: per_token [6, tokens], its rows named in passes.h; for the targets, target_dz [tokens].
void logprob_gradient(float* z, const float* ref, int64_t rows, int64_t tokens, const float* bias, double scale,
                      const float* per_token, const int64_t* target, int64_t first_id, const float* target_dz,
                      int threads) {
    const Tile tile{z, ref, rows, tokens, tokens, vec::kLanes, bias, scale};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads;
        const Tile share = tile.rows_from(first, rows * (t + 1) / threads);
        float* const mine = z + first * tokens;
        if (ref) gradient_in_place<true>(share, mine, per_token, target, first_id + first, target_dz);
        else gradient_in_place<false>(share, mine, per_token, target, first_id + first, target_dz);
    }
}

// y = e^x as the passes compute it, for the test of its error. x and y have kLanes spare elements.
void logprob_exp(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += vec::kLanes) vec::store(y + i, vec::exp(vec::load(x + i)), vec::kLanes);
}
}
