"""Compile the Triton kernels to machine code for NVIDIA GPUs, with the configs of their tables. Needs no GPU."""

import pytest

triton = pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import kernels.attention.fused as attention  # noqa: E402
import kernels.attention_decode.fused as attention_decode  # noqa: E402
import kernels.coded_linear.fused as coded_linear  # noqa: E402
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


def machine_code(kernel, constants, dtype, capability, types=None, aligned=(), **options):
    """`types` are of arguments whose type is not their name's; `aligned` ones are multiples of 16."""
    signature = {n: type_of(n, dtype) for n in kernel.arg_names} | (types or {}) | dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [
    ("bf16", 80), ("bf16", 90), ("fp32", 80), ("fp32", 90), ("fp16", 75), ("fp16", 80),
])  # fmt: skip
@pytest.mark.parametrize(
    ("module", "name", "constants"),
    CASES,
    ids=[f"{m.__name__}{n}{', window' * c.get('WINDOW', False)}" for m, n, c in CASES],
)
def test_attention_and_linear_logprob_compile(module, name, constants, dtype, capability):
    tuner = getattr(module, name)[4 if dtype == "fp32" else 2]
    config = tuner.configs[-1]
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    assert machine_code(tuner.fn, constants | config.kwargs, dtype, capability, **options)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_segment_scan_compiles(dtype):
    assert machine_code(segment_scan._scan, {"BLOCK": 1024, "decay": 0.95}, dtype, 90)


ALIGNED = ("x", "codes", "scales", "out", "x_row", "columns", "inner", "part_size")
ROWS = {16: {"T": 1}}  # decoding one row: an argument that is 1 is a constant


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "size", "aligned"),
    [("bf16", 2, ALIGNED), ("bf16", 2, ()), ("fp16", 2, ALIGNED), ("fp32", 4, ALIGNED)],
    ids=["bf16", "bf16, odd sizes", "fp16", "fp32"],
)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("most", [16, 64, 0])
def test_coded_linear_compiles(most, gradient, bits, dtype, size, aligned, capability):
    tiles = coded_linear.TILES[size][most]
    constants = {"BITS": bits, "GRADIENT": gradient, "BIAS": not gradient, "WHOLE": True, "x_column": 1}
    constants |= {"M": tiles.M, "J": tiles.J, "K": tiles.K} | ROWS.get(most, {})
    types = {"codes": "*i8" if bits == 8 else "*u8", "scales": "*bf16", "bias": f"*{dtype}"}
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    assert machine_code(coded_linear._product, constants, dtype, capability, types, aligned, **options)


@pytest.mark.slow
@pytest.mark.parametrize("constants", [{}, {"size": 1, "columns": 1}], ids=["many outputs", "one output"])
def test_the_sum_of_coded_linear_compiles(constants):
    types = {"parts": "*fp32", "bias": "*bf16"}
    assert machine_code(coded_linear._sum, constants | {"BIAS": True, "BLOCK": 1024}, "bf16", 90, types)


POINTERS = {
    **dict.fromkeys(("table", "length", "cu_groups", "shared", "group_of"), "*i32"),
    **dict.fromkeys(("part", "top_in", "total_in", "top_out", "total_out"), "*fp32"),
}
HEADS_OF_DECODING = {"bloom": (16, 16, 64, 64, True, False), "grouped": (24, 3, 80, 128, False, False)}
HEADS_OF_DECODING |= {"window": (4, 1, 256, 256, False, True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 80), ("fp16", 75), ("fp16", 80)]
)
@pytest.mark.parametrize("rows", ["alone", "in groups", "sharing"])
@pytest.mark.parametrize("heads", HEADS_OF_DECODING)
def test_attention_decode_compiles(heads, rows, dtype, capability):
    H, G, K, KP, alibi, window = HEADS_OF_DECODING[heads]
    J, shared, groups = H // G, rows == "sharing", rows != "alone"
    M = max(16, triton.next_power_of_2(8 * J if shared else J))
    constants = {"H": H, "J": J, "K": K, "KP": KP, "PAGE": 16, "CHUNK": attention_decode.CHUNK, "M": M, "N": 32}
    constants |= {"ALIBI": alibi, "GROUPS": groups, "SHARED": shared, "WINDOW": window}
    absent = ({} if alibi else {"slopes": None}) | (
        {} if groups else dict.fromkeys(("cu_groups", "shared", "group_of"))
    )
    types = {name: kind for name, kind in POINTERS.items() if name in attention_decode._chunk.arg_names}
    assert machine_code(attention_decode._chunk, constants | absent, dtype, capability, types)
    types = {name: kind for name, kind in POINTERS.items() if name in attention_decode._merge.arg_names}
    merging = {"H": H, "K": K, "KP": KP, "GROUPS": groups}
    assert machine_code(attention_decode._merge, merging, dtype, capability, types)
