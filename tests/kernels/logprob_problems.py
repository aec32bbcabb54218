"""Problems for linear_logprob: random inputs, what plain PyTorch and float64 say of them, and how far one is off."""

import torch

from kernels.linear_logprob import bfloat16, blocks, linear_logprob_pair_reference

NAMES = ("logprob", "logsumexp", "entropy", "ref_logprob", "kl", "dh", "dW")


def plain(h_TD, W_VD, target_T, ref_TD, temperature, bias_V):
    """What one writes without a kernel: the product in the dtype of its inputs, the rest in float32."""

    def log_p(h):
        z = (h @ W_VD.T).float()
        return ((z if bias_V is None else z + bias_V) / temperature).log_softmax(-1), z

    log_p_TV, z_TV = log_p(h_TD)
    log_ref_TV = log_p(ref_TD)[0].detach()
    logsumexp_T = ((z_TV if bias_V is None else z_TV + bias_V) / temperature).logsumexp(-1)
    p_TV, column = log_p_TV.exp(), target_T[:, None]
    return (
        log_p_TV.gather(1, column)[:, 0],
        logsumexp_T,
        -(p_TV * log_p_TV).sum(-1),
        log_ref_TV.gather(1, column)[:, 0],
        (p_TV * (log_p_TV - log_ref_TV)).sum(-1),
    )


def problem(tokens, vocab, size, seed, dtype=torch.float32, scale=1.0, shift=0.0, with_bias=False):
    g = torch.Generator().manual_seed(seed)
    h = (torch.randn(tokens, size, generator=g) * scale).to(dtype)
    ref = (h.float() + 0.2 * scale * torch.randn(tokens, size, generator=g)).to(dtype)
    W = torch.randn(vocab, size, generator=g).to(dtype)
    if shift:  # every logit near `shift`: the first feature of h is 1, that of W the shift
        h[:, 0], ref[:, 0], W[:, 0] = 1, 1, shift
    bias = torch.randn(vocab, generator=g) if with_bias else None
    return h, W, torch.randint(vocab, (tokens,), generator=g), ref, bias, torch.randn(5, tokens, generator=g)


def outputs_and_gradients(function, h, W, target, ref, temperature, bias, weights, dtype=None):
    def cast(x):
        return x if dtype is None or x is None else x.to(dtype)

    h, W = cast(h).clone().requires_grad_(), cast(W).clone().requires_grad_()
    outputs = function(h, W, target, cast(ref), temperature, cast(bias))
    # One weighted sum of all outputs; the fourth is a constant.
    torch.stack([(o * cast(w)).sum() for o, w in zip(outputs, weights)]).sum().backward()
    return [x.detach().double() for x in (*outputs, h.grad, W.grad)]


def errors(function, truth, *arguments):
    """Largest error of each output and gradient, in units of the largest true value or 1."""
    found = outputs_and_gradients(function, *arguments)
    return [float((a - b).abs().max() / b.abs().max().clamp(min=1)) if b.numel() else 0.0 for a, b in zip(found, truth)]


def truth_of(h, W, target, ref, temperature, bias, weights):
    arguments = h, W, target, ref, temperature, bias, weights
    return outputs_and_gradients(linear_logprob_pair_reference, *arguments, dtype=torch.float64)


def shrink_blocks(monkeypatch):
    """Several blocks and chunks, the last ones short, where the sizes would fit in one."""
    monkeypatch.setattr(blocks, "TILE_ELEMENTS", 300)
    monkeypatch.setattr(blocks, "EAGER_TILE_ELEMENTS", 300)
    monkeypatch.setattr(blocks, "LARGEST_TILE_ELEMENTS", 400)
    monkeypatch.setattr(blocks, "FORWARD_TOKENS", 20)
    monkeypatch.setattr(blocks, "NARROW_BLOCK_ELEMENTS", 400)
    monkeypatch.setattr(blocks, "NARROW_CHUNK_ELEMENTS", 250)
    monkeypatch.setattr(bfloat16, "CHUNK_TOKENS", 32)
    monkeypatch.setattr(bfloat16, "BLOCK_ELEMENTS", 3000)
