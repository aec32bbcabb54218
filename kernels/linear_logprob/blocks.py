"""linear_logprob over blocks of the vocabulary: one tile of logits exists at a time, and the backward makes it again.

T tokens (or a chunk of them), D model, V vocabulary, B rows of a block. A tile is z_BT = W_BD h_TD^T: tokens lie along
its rows, so that its sums run down the columns, and the product is the faster of the two orientations on CPU (bfloat16,
D = 256: 14 ms against 26). Blocks run over the vocabulary, not over tokens, because at V / D = 60 and more the traffic
of dW would drown the product.

bfloat16 products leave bfloat16 logits, as plain PyTorch's do. The target's own logit is a float32 dot product, and
takes the tile's place in the sums too: else a confident token's logprob could come out above 0.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.linear_logprob import cpu, eager

TILE_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 23}  # 2 MiB of bfloat16: what two cores hold in L2
LARGEST_TILE_ELEMENTS = 1 << 22  # with so many tokens that a block would else have too few rows for a good product
FORWARD_TOKENS = 4096  # tokens of one sweep over W
ACCUMULATOR_ELEMENTS = 6 << 20  # of a float32 sum for bfloat16 dh, 24 MiB, and a bfloat16 product beside it


def passes_for(device: torch.device, dtype: torch.dtype) -> ModuleType | cpu.Native:
    """Who works on the tiles: C++ on a CPU where it could be built, else PyTorch."""
    if device.type == "cpu" and dtype in cpu.DTYPES and cpu.library() is not None:
        return cpu.Native(cpu.library())
    return eager


def block_rows(tokens: int, vocab: int, device: torch.device) -> int:
    """Rows of the vocabulary in a tile."""
    tokens = max(1, tokens)
    wanted = max(TILE_ELEMENTS.get(device.type, 1 << 20) // tokens, min(128, LARGEST_TILE_ELEMENTS // tokens), 1)
    return min(wanted, vocab, 8192)


def operand(x: Tensor) -> Tensor:
    """x, in float32 where this processor has no bfloat16 product (AVX2 alone): there a product would take seconds."""
    slow = x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.float() if slow else x


class _Tiles:
    """Walks over the vocabulary: the tiles of one or two sets of hidden states, in memory taken once."""

    def __init__(self, h_TD: Tensor, ref_TD: Tensor | None, W_VD: Tensor, bias_V: Tensor | None):
        self.h_TD, self.ref_TD, self.W_VD, self.bias_V = h_TD, ref_TD, W_VD, bias_V
        self.block = block_rows(h_TD.shape[0], W_VD.shape[0], h_TD.device)

    def __iter__(self):
        """Yields first id, W_BD, z_BT, ref_BT or None, bias_B or None."""
        states = [self.h_TD] if self.ref_TD is None else [self.h_TD, self.ref_TD]
        tokens = self.h_TD.shape[0]
        store = [h.new_empty(self.block * tokens + cpu.SPARE) for h in states]
        for first in range(0, self.W_VD.shape[0], self.block):
            W_BD = operand(self.W_VD[first : first + self.block])
            tiles = [s[: len(W_BD) * tokens].view(len(W_BD), tokens) for s in store]
            for h, tile in zip(states, tiles):
                torch.mm(W_BD, h.T, out=tile)
            bias_B = None if self.bias_V is None else self.bias_V[first : first + self.block]
            yield first, W_BD, tiles[0], tiles[1] if len(tiles) > 1 else None, bias_B


def _row_dots(h_TD: Tensor, W_VD: Tensor, target_T: Tensor) -> Tensor:
    """float32 [T]: h_t . W[target_t], a MiB or so of rows at a time."""
    rows = max(1, (1 << 18) // W_VD.shape[1])
    pairs = zip(h_TD.split(rows), target_T.split(rows))
    return torch.cat([torch.linalg.vecdot(h.float(), W_VD[target].float()) for h, target in pairs])


def _times(weight: Tensor, x: Tensor) -> Tensor:
    """weight x, and 0 where the weight is: also where x is infinite there."""
    return torch.where(weight > 0, weight * x, 0)


def statistics(
    h_TD: Tensor, W_VD: Tensor, target_T: Tensor, scale: float, bias_V: Tensor | None, ref_TD: Tensor | None
) -> dict[str, Tensor]:
    """float64 [T] each: logprob, entropy, the logsumexp in two parts, top and log_sum.

    With a reference also ref_logprob, kl, and apart: the policy's logsumexp less the reference's.
    """
    chunks = []
    for start in range(0, max(1, h_TD.shape[0]), FORWARD_TOKENS):
        chunk = slice(start, start + FORWARD_TOKENS)
        ref = None if ref_TD is None else ref_TD[chunk]
        chunks.append(_chunk_statistics(h_TD[chunk], W_VD, target_T[chunk], scale, bias_V, ref))
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _chunk_statistics(h_TD, W_VD, target_T, scale, bias_V, ref_TD) -> dict[str, Tensor]:
    h_TD, ref_TD = operand(h_TD), None if ref_TD is None else operand(ref_TD)
    tokens = h_TD.shape[0]
    passes = passes_for(h_TD.device, h_TD.dtype)
    kept_P6T = h_TD.new_zeros(passes.PARTS, eager.KEPT, tokens, dtype=torch.float64)
    kept_P6T[:, [0, 3]] = torch.finfo(torch.float32).min  # finite: less -inf than -inf would be no number
    tile_2T = kept_P6T.new_zeros(2, tokens)
    for first, _, z_BT, ref_BT, bias_B in _Tiles(h_TD, ref_TD, W_VD, bias_V):
        passes.statistics(z_BT, ref_BT, bias_B, scale, kept_P6T, target_T, first, tile_2T)
    m, s, q, ref_m, ref_s, u = eager.merged(kept_P6T)

    def exact_logit(h: Tensor) -> Tensor:
        logit_T = _row_dots(h, W_VD, target_T).double()
        return (logit_T if bias_V is None else logit_T + bias_V[target_T]) * scale

    def with_exact(m: Tensor, s: Tensor, of_tile: Tensor, exact: Tensor):
        """The maximum and the sum with the exact logit in the tile's place; weights old, before and after of that."""
        top = torch.maximum(m, exact)
        old, before, after = (m - top).exp(), (of_tile - top).exp(), (exact - top).exp()
        return top, (s * old - before + after).maximum(after), old, before, after

    exact = exact_logit(h_TD)
    top, total, old, before, after = with_exact(m, s, tile_2T[0], exact)
    first = (q + s * (m - top)) * old - _times(before, tile_2T[0] - top) + _times(after, exact - top)
    log_sum = total.log()
    out = {"logprob": exact - top - log_sum, "entropy": log_sum - first / total, "top": top, "log_sum": log_sum}
    if ref_TD is not None:
        ref_exact = exact_logit(ref_TD)
        ref_top, ref_total, *_ = with_exact(ref_m, ref_s, tile_2T[1], ref_exact)
        difference = u * old - _times(before, tile_2T[0] - tile_2T[1]) + _times(after, exact - ref_exact)
        out["ref_logprob"] = ref_exact - ref_top - ref_total.log()
        out["apart"] = (top - ref_top) + (log_sum - ref_total.log())
        out["kl"] = difference / total - out["apart"]
    return out


