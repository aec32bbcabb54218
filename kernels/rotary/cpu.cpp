// Rotary position embedding in place: a few rows, too little work to share among threads.
#include <cstdint>

// What the Python side fills in: x [rows, heads, 2 half], rows `step` apart; cos and sin [rows, half].
struct Call {
    int64_t rows;
    float* x;
    const float *cos, *sin;
    int64_t step, heads, half;
};

extern "C" void rotate(const Call* call) {
    const auto& [rows, x, cos, sin, step, heads, half] = *call;
    for (int64_t t = 0; t < rows; t++)
        for (int64_t h = 0; h < heads; h++) {
            float *a = x + t * step + h * 2 * half, *b = a + half;
            const float *c = cos + t * half, *s = sin + t * half;
#pragma GCC ivdep
            for (int64_t i = 0; i < half; i++) {
                const float left = a[i], right = b[i];
                a[i] = left * c[i] - right * s[i];
                b[i] = right * c[i] + left * s[i];
            }
        }
}
