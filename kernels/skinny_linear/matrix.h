// How a weight is read: float32 from memory, or codes of 8 or 4 bits, dequantised in registers on their way to the product.
//
// Codes come in groups of 32 along a row, each with a bfloat16 scale. A row fills its last group with zeros. The product of
// codes has the bits of the product of their float32 values, and reads a quarter or an eighth as much memory.
#pragma once
#include <algorithm>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "../common/vector.h"

namespace {

using vec::floats;
using vec::kLanes;

constexpr int kAhead = 128;      // floats that each stream is prefetched ahead
constexpr int kBytesAhead = 256; // and bytes of codes
constexpr int kGroup = 32;       // codes per scale

// Loads and stores whole vectors through an unaligned type: with memcpy, GCC 12 splits arrays of vectors.
typedef float anywhere __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
inline floats load(const float* at) { return *(const anywhere*)at; }
inline void store(float* at, floats x) { *(anywhere*)at = x; }

template <bool Full>
inline floats load_lanes(const float* at, int lanes) {
    if (Full) return load(at);
    floats x = {};
    memcpy(&x, at, sizeof(float) * lanes);
    return x;
}

// A row of W. get(k): the values of columns k to k + 15, k a multiple of 16; get_part(k, lanes): the first lanes of them.
struct FloatRow {
    const float* at;
    floats get(int64_t k) const { return load(at + k); }
    floats get_part(int64_t k, int lanes) const { return load_lanes<false>(at + k, lanes); }
    void prefetch(int64_t k) const { __builtin_prefetch(at + k + kAhead, 0, 3); }
};

struct FloatMatrix {
    static constexpr bool in_memory = true;
    const float* at;
    int64_t K;
    FloatRow row(int64_t n) const { return {at + n * K}; }
};

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint8_t bytes8 __attribute__((vector_size(8)));
typedef uint16_t pairs8 __attribute__((vector_size(16)));

template <int Bits>
struct CodeRow {
    const uint8_t* codes;
    const uint16_t* scales;

    floats get(int64_t k) const {
        const uint32_t bits = (uint32_t)scales[(uint64_t)k / kGroup] << 16;
        float scale;
        memcpy(&scale, &bits, 4);
        const uint8_t* at = codes + (uint64_t)k * Bits / 8;
#ifdef __AVX512F__
        if (Bits == 8) return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at))) * scale;
        // The lower half of a byte becomes the lower half of a first integer, its upper half that of a second. What is
        // above these four bits is not looked at.
        const __m512i both = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)at));
        const __m512i code = _mm512_or_si512(both, _mm512_slli_epi64(both, 28));
        constexpr floats values = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
        return (floats)_mm512_permutexvar_ps(code, (__m512)(values * scale));
#else
        bytes16 x;
        if (Bits == 8) memcpy(&x, at, 16);
        else {  // the even code of a pair is in the lower half of its byte: give each code a byte
            bytes8 packed;
            memcpy(&packed, at, 8);
            const pairs8 pairs = __builtin_convertvector(packed, pairs8);
            x = (bytes16)((pairs | pairs << 4) & 0x0f0f);
        }
        constexpr int sign = 1 << (Bits - 1);
        // In two steps: GCC 12 widens bytes to integers one by one.
        const vec::words code = __builtin_convertvector(__builtin_convertvector(x, vec::halves), vec::words);
        return __builtin_convertvector(((vec::ints)code ^ sign) - sign, floats) * scale;
#endif
    }

    floats get_part(int64_t k, int) const { return get(k); }  // the others are zeros
    void prefetch(int64_t k) const { __builtin_prefetch(codes + k * Bits / 8 + kBytesAhead, 0, 3); }
};

template <int Bits>
struct CodeMatrix {
    static constexpr bool in_memory = false;
    const uint8_t* codes;
    const uint16_t* scales;
    int64_t groups;
    CodeRow<Bits> row(int64_t n) const {
        return {codes + n * groups * (kGroup * Bits / 8), scales + n * groups};
    }
};

// Columns k0 to k1 - 1 of `Rows` rows that are `stretch` apart, as floats: column k of row j is at[j * step + k].
template <int Rows>
struct Window {
    const float* at;
    int64_t step;

    Window(const FloatMatrix& w, int64_t n, int64_t stretch, int64_t, int64_t, float*)
        : at(w.at + n * w.K), step(stretch * w.K) {}

    template <int Bits>
    Window(const CodeMatrix<Bits>& w, int64_t n, int64_t stretch, int64_t k0, int64_t k1, float* room)
        : at(room - k0), step((k1 - k0 + kGroup - 1) / kGroup * kGroup) {
        for (int j = 0; j < Rows; j++) {
            const CodeRow<Bits> row = w.row(n + j * stretch);
            row.prefetch(k0);
            for (int64_t k = k0; k < k1; k += kLanes) store(room + j * step + k - k0, row.get(k));
        }
    }
};

}  // namespace
