// A linear layer on a few rows in float32, fused with the norm before and the activation and residual after.
#include <omp.h>

#include "../common/activations.h"
#include "product_amx.h"
#include "product_avx2.h"

namespace {

#if defined(__AVX2__) && defined(__FMA__) && !defined(__AVX512F__)
using OnRegisters = OnAvx2;
#else
using OnRegisters = OnVectors;
#endif

constexpr int64_t kColumnsAtOnce = 1024;  // of a product, before the steps after it: they read them from the L2 cache
constexpr int64_t kRowsAtOnce = 128;      // packed, they stay in the L2 cache

enum Activation { kNone, kGelu, kSwiglu, kGeglu };

inline bool gated(Activation activation) { return activation == kSwiglu || activation == kGeglu; }

// The steps after the product: adds bias, activation and residual to 16 columns of y at a time. y is [rows, y_row] if
// ByRows, else [columns, y_row], which is transposed first.
template <bool ByRows>
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
        const auto finish = [&](floats z, floats up_z, int64_t row) __attribute__((always_inline)) {
            z += b;
            if (activation == kGelu) z = vec::gelu(z);
            if (activation == kSwiglu) z = vec::silu(z) * (up_z + ub);
            if (activation == kGeglu) z = vec::gelu(z) * (up_z + ub);
            const int64_t at = row * out_step + first + n;
            if (residual) z += load_lanes<Full>(residual + at, lanes);
            store_lanes<Full>(out + at, z, lanes);
        };
        if constexpr (ByRows) {
            for (int64_t m = 0; m < rows; m++) {
                const int64_t from = m * y_row + n - n0;
                finish(load(y + from), gated(activation) ? load(up + from) : floats{}, m);
            }
            return;
        }
        for (int64_t m = 0; m < rows; m += kLanes) {
            floats r[kLanes], u[kLanes];
            block(y + (n - n0) * y_row + m, r);
            if (gated(activation)) block(up + (n - n0) * y_row + m, u);
            const int count = std::min<int64_t>(kLanes, rows - m);
            for (int j = 0; j < count; j++) finish(r[j], u[j], m + j);
        }
    }

    void block(const float* from, floats* r) const {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; j++) r[j] = load(from + j * y_row);
        transpose(r);
    }
};

// Filled in by Python.
struct Call {
    int64_t rows;
    const float *x, *norm_weight, *norm_bias, *residual;
    float* out;
    const float *weights[3];  // null where there are codes
    const uint8_t* codes[3];
    const uint16_t* scales[3];
    const float* biases[3];
    int64_t bits[3], sizes[3], count, K, out_step, threads, norm, activation, matrix_unit;
    float eps;
};

// y = W[n0:n1] x for weight i, in the layout of Product.
template <typename Product>
void multiply(const Call& call, const Product& product, int64_t i, int64_t n0, int64_t n1, float* y, int64_t y_row) {
    const int64_t groups = (call.K + kGroup - 1) / kGroup;
    if (call.weights[i]) product.product(FloatMatrix{call.weights[i], call.K}, n0, n1, y, y_row);
    else if (call.bits[i] == 8) product.product(CodeMatrix<8>{call.codes[i], call.scales[i], groups}, n0, n1, y, y_row);
    else product.product(CodeMatrix<4>{call.codes[i], call.scales[i], groups}, n0, n1, y, y_row);
}

// Computes some rows. Product packs and multiplies them.
template <typename Product>
void run(const Call& call, int64_t row0, int64_t rows) {
    const int64_t K = call.K, me = omp_get_thread_num(), team = omp_get_num_threads();
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
    const Norm norm = (Norm)call.norm;
    const bool two = gated((Activation)call.activation);
    const float *x = call.x + row0 * K, *residual = call.residual ? call.residual + row0 * call.out_step : nullptr;
    static thread_local Buffer statistics_buffer, y_buffer;
    Statistics* stats = (Statistics*)statistics_buffer.get(2 * rows);
    if (norm != kNoNorm)
        for (int64_t r = 0; r < rows; r++) stats[r] = statistics(x + r * K, K, norm, call.eps);
    // Every thread packs all of x: reading what another thread has just written takes longer than packing.
    Product product(rows, K);
    product.pack(x, norm, stats, call.norm_weight, call.norm_bias);
    int64_t first = 0;  // first column of out for this weight
    for (int64_t i = 0; i < (two ? 1 : call.count); i++) {
        const int64_t N = call.sizes[i], parts = (N + kLanes - 1) / kLanes;
        const int64_t start = std::min(N, parts * me / team * kLanes), stop = std::min(N, parts * (me + 1) / team * kLanes);
        for (int64_t n0 = start; n0 < stop; n0 += kColumnsAtOnce) {
            const int64_t n1 = std::min(stop, n0 + kColumnsAtOnce), half = (n1 - n0 + kLanes) * padded;
            const int64_t y_row = Product::by_rows ? (n1 - n0 + kLanes - 1) / kLanes * kLanes : padded;
            float* y = y_buffer.get(2 * half);
            multiply(call, product, i, n0, n1, y, y_row);
            if (two) multiply(call, product, 1, n0, n1, y + half, y_row);
            const Finish<Product::by_rows> finish = {y, y + half, y_row, rows, call.biases[i], two ? call.biases[1] : nullptr,
                                   (Activation)call.activation, residual, call.out + row0 * call.out_step, call.out_step, first};
            int64_t n = n0;
            for (; n + kLanes <= n1; n += kLanes) finish.template columns<true>(n0, n, kLanes);
            if (n < n1) finish.template columns<false>(n0, n, n1 - n);
        }
        first += N;
    }
}

}  // namespace

extern "C" {

// Returns 1 if there is a matrix unit and the system allows it, else 0.
int has_matrix_unit() { return has_amx(); }

// out [rows, sum of N] = activation(norm(x) W^T + b) + residual, the weights side by side. With kSwiglu and kGeglu there are
// two weights of one size, and out [rows, N] = silu or gelu(first) * second + residual. All tensors are contiguous, and float32
// but for codes and scales; rows of out are out_step apart. Pointers to an absent norm, bias or residual are null.
void skinny_linear(const Call* call) {
#pragma omp parallel num_threads(call->threads)
    for (int64_t row = 0; row < call->rows; row += kRowsAtOnce) {
        const int64_t rows = std::min(kRowsAtOnce, call->rows - row);
        if (call->matrix_unit) run<OnMatrixUnit>(*call, row, rows);
        else run<OnRegisters>(*call, row, rows);
    }
}
}
