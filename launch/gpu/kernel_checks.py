"""Stage 1, kernels: each Triton kernel and plain PyTorch in the same dtype, both against float64.

CHECKS is the list: a new kernel is one function and one line there. Shapes: T tokens, S rows, D model, V vocabulary,
H heads, G key/value heads, K head size, N positions of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.attention import attention_reference
from kernels.attention_decode import attention_decode_reference, empty_pages
from kernels.common.codes import Codes
from kernels.linear_logprob import autograd as logprob_autograd
from kernels.linear_logprob import linear_logprob, linear_logprob_reference
from kernels.sampling import sample_rows
from kernels.segment_scan import segment_scan_reference
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Measured, right

# Two ways of equal quality differ by so much by chance; in float32 the order of a sum is all there is.
MOST_RATIO = {torch.float32: 2.0, torch.bfloat16: 1.25}
FLOAT32_ONLY = ("segment_scan",)  # rewards and values are float32 in any run
Results = Sequence[Tensor]


@dataclass(frozen=True)
class Problem:
    """Three ways to compute the same results: the kernel, plain PyTorch in its dtype, and in float64."""

    ours: Callable[[], Results]
    plain: Callable[[], Results]
    truth: Callable[[], Results]


def cases(lab: Lab) -> list[Case]:
    """Return each check: odd sizes in float32 and bfloat16, and a 7B shape in bfloat16."""
    found = []
    for name, build in CHECKS.items():
        half = torch.float32 if name in FLOAT32_ONLY else torch.bfloat16
        # The interpreter cuts bfloat16 where a GPU rounds: a fake run has float32 alone.
        sizes = {(torch.float32, False)} | (set() if lab.fake else {(half, False), (half, True)})
        for dtype, is_large in sorted(sizes, key=str):
            measure = partial(_compare, lab, build, dtype, is_large)
            shape = f"{'7B shape' if is_large else 'odd sizes'}, {str(dtype).removeprefix('torch.')}"
            line = right("error / plain PyTorch's error", "x", MOST_RATIO[dtype])
            found.append(Case(f"{name}, {shape}", [line], measure, 8, needs="triton"))
    # A number between two tokens' shares goes to either by rounding, once in many thousands.
    found.append(Case("sampling against a CPU", [right("tokens that differ", "", 1)], partial(_sampling, lab), 5))
    return found


def _compare(lab: Lab, build: Callable[..., Problem], dtype: torch.dtype, is_large: bool) -> Measured:
    torch.manual_seed(0)
    problem = build(lab, dtype, is_large)
    ours, plain, truth = problem.ours(), problem.plain(), problem.truth()
    assert len(ours) == len(plain) == len(truth)
    ratios = [ratio_of(*three, dtype) for three in zip(ours, plain, truth)]
    return Measured({"error / plain PyTorch's error": max(ratios)}, {"of each result": ratios})


def ratio_of(ours: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Return our error over plain PyTorch's: the larger of the root mean squares' ratio and half the maxima's.

    A single wrong number hides in a mean square, and the largest of many roundings is twice another's by chance. Errors
    below an eighth of the dtype's rounding step count as so much. NaN or infinity in ours gives infinity.
    """
    truth = truth.double()
    a, b = ((x.double() - truth).flatten() for x in (ours, plain))
    if not bool(a.isfinite().all()):
        return float("inf")
    least = torch.finfo(dtype).eps / 8
    squares = (float(x.square().mean().sqrt()) for x in (a, b))
    largest = (float(x.abs().max()) for x in (a, b))
    scales = float(truth.square().mean().sqrt()), float(truth.abs().max())
    pairs = [(one, max(other, least * scale, 1e-30)) for (one, other), scale in zip((squares, largest), scales)]
    return max(pairs[0][0] / pairs[0][1], pairs[1][0] / pairs[1][1] / 2)


def _random(lab: Lab, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device=lab.device) * scale).to(dtype)


def _gradients(function: Callable[..., Results], inputs: Sequence[Tensor], weights: Results, wide: bool) -> Results:
    """Return the results of the function and the gradients of their weighted sum, computed in float64 if `wide`."""
    leaves = [(x.double() if wide else x.clone()).requires_grad_() for x in inputs]
    results = function(*leaves)
    total = sum((result * weight.to(result.dtype)).sum() for result, weight in zip(results, weights))
    total.backward()
    return [*(result.detach() for result in results), *(leaf.grad for leaf in leaves)]


