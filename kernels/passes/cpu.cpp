// Norm and activations in one pass over memory each, in float32. A number's result does not depend on where it stands.
#include <cmath>

#include "../common/activations.h"
#include "../common/parts.h"

using vec::floats;
using vec::in_blocks;
using vec::kLanes;
using vec::load_part;
using vec::store_part;

extern "C" {

// out = x / rms(x) * weight; x and out [rows, D].
void rms_norm(const float* x, const float* weight, float eps, int64_t rows, int64_t D, float* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const float* from = x + r * D;
        floats squares[4] = {};
        for (int64_t k = 0; k < D; k += 4 * kLanes)
            for (int i = 0; i < 4 && k + i * kLanes < D; i++) {
                const floats v = load_part(from + k + i * kLanes, D - k - i * kLanes);
                squares[i] += v * v;
            }
        const floats four = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        float sum = 0.0f;
        for (int i = 0; i < kLanes; i++) sum += four[i];
        const float scale = 1.0f / std::sqrt(sum / D + eps);
        for (int64_t k = 0; k < D; k += kLanes)
            store_part(out + r * D + k, load_part(from + k, D - k) * scale * load_part(weight + k, D - k), D - k);
    }
}

void gelu(float* x, int64_t count, int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) { store_part(x + i, vec::gelu(load_part(x + i, n)), n); });
}

// gate = silu(gate) * up
void swiglu(float* gate, const float* up, int64_t count, int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        store_part(gate + i, vec::silu(load_part(gate + i, n)) * load_part(up + i, n), n);
    });
}
}
