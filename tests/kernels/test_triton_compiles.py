"""Compile the Triton kernels to machine code for NVIDIA GPUs, with the configs of their tables. Needs no GPU."""

import pytest

triton = pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import kernels.attention.fused as attention  # noqa: E402
import kernels.linear_logprob.fused as linear_logprob  # noqa: E402
import kernels.segment_scan.fused as segment_scan  # noqa: E402

INPUTS = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "h", "W", "dz", "x"}
FLOAT32 = {"lse", "delta", "slopes", "totals", "target_logit", "per_token", "target_dz"}
OTHERS = {
    "cu_seqlens": "*i32",
    "target": "*i64",
    "segment": "*i64",
    "scale": "fp32",
    "scale2": "fp32",
    "slope2": "fp32",
}
HEADS = {"H": 8, "G": 4, "K": 80, "KP": 128, "ALIBI": True, "WINDOW": False}
WINDOWS = {**HEADS, "ALIBI": False, "WINDOW": True}
HIDDEN = {"D": 1000, "h_column": 1, "W_column": 1}
CASES = [
    *((attention, name, sizes) for sizes in (HEADS, WINDOWS) for name in ("_FORWARD", "_BACKWARD_Q", "_BACKWARD_KV")),
    *((linear_logprob, name, HIDDEN) for name in ("_TOTALS", "_GRADIENT")),
]


def type_of(argument, dtype):
    if argument in INPUTS:
        return f"*{dtype}"
    return "*fp32" if argument in FLOAT32 else OTHERS.get(argument, "i32")


def machine_code(kernel, constants, dtype, capability, **options):
    signature = {n: "constexpr" if n in constants else type_of(n, dtype) for n in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("module", "name", "constants"),
    CASES,
    ids=[f"{m.__name__}{n}{', window' * c.get('WINDOW', False)}" for m, n, c in CASES],
)
def test_attention_and_linear_logprob_compile(module, name, constants, size, capability):
    tuner = getattr(module, name)[size]
    config = tuner.configs[-1]
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    dtype = {2: "bf16", 4: "fp32"}[size]
    assert machine_code(tuner.fn, constants | config.kwargs, dtype, capability, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_segment_scan_compiles(dtype):
    assert machine_code(segment_scan._scan, {"BLOCK": 1024, "decay": 0.95}, dtype, 90)
