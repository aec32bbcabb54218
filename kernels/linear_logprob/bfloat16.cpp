// linear_logprob for bfloat16 inputs. Each strip of float32 logits is computed and read while it is in the cache.
#include "bf16_product.h"
#include "passes.h"

using passes::Tile;

namespace {

constexpr int kBlock = bf16::kBlock;
constexpr int64_t kStrip = 256;               // rows of W per strip of logits: A stays in the L2 cache
constexpr int64_t kColumns = bf16::kColumns;  // tokens per strip: 512 KiB of logits

// Arguments of all walks. W holds padded_rows rows: the first `rows` exist, the others are zero.
struct Block {
    const vec::bf16* W;
    int64_t W_row, rows, padded_rows, inner;
    const uint32_t* h;
    int64_t tokens;
    double inverse;  // 1 / temperature
    float* store;    // [threads, at most kColumns / 16, kStrip, 16]
    bool amx;
    int threads;

    int64_t first_row(int thread) const { return padded_rows / kBlock * thread / threads * kBlock; }
};

// Computes the logits of a thread's rows. For each strip, calls use(tile, first row, padded rows, first token).
template <class Use>
void for_strips(const Block& of, int thread, const Use& use) {
    const int64_t wide = of.tokens < kColumns ? of.tokens : kColumns, size = kStrip * wide;
    const int64_t panel = kStrip * vec::kLanes, h_panel = of.inner / 2 * vec::kLanes;
    float* const z = of.store + thread * size;
    for (int64_t first = of.first_row(thread); first < of.first_row(thread + 1); first += kStrip) {
        const int64_t left = of.first_row(thread + 1) - first, held = left < kStrip ? left : kStrip;
        const int64_t exist = of.rows - first < held ? of.rows - first : held;
        const bf16::Left W{of.W + first * of.W_row, of.W_row, kBlock};
        for (int64_t token = 0; token < of.tokens; token += kColumns) {
            const int64_t some = of.tokens - token < kColumns ? of.tokens - token : kColumns;
            const int64_t at = token / vec::kLanes * h_panel;
            {
                const Tiles tiles(of.amx);
                bf16::product(of.amx, W, of.h + at, h_panel, z, panel, held, some, of.inner, false);
            }
            use(Tile{z, exist, some, vec::kLanes, panel, of.inverse}, first, held, token);
        }
    }
}

struct Gradient {
    const float* per_token;
    const int64_t* target;
    int64_t first_id;
    const float* target_dz;
    uint32_t* pairs;   // [tokens / 16, padded_rows / 2, 16]: dz as B of the product for dh; or null
    vec::bf16* lines;  // [tokens / 32, padded_rows, 32]: dz as A of the product for dW; or null
};

// Writes dz of one strip to `pairs` and `lines`, rounded to bfloat16.
void write_dz(const Tile& tile, const Gradient& to, const Block& of, int64_t first, int64_t held, int64_t token) {
    constexpr int kLanes = vec::kLanes;
    const int64_t height = of.padded_rows;
    for (int64_t j = 0; j < tile.tokens; j += kBlock) {
        const int64_t t = token + j;
        const passes::Columns columns[2] = {{to.per_token, of.tokens, t}, {to.per_token, of.tokens, t + kLanes}};
        for (int64_t i = 0; i < held; i += 2) {
            for (int p = 0; p < 2; ++p) {
                vec::words dz[2];
                for (int r = 0; r < 2; ++r)
                    dz[r] = i + r < tile.rows
                                ? vec::rounded(passes::gradient(tile, i + r, j + p * kLanes, columns[p]))
                                : vec::words{};
                if (to.pairs) {
                    const vec::words both = (dz[0] >> 16) | (dz[1] & 0xffff0000u);
                    memcpy(to.pairs + ((t / kLanes + p) * height / 2 + (first + i) / 2) * kLanes, &both, sizeof both);
                }
                for (int r = 0; to.lines && r < 2; ++r) {
                    const vec::halves line = __builtin_convertvector(dz[r] >> 16, vec::halves);
                    memcpy(to.lines + (t / kBlock * height + first + i + r) * kBlock + p * kLanes, &line, sizeof line);
                }
            }
        }
    }
    for (int64_t t = token; t < token + tile.tokens; ++t) {
        const int64_t row = to.target[t] - to.first_id - first;
        if (row < 0 || row >= tile.rows) continue;
        const uint32_t dz = vec::rounded(vec::all(to.target_dz[t]))[0] >> 16;
        const int64_t at = first + row;
        if (to.pairs) {
            uint32_t& both = to.pairs[(t / kLanes * height / 2 + at / 2) * kLanes + t % kLanes];
            both = at % 2 ? (both & 0xffffu) | dz << 16 : (both & 0xffff0000u) | dz;
        }
        if (to.lines) to.lines[(t / kBlock * height + at) * kBlock + t % kBlock].bits = dz;
    }
}

}  // namespace

