// RMSNorm, rotation and gated activations of bfloat16 rows and their gradients, float32 inside; rounded once, when
// stored. No result depends on the number of threads.
#include <cmath>

#include "../common/activations.h"
#include "../common/parts.h"

namespace {

using vec::bf16;
using vec::floats;
using vec::in_blocks;
using vec::kLanes;
using vec::load_part;
using vec::store_part;

inline float sum(floats x) {
    float total = 0.0f;
    for (int i = 0; i < kLanes; i++) total += x[i];
    return total;
}

}  // namespace

extern "C" {

// out = x scale (weight + offset) + residual (none if null) with scale[r] = 1 / sqrt(mean of x[r]^2 + eps); x, residual
// and out [rows, D].
void rms_norm(const bf16* x, const bf16* weight, const bf16* residual, float offset, float eps, int64_t rows, int64_t D,
              bf16* out, float* scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        const bf16* from = x + r * D;
        floats squares[4] = {};
        for (int64_t k = 0; k < D; k += 4 * kLanes)
            for (int i = 0; i < 4 && k + i * kLanes < D; i++) {
                const floats v = load_part(from + k + i * kLanes, D - k - i * kLanes);
                squares[i] += v * v;
            }
        scale[r] = 1.0f / std::sqrt(sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / D + eps);
        for (int64_t k = 0; k < D; k += kLanes) {
            floats y = load_part(from + k, D - k) * scale[r] * (load_part(weight + k, D - k) + offset);
            if (residual) y += load_part(residual + r * D + k, D - k);
            store_part(out + r * D + k, y, D - k);
        }
    }
}

// With g = grad (weight + offset): dx = scale g - x scale^3 mean(g x), dweight = sum over rows of grad x scale, first
// within blocks of rows (parts [blocks, D]), then over blocks.
void rms_norm_gradient(const bf16* grad, const bf16* x, const bf16* weight, const float* scale, float offset,
                       int64_t rows, int64_t D, int64_t block_rows, bf16* dx, float* parts, bf16* dweight,
                       int threads) {
    const int64_t blocks = (rows + block_rows - 1) / block_rows;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float* part = parts + block * D;
        std::fill(part, part + D, 0.0f);
        for (int64_t r = block * block_rows, stop = std::min(rows, r + block_rows); r < stop; r++) {
            const bf16 *g = grad + r * D, *v = x + r * D;
            floats products = {};
            for (int64_t k = 0; k < D; k += kLanes) {
                const floats gv = load_part(g + k, D - k) * load_part(v + k, D - k);
                products += gv * (load_part(weight + k, D - k) + offset);
                store_part(part + k, load_part(part + k, D - k) + gv * scale[r], D - k);
            }
            const float back = scale[r] * scale[r] * (sum(products) / D);
            for (int64_t k = 0; k < D; k += kLanes) {
                const floats own = load_part(g + k, D - k) * (load_part(weight + k, D - k) + offset);
                store_part(dx + r * D + k, (own - load_part(v + k, D - k) * back) * scale[r], D - k);
            }
        }
    }
    for (int64_t k = 0; k < D; k += kLanes) {
        floats total = {};
        for (int64_t block = 0; block < blocks; block++) total += load_part(parts + block * D + k, D - k);
        store_part(dweight + k, total, D - k);
    }
}

// Pairs (i, half + i) of each head turned by their row's angle, forwards (direction 1) or back (-1); x and out
// [rows, heads, 2 half], cos and sin [rows, half].
void rotate(const bf16* x, const float* cos, const float* sin, int64_t rows, int64_t heads, int64_t half,
            float direction, bf16* out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            const int64_t at = (r * heads + h) * 2 * half;
            for (int64_t k = 0; k < half; k += kLanes) {
                const int64_t n = half - k;
                const floats a = load_part(x + at + k, n), b = load_part(x + at + half + k, n);
                const floats c = load_part(cos + r * half + k, n), s = load_part(sin + r * half + k, n) * direction;
                store_part(out + at + k, a * c - b * s, n);
                store_part(out + at + half + k, b * c + a * s, n);
            }
        }
}

// out = silu(gate) up
void swiglu(const bf16* gate, const bf16* up, int64_t count, bf16* out, int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        store_part(out + i, vec::silu(load_part(gate + i, n)) * load_part(up + i, n), n);
    });
}

// dgate = grad up sigmoid(gate) (1 + gate (1 - sigmoid(gate))), dup = grad silu(gate)
void swiglu_gradient(const bf16* grad, const bf16* gate, const bf16* up, int64_t count, bf16* dgate, bf16* dup,
                     int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        const floats d = load_part(grad + i, n), g = load_part(gate + i, n), s = vec::sigmoid(g);
        store_part(dgate + i, d * load_part(up + i, n) * s * (1.0f + g * (1.0f - s)), n);
        store_part(dup + i, d * g * s, n);
    });
}

// out = gelu(gate) up
void geglu(const bf16* gate, const bf16* up, int64_t count, bf16* out, int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        store_part(out + i, vec::gelu(load_part(gate + i, n)) * load_part(up + i, n), n);
    });
}

// With gelu(gate) = gate s, s = sigmoid(u): dgate = grad up (s + gate s (1 - s) u'), dup = grad gate s
void geglu_gradient(const bf16* grad, const bf16* gate, const bf16* up, int64_t count, bf16* dgate, bf16* dup,
                    int threads) {
    in_blocks(count, threads, [=](int64_t i, int64_t n) {
        const floats d = load_part(grad + i, n), g = load_part(gate + i, n);
        // Beyond 16, s is 0 or 1, and u' could overflow.
        const floats most = vec::all(16.0f), least = -most;
        const floats near = vec::where_above(g, most, most, vec::where_above(least, g, least, g));
        const floats square = near * near, s = vec::sigmoid(near * (square * 0.044715f + 1.0f) * 1.5957691216f);
        const floats slope = near * (square * 0.134145f + 1.0f) * 1.5957691216f;
        store_part(dgate + i, d * load_part(up + i, n) * s * (1.0f + slope * (1.0f - s)), n);
        store_part(dup + i, d * g * s, n);
    });
}
}
