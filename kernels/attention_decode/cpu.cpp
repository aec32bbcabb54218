// attention_decode on CPU: pages read once for all rows and heads that look at them, one online softmax a query.
//
// Shapes as in kernels/attention_decode/__init__.py: S rows, H heads, G key/value heads, K head size, P pages of N
// positions, B pages a row, R groups. A query's sums run over its pages in order, in pieces cut at fixed positions,
// whatever other rows ride along: sharing a page, other rows and the number of threads change no bit of it.
#include "../vector.h"

#include <algorithm>
#include <cmath>
#include <vector>

using vec::bf16;
using vec::floats;
using vec::load;

namespace {

const floats IOTA = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline void store(float* at, floats x) { vec::store(at, x, vec::kLanes); }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t wide = (uint32_t)x.bits << 16;
    float y;
    memcpy(&y, &wide, sizeof y);
    return y;
}

inline float largest(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] = std::max(x[i], x[i + width]);
    return x[0];
}

inline float total(floats x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}

constexpr int64_t PIECE = 512;   // positions of one row summed by one thread, about
constexpr int64_t MAX_ROWS = 16;  // rows of a group that one thread takes along: their state stays in L2

// What the Python side fills in; strides in elements.
struct Call {
    const void *q, *k, *v;
    void* out;
    const int32_t *table, *length;
    const float* slopes;  // or null
    const int32_t *cu_groups, *shared;  // or null
    float* partial;  // [S, H, pieces, 2 + padded K], or null when one piece holds every row
    int64_t rows, heads, kv_heads, head_size, page_size, table_width, groups, pieces, threads;
    int64_t q_row, q_head, k_page, k_head, k_slot, k_dim, v_page, v_head, v_slot;
    float scale;
};

int64_t ceil_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// One page of one key/value head: keys transposed to [K, stride_k], values [N, stride_v], strides multiples of 16.
struct Block {
    const float *k, *v;
    int64_t stride_k, stride_v;
};

struct State {
    float max, sum;
    float* acc;  // [padded K]
};

template <int W>
inline void dots(const float* q, const float* k, int64_t stride, int64_t head_size, float* out) {
    floats even[W] = {}, odd[W] = {};
    int64_t d = 0;
    for (; d + 1 < head_size; d += 2, k += 2 * stride)
        for (int w = 0; w < W; w++) {
            even[w] += q[d] * load(k + 16 * w);
            odd[w] += q[d + 1] * load(k + stride + 16 * w);
        }
    if (d < head_size)
        for (int w = 0; w < W; w++) even[w] += q[d] * load(k + 16 * w);
    for (int w = 0; w < W; w++) store(out + 16 * w, even[w] + odd[w]);
}

template <int W>
inline void add_values(const float* p, const float* v, int64_t stride, int64_t count, float rescale, float* acc) {
    floats even[W], odd[W] = {};
    for (int w = 0; w < W; w++) even[w] = load(acc + 16 * w) * rescale;
    int64_t n = 0;
    for (; n + 1 < count; n += 2, v += 2 * stride)
        for (int w = 0; w < W; w++) {
            even[w] += p[n] * load(v + 16 * w);
            odd[w] += p[n + 1] * load(v + stride + 16 * w);
        }
    if (n < count)
        for (int w = 0; w < W; w++) even[w] += p[n] * load(v + 16 * w);
    for (int w = 0; w < W; w++) store(acc + 16 * w, even[w] + odd[w]);
}

// One query over the first `count` positions of a block; `behind` is the first position minus the row's last.
__attribute__((noinline)) void attend(
    const Call& c, const float* q, const Block& b, int64_t count, float slope, int64_t behind, float* p, State& state) {
    int64_t padded = ceil_to(count, 16), n = 0;
    for (; n + 64 <= padded; n += 64) dots<4>(q, b.k + n, b.stride_k, c.head_size, p + n);
    for (; n < padded; n += 16) dots<1>(q, b.k + n, b.stride_k, c.head_size, p + n);
    floats most = vec::all(-INFINITY);
    for (n = 0; n < padded; n += 16) {
        // Counted back from the row's last position, a bias is small where the weights are large.
        floats score = load(p + n) * c.scale + (IOTA + (float)(behind + n)) * slope;
        score = IOTA < (float)(count - n) ? score : vec::all(-INFINITY);
        store(p + n, score);
        most = vec::max(score, most);
    }
    float max = std::max(state.max, largest(most));
    float rescale = state.max == max ? 1.0f : std::exp(state.max - max);
    floats sum = {};
    for (n = 0; n < padded; n += 16) {
        floats weight = vec::exp(load(p + n) - max);
        store(p + n, weight);
        sum += weight;
    }
    state.max = max;
    state.sum = state.sum * rescale + total(sum);
    int64_t padded_k = ceil_to(c.head_size, 16), d = 0;
    for (; d + 64 <= padded_k; d += 64) add_values<4>(p, b.v + d, b.stride_v, count, rescale, state.acc + d);
    for (; d < padded_k; d += 16) add_values<1>(p, b.v + d, b.stride_v, count, rescale, state.acc + d);
}