def _linear_logprob(lab: Lab, dtype: torch.dtype, is_large: bool) -> Problem:
    tokens, vocab, size = (512, 32_000, 4096) if is_large else lab.pick((131, 1003, 120), (7, 61, 24))
    h_TD, W_VD = _random(lab, tokens, size, dtype=dtype), _random(lab, vocab, size, dtype=dtype, scale=size**-0.5)
    target_T = torch.randint(vocab, (tokens,), device=lab.device)
    weights = [_random(lab, tokens) for _ in range(3)]

    def plain(h: Tensor, W: Tensor) -> Results:
        log_p_TV = (h @ W.T).float().log_softmax(-1)
        logsumexp_T = (h @ W.T).float().logsumexp(-1)
        return log_p_TV.gather(1, target_T[:, None])[:, 0], logsumexp_T, -(log_p_TV.exp() * log_p_TV).sum(-1)

    def ours() -> Results:
        from kernels.linear_logprob import fused

        # On a CPU the interpreter runs the kernels of a GPU.
        on_cpu = patch.object(logprob_autograd, "walk_for", lambda *_: fused) if lab.fake else nullcontext()
        with on_cpu:
            return _gradients(lambda h, W: linear_logprob(h, W, target_T), (h_TD, W_VD), weights, False)

    return Problem(
        ours,
        lambda: _gradients(plain, (h_TD, W_VD), weights, False),
        lambda: _gradients(lambda h, W: linear_logprob_reference(h, W, target_T), (h_TD, W_VD), weights, True),
    )


def _attention(lab: Lab, dtype: torch.dtype, is_large: bool, alibi: bool = False) -> Problem:
    from kernels.attention.fused import attention_triton

    lengths = [1000, 24, 1, 777] if is_large else lab.pick([37, 1, 130, 200], [5, 1, 18])
    heads, groups, size = (32, 32, 128) if is_large else lab.pick((4, 2, 80), (2, 1, 8))
    shapes = [(sum(lengths), n, size) for n in (heads, groups, groups)]
    inputs = [_random(lab, *shape, dtype=dtype) for shape in shapes]
    slopes_H = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)], device=lab.device) if alibi else None
    cu_seqlens = torch.tensor([0, *lengths], device=lab.device).cumsum(0).int()
    weights = [_random(lab, *shapes[0])]

    def kernel(q: Tensor, k: Tensor, v: Tensor) -> Results:
        return [attention_triton(q, k, v, cu_seqlens, lengths, slopes_H, size**-0.5, None)]

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Results:
        return [attention_reference(q, k, v, lengths, slopes_H)]

    return Problem(
        lambda: _gradients(kernel, inputs, weights, False),
        lambda: _gradients(partial(_plain_attention, lengths=lengths, slopes_H=slopes_H), inputs, weights, False),
        lambda: _gradients(reference, inputs, weights, True),
    )


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], slopes_H: Tensor | None) -> Results:
    """Attend with products in the dtype of q and a float32 softmax, as one writes it without a kernel."""
    groups, found = q.shape[1] // k.shape[1], []
    for q_n, k_n, v_n in zip(*(x.split(list(lengths)) for x in (q, k, v))):
        q_n, k_n, v_n = q_n.transpose(0, 1), *(x.transpose(0, 1).repeat_interleave(groups, 0) for x in (k_n, v_n))
        scores = (q_n @ k_n.transpose(1, 2)).float() * q.shape[2] ** -0.5
        position = torch.arange(scores.shape[2], device=q.device)
        if slopes_H is not None:
            scores = scores + slopes_H[:, None, None] * position
        scores = scores.masked_fill(position > position[:, None], float("-inf"))
        found.append((scores.softmax(-1).to(q.dtype) @ v_n).transpose(0, 1))
    return [torch.cat(found)]


