// Packed causal attention on CPU, forward and backward: tiles of 64 queries by 64 keys, all arithmetic in float32.
//
// Scores are stored transposed, [key, query]: a query is a lane of a vector, so the softmax needs no sum across lanes,
// and keys and values are read as the rows they are stored in. Only queries (and output gradients in the backward) are
// transposed, once per tile. Each result is written by one thread in a fixed order: the same bits for any number of
// threads.
//
// Shapes: T tokens, H heads, G key/value heads, K head size; K is padded to KP, a multiple of 16, in scratch.

#include "../common/vector.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

using vec::bf16;
using vec::load;
typedef vec::floats Vec;

constexpr int LANES = vec::kLanes, STRIP = 8, TILE = 64, CHUNK = 256;  // CHUNK: queries per unit of the forward
const Vec IOTA = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline void store(float* at, Vec x) { vec::store(at, x, LANES); }

// Loads `count` numbers at x, and zeros after them.
template <class T>
Vec load_part(const T* x, int count) {
    if (count >= LANES) return load(x);
    T part[LANES] = {};
    std::memcpy(part, x, count * sizeof(T));
    return load(part);
}

// Rows and registers of a block of sums. AVX2 has 16 registers, where AVX-512 and NEON have 32.
constexpr int ROWS = vec::kRegister == 16 ? STRIP : 4, WIDE = vec::kRegister == 4 ? 4 : 2;

// C[M, NV registers] (+)= A[M, depth] B[depth, NV registers], A with any strides. The sums stay in registers.
template <int M, int NV>
inline void micro(const float* A, int64_t row, int64_t col, const float* B, int64_t ldb, float* C, int64_t ldc,
                  int depth, bool add) {
    using vec::reg;
    constexpr int lanes = vec::kRegister;
    reg acc[M][NV];
    for (int i = 0; i < M; i++)
        for (int n = 0; n < NV; n++) acc[i][n] = add ? vec::load_reg(C + i * ldc + n * lanes) : reg{};
    for (int p = 0; p < depth; p++, A += col, B += ldb) {
        reg b[NV];
        for (int n = 0; n < NV; n++) b[n] = vec::load_reg(B + n * lanes);
        for (int i = 0; i < M; i++) {
            const reg a = vec::all_of(A[i * row]);
            for (int n = 0; n < NV; n++) acc[i][n] += a * b[n];
        }
    }
    for (int i = 0; i < M; i++)
        for (int n = 0; n < NV; n++) vec::store_reg(C + i * ldc + n * lanes, acc[i][n]);
}

// One strip of 8 rows: C[8, cols] (+)= A[8, depth] B[depth, cols], cols a multiple of 16.
inline void strip(const float* A, int64_t row, int64_t col, const float* B, int64_t ldb, float* C, int64_t ldc,
                  int cols, int depth, bool add) {
    constexpr int width = WIDE * vec::kRegister;
    for (int r = 0; r < STRIP; r += ROWS, A += ROWS * row, C += ROWS * ldc) {
        int n = 0;
        for (; n + width <= cols; n += width) micro<ROWS, WIDE>(A, row, col, B + n, ldb, C + n, ldc, depth, add);
        if (n < cols) micro<ROWS, WIDE / 2>(A, row, col, B + n, ldb, C + n, ldc, depth, add);
    }
}

inline int round_up(int n, int to) { return (n + to - 1) / to * to; }

// Copies rows of K numbers, `stride` apart, to float32 rows of KP, times `factor`. Adds zero rows up to `padded` rows.
template <class T>
void copy_rows(const T* x, int64_t stride, int rows, int padded, int K, int KP, float factor, float* out) {
    for (int r = 0; r < rows; r++, x += stride, out += KP)
        for (int c = 0; c < KP; c += LANES) store(out + c, load_part(x + c, K - c) * factor);
    std::fill(out, out + int64_t(padded - rows) * KP, 0.0f);
}

template <class T>
void write_row(const float* x, float factor, int K, T* out) {
    for (int c = 0; c < K; c += LANES) vec::store(out + c, load(x + c) * factor, std::min(LANES, K - c));
}

// Transposes [rows, KP] to [KP, TILE]; rows a multiple of 16.
#ifdef __AVX512F__
#ifdef __clang__
#define INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, vec::ints{__VA_ARGS__})
#endif