def _sweep(h_TD, ref_TD, W_VD, bias_V, scale, per_token_6T, target_T, target_dz_T, dh_TD, dW_VD) -> None:
    """One walk over the vocabulary with dz in the tiles: adds to dh_TD and writes dW_VD, whichever is wanted."""
    h_TD, ref_TD = operand(h_TD), None if ref_TD is None else operand(ref_TD)
    passes = passes_for(h_TD.device, h_TD.dtype)
    product_TD = None
    for first, W_BD, z_BT, ref_BT, bias_B in _Tiles(h_TD, ref_TD, W_VD, bias_V):
        passes.gradient(z_BT, ref_BT, bias_B, scale, per_token_6T, target_T, first, target_dz_T)
        if dW_VD is not None:
            block_BD = dW_VD[first : first + len(W_BD)]
            if block_BD.dtype == z_BT.dtype:
                torch.mm(z_BT, h_TD, out=block_BD)
            else:
                block_BD.copy_(z_BT @ h_TD)
        if dh_TD is None:
            continue
        if dh_TD.dtype == z_BT.dtype:
            dh_TD.addmm_(z_BT.T, W_BD)
        else:
            product_TD = torch.mm(z_BT.T, W_BD, out=torch.empty_like(h_TD) if product_TD is None else product_TD)
            dh_TD += product_TD


