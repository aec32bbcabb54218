// Norms and activations in one pass over memory each, in float32. A number's result does not depend on where it stands.
#include <cmath>

#include "../common/activations.h"
#include "../common/parts.h"

using vec::floats;
using vec::in_blocks;
using vec::kLanes;
using vec::load_part;
using vec::store_part;

// Filled in by Python: x, residual (or null) and out [rows, heads, D], rows apart by their own steps, heads adjacent.
struct Call {
    int64_t rows;
    const float *x, *weight, *residual;
    float* out;
    int64_t x_row, residual_row, out_row, heads, D, threads;
    float eps, offset;  // offset: added to the weights
};

extern "C" {

// out = x / rms(x) * (weight + offset) + residual, over each D. out may be x.
void rms_norm(const Call* call) {
    const Call& c = *call;
    const int64_t count = c.rows * c.heads, size = c.D;
#pragma omp parallel for num_threads(c.threads) schedule(static) if (count * size > 1 << 15)
    for (int64_t r = 0; r < count; r++) {
        const int64_t row = r / c.heads, at = r % c.heads * size;
        const float* from = c.x + row * c.x_row + at;
        float* to = c.out + row * c.out_row + at;
        const float* residual = c.residual ? c.residual + row * c.residual_row + at : nullptr;
        floats squares[4] = {};
        for (int64_t k = 0; k < size; k += 4 * kLanes)
            for (int i = 0; i < 4 && k + i * kLanes < size; i++) {
                const floats v = load_part(from + k + i * kLanes, size - k - i * kLanes);
                squares[i] += v * v;
            }
        const floats four = (squares[0] + squares[1]) + (squares[2] + squares[3]);
        float sum = 0.0f;
        for (int i = 0; i < kLanes; i++) sum += four[i];
        const float scale = 1.0f / std::sqrt(sum / size + c.eps);
        for (int64_t k = 0; k < size; k += kLanes) {
            floats y = load_part(from + k, size - k) * scale * (load_part(c.weight + k, size - k) + c.offset);
            if (residual) y += load_part(residual + k, size - k);
            store_part(to + k, y, size - k);
        }
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

// gate = gelu(gate) * up
void geglu(float* gate, const float* up, int64_t count, int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        store_part(gate + i, vec::gelu(load_part(gate + i, n)) * load_part(up + i, n), n);
    });
}
}