template <typename T>
inline void write_out(T* out, const float* acc, float sum, int64_t head_size) {
    for (int64_t d = 0; d < head_size; d += vec::kLanes)
        vec::store(out + d, load(acc + d) / sum, (int)std::min<int64_t>(vec::kLanes, head_size - d));
}

// A page as floats in the layout that `attend` wants: in place where it already is, else copied into `room`.
template <typename T>
Block block_of(const Call& c, int32_t page, int64_t head, int64_t count, float* room) {
    const T* k = (const T*)c.k + page * c.k_page + head * c.k_head;
    const T* v = (const T*)c.v + page * c.v_page + head * c.v_head;
    Block b;
    if (sizeof(T) == 4 && c.k_slot == 1 && c.k_dim % 16 == 0) {
        b.k = (const float*)k;
        b.stride_k = c.k_dim;
    } else {
        b.k = room;
        b.stride_k = ceil_to(c.page_size, 16);
        for (int64_t d = 0; d < c.head_size; d++) {
            float* to = room + d * b.stride_k;
            const T* from = k + d * c.k_dim;
            if (c.k_slot == 1)
                for (int64_t n = 0; n < count; n++) to[n] = to_float(from[n]);
            else
                for (int64_t n = 0; n < count; n++) to[n] = to_float(from[n * c.k_slot]);
        }
        room += c.head_size * b.stride_k;
    }
    if (sizeof(T) == 4 && c.head_size % 16 == 0) {
        b.v = (const float*)v;
        b.stride_v = c.v_slot;
    } else {
        b.v = room;
        b.stride_v = ceil_to(c.head_size, 16);
        for (int64_t n = 0; n < count; n++)
            for (int64_t d = 0; d < c.head_size; d++) room[n * b.stride_v + d] = to_float(v[n * c.v_slot + d]);
    }
    return b;
}

// Rows of one group over one piece of their positions, for one key/value head.
struct Item {
    int64_t first, last, shared_pages, piece;
};

template <typename T>
void run_item(const Call& c, const Item& item, int64_t head, std::vector<float>& memory) {
    const int64_t rows = item.last - item.first, shared_heads = c.heads / c.kv_heads;
    const int64_t padded_k = ceil_to(c.head_size, 16), padded_n = ceil_to(c.page_size, 16);
    const int64_t piece_pages = std::max<int64_t>(1, PIECE / c.page_size);
    const int64_t begin = item.piece * piece_pages, end = begin + piece_pages;
    const int64_t queries = rows * shared_heads, room_size = c.head_size * padded_n + c.page_size * padded_k;
    const size_t needed = padded_n + room_size + 2 * queries * padded_k;
    if (memory.size() < needed) memory.assign(needed, 0.0f);  // finite, so that padding times zero is zero
    float *p = memory.data(), *room = p + padded_n, *q = room + room_size, *acc = q + queries * padded_k;
    State states[MAX_ROWS * 8];
    std::vector<State> many;
    State* state = states;
    if (queries > MAX_ROWS * 8) {
        many.resize(queries);
        state = many.data();
    }
    std::fill(acc, acc + queries * padded_k, 0.0f);
    for (int64_t i = 0; i < queries; i++) {
        const T* from = (const T*)c.q + (item.first + i / shared_heads) * c.q_row +
                        (head * shared_heads + i % shared_heads) * c.q_head;
        for (int64_t d = 0; d < c.head_size; d++) q[i * padded_k + d] = to_float(from[d]);
        state[i] = {-INFINITY, 0.0f, acc + i * padded_k};
    }
    auto visit = [&](int64_t row, int64_t page, const Block& b, int64_t count) {
        int64_t behind = page * c.page_size - (c.length[item.first + row] - 1);
        for (int64_t j = 0; j < shared_heads; j++) {
            float slope = c.slopes ? c.slopes[head * shared_heads + j] : 0.0f;
            int64_t i = row * shared_heads + j;
            attend(c, q + i * padded_k, b, count, slope, behind, p, state[i]);
        }
    };
    const int32_t* table = c.table + item.first * c.table_width;
    for (int64_t page = begin; page < std::min(end, item.shared_pages); page++) {
        Block b = block_of<T>(c, table[page], head, c.page_size, room);
        for (int64_t row = 0; row < rows; row++) visit(row, page, b, c.page_size);
    }
    for (int64_t row = 0; row < rows; row++) {
        const int64_t length = c.length[item.first + row];
        if (begin * c.page_size >= length) continue;
        for (int64_t page = std::max(begin, item.shared_pages); page < end && page * c.page_size < length; page++) {
            int64_t count = std::min(c.page_size, length - page * c.page_size);
            visit(row, page, block_of<T>(c, table[row * c.table_width + page], head, count, room), count);
        }
        for (int64_t j = 0; j < shared_heads; j++) {
            const State& s = state[row * shared_heads + j];
            int64_t place = (item.first + row) * c.heads + head * shared_heads + j;
            if (length > piece_pages * c.page_size) {
                float* to = c.partial + (place * c.pieces + item.piece) * (2 + padded_k);
                to[0] = s.max;
                to[1] = s.sum;
                std::copy(s.acc, s.acc + padded_k, to + 2);
            } else {
                write_out((T*)c.out + place * c.head_size, s.acc, s.sum, c.head_size);
            }
        }
    }
}

