// attention_decode on CPU: pages read once for all rows and heads that look at them, one online softmax a query.
//
// Shapes as in kernels/attention_decode/__init__.py: S rows, H heads, G key/value heads, K head size, P pages of N
// positions, B pages a row, R groups. A query's sums run over its pages in order, in pieces cut at fixed positions,
// whatever other rows ride along: sharing a page, other rows and the number of threads change no bit of it.
#include "products.h"

#include <cmath>
#include <vector>

namespace {

const floats IOTA = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr int64_t PIECE = 512;    // positions of one row summed by one thread, about
constexpr int64_t MAX_ROWS = 16;  // rows of a group that one thread takes along: their state stays in L2

// What the Python side fills in; strides in elements.
struct Call {
    int64_t rows;
    const void *q, *k, *v;
    void* out;
    const int32_t *table, *length;
    const float* slopes;  // or null
    const int32_t *cu_groups, *shared;  // or null
    float* partial;  // [S, H, pieces, 2 + padded K], or null when one piece holds every row
    int64_t heads, kv_heads, head_size, page_size, table_width, pieces, threads, element_bytes;
    int64_t q_row, q_head, k_page, k_head, k_slot, v_page, v_head, v_slot;
    float scale;
};

int64_t ceil_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// One page of one key/value head: keys and values [N, K], K a multiple of PAD.
template <typename T>
struct Block {
    const T *k, *v;
    int64_t stride_k, stride_v;
};

struct State {
    float max, sum;
    float* acc;  // [padded K]
};

// One query over the first `count` positions of a block; `behind` is the first position minus the row's last.
template <typename T>
void attend(
    const Call& c, const float* q, const Block<T>& b, int64_t count, float slope, int64_t behind, float* p, State& state) {
    const int64_t padded_k = ceil_to(c.head_size, PAD);
    floats most = vec::all(-INFINITY);
    for (int64_t n = 0; n < count; n += vec::kLanes) {
        const floats dot = dots(q, b.k + n * b.stride_k, b.stride_k, padded_k, count - n);
        // Counted back from the row's last position, a bias is small where the weights are large.
        floats score = dot * c.scale + (IOTA + (float)(behind + n)) * slope;
        score = IOTA < (float)(count - n) ? score : vec::all(-INFINITY);
        store(p + n, score);
        most = vec::max(score, most);
    }
    float max = std::max(state.max, largest(most));
    float rescale = state.max == max ? 1.0f : std::exp(state.max - max);
    floats sum = {};
    for (int64_t n = 0; n < count; n += vec::kLanes) {
        floats weight = vec::exp(load(p + n) - max);
        store(p + n, weight);
        sum += weight;
    }
    state.max = max;
    state.sum = state.sum * rescale + total(sum);
    int64_t d = 0;
    for (; d + 2 * PAD <= padded_k; d += 2 * PAD) add_values<2>(p, b.v + d, b.stride_v, count, rescale, state.acc + d);
    if (d < padded_k) add_values<1>(p, b.v + d, b.stride_v, count, rescale, state.acc + d);
}

template <typename T>
inline void write_out(T* out, const float* acc, float sum, int64_t head_size) {
    for (int64_t d = 0; d < head_size; d += vec::kLanes)
        vec::store(out + d, load(acc + d) / sum, (int)std::min<int64_t>(vec::kLanes, head_size - d));
}

// A page as floats, each key and value padded with zeros.
template <typename T>
Block<float> copied(const Call& c, const Block<T>& page, int64_t count, float* room) {
    const int64_t stride = ceil_to(c.head_size, PAD);
    float* room_v = room + c.page_size * stride;
    for (int64_t n = 0; n < count; n++)
        for (int64_t d = 0; d < c.head_size; d++) {
            room[n * stride + d] = to_float(page.k[n * page.stride_k + d]);
            room_v[n * stride + d] = to_float(page.v[n * page.stride_v + d]);
        }
    for (int64_t n = 0; n < 2 * c.page_size; n++) std::fill(room + n * stride + c.head_size, room + (n + 1) * stride, 0.0f);
    return {room, room_v, stride, stride};
}

// Rows of one group over one piece of their positions, for one key/value head.
struct Item {
    int64_t first, last, shared_pages, piece;
};

template <typename T>
void run_item(const Call& c, const Item& item, int64_t head, std::vector<float>& memory) {
    const int64_t rows = item.last - item.first, shared_heads = c.heads / c.kv_heads;
    const int64_t padded_k = ceil_to(c.head_size, PAD), padded_n = ceil_to(c.page_size, vec::kLanes);
    const int64_t piece_pages = std::max<int64_t>(1, PIECE / c.page_size);
    const int64_t begin = item.piece * piece_pages, end = begin + piece_pages;
    const int64_t queries = rows * shared_heads, room_size = 2 * c.page_size * padded_k;
    const size_t needed = padded_n + room_size + 2 * queries * padded_k;
    if (memory.size() < needed) memory.assign(needed, 0.0f);
    float *p = memory.data(), *room = p + padded_n, *q = room + room_size, *acc = q + queries * padded_k;
    State states[MAX_ROWS * 8];
    std::vector<State> many;
    State* state = states;
    if (queries > MAX_ROWS * 8) {
        many.resize(queries);
        state = many.data();
    }
    const bool in_place = c.head_size % PAD == 0;
    std::fill(q, q + 2 * queries * padded_k, 0.0f);
    for (int64_t i = 0; i < queries; i++) {
        const T* from = (const T*)c.q + (item.first + i / shared_heads) * c.q_row +
                        (head * shared_heads + i % shared_heads) * c.q_head;
        for (int64_t d = 0; d < c.head_size; d++)
            q[i * padded_k + (in_place ? split_place<T>(d) : d)] = to_float(from[d]);
        state[i] = {-INFINITY, 0.0f, acc + i * padded_k};
    }
    // Rows `first` to `last` of the item over the first `count` positions of one page.
    auto visit = [&](int64_t first, int64_t last, int64_t page, int64_t count) {
        const int64_t at = c.table[(item.first + first) * c.table_width + page];
        const Block<T> block = {
            (const T*)c.k + at * c.k_page + head * c.k_head, (const T*)c.v + at * c.v_page + head * c.v_head, c.k_slot,
            c.v_slot};
        const Block<float> copy = in_place ? Block<float>{} : copied(c, block, count, room);
        for (int64_t row = first; row < last; row++)
            for (int64_t j = 0; j < shared_heads; j++) {
                const float slope = c.slopes ? c.slopes[head * shared_heads + j] : 0.0f;
                const int64_t i = row * shared_heads + j, behind = page * c.page_size - (c.length[item.first + row] - 1);
                if (in_place) attend(c, q + i * padded_k, block, count, slope, behind, p, state[i]);
                else attend(c, q + i * padded_k, copy, count, slope, behind, p, state[i]);
            }
    };
    for (int64_t page = begin; page < std::min(end, item.shared_pages); page++) visit(0, rows, page, c.page_size);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t length = c.length[item.first + row];
        if (begin * c.page_size >= length) continue;
        for (int64_t page = std::max(begin, item.shared_pages); page < end && page * c.page_size < length; page++)
            visit(row, row + 1, page, std::min(c.page_size, length - page * c.page_size));
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
    const int64_t padded_k = ceil_to(c.head_size, PAD);
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
    for (int64_t r = 0, begin = 0, end; begin < c.rows; r++, begin = end) {
        end = c.cu_groups ? c.cu_groups[r + 1] : r + 1;
        for (int64_t first = begin; first < end; first += MAX_ROWS) {
            int64_t last = std::min(end, first + MAX_ROWS);
            int64_t longest = *std::max_element(c.length + first, c.length + last);
            for (int64_t i = 0; i * piece < longest; i++)
                items.push_back({first, last, c.shared ? c.shared[r] / c.page_size : 0, i});
        }
    }
    const int64_t count = items.size() * c.kv_heads;
    // Heads of one page lie side by side: a thread takes a few in a row, as long as there are enough for all threads.
    const int64_t heads_a_turn = std::clamp<int64_t>(count / (4 * c.threads), 1, 4);
#pragma omp parallel num_threads(c.threads) if (count > 1)
    {
        static thread_local std::vector<float> memory;
#pragma omp for schedule(dynamic, heads_a_turn)
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

// What the Python side fills in: rows of keys and values, [rows, heads, K] each, and where they go. Steps in bytes.
struct Write {
    int64_t rows;
    const char *k, *v;
    char *k_pages, *v_pages;
    const int64_t *page, *slot;
    int64_t heads, bytes, threads;
    int64_t k_row, k_head, v_row, v_head, k_page, k_page_head, k_slot, v_page, v_page_head, v_slot;
};

}  // namespace

extern "C" {

int64_t piece_positions(int64_t page_size) { return std::max<int64_t>(1, PIECE / page_size) * page_size; }

void decode(const Call* c) { c->element_bytes == 4 ? run<float>(*c) : run<bf16>(*c); }

void write_pages(const Write* write) {
    const Write& w = *write;
#pragma omp parallel for num_threads(w.threads) schedule(static) if (w.rows * w.heads * w.bytes > 1 << 16)
    for (int64_t t = 0; t < w.rows; t++)
        for (int64_t g = 0; g < w.heads; g++) {
            memcpy(w.k_pages + w.page[t] * w.k_page + g * w.k_page_head + w.slot[t] * w.k_slot,
                   w.k + t * w.k_row + g * w.k_head, w.bytes);
            memcpy(w.v_pages + w.page[t] * w.v_page + g * w.v_page_head + w.slot[t] * w.v_slot,
                   w.v + t * w.v_row + g * w.v_head, w.bytes);
        }
}
}
