"""Stage 2: kernels at 7B shapes against the floor, and against peers where they are installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import linear

from kernels.attention import attention
from kernels.attention.bench import by_sequence
from kernels.attention_decode import attention_decode
from kernels.coded_linear import coded_linear, coded_linear_reference
from kernels.linear_logprob.bench import peers as logprob_peers
from kernels.sampling import sample_rows
from kernels.sampling.bench import plain_pytorch
from launch.gpu.clock import num_buffers, time_s
from launch.gpu.kernel_checks import paged, random_codes
from launch.gpu.lab import Lab, in_ms
from launch.gpu.lines import Case, Expected, Goal, Measured, Spread, share_of_floor

HEADS, HEAD_SIZE, WIDTH, INNER = 32, 128, 4096, 11_008  # of a 7B model
VOCABULARIES = (32_000, 250_880)  # LLaMA's and BLOOM's
FORWARD, BACKWARD = "forward", "forward + backward"


def cases(lab: Lab) -> list[Case]:
    return [
        *(_decode_case(lab, rows) for rows in lab.pick((8, 64), (4,))),
        *(_coded_case(lab, rows, bits) for rows in lab.pick((1, 64, 2048), (2,)) for bits in (8, 4)),
        *(_sampling_case(lab, vocab) for vocab in _vocabularies(lab)),
        *(_attention_case(lab, backward) for backward in (False, True)),
        *(_logprob_case(lab, vocab, backward) for vocab in _vocabularies(lab) for backward in (False, True)),
    ]


def _vocabularies(lab: Lab) -> list[int]:
    return lab.pick(list(VOCABULARIES), [200])


def _ms(spread: Spread) -> Spread:
    return spread.map(lambda s: 1e3 * s)


def _case(
    lab: Lab, name: str, floor_s: float | None, build: Callable[[], dict[str, list[Callable[[], object]]]],
    others: Sequence[str] = (), goal: Goal | None = None, graph: bool = False, seconds: float = 10,
    memory_gb: float = 0,
) -> Case:  # fmt: skip
    """Return a case that times ours, then the others that `build` returns by name."""
    expected = [Expected("ours", "ms", in_ms(floor_s), goal), *(Expected(other, "ms") for other in others)]

    def measure() -> Measured:
        numbers, errors = {}, {}
        for what, works in build().items():
            try:
                numbers[what] = _ms(time_s(lab, works, graph=graph))
            except Exception as error:  # a peer that does not run here; ours must
                if what == "ours":
                    raise
                errors[what] = str(error)[:300]
                lab.clean()
        return Measured(numbers, {"peers that failed": errors})

    return Case(name, expected, measure, seconds, memory_gb)


def _logprob_case(lab: Lab, vocab: int, backward: bool) -> Case:
    """Forward one product; with backward the logits again and dh: three. The head is frozen, as in PPO."""
    tokens, width = lab.pick((4096, WIDTH), (16, 32))
    names = [name for name in logprob_peers() if name != "ours"]
    names += ["cut-cross-entropy, no entropy"] if find_spec("cut_cross_entropy") else []
    names += ["Liger cross entropy, no entropy"] if find_spec("liger_kernel") else []

    def build() -> dict[str, list[Callable[[], object]]]:
        h_TD = torch.randn(tokens, width, device=lab.device).to(torch.bfloat16).requires_grad_(backward)
        W_VD = torch.randn(vocab, width, device=lab.device).mul_(width**-0.5).to(torch.bfloat16)
        target_T = torch.randint(vocab, (tokens,), device=lab.device)

        def work(function: Callable[..., Sequence[Tensor]]) -> list[Callable[[], object]]:
            def both() -> None:
                h_TD.grad = None
                outputs = function(h_TD, W_VD, target_T)
                torch.stack([out.float().sum() for out in outputs]).sum().backward()

            def forward() -> None:
                with torch.no_grad():
                    function(h_TD, W_VD, target_T)

            return [both if backward else forward]

        functions = {**logprob_peers(), **_cross_entropies()}
        return {name: work(functions[name]) for name in ["ours", *names]}

    return _case(
        lab, f"linear_logprob, V {vocab:,}, {BACKWARD if backward else FORWARD}",
        lab.floor_s(flops=(3 if backward else 1) * 2 * tokens * vocab * width), build, names,
        share_of_floor(0.80 if backward else 0.85), seconds=25, memory_gb=vocab * tokens * 14e-9 + 3,
    )  # fmt: skip


def _cross_entropies() -> dict[str, Callable[..., Sequence[Tensor]]]:
    """Return peers that compute the loss of the targets alone."""
    found: dict[str, Callable[..., Sequence[Tensor]]] = {}
    if find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy, no entropy"] = lambda h, W, t: (linear_cross_entropy(h, W, t, reduction="none"),)
    if find_spec("liger_kernel"):
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["Liger cross entropy, no entropy"] = lambda h, W, t: (loss(W, h, t),)
    return found


def _attention_case(lab: Lab, backward: bool) -> Case:
    """Sequences of many lengths in one pack of 8,192 tokens; peers attend to the same pairs."""
    lengths = lab.pick([2048, 31, 700, 1333, 512, 256, 99, 1024, 1100, 1089], [5, 18])
    heads, size = lab.pick((HEADS, HEAD_SIZE), (2, 16))
    pairs = sum(n * (n + 1) // 2 for n in lengths)
    names = ["ours, ALiBi", "scaled_dot_product_attention, a call a sequence"]
    names += ["varlen_attn"] if lab.device.type == "cuda" and find_spec("torch.nn.attention.varlen") else []

    def build() -> dict[str, list[Callable[[], object]]]:
        dtype = lab.pick(torch.bfloat16, torch.float32)
        qkv = [torch.randn(sum(lengths), heads, size, device=lab.device).to(dtype) for _ in range(3)]
        leaves, grad = [x.requires_grad_(backward) for x in qkv], torch.randn_like(qkv[0])
        cu = torch.tensor([0, *lengths], device=lab.device).cumsum(0).int()
        slopes_H = torch.tensor([2 ** (-8 * (h + 1) / heads) for h in range(heads)], device=lab.device)
        functions = {
            "ours": lambda q, k, v: attention(q, k, v, cu, lengths),
            "ours, ALiBi": lambda q, k, v: attention(q, k, v, cu, lengths, slopes_H),
            "scaled_dot_product_attention, a call a sequence": partial(by_sequence, lengths=lengths),
            "varlen_attn": partial(varlen, cu=cu, longest=max(lengths)),
        }

        def work(function: Callable[..., Tensor]) -> list[Callable[[], object]]:
            if backward:
                return [lambda: torch.autograd.grad(function(*leaves), leaves, grad)]
            return [lambda: function(*qkv)]

        return {name: work(functions[name]) for name in ["ours", *names]}

    products = 7 if backward else 2  # scores, output; backward: scores again, dp, dq, dk, dv
    floor = lab.floor_s(flops=products * 2 * heads * size * pairs)
    return _case(
        lab, f"attention, {sum(lengths):,} packed tokens, {BACKWARD if backward else FORWARD}", floor, build, names,
        seconds=20, memory_gb=4,
    )  # fmt: skip


def varlen(q: Tensor, k: Tensor, v: Tensor, cu: Tensor, longest: int) -> Tensor:
    """Call PyTorch's causal attention over a pack. Its arguments differ between versions: pass those it has."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return varlen_attn(q, k, v, cu, cu, longest, longest, **causal)