extern "C" {

int logprob_has_amx() { return has_amx(); }

// W [padded_rows, inner], rows W_row elements apart: the first `rows` exist, the others are zero. h panels
// [tokens / 16, inner / 2, 16]. inner, padded_rows and tokens are multiples of 32. totals, target, first_id and
// target_logit as in float32.cpp.
void logprob_bf16_statistics(const vec::bf16* W, int64_t W_row, int64_t rows, int64_t padded_rows, int64_t inner,
                             const uint32_t* h, int64_t tokens, double scale, float* store, int amx, int threads,
                             double* totals, const int64_t* target, int64_t first_id, double* target_logit) {
    const Block of{W, W_row, rows, padded_rows, inner, h, tokens, scale, store, amx != 0, threads};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t)
        for_strips(of, t, [&](const Tile& tile, int64_t first, int64_t, int64_t token) {
            double* const mine = totals + t * passes::kTotals * tokens + token;
            passes::add_tile(tile, mine, tokens, target + token, first_id + first, target_logit + token);
        });
}

// Computes dz, then adds W^T dz to dh [tokens / 16, inner, 16] and dz h to dW [inner / 16, padded_rows, 16]; with
// dW_starts it overwrites dW instead. The product for dh reads pairs and transposed [padded_rows / 32, inner, 32]. The
// product for dW reads lines and h_tokens [inner / 16, tokens / 2, 16]. Either set may be null.
void logprob_bf16_gradient(const vec::bf16* W, int64_t W_row, int64_t rows, int64_t padded_rows, int64_t inner,
                           const uint32_t* h, int64_t tokens, double scale, float* store, int amx, int threads,
                           const float* per_token, const int64_t* target, int64_t first_id, const float* target_dz,
                           uint32_t* pairs, vec::bf16* transposed, float* dh, vec::bf16* lines,
                           const uint32_t* h_tokens, float* dW, int dW_starts) {
    const Block of{W, W_row, rows, padded_rows, inner, h, tokens, scale, store, amx != 0, threads};
    const Gradient to{per_token, target, first_id, target_dz, pairs, lines};
    constexpr int kLanes = vec::kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        for_strips(of, t, [&](const Tile& tile, int64_t first, int64_t held, int64_t token) {
            write_dz(tile, to, of, first, held, token);
        });
        const int64_t first = of.first_row(t), mine = of.first_row(t + 1) - first;
        for (int64_t i = first; dh && i < first + mine; i += kBlock)
            bf16::transpose_rows(W + i * W_row, W_row, inner, transposed + i * inner);
        if (dW) {
            const Tiles tiles(of.amx);
            bf16::product(of.amx, {lines + first * kBlock, kBlock, padded_rows * kBlock}, h_tokens,
                          tokens / 2 * kLanes, dW + first * kLanes, padded_rows * kLanes, mine, inner, tokens,
                          !dW_starts);
        }
    }
    if (!dh) return;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t) {
        const Tiles tiles(of.amx);
        const int64_t first = inner / kBlock * t / threads * kBlock, last = inner / kBlock * (t + 1) / threads * kBlock;
        bf16::product(of.amx, {transposed + first * kBlock, kBlock, inner * kBlock}, pairs, padded_rows / 2 * kLanes,
                      dh + first * kLanes, inner * kLanes, last - first, tokens, padded_rows, true);
    }
}

// Writes the logits of the first `count` tokens to out [count, rows], rows out_row elements apart.
void logprob_bf16_logits(const vec::bf16* W, int64_t W_row, int64_t rows, int64_t padded_rows, int64_t inner,
                         const uint32_t* h, int64_t tokens, double scale, float* store, int amx, int threads,
                         int64_t count, float* out, int64_t out_row) {
    const Block of{W, W_row, rows, padded_rows, inner, h, tokens, scale, store, amx != 0, threads};
    constexpr int64_t kLanes = vec::kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int t = 0; t < threads; ++t)
        for_strips(of, t, [&](const Tile& tile, int64_t first, int64_t, int64_t token) {
            for (int64_t j = 0; j < tile.tokens && token + j < count; j += kLanes)
                for (int64_t i = 0; i < tile.rows; i += kLanes) {
                    vec::words block[kLanes];
                    for (int k = 0; k < kLanes; ++k) block[k] = (vec::words)vec::load(tile.z + tile.at(i + k, j));
                    bf16::transpose(block);
                    const int64_t there = tile.rows - i < kLanes ? tile.rows - i : kLanes;
                    for (int k = 0; k < kLanes && token + j + k < count; ++k)
                        vec::store(out + (token + j + k) * out_row + first + i, (vec::floats)block[k], there);
                }
        });
}

// Copies `from`, float32 [columns / 16, padded_rows, 16], to out, bfloat16 [rows, columns] with rows out_row apart.
void logprob_bf16_unpack(const float* from, int64_t padded_rows, int64_t rows, int64_t columns, vec::bf16* out,
                         int64_t out_row, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < columns; j += vec::kLanes)
            vec::store(out + i * out_row + j, vec::load(from + (j / vec::kLanes * padded_rows + i) * vec::kLanes),
                       columns - j < vec::kLanes ? columns - j : vec::kLanes);
}
}
