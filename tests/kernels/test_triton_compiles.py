"""Compile the Triton kernels to machine code for NVIDIA GPUs, with the configs of their tables. Needs no GPU."""

import pytest

triton = pytest.importorskip("triton", reason="needs triton, which torch for CPU does not bring: pip install .[dev]")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

import kernels.attention.fused as attention  # noqa: E402
import kernels.attention_decode.fused as attention_decode  # noqa: E402
import kernels.coded_linear.fused as coded_linear  # noqa: E402
import kernels.cuda_passes.fused as cuda_passes  # noqa: E402
import kernels.linear_logprob.fused as linear_logprob  # noqa: E402
import kernels.rotary.fused as rotary  # noqa: E402
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


def compiled(kernel, constants, dtype, capability, types=None, aligned=(), **options):
    """Return the code of each level by its name.

    `types` are of arguments whose type is not their name's; `aligned` ones are multiples of 16.
    """
    signature = {n: type_of(n, dtype) for n in kernel.arg_names} | (types or {}) | dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


def machine_code(*what, **options):
    return compiled(*what, **options)["cubin"]


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
    **dict.fromkeys(("table", "length", "cu_groups", "shared", "group_of", "tickets"), "*i32"),
    **dict.fromkeys(("part", "tops", "totals"), "*fp32"),
}
HEADS_OF_DECODING = {"bloom": (16, 16, 64, 64, True, False), "grouped": (24, 3, 80, 128, False, False)}
HEADS_OF_DECODING |= {"window": (4, 1, 256, 256, False, True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 80), ("fp16", 75), ("fp16", 80)]
)
@pytest.mark.parametrize("rows", ["alone", "in groups", "sharing", "one"])
@pytest.mark.parametrize("heads", HEADS_OF_DECODING)
def test_attention_decode_compiles(heads, rows, dtype, capability):
    """And the count of a row's finished programs stands between barriers, so that whoever merges sees all parts."""
    H, G, K, KP, alibi, window = HEADS_OF_DECODING[heads]
    J, shared, groups = H // G, rows == "sharing", rows in ("in groups", "sharing")
    M = max(16, triton.next_power_of_2(8 * J if shared else J))
    constants = {"H": H, "J": J, "K": K, "KP": KP, "PAGE": 16, "CHUNK": attention_decode.CHUNK, "M": M, "N": 32}
    constants |= {"ALIBI": alibi, "GROUPS": groups, "SHARED": shared, "WINDOW": window}
    constants |= {"rows": 1, "width": 1, "chunks": 1} if rows == "one" else {}  # an argument that is 1 is a constant
    absent = ({} if alibi else {"slopes": None}) | (
        {} if groups else dict.fromkeys(("cu_groups", "shared", "group_of"))
    )
    code = compiled(attention_decode._chunk, constants | absent, dtype, capability, POINTERS)
    assert code["cubin"]
    lines = code["ptx"].splitlines()
    counts = [n for n, line in enumerate(lines) if "atom." in line]
    assert len(counts) == (0 if shared else 1)
    for n in counts:
        assert "gpu.acq_rel" in lines[n]
        before = [line for line in lines[:n] if "st.global" in line or "bar.sync" in line]
        after = [line for line in lines[n:] if "ld.global" in line or "bar.sync" in line]
        assert "bar.sync" in before[-1] and "bar.sync" in after[0]


PASSES = {
    "rms norm": {"ADD": False, "X_NORM": False, "BIAS": False, "NEXT": False},
    "add, rms norm": {"ADD": True, "X_NORM": False, "BIAS": False, "NEXT": False},
    "add, layer norm, bias": {"ADD": True, "X_NORM": False, "BIAS": True, "NEXT": True},
    "add normed, rms norm": {"ADD": True, "X_NORM": True, "BIAS": False, "NEXT": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", PASSES)
def test_norms_of_decoding_compile(name, dtype, capability):
    given = PASSES[name]
    constants = {"D": 5000, "BLOCK": 8192, "NORM": True, "CENTRED": given["X_NORM"], "X_CENTRED": given["X_NORM"]}
    pointers = ("weight", "bias", "x_weight", "next_bias", "r_out", "y_out")
    types = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(("eps", "x_eps"), "fp32")
    absent = {"x": given["ADD"], "bias": given["BIAS"], "x_weight": given["X_NORM"], "next_bias": given["NEXT"]}
    constants |= given | {name: None for name, there in absent.items() if not there}
    assert machine_code(cuda_passes._add_norm, constants, dtype, capability, types | {"h": f"*{dtype}"}, num_warps=16)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("activation", ["swiglu", "geglu", "gelu"])
def test_activations_of_decoding_compile(activation, dtype, capability):
    gated = activation != "gelu"
    constants = {"SWISH": activation == "swiglu", "GATED": gated, "BLOCK": 1024} | ({} if gated else {"up": None})
    assert machine_code(cuda_passes._activate, constants, dtype, capability, {"up": f"*{dtype}"})


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("write", [False, True], ids=["in place", "to pages"])
@pytest.mark.parametrize("size", [80, 5])
def test_rotation_of_decoding_compiles(size, write, dtype, capability):
    half = (size + 1) // 2
    constants = {"K": size, "HALF": half, "P": triton.next_power_of_2(half), "ROTATE": size % 2 == 0}
    constants |= {"NORM": size % 2 == 0, "CENTRED": False, "WRITE": write}
    pointers = ("q_weight", "k_weight", "k_pages", "v_pages")
    types = dict.fromkeys(pointers, f"*{dtype}") | dict.fromkeys(("cos", "sin"), "*fp32")
    types |= dict.fromkeys(("page", "slot"), "*i64") | dict.fromkeys(("q_eps", "k_eps"), "fp32")
    assert machine_code(rotary._rotate_and_write, constants, dtype, capability, types, num_warps=1)
