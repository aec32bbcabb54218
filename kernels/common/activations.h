// Activations of sixteen numbers at a time, exact to a few units in the last place over the whole range of floats.
#pragma once
#include "vector.h"

namespace vec {

static inline floats sigmoid(floats x) {
    const floats zero = {}, e = exp(-where_above(zero, x, -x, x));  // the argument is never positive: no overflow
    return where_above(zero, x, e, all(1.0f)) / (e + 1.0f);
}

static inline floats gelu(floats x) {  // x / 2 (1 + tanh(u)) = x sigmoid(2 u)
    return x * sigmoid(x * (x * x * 0.044715f + 1.0f) * 1.5957691216f);
}

static inline floats silu(floats x) { return x * sigmoid(x); }

}  // namespace vec