def _attention_decode(lab: Lab, dtype: torch.dtype, is_large: bool) -> Problem:
    from kernels.attention_decode.fused import attention_decode_triton

    rows, heads, groups, size, page = (
        (64, 32, 8, 128, 64) if is_large else lab.pick((9, 6, 2, 80, 16), (4, 2, 1, 16, 16))
    )
    shared = 8 * page if is_large else page
    case = paged(lab, rows, heads, groups, size, page, shared, shared + lab.pick(300, 20), dtype)
    plain_dtype = [case.q_SHK, case.k_PGNK, case.v_PGNK]

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Results:
        return [attention_decode_reference(q, k, v, case.table_SB, case.length_S)]

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Results:
        """Attend row by row with products in the dtype."""
        found = []
        for row, length in enumerate(case.lengths):
            pages = case.table_SB[row].long()[: -(-length // page)]
            one = [x[pages].transpose(0, 1).flatten(1, 2)[:, :length].transpose(0, 1) for x in (k, v)]
            k_n, v_n = (x.repeat_interleave(heads // groups, 1).transpose(0, 1) for x in one)
            weights = ((k_n @ q[row][:, :, None])[..., 0].float() * size**-0.5).softmax(-1).to(q.dtype)
            found.append((weights[:, None] @ v_n)[:, 0])
        return [torch.stack(found)]

    def ours() -> Results:
        groups_of = (case.cu_groups, case.shared_R)
        return [attention_decode_triton(*plain_dtype, case.table_SB, case.length_S, None, None, None, *groups_of)]

    return Problem(ours, lambda: plain(*plain_dtype), lambda: reference(*(x.double() for x in plain_dtype)))


@dataclass(frozen=True)
class Paged:
    """Rows over a paged cache; groups of up to eight rows share the pages of their first positions."""

    q_SHK: Tensor
    k_PGNK: Tensor
    v_PGNK: Tensor
    table_SB: Tensor
    length_S: Tensor
    lengths: list[int]
    cu_groups: Tensor
    shared_R: Tensor


def paged(
    lab: Lab, rows: int, heads: int, groups: int, size: int, page: int, shared: int, longest: int, dtype: torch.dtype,
    layers: int = 1,
) -> Paged:  # fmt: skip
    """Return random rows of shared + 1 to `longest` positions, their pages in random order; `layers` caches if > 1."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shared + 1, longest + 1, (rows,), generator=generator).tolist()
    own = -(-longest // page) - shared // page
    bounds = [*range(0, rows, 8), rows]
    count = rows * own + (len(bounds) - 1) * (shared // page)
    order = torch.randperm(count, generator=generator).tolist()
    tables = []
    for first, last in zip(bounds, bounds[1:]):
        together = [order.pop() for _ in range(shared // page)]
        tables += [[*together, *(order.pop() for _ in range(own))] for _ in range(last - first)]
    k, v = empty_pages(count, groups, page, size, dtype, lab.device, (layers,) if layers > 1 else ())
    for x in (k, v):
        x.normal_()
    on_device = partial(torch.tensor, dtype=torch.int32, device=lab.device)
    return Paged(
        _random(lab, rows, heads, size, dtype=dtype), k, v, on_device(tables), on_device(lengths), lengths,
        on_device(bounds), on_device([shared] * (len(bounds) - 1)),
    )  # fmt: skip


def random_codes(lab: Lab, outputs: int, inputs: int, bits: int, dtype: torch.dtype) -> Codes:
    """Return a weight of random codes whose values have a standard deviation of about 1 / sqrt(inputs)."""
    groups = -(-inputs // 32)
    low, high, stored = (-127, 128, torch.int8) if bits == 8 else (0, 256, torch.uint8)
    codes = torch.randint(low, high, (outputs, groups * 4 * bits), dtype=stored, device=lab.device)
    if inputs % 32:  # codes past the inputs are 0
        codes[:, inputs * bits // 8 :] = 0
    spread = {8: 73.0, 4: 4.6}[bits]
    scale_NG = torch.full((outputs, groups), inputs**-0.5 / spread, dtype=torch.bfloat16, device=lab.device)
    return Codes(codes, scale_NG, inputs, dtype)


def _coded_linear(lab: Lab, dtype: torch.dtype, is_large: bool, bits: int = 8) -> Problem:
    from kernels.coded_linear.fused import coded_linear_gradient_triton, coded_linear_triton

    rows, outputs, inputs = (64, 11_008, 4096) if is_large else lab.pick((33, 250, 190), (5, 36, 42))
    weight = random_codes(lab, outputs, inputs, bits, dtype)
    x_TI, grad_TN = _random(lab, rows, inputs, dtype=dtype), _random(lab, rows, outputs, dtype=dtype)
    values = weight.values()
    exact = values.double()
    return Problem(
        lambda: [coded_linear_triton(x_TI, weight, None), coded_linear_gradient_triton(grad_TN, weight)],
        lambda: [linear(x_TI, values), grad_TN @ values],
        lambda: [linear(x_TI.double(), exact), grad_TN.double() @ exact],
    )


def _segment_scan(lab: Lab, dtype: torch.dtype, is_large: bool) -> Problem:
    from kernels.segment_scan.fused import segment_scan_triton

    lengths = [512] * 64 if is_large else lab.pick([1, 700, 2049, 3], [1, 7, 40])
    x_T = _random(lab, sum(lengths), dtype=dtype)
    segment_T = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(lab.device)
    arguments = (segment_T, 0.95, max(lengths))
    return Problem(
        lambda: [segment_scan_triton(x_T, *arguments)],
        lambda: [segment_scan_reference(x_T.cpu(), segment_T.cpu(), 0.95).to(lab.device)],
        lambda: [segment_scan_reference(x_T.double().cpu(), segment_T.cpu(), 0.95).to(lab.device)],
    )


def _sampling(lab: Lab) -> Measured:
    """Sample from the same logits here and on the CPU, by every rule."""
    rows, vocab = lab.pick((64, 32_000), (4, 300))
    generator = torch.Generator().manual_seed(0)
    logits_SV = 3 * torch.randn(rows, vocab, generator=generator)
    uniform_S = torch.rand(rows, dtype=torch.float64, generator=generator)
    rules = [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.05}]
    differ = []
    for rule in rules:
        here = sample_rows(logits_SV.to(lab.device), uniform_S.to(lab.device), **rule)[0].cpu()
        differ.append(int((here != sample_rows(logits_SV, uniform_S, **rule)[0]).sum()))
    return Measured({"tokens that differ": sum(differ)}, {"by rule": dict(zip(map(str, rules), differ))})


CHECKS: dict[str, Callable[[Lab, torch.dtype, bool], Problem]] = {
    "linear_logprob": _linear_logprob,
    "attention": _attention,
    "attention with ALiBi": partial(_attention, alibi=True),
    "attention_decode": _attention_decode,
    "coded_linear, 8 bits": _coded_linear,
    "coded_linear, 4 bits": partial(_coded_linear, bits=4),
    "segment_scan": _segment_scan,
}
