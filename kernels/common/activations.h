// Activations of sixteen numbers at a time, exact to a few units in the last place over the whole range of floats.
#pragma once
#include "vector.h"

namespace vec {

static inline floats sigmoid(floats x) {
    const floats e = exp(-(x < 0.0f ? -x : x));  // the argument is never positive, so this cannot overflow
    return (x < 0.0f ? e : all(1.0f)) / (e + 1.0f);
}

static inline floats gelu(floats x) {  // x / 2 (1 + tanh(u)) = x sigmoid(2 u)
    return x * sigmoid(x * (x * x * 0.044715f + 1.0f) * 1.5957691216f);
}

static inline floats silu(floats x) { return x * sigmoid(x); }

}  // namespace vec
