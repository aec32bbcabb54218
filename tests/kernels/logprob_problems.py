"""Problems for linear_logprob: random inputs, the answers of plain PyTorch and of float64, and error measures."""

import torch

from kernels.linear_logprob import bfloat16, blocks, linear_logprob_reference

NAMES = ("logprob", "logsumexp", "entropy", "dh", "dW")


def plain(h_TD, W_VD, target_T, temperature):
    """Compute as one does without a kernel: the product in the dtype of its inputs, the rest in float32."""
    z_TV = (h_TD @ W_VD.T).float() / temperature
    log_p_TV = z_TV.log_softmax(-1)
    logprob_T = log_p_TV.gather(1, target_T[:, None])[:, 0]
    return logprob_T, z_TV.logsumexp(-1), -(log_p_TV.exp() * log_p_TV).sum(-1)


def problem(tokens, vocab, size, seed, dtype=torch.float32, scale=1.0, shift=0.0):
    """Return h, W, the targets, and weights [3, T] for one sum of all outputs."""
    g = torch.Generator().manual_seed(seed)
    h = (torch.randn(tokens, size, generator=g) * scale).to(dtype)
    W = torch.randn(vocab, size, generator=g).to(dtype)
    if shift:  # every logit near `shift`: the first feature of h is 1, that of W is `shift`
        h[:, 0], W[:, 0] = 1, shift
    return h, W, torch.randint(vocab, (tokens,), generator=g), torch.randn(3, tokens, generator=g)


def outputs_and_gradients(function, h, W, target, temperature, weights, dtype=None):
    """Return the outputs, dh and dW of `function` as float64; computed in `dtype` if given."""
    h, W, weights = (x if dtype is None else x.to(dtype) for x in (h, W, weights))
    h, W = h.clone().requires_grad_(), W.clone().requires_grad_()
    outputs = function(h, W, target, temperature)
    torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum().backward()
    return [x.detach().double() for x in (*outputs, h.grad, W.grad)]


def errors(function, truth, *arguments):
    """Return the largest error of each output and gradient, relative to its largest true value (at least 1)."""
    found = outputs_and_gradients(function, *arguments)
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1)) if b.numel() else 0.0 for a, b in zip(found, truth)]


def truth_of(*arguments):
    """Return the reference's outputs and gradients in float64."""
    return outputs_and_gradients(linear_logprob_reference, *arguments, dtype=torch.float64)


def shrink_blocks(monkeypatch):
    """Make small inputs need several blocks and chunks, the last of them short."""
    monkeypatch.setattr(blocks, "TILE_ELEMENTS", 300)
    monkeypatch.setattr(blocks, "EAGER_TILE_ELEMENTS", 300)
    monkeypatch.setattr(blocks, "LARGEST_TILE_ELEMENTS", 400)
    monkeypatch.setattr(blocks, "FORWARD_TOKENS", 20)
    monkeypatch.setattr(blocks, "NARROW_BLOCK_ELEMENTS", 400)
    monkeypatch.setattr(blocks, "NARROW_CHUNK_ELEMENTS", 250)
    monkeypatch.setattr(bfloat16, "CHUNK_TOKENS", 32)
    monkeypatch.setattr(bfloat16, "BLOCK_ELEMENTS", 3000)