class LinearLogprob(torch.autograd.Function):
    """logprob, logsumexp, entropy; with ref_TD also ref_logprob and kl. Nothing flows into bias_V and ref_TD."""

    @staticmethod
    def forward(ctx, h_TD, W_VD, target_T, temperature, bias_V, ref_TD):
        # The C++ reads float32; the same rounded number everywhere.
        scale = torch.tensor(1 / temperature, dtype=torch.float32).item()
        bias_V = None if bias_V is None else bias_V.detach().float().contiguous()
        target_T = target_T.contiguous()
        out = statistics(h_TD, W_VD, target_T, scale, bias_V, ref_TD)
        logsumexp = out["top"] + out["log_sum"]
        top = out["top"].float()
        columns = {"logprob": out["logprob"], "entropy": out["entropy"], "top": top, "log_sum": logsumexp - top}
        if ref_TD is not None:
            columns |= {"kl": out["kl"], "apart": out["apart"]}
        ctx.names = list(columns)
        ctx.scale = scale
        ctx.save_for_backward(h_TD, W_VD, target_T, bias_V, ref_TD, *(c.float() for c in columns.values()))
        outputs = [out["logprob"].float(), logsumexp.float(), out["entropy"].float()]
        if ref_TD is not None:
            outputs += [out["ref_logprob"].float(), out["kl"].float()]
            ctx.mark_non_differentiable(outputs[3])
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logprob_T, g_logsumexp_T, g_entropy_T, g_ref_logprob_T=None, g_kl_T=None):
        h_TD, W_VD, target_T, bias_V, ref_TD, *saved = ctx.saved_tensors
        column = dict(zip(ctx.names, saved))
        if g_kl_T is None or not g_kl_T.count_nonzero():
            g_kl_T = torch.zeros_like(g_logprob_T)
            ref_TD = None  # its logits are needed for the gradient of kl alone
        # d logprob / dz_j = [j = target] - p_j; d logsumexp / dz_j = p_j; d entropy / dz_j = -p_j (log p_j + entropy);
        # d kl / dz_j = p_j (log p_j - log p_ref_j - kl). Together p_j (a + b log p_j + c (log p_j - log p_ref_j)).
        a = g_logsumexp_T - g_entropy_T * column["entropy"]
        if ref_TD is not None:
            a = a - g_kl_T * column["kl"]
        b, c = -g_entropy_T, g_kl_T
        logprob, apart = column["logprob"], column.get("apart", torch.zeros_like(a))
        at_target = a + b * logprob.clamp(min=-1e4)
        if ref_TD is not None:
            logit_T = (_row_dots(h_TD, W_VD, target_T) - _row_dots(ref_TD, W_VD, target_T)) * ctx.scale
            at_target = at_target + c * (logit_T - apart)
        # 1 - p as -expm1(log p): of a confident token nothing is lost.
        target_dz_T = ctx.scale * (at_target * logprob.exp() - g_logprob_T * logprob.expm1())
        weights = [ctx.scale * (a - g_logprob_T), ctx.scale * b, ctx.scale * c]
        per_token_6T = torch.stack([column["top"], column["log_sum"], *weights, apart])

        def sweep(chunk: slice, dh_TD: Tensor | None, dW_VD: Tensor | None) -> None:
            ref = None if ref_TD is None else ref_TD[chunk]
            columns = per_token_6T[:, chunk].contiguous(), target_T[chunk], target_dz_T[chunk].contiguous()
            _sweep(h_TD[chunk], ref, W_VD, bias_V, ctx.scale, *columns, dh_TD, dW_VD)

        return *_gradients(h_TD, W_VD, ctx.needs_input_grad, sweep), None, None, None, None


def _gradients(h_TD: Tensor, W_VD: Tensor, needed: tuple[bool, ...], sweep) -> tuple[Tensor | None, Tensor | None]:
    """dh and dW from as few sweeps as the memory for a float32 sum of dh allows."""
    everything = slice(None)
    dW_VD = torch.empty(W_VD.shape, dtype=W_VD.dtype, device=W_VD.device) if needed[1] else None
    if not needed[0]:
        if dW_VD is not None:
            sweep(everything, None, dW_VD)
        return None, dW_VD
    if h_TD.dtype == torch.float32:
        dh_TD = torch.zeros(h_TD.shape, dtype=h_TD.dtype, device=h_TD.device)
        sweep(everything, dh_TD, dW_VD)
        return dh_TD, dW_VD
    tokens = max(1, ACCUMULATOR_ELEMENTS // h_TD.shape[1])
    if h_TD.shape[0] <= tokens:
        sum_TD = torch.zeros(h_TD.shape, dtype=torch.float32, device=h_TD.device)
        sweep(everything, sum_TD, dW_VD)
        return sum_TD.to(h_TD.dtype), dW_VD
    # Not both at once: dh is summed over the vocabulary and dW over the tokens, and float32 sums of neither fit.
    dh_TD = torch.empty(h_TD.shape, dtype=h_TD.dtype, device=h_TD.device)
    for start in range(0, h_TD.shape[0], tokens):
        chunk = slice(start, start + tokens)
        sum_TD = torch.zeros(dh_TD[chunk].shape, dtype=torch.float32, device=h_TD.device)
        sweep(chunk, sum_TD, None)
        dh_TD[chunk] = sum_TD
    if dW_VD is not None:
        sweep(everything, None, dW_VD)
    return dh_TD, dW_VD