// Interleaving halves four times transposes 16 by 16.
void transpose(const float* x, int rows, int KP, float* out) {
    for (int r = 0; r < rows; r += LANES)
        for (int c = 0; c < KP; c += LANES) {
            Vec a[LANES], b[LANES];
            for (int i = 0; i < LANES; i++) a[i] = load(x + int64_t(r + i) * KP + c);
            for (int round = 0; round < 4; round++) {
                for (int i = 0; i < 8; i++) {
                    const Vec x0 = a[i], x1 = a[i + 8];
                    b[2 * i] = INTERLEAVE(x0, x1, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                    b[2 * i + 1] = INTERLEAVE(x0, x1, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                }
                std::copy(b, b + LANES, a);
            }
            for (int i = 0; i < LANES; i++) store(out + int64_t(c + i) * TILE + r, a[i]);
        }
}
#else
void transpose(const float* x, int rows, int KP, float* out) {
    for (int r = 0; r < rows; r += 4)
        for (int c = 0; c < KP; c++)
            for (int i = 0; i < 4; i++) out[c * TILE + r + i] = x[(r + i) * KP + c];
}
#endif

struct Packed {  // a tensor [T, heads, K] whose last dimension is contiguous
    const void* data;
    int64_t token, head;  // strides, in elements
    template <class T>
    const T* at(int64_t t, int h) const { return static_cast<const T*>(data) + t * token + h * head; }
    template <class T>
    Packed from(int64_t t) const { return {at<T>(t, 0), token, head}; }
};

struct Segment {  // keys and values of a sequence's tokens first to last-1
    Packed k, v;
    int64_t first, last;
};

struct Geometry {
    const int32_t* cu_seqlens;
    int S, H, G, K;
    const float* slopes;  // null without ALiBi
    float scale;
    int threads;
    int window;  // a query sees so many keys, its own included
    // For attention_after: keys in segments, and q and out start at first_query. Otherwise null and 0.
    const Segment* segments;
    int first_query;
    int KP() const { return round_up(K, LANES); }
    float slope(int h) const { return slopes ? slopes[h] : 0.0f; }
    // Returns the start of the tile with the first key that query i sees.
    int first_tile(int i) const { return std::max(0, i - window + 1) / TILE * TILE; }
};

struct Unit {
    int s, h, first, last;  // queries first to last-1 of one sequence and head
};

// Returns all units by falling cost (without a window), so that threads finish together.
std::vector<Unit> units(const Geometry& g, int chunk) {
    std::vector<Unit> all;
    for (int s = 0; s < g.S; s++) {
        const int n = g.cu_seqlens[s + 1] - g.cu_seqlens[s];
        for (int first = g.first_query; first < n; first += chunk)
            for (int h = 0; h < g.H; h++) all.push_back({s, h, first, std::min(n, first + chunk)});
    }
    std::stable_sort(all.begin(), all.end(), [](const Unit& a, const Unit& b) {
        return int64_t(a.last) * (a.last - a.first) > int64_t(b.last) * (b.last - b.first);
    });
    return all;
}

// Computes transposed scores of keys from j0 on and queries from i0 on, in rows of TILE. A query i sees keys j <= i, so
// for each strip of keys it computes only the lanes that may see its first key.
void scores(const float* keys, const float* q_KI, int KP, int i0, int lanes, int j0, int rows, float* s_JI) {
    for (int j = 0; j < rows; j += STRIP) {
        const int from = std::max(0, j0 + j - i0) / LANES * LANES;
        if (from >= lanes) continue;
        float* s = s_JI + j * TILE + from;
        strip(keys + int64_t(j) * KP, KP, 1, q_KI + from, TILE, s, TILE, lanes - from, KP, false);
    }
}

// Returns how many of `rows` keys from j0 on are visible to the last of the 16 queries from i on.
inline int visible(int i, int j0, int rows) { return std::max(0, std::min(rows, i + LANES - j0)); }

// Returns the first `count` keys or values of a head in tiles: float32 rows of KP, with zero rows up to a multiple of
// STRIP. A tile already stored like this is read in place, others are copied to scratch, which advances. Tiles before
// position `from` are null.
template <class T>
std::vector<const float*> tiles_of(const Segment* s, Packed Segment::*which, int head, int from, int count, int K,
                                   int KP, float*& scratch) {
    std::vector<const float*> tiles(from / TILE);
    for (int j = from; j < count; j += TILE) {
        while (s->last <= j) s++;
        const Packed& x = s->*which;
        if (std::is_same_v<T, float> && K == KP && x.token == KP && s->last >= j + TILE) {
            tiles.push_back(reinterpret_cast<const float*>(x.at<T>(j - s->first, head)));
            continue;
        }
        tiles.push_back(scratch);
        const int stop = std::min(count, j + TILE);
        const Segment* part = s;
        for (int at = j; at < stop; part++) {
            const int end = std::min<int64_t>(stop, part->last), padded = end < stop ? end : round_up(end, STRIP);
            const Packed& y = part->*which;
            copy_rows(y.at<T>(at - part->first, head), y.token, end - at, padded - at, K, KP, 1.0f, scratch);
            scratch += int64_t(padded - at) * KP;
            at = end;
        }
    }
    return tiles;
}

template <class T>
void forward_unit(const Geometry& g, const Unit& u, Packed q, Packed k, Packed v, T* out, float* lse, float* scratch) {
    const int KP = g.KP(), start = g.cu_seqlens[u.s], kv = u.h / (g.H / g.G), keys = round_up(u.last, STRIP);
    const int before = start - g.first_query;  // query i is row before + i of q
    const float slope = g.slope(u.h), never = -std::numeric_limits<float>::infinity(), farthest = -g.window;
    const Segment whole = {k.from<T>(start), v.from<T>(start), 0, u.last};
    const Segment* segments = g.segments ? g.segments : &whole;
    const int from = g.first_tile(u.first);
    const std::vector<const float*> k_JK = tiles_of<T>(segments, &Segment::k, kv, from, u.last, g.K, KP, scratch);
    const std::vector<const float*> v_JK = tiles_of<T>(segments, &Segment::v, kv, from, u.last, g.K, KP, scratch);
    float* q_IK = scratch;
    float* q_KI = q_IK + TILE * KP;
    float* o_IK = q_KI + TILE * KP;
    float* s_JI = o_IK + TILE * KP;
    for (int i0 = u.first; i0 < u.last; i0 += TILE) {
        const int count = std::min(TILE, u.last - i0), lanes = round_up(count, LANES);
        copy_rows(q.at<T>(before + i0, u.h), q.token, count, lanes, g.K, KP, g.scale, q_IK);
        transpose(q_IK, lanes, KP, q_KI);
        float max_I[TILE], sum_I[TILE], shrink_I[TILE];
        std::fill(max_I, max_I + TILE, never);
        std::fill(sum_I, sum_I + TILE, 0.0f);
        const int j_first = g.first_tile(i0);
        for (int j0 = j_first; j0 < i0 + count; j0 += TILE) {
            const int rows = std::min(TILE, keys - j0);
            scores(k_JK[j0 / TILE], q_KI, KP, i0, lanes, j0, rows, s_JI);
            for (int l = 0; l < lanes; l += LANES) {
                const int seen = visible(i0 + l, j0, rows);
                const Vec old = load(max_I + l), query = IOTA + float(i0 + l - j0);
                Vec top = old;
                for (int j = 0; j < seen; j++) {
                    const Vec ahead = float(j) - query;  // key position minus query position
                    Vec s = load(s_JI + j * TILE + l) + slope * ahead;
                    s = vec::where_above(ahead, Vec{}, vec::all(never), s);
                    s = vec::where_above(ahead, vec::all(farthest), s, vec::all(never));
                    store(s_JI + j * TILE + l, s);
                    top = vec::max(s, top);
                }
                const Vec base = vec::where_above(top, vec::all(never), top, Vec{});  // a query may see no key of this tile
                const Vec shrink = vec::exp(old - base);
                Vec sum = load(sum_I + l) * shrink;
                for (int j = 0; j < seen; j++) {
                    const Vec p = vec::exp(load(s_JI + j * TILE + l) - base);
                    store(s_JI + j * TILE + l, p);
                    sum += p;
                }
                store(max_I + l, top);
                store(sum_I + l, sum);
                store(shrink_I + l, shrink);
            }
            for (int i = 0; i < count; i += STRIP) {
                if (j0 > j_first)
                    for (int r = i; r < i + STRIP; r++)
                        for (int c = 0; c < KP; c += LANES) {
                            float* o = o_IK + r * KP + c;
                            store(o, load(o) * shrink_I[r]);
                        }
                const int depth = std::min(rows, i0 + i + STRIP - j0);
                strip(s_JI + i, 1, TILE, v_JK[j0 / TILE], KP, o_IK + i * KP, KP, KP, depth, j0 > j_first);
            }
        }
        for (int i = 0; i < count; i++) {
            const int64_t at = int64_t(before + i0 + i) * g.H + u.h;
            write_row(o_IK + i * KP, 1.0f / sum_I[i], g.K, out + at * g.K);
            if (lse) lse[at] = max_I[i] + std::log(sum_I[i]);
        }
    }
}

template <class T, class TKV>
void backward_unit(const Geometry& g, const Unit& u, Packed q, Packed k, Packed v, Packed out, Packed grad,
                   const float* lse, T* dq, TKV* dk, TKV* dv, float* scratch) {
    const int KP = g.KP(), start = g.cu_seqlens[u.s], kv = u.h / (g.H / g.G), n = u.last, keys = round_up(n, STRIP);
    const float slope = g.slope(u.h), farthest = -g.window;
    const int64_t all = int64_t(keys) * KP;
    float *k_JK = scratch, *v_JK = k_JK + all, *dk_JK = v_JK + all, *dv_JK = dk_JK + all;
    float *q_IK = dv_JK + all, *g_IK = q_IK + TILE * KP, *q_KI = g_IK + TILE * KP, *g_KI = q_KI + TILE * KP;
    float *dq_IK = g_KI + TILE * KP, *p_JI = dq_IK + TILE * KP, *ds_JI = p_JI + TILE * TILE;
    copy_rows(k.at<T>(start, kv), k.token, n, keys, g.K, KP, 1.0f, k_JK);
    copy_rows(v.at<T>(start, kv), v.token, n, keys, g.K, KP, 1.0f, v_JK);
    std::fill(dk_JK, dk_JK + 2 * all, 0.0f);
    for (int i0 = 0; i0 < n; i0 += TILE) {
        const int count = std::min(TILE, n - i0), lanes = round_up(count, LANES);
        copy_rows(q.at<T>(start + i0, u.h), q.token, count, lanes, g.K, KP, g.scale, q_IK);
        copy_rows(grad.at<T>(start + i0, u.h), grad.token, count, lanes, g.K, KP, 1.0f, g_IK);
        transpose(q_IK, lanes, KP, q_KI);
        transpose(g_IK, lanes, KP, g_KI);
        float lse_I[TILE] = {}, delta_I[TILE] = {};  // finite in lanes without a query too, whose gradients are zero
        for (int i = 0; i < count; i++) {
            const T* o = out.at<T>(start + i0 + i, u.h);
            Vec sum = {};
            for (int c = 0; c < KP; c += LANES) sum += load_part(o + c, g.K - c) * load(g_IK + i * KP + c);
            for (int c = 0; c < LANES; c++) delta_I[i] += sum[c];
            lse_I[i] = lse[int64_t(start + i0 + i) * g.H + u.h];
        }
        const int j_first = g.first_tile(i0);
        for (int j0 = j_first; j0 < i0 + count; j0 += TILE) {
            const int rows = std::min(TILE, keys - j0);
            scores(k_JK + int64_t(j0) * KP, q_KI, KP, i0, lanes, j0, rows, p_JI);
            scores(v_JK + int64_t(j0) * KP, g_KI, KP, i0, lanes, j0, rows, ds_JI);
            for (int l = 0; l < lanes; l += LANES) {
                const int seen = visible(i0 + l, j0, rows);
                const Vec lse_of = load(lse_I + l), delta = load(delta_I + l), query = IOTA + float(i0 + l - j0);
                for (int j = 0; j < seen; j++) {
                    float *p_at = p_JI + j * TILE + l, *ds_at = ds_JI + j * TILE + l;
                    const Vec ahead = float(j) - query;
                    Vec p = vec::exp(load(p_at) + slope * ahead - lse_of);
                    p = vec::where_above(ahead, Vec{}, Vec{}, p);
                    p = vec::where_above(ahead, vec::all(farthest), p, Vec{});
                    store(p_at, p);
                    store(ds_at, p * (load(ds_at) - delta));
                }
            }
            for (int i = 0; i < count; i += STRIP) {
                const int depth = std::min(rows, i0 + i + STRIP - j0);
                strip(ds_JI + i, 1, TILE, k_JK + int64_t(j0) * KP, KP, dq_IK + i * KP, KP, KP, depth, j0 > j_first);
            }
            for (int j = 0; j < rows; j += STRIP) {
                const int from = std::max(0, j0 + j - i0) / STRIP * STRIP;  // the first query to see one of these keys
                if (from >= lanes) continue;
                const int64_t at = int64_t(j0 + j) * KP;
                strip(p_JI + j * TILE + from, TILE, 1, g_IK + from * KP, KP, dv_JK + at, KP, KP, lanes - from, true);
                strip(ds_JI + j * TILE + from, TILE, 1, q_IK + from * KP, KP, dk_JK + at, KP, KP, lanes - from, true);
            }
        }
        for (int i = 0; i < count; i++)
            write_row(dq_IK + i * KP, g.scale, g.K, dq + (int64_t(start + i0 + i) * g.H + u.h) * g.K);
    }
    for (int j = 0; j < n; j++) {
        const int64_t at = (int64_t(start + j) * g.H + u.h) * g.K;
        write_row(dk_JK + int64_t(j) * KP, 1.0f, g.K, dk + at);  // the queries contain the scale
        write_row(dv_JK + int64_t(j) * KP, 1.0f, g.K, dv + at);
    }
}

int longest(const std::vector<Unit>& all) {
    int n = 0;
    for (const Unit& u : all) n = std::max(n, u.last);
    return round_up(n, STRIP);
}

template <class T>
void forward(const Geometry& g, Packed q, Packed k, Packed v, void* out, float* lse) {
    const std::vector<Unit> all = units(g, CHUNK);
    const int64_t floats = 2 * int64_t(longest(all)) * g.KP() + 3 * TILE * g.KP() + TILE * TILE;
#pragma omp parallel num_threads(g.threads)
    {
        const std::unique_ptr<float[]> scratch(new float[floats]);  // not initialised: unused memory costs nothing
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < int64_t(all.size()); i++)
            forward_unit<T>(g, all[i], q, k, v, static_cast<T*>(out), lse, scratch.get());
    }
}

template <class T, class TKV>
void backward(const Geometry& g, Packed q, Packed k, Packed v, Packed out, Packed grad, const float* lse, void* dq,
              void* dk, void* dv) {
    const std::vector<Unit> all = units(g, std::numeric_limits<int>::max() / 2);
    const int64_t floats = 4 * int64_t(longest(all)) * g.KP() + 5 * TILE * g.KP() + 2 * TILE * TILE;
#pragma omp parallel num_threads(g.threads)
    {
        std::vector<float> scratch(floats);
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < int64_t(all.size()); i++)
            backward_unit<T, TKV>(g, all[i], q, k, v, out, grad, lse, static_cast<T*>(dq), static_cast<TKV*>(dk),
                                  static_cast<TKV*>(dv), scratch.data());
    }
}

}  // namespace

extern "C" {

// Writes out [T, H, K] and, unless null, lse [T, H], the logsumexp of the scores; both contiguous. half: tensors are
// bfloat16, else float32. Ignores k and v where g has segments.
void attention_forward(const Geometry* g, const Packed* q, const Packed* k, const Packed* v, int half, void* out,
                       float* lse) {
    half ? forward<bf16>(*g, *q, *k, *v, out, lse) : forward<float>(*g, *q, *k, *v, out, lse);
}

// Writes dq, dk and dv, contiguous [T, H, K]. dk and dv are per query head, in float32 where several share a key head
// (wide_kv).
void attention_backward(const Geometry* g, const Packed* q, const Packed* k, const Packed* v, const Packed* out,
                        const Packed* grad, int half, int wide_kv, const float* lse, void* dq, void* dk, void* dv) {
    if (!half)
        backward<float, float>(*g, *q, *k, *v, *out, *grad, lse, dq, dk, dv);
    else if (wide_kv)
        backward<bf16, float>(*g, *q, *k, *v, *out, *grad, lse, dq, dk, dv);
    else
        backward<bf16, bf16>(*g, *q, *k, *v, *out, *grad, lse, dq, dk, dv);
}
}
