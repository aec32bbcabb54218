// attention_decode on CPU: reads each page once for all rows and heads that share it, with one online softmax per
// query.
//
// Shapes as in kernels/attention_decode/__init__.py: S rows, H heads, G key/value heads, K head size, P pages of N
// positions, B pages per row, R groups. A query's sums run over its pages in order, in chunks that start at fixed
// positions: sharing, other rows and the number of threads change no bit of a result.
#include "products.h"

#include <cmath>
#include <vector>

namespace {

const floats IOTA = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

constexpr int64_t CHUNK = 512;    // positions of a row per thread, about
constexpr int64_t MAX_ROWS = 16;  // rows of a group per thread
constexpr int64_t MOST_QUERIES = 128;  // per item: their state stays in the L2 cache

// Filled in by Python. Strides in elements.
struct Call {
    int64_t rows;
    const void *q, *k, *v;
    void* out;
    const int32_t *table, *length;
    const float* slopes;  // or null
    const int32_t *cu_groups, *shared;  // or null
    float* partial;  // [S, H, chunks, 2 + padded K], or null when every row fits one chunk
    int64_t heads, kv_heads, head_size, page_size, table_width, chunks, threads, element_bytes;
    int64_t window;  // a row sees its last `window` positions
    int64_t q_row, q_head, k_page, k_head, k_slot, v_page, v_head, v_slot;
    float scale;
};

int64_t ceil_to(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

// One page from one key/value head on. Positions are `slot` apart, heads are `head` apart. K is a multiple of PAD.
template <typename T>
struct Block {
    const T *k, *v;
    int64_t k_slot, v_slot, k_head, v_head;
};

struct State {
    float max, sum;
    float* acc;  // [padded K]
};

// Replaces one query's scores for the first `count` positions of a page by their weights. Returns the factor for the
// sums of earlier positions.
inline float online_softmax(float* p, int64_t count, State& state) {
    floats most = vec::all(-INFINITY), sum = {};
    for (int64_t n = 0; n < count; n += vec::kLanes) most = vec::max(load(p + n), most);
    const float max = std::max(state.max, largest(most));
    if (max == -INFINITY) {  // the window begins after this page
        std::fill(p, p + count, 0.0f);
        return 1.0f;
    }
    const float rescale = state.max == max ? 1.0f : std::exp(state.max - max);
    for (int64_t n = 0; n < count; n += vec::kLanes) {
        const floats weight = vec::exp(load(p + n) - max);
        store(p + n, weight);
        sum += weight;
    }
    state.max = max;
    state.sum = state.sum * rescale + total(sum);
    return rescale;
}

// A unit of work: rows of one group, one chunk of their positions, some key/value heads.
struct Item {
    int64_t first, last, shared_pages, chunk, head, heads;
};

// Attends with the queries of some rows, ordered by row and head, over the first `count` positions of a page. offset[r]
// is the page's first position minus row r's last. Works on sixteen positions at a time for all heads, which are
// adjacent in memory, and prefetches the next sixteen: memory is read in order, ahead of its use.
template <typename T>
void attend(const Call& c, const Item& item, int64_t rows, const float* q, const Block<T>& b, int64_t count,
            const int64_t* offset, float* p, State* state, const T* next) {
    const int64_t padded_k = ceil_to(c.head_size, PAD), padded_n = ceil_to(c.page_size, vec::kLanes);
    const int64_t shared_heads = c.heads / c.kv_heads, queries = rows * item.heads * shared_heads;
    auto each_query = [&](auto&& visit) {
        int64_t i = 0;
        for (int64_t row = 0; row < rows; row++)
            for (int64_t h = 0; h < item.heads; h++)
                for (int64_t j = 0; j < shared_heads; j++) visit(i++, row, h, j);
    };
    for (int64_t n = 0; n < count; n += vec::kLanes) {
        const T *k = b.k + n * b.k_slot, *then = n + vec::kLanes < count ? k + vec::kLanes * b.k_slot : b.v;
        each_query([&](int64_t i, int64_t row, int64_t h, int64_t j) {
            const float slope = c.slopes ? c.slopes[(item.head + h) * shared_heads + j] : 0.0f;
            const floats dot =
                dots(q + i * padded_k, k + h * b.k_head, b.k_slot, padded_k, count - n, then + h * b.k_head);
            // Positions relative to the row's last keep the bias small where the weights are large.
            const floats score = dot * c.scale + (IOTA + (float)(offset[row] + n)) * slope;
            const floats never = vec::all(-INFINITY), seen = vec::where_above(vec::all(count - n), IOTA, score, never);
            const float before = -c.window - (offset[row] + n);  // lanes up to this one are before the row's window
            store(p + i * padded_n + n, vec::where_above(IOTA, vec::all(before), seen, never));
        });
    }
    float* rescale = p + queries * padded_n;
    for (int64_t i = 0; i < queries; i++) rescale[i] = online_softmax(p + i * padded_n, count, state[i]);
    for (int64_t n = 0; n < count; n += vec::kLanes) {
        const T *v = b.v + n * b.v_slot, *then = n + vec::kLanes < count ? v + vec::kLanes * b.v_slot : next;
        const int64_t here = std::min<int64_t>(vec::kLanes, count - n);
        each_query([&](int64_t i, int64_t, int64_t h, int64_t) {
            const float *weights = p + i * padded_n + n, scale = n ? 1.0f : rescale[i];
            const T *from = v + h * b.v_head, *later = then + h * b.v_head;
            float* acc = state[i].acc;
            int64_t d = 0;
            for (; MANY && d + 2 * PAD <= padded_k; d += 2 * PAD)
                add_values<2>(weights, from + d, b.v_slot, here, scale, acc + d, later + d);
            for (; d < padded_k; d += PAD) add_values<1>(weights, from + d, b.v_slot, here, scale, acc + d, later + d);
        });
    }
}

template <typename T>
inline void write_out(T* out, const float* acc, float sum, int64_t head_size) {
    for (int64_t d = 0; d < head_size; d += vec::kLanes)
        vec::store(out + d, load(acc + d) / sum, (int)std::min<int64_t>(vec::kLanes, head_size - d));
}

// Copies the first `count` positions of a page to floats, with each key and value zero-padded.
template <typename T>
Block<float> copied(const Call& c, const Block<T>& page, int64_t heads, int64_t count, float* room) {
    const int64_t head = ceil_to(c.head_size, PAD), slot = heads * head;
    float* room_v = room + c.page_size * slot;
    std::fill(room, room + 2 * c.page_size * slot, 0.0f);
    for (int64_t n = 0; n < count; n++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t d = 0; d < c.head_size; d++) {
                room[n * slot + h * head + d] = to_float(page.k[n * page.k_slot + h * page.k_head + d]);
                room_v[n * slot + h * head + d] = to_float(page.v[n * page.v_slot + h * page.v_head + d]);
            }
    return {room, room_v, slot, slot, head, head};
}

template <typename T>
void run_item(const Call& c, const Item& item, std::vector<float>& memory, std::vector<State>& state) {
    const int64_t rows = item.last - item.first, shared_heads = c.heads / c.kv_heads;
    const int64_t padded_k = ceil_to(c.head_size, PAD), padded_n = ceil_to(c.page_size, vec::kLanes);
    const int64_t chunk_pages = std::max<int64_t>(1, CHUNK / c.page_size);
    const int64_t begin = item.chunk * chunk_pages, end = begin + chunk_pages;
    const int64_t a_row = item.heads * shared_heads, queries = rows * a_row;
    const bool in_place = c.head_size % PAD == 0;
    const int64_t room_size = in_place ? 0 : 2 * c.page_size * item.heads * padded_k;
    const int64_t weights_size = ceil_to(queries * (padded_n + 1), vec::kLanes);
    const size_t needed = weights_size + room_size + 2 * queries * padded_k;
    if (memory.size() < needed) memory.assign(needed, 0.0f);
    float *p = memory.data(), *room = p + weights_size, *q = room + room_size, *acc = q + queries * padded_k;
    state.resize(queries);
    std::fill(q, q + 2 * queries * padded_k, 0.0f);
    for (int64_t i = 0; i < queries; i++) {
        const T* from = (const T*)c.q + (item.first + i / a_row) * c.q_row + (item.head * shared_heads + i % a_row) * c.q_head;
        for (int64_t d = 0; d < c.head_size; d++)
            q[i * padded_k + (in_place ? split_index<T>(d) : d)] = to_float(from[d]);
        state[i] = {-INFINITY, 0.0f, acc + i * padded_k};
    }
    auto keys = [&](int64_t row, int64_t page) {
        return (const T*)c.k + c.table[row * c.table_width + page] * c.k_page + item.head * c.k_head;
    };
    // Attends with rows `first` to `last` of the item over the first `count` positions of one page.
    auto visit = [&](int64_t first, int64_t last, int64_t page, int64_t count) {
        const int64_t row = item.first + first, after = std::min(row + 1, c.rows - 1);
        const int64_t at = c.table[row * c.table_width + page];
        const bool more = page + 1 < end && (page + 1) * c.page_size < c.length[row];
        const T* next = more ? keys(row, page + 1) : keys(after, begin * c.page_size < c.length[after] ? begin : 0);
        const T* v = (const T*)c.v + at * c.v_page + item.head * c.v_head;
        const Block<T> block = {keys(row, page), v, c.k_slot, c.v_slot, c.k_head, c.v_head};
        const Block<float> copy = in_place ? Block<float>{} : copied(c, block, item.heads, count, room);
        int64_t offset[MAX_ROWS];
        for (int64_t r = first; r < last; r++) offset[r - first] = page * c.page_size - (c.length[item.first + r] - 1);
        const float* q_rows = q + first * a_row * padded_k;
        State* states = &state[first * a_row];
        if (in_place) attend(c, item, last - first, q_rows, block, count, offset, p, states, next);
        else attend(c, item, last - first, q_rows, copy, count, offset, p, states, (const float*)room);
    };
    // Returns the first page that a row sees.
    auto first_page = [&](int64_t row) { return std::max<int64_t>(0, c.length[item.first + row] - c.window) / c.page_size; };
    int64_t nearest = end;
    for (int64_t row = 0; row < rows; row++) nearest = std::min(nearest, first_page(row));
    for (int64_t page = std::max(begin, nearest); page < std::min(end, item.shared_pages); page++)
        visit(0, rows, page, c.page_size);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t length = c.length[item.first + row];
        if (begin * c.page_size >= length) continue;
        for (int64_t page = std::max({begin, item.shared_pages, first_page(row)}); page < end && page * c.page_size < length; page++)
            visit(row, row + 1, page, std::min(c.page_size, length - page * c.page_size));
        for (int64_t j = 0; j < a_row; j++) {
            const State& s = state[row * a_row + j];
            const int64_t query = (item.first + row) * c.heads + item.head * shared_heads + j;
            if (length > chunk_pages * c.page_size) {
                float* to = c.partial + (query * c.chunks + item.chunk) * (2 + padded_k);
                to[0] = s.max;
                to[1] = s.sum;
                std::copy(s.acc, s.acc + padded_k, to + 2);
            } else {
                write_out((T*)c.out + query * c.head_size, s.acc, s.sum, c.head_size);
            }
        }
    }
}

// Merges the chunks of a long row, in order.
template <typename T>
void merge(const Call& c, int64_t query, int64_t chunks, std::vector<float>& memory) {
    const int64_t padded_k = ceil_to(c.head_size, PAD);
    const float* from = c.partial + query * c.chunks * (2 + padded_k);
    memory.assign(std::max<size_t>(memory.size(), padded_k), 0.0f);
    float max = -INFINITY, sum = 0.0f, *acc = memory.data();
    for (int64_t i = 0; i < chunks; i++) max = std::max(max, from[i * (2 + padded_k)]);
    for (int64_t i = 0; i < chunks; i++, from += 2 + padded_k) {
        float weight = std::exp(from[0] - max);
        sum += weight * from[1];
        for (int64_t d = 0; d < padded_k; d++) acc[d] += weight * from[2 + d];
    }
    write_out((T*)c.out + query * c.head_size, acc, sum, c.head_size);
}

// Returns how many key/value heads an item takes: all of them, so that it reads whole positions. With too many queries
// per item, or too few items for the threads, it takes a half, a quarter, ... as far as the number divides.
int64_t heads_of_an_item(const Call& c, int64_t rows, int64_t items) {
    int64_t heads = c.kv_heads;
    const auto too_many = [&] {
        return rows * heads * (c.heads / c.kv_heads) > MOST_QUERIES || items * (c.kv_heads / heads) < 2 * c.threads;
    };
    while (heads % 2 == 0 && too_many()) heads /= 2;
    return heads;
}

template <typename T>
void run(const Call& c) {
    const int64_t chunk = std::max<int64_t>(1, CHUNK / c.page_size) * c.page_size;
    std::vector<Item> items;
    for (int64_t r = 0, begin = 0, end; begin < c.rows; r++, begin = end) {
        end = c.cu_groups ? std::min<int64_t>(c.cu_groups[r + 1], c.rows) : r + 1;
        for (int64_t first = begin; first < end; first += MAX_ROWS) {
            const int64_t last = std::min(end, first + MAX_ROWS), heads = heads_of_an_item(c, last - first, c.rows);
            const int64_t longest = *std::max_element(c.length + first, c.length + last);
            for (int64_t i = 0; i * chunk < longest; i++)
                for (int64_t head = 0; head < c.kv_heads; head += heads)
                    items.push_back({first, last, c.shared ? c.shared[r] / c.page_size : 0, i, head, heads});
        }
    }
#pragma omp parallel num_threads(c.threads) if (items.size() > 1)
    {
        static thread_local std::vector<float> memory;
        static thread_local std::vector<State> state;
#pragma omp for schedule(dynamic, 1)
        for (size_t i = 0; i < items.size(); i++) run_item<T>(c, items[i], memory, state);
        if (c.partial) {
#pragma omp for schedule(static)
            for (int64_t i = 0; i < c.rows * c.heads; i++) {
                int64_t chunks = (c.length[i / c.heads] + chunk - 1) / chunk;
                if (chunks > 1) merge<T>(c, i, chunks, memory);
            }
        }
    }
}

// Filled in by Python: rows of keys and values, [rows, heads, K] each, and their destination. Steps in bytes.
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

int64_t chunk_positions(int64_t page_size) { return std::max<int64_t>(1, CHUNK / page_size) * page_size; }

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
