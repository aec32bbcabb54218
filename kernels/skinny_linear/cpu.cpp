// A linear layer on a few rows, its norm before and its activation and residual behind it, in float32.
#include <omp.h>

#include "../activations.h"
#include "product.h"

namespace {

enum Activation { kNone, kGelu, kSwiglu };

// What comes after the product: 16 columns at a time back to rows, bias, activation, residual.
struct Finish {
    const float *y, *up;
    int64_t y_row, rows;
    const float *bias, *up_bias;
    Activation activation;
    const float* residual;
    float* out;
    int64_t out_step, first;

    template <bool Full>
    void columns(int64_t n0, int64_t n, int lanes) const {
        const floats b = bias ? load_lanes<Full>(bias + n, lanes) : floats{};
        const floats ub = up_bias ? load_lanes<Full>(up_bias + n, lanes) : floats{};
        for (int64_t m = 0; m < rows; m += kLanes) {
            floats r[kLanes], u[kLanes];
            block(y + (n - n0) * y_row + m, r);
            if (activation == kSwiglu) block(up + (n - n0) * y_row + m, u);
            const int count = std::min<int64_t>(kLanes, rows - m);
            for (int j = 0; j < count; j++) {
                floats z = r[j] + b;
                if (activation == kGelu) z = vec::gelu(z);
                if (activation == kSwiglu) z = vec::silu(z) * (u[j] + ub);
                const int64_t at = (m + j) * out_step + first + n;
                if (residual) z += load_lanes<Full>(residual + at, lanes);
                store_lanes<Full>(out + at, z, lanes);
            }
        }
    }

    void block(const float* from, floats* r) const {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; j++) r[j] = load(from + j * y_row);
        transpose(r);
    }
};

// What the Python side fills in, field by field.
struct Call {
    int64_t rows;
    const float *x, *norm_weight, *norm_bias, *residual;
    float* out;
    const float *weights[3], *biases[3];
    int64_t sizes[3], count, K, out_step, threads, norm, activation;
    float eps;
};

}  // namespace

// out [rows, sum of N] = activation(norm(x) W^T + b) + residual, the weights side by side; with kSwiglu there are two of
// one size, and out [rows, N] = silu(first) * second + residual. Everything float32 and contiguous but for out, whose rows lie
// out_step apart. Without norm, bias or residual their pointers are null.
extern "C" void skinny_linear(const Call* call) {
    const auto& [rows, x, norm_weight, norm_bias, residual, out, weights, biases, sizes, count, K, out_step, threads, kind,
                 activation, eps] = *call;
    const Norm norm = (Norm)kind;
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
    const bool gated = activation == kSwiglu;
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        static thread_local Buffer panel_buffer, statistics_buffer, y_buffer;
        // Every thread packs all of x for itself: what another has just written is slower to get than to compute.
        const Panels panels = {panel_buffer.get(padded * K), rows, K};
        Statistics* stats = (Statistics*)statistics_buffer.get(2 * rows);
        if (norm != kNoNorm)
            for (int64_t r = 0; r < rows; r++) stats[r] = statistics(x + r * K, K, norm, eps);
        if (rows <= kVeryFew)
            for (int64_t r = 0; r < rows; r++)
                norm_row(x + r * K, panels.at + r * K, K, norm, stats[r], norm_weight, norm_bias);
        else for (int64_t row = 0; row < rows; row += kLanes)
            pack_block(x, panels, row, norm, stats, norm_weight, norm_bias);
        int64_t first = 0;  // column of out at which this weight's outputs begin
        for (int64_t i = 0; i < (gated ? 1 : count); i++) {
            const int64_t N = sizes[i], parts = (N + kLanes - 1) / kLanes;
            const int64_t n0 = std::min(N, parts * me / team * kLanes), n1 = std::min(N, parts * (me + 1) / team * kLanes);
            const int64_t half = (n1 - n0 + kLanes) * padded;
            float* y = y_buffer.get(2 * half);
            product(panels, weights[i], n0, n1, y, padded);
            if (gated) product(panels, weights[1], n0, n1, y + half, padded);
            int64_t n = n0;
            const Finish finish = {y, y + half, padded, rows, biases[i], gated ? biases[1] : nullptr,
                                   (Activation)activation, residual, out, out_step, first};
            for (; n + kLanes <= n1; n += kLanes) finish.columns<true>(n0, n, kLanes);
            if (n < n1) finish.columns<false>(n0, n, n1 - n);
            first += N;
        }
    }
}
