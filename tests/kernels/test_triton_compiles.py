"""Compile the Triton kernels to machine code for NVIDIA GPUs, with the configs of their tables. Needs no GPU."""

import os
import re
import subprocess
import tempfile

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
import kernels.sampling.fused as sampling  # noqa: E402
import kernels.segment_scan.fused as segment_scan  # noqa: E402
from kernels.common.triton import fitting  # noqa: E402
from kernels.sampling import truncate as sampling_truncate  # noqa: E402

INPUTS = {"q", "k", "v", "out", "grad", "dq", "dk", "dv", "h", "W", "dz", "x", "logits"}
FLOAT32 = {"lse", "delta", "slopes", "totals", "target_logit", "per_token", "target_dz"}
OTHERS = {
    "cu_seqlens": "*i32",
    "target": "*i64",
    "segment": "*i64",
    "scale": "fp32",
    "scale2": "fp32",
    "slope2": "fp32",
}
HEADS = {"H": 8, "G": 4, "ALIBI": True, "WINDOW": False}
HIDDEN = {"D": 1000, "h_column": 1, "W_column": 1}
SHARED = {75: 64, 80: 163, 86: 99, 90: 227}  # KiB that a block of threads may take


def type_of(argument, dtype):
    if argument in INPUTS:
        return f"*{dtype}"
    return "*fp32" if argument in FLOAT32 else OTHERS.get(argument, "i32")


def compiled(kernel, constants, dtype, capability, types=None, aligned=(), **options):
    """Return the compiled kernel.

    `types` are of arguments whose type is not their name's; `aligned` ones are multiples of 16.
    """
    signature = {n: type_of(n, dtype) for n in kernel.arg_names} | (types or {}) | dict.fromkeys(constants, "constexpr")
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def machine_code(*args, **kwargs):
    return compiled(*args, **kwargs).asm["cubin"]


def spilled_bytes(code, capability):
    """Bytes of registers that a thread moves to memory, as ptxas says."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code.asm["ptx"])
        file.flush()
        arch = f"sm_{capability}{'a' if capability >= 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name", arch, file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", said).group(1))


def check_config(module, key, dtype, capability, constants, aligned=()):
    """The config that such a device gets: it compiles, takes the memory that the table says, and hardly spills.

    Spills are not limited on sm_75, whose tensor cores Triton does not use, nor in float32 with a head size of 256.
    """
    config = fitting(module.CONFIGS[key], SHARED[capability] * 1024)
    kernel = getattr(module, f"_{key[0]}")
    options = {"num_warps": config.warps, "num_stages": config.stages}
    code = compiled(kernel, constants | config.sizes, dtype, capability, None, aligned, **options)
    stated = config.shared if capability < 90 else SHARED[capability]
    assert code.metadata.shared <= stated * 1024
    if capability > 75 and (dtype != "fp32" or constants.get("KP") != 256):
        assert spilled_bytes(code, capability) <= 128


CAPABILITIES = [("bf16", 80), ("bf16", 86), ("bf16", 90), ("fp32", 80), ("fp16", 75)]
ALIGNED_POINTERS = ("q", "k", "v", "q_stride", "k_stride", "v_stride", "q_head", "k_head", "v_head")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), CAPABILITIES)
@pytest.mark.parametrize("head_size", [64, 80, 128, 256])
@pytest.mark.parametrize("kernel", ["forward", "backward_q", "backward_kv"])
def test_attention_compiles(kernel, head_size, dtype, capability):
    padded = triton.next_power_of_2(head_size)
    constants = {**HEADS, "K": head_size, "KP": padded}
    if head_size == 80:
        constants |= {"ALIBI": False, "WINDOW": True}
    key = kernel, 4 if dtype == "fp32" else 2, padded
    check_config(attention, key, dtype, capability, constants, ALIGNED_POINTERS)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), CAPABILITIES)
@pytest.mark.parametrize("hidden", [1000, 4096])
@pytest.mark.parametrize("kernel", ["totals", "gradient"])
def test_linear_logprob_compiles(kernel, hidden, dtype, capability):
    key = kernel, 4 if dtype == "fp32" else 2
    check_config(linear_logprob, key, dtype, capability, {**HIDDEN, "D": hidden}, ("h", "W", "h_row", "W_row"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_results_and_factors_of_linear_logprob_compile(dtype):
    outputs = {f"out_{name}": "*fp32" for name in ("logprob", "logsumexp", "entropy", "top", "log_sum")}
    constants = {**HIDDEN, "M": linear_logprob.FEW_TOKENS, "K": 256, "PP": 128}
    assert machine_code(linear_logprob._results, constants, dtype, 80, {"walked": "*fp32", **outputs})
    gradients = {f"g_{name}": "*fp32" for name in ("logprob", "logsumexp")}
    types = {**dict.fromkeys(("logprob", "entropy", "top", "log_sum", "out"), "*fp32"), **gradients}
    assert machine_code(linear_logprob._factors, {"g_entropy": None, "N": 256}, dtype, 80, types)


SAMPLING = {
    **dict.fromkeys(("seen", "worth"), "*i32"),
    **dict.fromkeys(("history", "eos_ids", "token_out"), "*i64"),
    **dict.fromkeys(("tempered_top", "tempered_sum", "score_top", "score_sum", "kept_sum", "lowest"), "*fp32"),
    **dict.fromkeys(("candidate", "logprob_out", "logsumexp_out"), "*fp32"),
    **dict.fromkeys(("temperature", "penalty", "top_p", "left_out", "log_min_p"), "fp32"),
    "uniform": "*fp64",
    "mask_eos": "*i1",
}
UNCHANGED = {"seen": None, "mask_eos": None, "eos_ids": None, "lowest": None, "TEMPERED": False}


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        (sampling._summarize, {"R": 16, "B": 256}),
        (sampling._choose, {"GREEDY": False, "GP": 1024, "B": 256}),
        (sampling._choose, {"GREEDY": True, "GP": 1, "B": 256, "G": 1, "V": 1}),
        (sampling_truncate._truncate, {"TOP_K": True, "TOP_P": True, "GP": 1024, "B": 256}),
        (sampling_truncate._truncate, {"TOP_K": False, "TOP_P": True, "GP": 1024, "B": 256}),
        (sampling_truncate._truncate, {"TOP_K": True, "TOP_P": False, "GP": 1024, "B": 256, "top_k": 1}),
        (sampling_truncate._truncate, {"TOP_K": False, "TOP_P": False, "GP": 1024, "B": 256, "candidate": None}),
    ],
)
def test_sampling_compiles(kernel, constants, changed, capability):
    truncates = kernel is sampling_truncate._truncate
    constants = {"TEMPERED": True, "N": sampling_truncate.TILE} | (UNCHANGED if not changed else {}) | constants
    constants = {name: value for name, value in constants.items() if not truncates or name != "lowest"}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in SAMPLING.items() if name in kernel.arg_names}
    warps = {"_summarize": 8, "_truncate": 16}.get(kernel.fn.__name__, 4)
    code = compiled(kernel, constants, "fp32" if changed else "bf16", capability, types, num_warps=warps)
    assert spilled_bytes(code, capability) <= 64


@pytest.mark.slow
def test_marking_a_history_compiles():
    assert machine_code(sampling._mark, {"N": 256}, "fp32", 80, {"history": "*i64", "seen": "*i32"})


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
    code = compiled(attention_decode._chunk, constants | absent, dtype, capability, POINTERS).asm
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
