// The passes over float32 tiles of logits that torch's product wrote. Threads share the rows of a tile.
#include "passes.h"

using passes::Tile;

namespace {

void gradient_in_place(const Tile& tile, float* z, const float* per_token, const int64_t* target, int64_t first_id,
                       const float* target_dz) {
    for (int64_t j = 0; j < tile.tokens; j += vec::kLanes) {
        const passes::Columns columns(per_token, tile.tokens, j);
        const int64_t lanes = tile.tokens - j < vec::kLanes ? tile.tokens - j : vec::kLanes;
        for (int64_t i = 0; i < tile.rows; ++i)
            vec::store(z + tile.at(i, j), passes::gradient(tile, i, j, columns), lanes);
    }
    for (int64_t j = 0; j < tile.tokens; ++j) {
        const int64_t row = target[j] - first_id;
        if (row >= 0 && row < tile.rows) z[tile.at(row, j)] = target_dz[j];
    }
}

}  // namespace

extern "C" {

// Adds z [rows, tokens] to totals [threads, 3, tokens]. kLanes spare elements follow z: the last vector of a row reads
// into the next row and ignores what it reads there.
void logprob_statistics(const float* z, int64_t rows, int64_t tokens, double scale, double* totals,
                        const int64_t* target, int64_t first_id, double* target_logit, int threads) {
    const Tile tile{z, rows, tokens, tokens, vec::kLanes, scale};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads;
        const Tile share = tile.rows_from(first, rows * (t + 1) / threads);
        passes::add_tile(share, totals + t * passes::kTotals * tokens, tokens, target, first_id + first, target_logit);
    }
}

// Replaces z by dz. per_token [4, tokens], its rows named in passes.h; target_dz [tokens] is dz of the targets.
void logprob_gradient(float* z, int64_t rows, int64_t tokens, double scale, const float* per_token,
                      const int64_t* target, int64_t first_id, const float* target_dz, int threads) {
    const Tile tile{z, rows, tokens, tokens, vec::kLanes, scale};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const int64_t first = rows * t / threads;
        const Tile share = tile.rows_from(first, rows * (t + 1) / threads);
        gradient_in_place(share, z + first * tokens, per_token, target, first_id + first, target_dz);
    }
}

// y = e^x as the passes compute it, for the test of its error. kLanes spare elements follow x and y.
void logprob_exp(const float* x, float* y, int64_t count) {
    for (int64_t i = 0; i < count; i += vec::kLanes) vec::store(y + i, vec::exp(vec::load(x + i)), vec::kLanes);
}
}