// The pieces of a long row put together, in order.
template <typename T>
void merge(const Call& c, int64_t place, int64_t pieces, std::vector<float>& memory) {
    const int64_t padded_k = ceil_to(c.head_size, 16);
    const float* from = c.partial + place * c.pieces * (2 + padded_k);
    memory.assign(std::max<size_t>(memory.size(), padded_k), 0.0f);
    float max = -INFINITY, sum = 0.0f, *acc = memory.data();
    for (int64_t i = 0; i < pieces; i++) max = std::max(max, from[i * (2 + padded_k)]);
    for (int64_t i = 0; i < pieces; i++, from += 2 + padded_k) {
        float weight = std::exp(from[0] - max);
        sum += weight * from[1];
        for (int64_t d = 0; d < padded_k; d++) acc[d] += weight * from[2 + d];
    }
    write_out((T*)c.out + place * c.head_size, acc, sum, c.head_size);
}

template <typename T>
void run(const Call& c) {
    const int64_t piece = std::max<int64_t>(1, PIECE / c.page_size) * c.page_size;
    std::vector<Item> items;
    for (int64_t r = 0; r < c.groups; r++) {
        int64_t begin = c.cu_groups ? c.cu_groups[r] : r, end = c.cu_groups ? c.cu_groups[r + 1] : r + 1;
        for (int64_t first = begin; first < end; first += MAX_ROWS) {
            int64_t last = std::min(end, first + MAX_ROWS);
            int64_t longest = *std::max_element(c.length + first, c.length + last);
            for (int64_t i = 0; i * piece < longest; i++)
                items.push_back({first, last, c.shared ? c.shared[r] / c.page_size : 0, i});
        }
    }
    const int64_t count = items.size() * c.kv_heads;
#pragma omp parallel num_threads(c.threads) if (count > 1)
    {
        static thread_local std::vector<float> memory;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) run_item<T>(c, items[i / c.kv_heads], i % c.kv_heads, memory);
        if (c.partial) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < c.rows * c.heads; i++) {
                int64_t pieces = (c.length[i / c.heads] + piece - 1) / piece;
                if (pieces > 1) merge<T>(c, i, pieces, memory);
            }
        }
    }
}

template <typename T>
void write_rows(
    const T* k, const T* v, T* k_pages, T* v_pages, const int64_t* page, const int64_t* slot, const int64_t* size,
    const int64_t* stride, int64_t threads) {
    const int64_t tokens = size[0], heads = size[1], head_size = size[2];
    const int64_t k_token = stride[0], k_from = stride[1], v_token = stride[2], v_from = stride[3];
    const int64_t k_page = stride[4], k_head = stride[5], k_slot = stride[6], k_dim = stride[7];
    const int64_t v_page = stride[8], v_head = stride[9], v_slot = stride[10];
#pragma omp parallel for num_threads(threads) schedule(static) if (tokens * heads * head_size > 32768)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t g = 0; g < heads; g++) {
            const T *from_k = k + t * k_token + g * k_from, *from_v = v + t * v_token + g * v_from;
            T* to_k = k_pages + page[t] * k_page + g * k_head + slot[t] * k_slot;
            T* to_v = v_pages + page[t] * v_page + g * v_head + slot[t] * v_slot;
            for (int64_t d = 0; d < head_size; d++) {
                to_k[d * k_dim] = from_k[d];
                to_v[d] = from_v[d];
            }
        }
}

}  // namespace

extern "C" {

int64_t piece_positions(int64_t page_size) { return std::max<int64_t>(1, PIECE / page_size) * page_size; }

void decode(const Call* c, int bytes) { bytes == 4 ? run<float>(*c) : run<bf16>(*c); }

void write_pages(
    const void* k, const void* v, void* k_pages, void* v_pages, const int64_t* page, const int64_t* slot,
    const int64_t* size, const int64_t* stride, int64_t threads, int bytes) {
    if (bytes == 4)
        write_rows((const float*)k, (const float*)v, (float*)k_pages, (float*)v_pages, page, slot, size, stride, threads);
    else
        write_rows(
            (const bf16*)k, (const bf16*)v, (bf16*)k_pages, (bf16*)v_pages, page, slot, size, stride,
            threads);
}
}
