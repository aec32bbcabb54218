// Rotary position embedding in place: a few rows, too little work to share among threads.
#include <cstdint>

// x [rows, heads, 2 half], rows `step` apart; cos and sin [rows, half].
extern "C" void rotate(float* x, const float* cos, const float* sin, int64_t rows, int64_t step, int64_t heads, int64_t half) {
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
