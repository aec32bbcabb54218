"""The specification of skinny_linear: plain PyTorch, in the dtype of its input."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, layer_norm, linear, rms_norm, silu

from kernels.common.codes import Codes


def skinny_linear_reference(x_TD, weights, biases, norm=None, activation=None, residual_TN=None):
    """Return what `kernels.skinny_linear.skinny_linear` returns."""
    if norm is not None and norm.bias_D is not None:
        x_TD = layer_norm(x_TD, norm.weight_D.shape, norm.weight_D, norm.bias_D, norm.eps)
    elif norm is not None:
        x_TD = rms_norm(x_TD, norm.weight_D.shape, norm.weight_D + float(norm.centred), norm.eps)
    weights = [w.values().to(x_TD.dtype) if isinstance(w, Codes) else w for w in weights]
    outputs = [linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    if activation in ("swiglu", "geglu"):
        gate_TN, up_TN = outputs
        y_TN = (silu(gate_TN) if activation == "swiglu" else gelu(gate_TN, approximate="tanh")) * up_TN
    else:
        y_TN = torch.cat(outputs, dim=1)
        y_TN = gelu(y_TN, approximate="tanh") if activation == "gelu" else y_TN
    return y_TN if residual_TN is None else y_TN + residual_TN