def _sampling_case(lab: Lab, vocab: int) -> Case:
    rows = lab.pick(64, 4)
    names = ["plain PyTorch", "ours, top-p 0.9"]

    def build() -> dict[str, list[Callable[[], object]]]:
        many = [torch.randn(rows, vocab, device=lab.device) for _ in range(num_buffers(lab, 4 * rows * vocab))]
        uniform_S = torch.rand(rows, dtype=torch.float64, device=lab.device)

        def each(function: Callable[..., object]) -> list[Callable[[], object]]:
            return [partial(function, logits_SV) for logits_SV in many]

        return {
            "ours": each(lambda x: sample_rows(x, uniform_S)),
            "plain PyTorch": each(plain_pytorch),
            "ours, top-p 0.9": each(lambda x: sample_rows(x, uniform_S, top_p=0.9)),
        }

    floor = lab.floor_s(num_bytes=4 * rows * vocab)
    return _case(lab, f"sampling, {rows} rows of {vocab:,} logits", floor, build, names, seconds=8, memory_gb=3)


def _coded_case(lab: Lab, rows: int, bits: int) -> Case:
    outputs, inputs = lab.pick((INNER, WIDTH), (48, 64))
    stored = outputs * inputs * (bits / 8 + 2 / 32)

    def build() -> dict[str, list[Callable[[], object]]]:
        count = num_buffers(lab, int(stored))
        dtype = lab.pick(torch.bfloat16, torch.float32)
        coded = [random_codes(lab, outputs, inputs, bits, dtype) for _ in range(count)]
        plain = [weight.values() for weight in coded]
        x_TI = torch.randn(rows, inputs, device=lab.device).to(dtype)
        ours = coded_linear_reference if lab.fake else coded_linear  # the kernel has no form for a CPU
        return {
            "ours": [partial(ours, x_TI, weight) for weight in coded],
            "bf16 product": [partial(linear, x_TI, weight) for weight in plain],
        }

    floor = lab.floor_s(stored + 2 * rows * (outputs + inputs), 2 * rows * outputs * inputs)
    name = f"coded_linear, {bits} bits, {rows:,} rows of {inputs:,} to {outputs:,}"
    return _case(lab, name, floor, build, ["bf16 product"], graph=not lab.fake, seconds=8, memory_gb=2)


def _decode_case(lab: Lab, rows: int) -> Case:
    """One query a row over about 512 positions, caches of eight layers in turn; nothing is shared."""
    heads, size, layers, longest = lab.pick((HEADS, HEAD_SIZE, 8, 512), (2, 16, 2, 40))
    dtype = lab.pick(torch.bfloat16, torch.float32)
    page = 64
    lengths = paged_lengths(rows, longest)
    floor = lab.floor_s(num_bytes=2 * sum(lengths) * heads * size * dtype.itemsize)

    def build() -> dict[str, list[Callable[[], object]]]:
        case = paged(lab, rows, heads, heads, size, page, 0, longest, dtype, layers)

        def layer(i: int) -> Callable[[], object]:
            return lambda: attention_decode(case.q_SHK, case.k_PGNK[i], case.v_PGNK[i], case.table_SB, case.length_S)

        return {"ours": [layer(i) for i in range(layers)]}

    name = f"attention_decode, {rows} rows of up to {longest} positions"
    return _case(lab, name, floor, build, graph=not lab.fake, seconds=8, memory_gb=8)


def paged_lengths(rows: int, longest: int) -> list[int]:
    """Return the lengths that `paged` draws without shared positions."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, longest + 1, (rows,), generator=generator).tolist()
