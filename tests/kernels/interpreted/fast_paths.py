"""The fast paths on CUDA, on a CPU's tensors in the interpreter: against each block's own forward, and their launches.

A launch is a call of torch that computes something, or of a Triton kernel. Views and allocations are none.
"""

import copy
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor

from engine.batch import PackedBatch
from engine.generation import decode_graphs, kv_cache
from engine.generation.decode_tape import DecodeTape
from engine.generation.generate import Request, generate
from engine.generation.kv_cache import KVCache
from engine.generation.sampling import Sampling
from engine.models import attend as attention_of_blocks
from engine.models import build_model, fused
from engine.models.fused import block_step
from engine.models.quantised import quantise_trunk
from engine.models.side_by_side import lay_side_by_side
from kernels import coded_linear, cuda_passes
from kernels.attention_decode import fused as attention_on_cuda
from kernels.rotary import rotate_and_write
from tests.engine.generation.recorded_steps import model_of
from tests.engine.models.tiny import CONFIGS, randomise

PAGE = 4
TABLE = torch.tensor([[5, 1, 2, 0], [5, 1, 4, 0], [3, 7, 6, 8]], dtype=torch.int32)
POSITIONS = torch.tensor([9, 11, 14])
GROUPS = (torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([8, 0], dtype=torch.int32))
# Launches of a layer without shared pages, with weights side by side: three norms or sums, three or four products, an
# activation, a rotation with the pages, and attention. Pages that rows share are one more.
LAUNCHES = {"llama, biases": 9, "qwen2": 9, "qwen3": 9, "smollm3": 9, "gemma3": 10, "bloom, 6 heads": 9}


@pytest.fixture
def on_cuda(monkeypatch):
    """Call it to send a CPU's tensors through the fast paths and kernels of CUDA."""

    def switch():
        def fits(x_TD):
            return x_TD.dtype in cuda_passes.DTYPES and not torch.is_grad_enabled()

        def prepare(rows, kv_heads, device, cu_groups):
            return attention_on_cuda.prepare_triton(rows, kv_heads, device, cu_groups)

        def write_pages(k_TGK, v_TGK, *pages):
            rotate_and_write(None, k_TGK, v_TGK, pages=pages)

        monkeypatch.setattr(cuda_passes, "fits", fits)
        monkeypatch.setattr(coded_linear, "fits", lambda x_TI: True)
        monkeypatch.setattr(kv_cache, "attention_decode", attention_on_cuda.attention_decode_triton)
        monkeypatch.setattr(kv_cache, "prepare", prepare)
        monkeypatch.setattr(kv_cache, "write_pages", write_pages)
        monkeypatch.setattr(attention_of_blocks, "write_pages", write_pages)

    return switch


@contextmanager
def counted():
    """Yield the launches of the block, by name."""
    launches = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            name = operation.overloadpacket.__name__
            if not (operation.is_view or "empty" in name or name in ("detach", "_unsafe_view", "split_with_sizes")):
                launches.append(name)
            return operation(*args, **kwargs or {})

    def call(executor, *args, inside=GridExecutor.__call__, **options):
        launches.append(executor.fn.__name__)
        with _disable_current_modes():  # what the interpreter computes
            return inside(executor, *args, **options)

    with pytest.MonkeyPatch.context() as patch, Mode():
        patch.setattr(GridExecutor, "__call__", call)
        yield launches


def model_named(name, dtype, side_by_side=True):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    model = model.requires_grad_(False).to(dtype)
    if side_by_side:
        lay_side_by_side(model)
    return model


def cache_of(model):
    """A cache whose pages hold random keys and values everywhere."""
    cache = KVCache(model, 9, PAGE)
    generator = torch.Generator().manual_seed(1)
    for x in (cache.k_LPGNK, cache.v_LPGNK):
        x.copy_(torch.randn(x.shape, generator=generator))
    return cache


@torch.no_grad()
def decoded(model, cache, layers, groups=(), rows=slice(None)):
    """Hidden states of the rows after layer 1 or layers 1 and 2, which are of two kinds in some models, float64."""
    generator = torch.Generator().manual_seed(2)
    h_SD = torch.randn(3, model.hidden_size, generator=generator).to(model.head_weight.dtype)[rows]
    batch = PackedBatch.of_singles(POSITIONS[rows], POSITIONS[rows])
    attend = cache.decode(TABLE[rows], POSITIONS[rows], *groups)
    before = h_SD.clone()
    out_SD = model.run(h_SD, batch, 1, 1 + layers, attend, model.rotations(POSITIONS[rows]))
    assert h_SD.equal(before), "the caller's input is unchanged"
    return out_SD.double()


def slow(*what):
    return pytest.param(*what, marks=pytest.mark.slow)


@pytest.mark.parametrize(("name", "dtype"), [
    *((name, torch.float32) for name in ("llama, biases", "qwen3", "gemma3", "bloom, 6 heads")),
    *((name, torch.bfloat16) for name in ("gemma3", "bloom, 6 heads")),
    *(slow(name, torch.float32) for name in ("llama, grouped heads", "qwen2", "smollm3")),
    slow("bloom, residual from the norm", torch.float32),
    *(slow(name, torch.bfloat16) for name in ("llama, biases", "qwen2", "qwen3", "smollm3")),
    *(slow(name, torch.float16) for name in ("llama, grouped heads", "gemma3", "bloom, 8 heads")),
])  # fmt: skip
def test_is_nearly_as_exact_as_the_forward(name, dtype, on_cuda, monkeypatch):
    """Hidden states, and keys and values in the cache, against float64. Attention rounds its weights, on a CPU not."""
    model = model_named(name, dtype)
    caches = [cache_of(model) for _ in range(3)]

    def outcome(model, cache):
        out_SD = decoded(model, cache, 2, GROUPS)
        return [out_SD, cache.k_LPGNK[1:3].double(), cache.v_LPGNK[1:3].double()]

    with monkeypatch.context() as patch:
        patch.setattr(fused, "FAST_PATHS", {})
        wide = copy.deepcopy(model).double()
        caches[2].k_LPGNK, caches[2].v_LPGNK = caches[2].k_LPGNK.double(), caches[2].v_LPGNK.double()
        truth, plain = outcome(wide, caches[2]), outcome(model, caches[1])
    on_cuda()
    for ours, theirs, exact in zip(outcome(model, caches[0]), plain, truth, strict=True):
        error, its_error = ((x - exact).norm() for x in (ours, theirs))
        assert error <= 1.3 * its_error + 1e-6 * exact.norm()


def test_where_fast_paths_run(on_cuda):
    """For rows that attend to a cache, without gradients, with weights of the rows' dtype that are whole."""
    block = model_named("llama, biases", torch.float32).layers[0]
    h_TD = torch.zeros(3, block.q.in_features)
    forward, attend = torch.nn.Module.__call__, lambda *_: None
    on_cuda()
    assert block_step(block, h_TD, attend) is forward, "with gradients"
    with torch.no_grad():
        assert block_step(block, h_TD, attend) is fused.FAST_PATHS["llama"].on_cuda
        assert block_step(block, h_TD, None) is forward, "a pack has the bits of training"
        assert block_step(block, h_TD.bfloat16(), attend) is forward
        assert block_step(block, h_TD.double(), attend) is forward
        block.q.weight.data = block.q.weight.data.new_empty(0)  # as ZeRO-3 leaves it
        assert block_step(block, h_TD, attend) is forward


@torch.no_grad()
def launches_of_a_layer(model, groups=()):
    cache, block = cache_of(model), model.layers[2]
    attend, rotation = cache.decode(TABLE, POSITIONS, *groups), model.rotations(POSITIONS).get(block.rotary)
    h_SD = torch.ones(3, model.hidden_size, dtype=model.head_weight.dtype)
    step = block_step(block, h_SD, attend)
    if block.rotary is None and hasattr(block, "slopes"):
        block.slopes(h_SD.device)  # kept for the life of the process
    with counted() as launches:
        step(block, h_SD, rotation, attend)
    return Counter(launches)


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches_of_a_layer(name, on_cuda):
    model = model_named(name, torch.float32)
    on_cuda()
    launches = launches_of_a_layer(model)
    assert launches.total() == LAUNCHES[name], launches


def test_rows_that_share_pages_take_one_launch_more(on_cuda):
    model = model_named("llama, biases", torch.float32)
    on_cuda()
    launches = launches_of_a_layer(model, GROUPS)
    assert launches.total() == 10 and launches["_chunk"] == 2, launches


def test_weights_apart_take_three_launches_more(on_cuda):
    model = model_named("llama, biases", torch.float32, side_by_side=False)
    on_cuda()
    launches = launches_of_a_layer(model)
    assert launches.total() == 12, launches


def test_gelu_of_bloom_is_part_of_its_product_in_16_bits(on_cuda):
    model = model_named("bloom, 6 heads", torch.bfloat16)
    on_cuda()
    launches = launches_of_a_layer(model)
    assert launches.total() == 8 and launches["_addmm_activation"] == 1, launches


@pytest.mark.parametrize("name", ["llama, biases", slow("bloom, 6 heads")])
def test_a_row_does_not_depend_on_others(name, on_cuda):
    """Up to the products' rounding: those are PyTorch's. tests of each kernel compare bits."""
    model = model_named(name, torch.float32)
    on_cuda()
    together, alone = (cache_of(model) for _ in range(2))
    out_SD = decoded(model, together, 2)
    rows = [decoded(model, alone, 2, rows=slice(n, n + 1)) for n in range(3)]
    torch.testing.assert_close(out_SD, torch.cat(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.k_LPGNK[:2], alone.k_LPGNK[:2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", ["int8", slow("int4")])
def test_quantised_layers_beside_each_other(bits, on_cuda):
    """q, k and v, gate and up as one product of codes: the values are those of the separate layers."""
    model = model_of("llama")
    quantise_trunk(model, 3, bits)
    lay_side_by_side(model)
    cache = cache_of(model)
    expected = decoded(model, cache_of(model), 2, GROUPS)
    on_cuda()
    with counted() as launches:
        out_SD = decoded(model, cache, 2, GROUPS)
    torch.testing.assert_close(out_SD, expected, atol=2e-5, rtol=2e-5)
    assert launches.count("_product") == 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
def test_rollout_with_graphs(name, on_cuda, monkeypatch):
    """Prompts in packs, prompts beside rows, and played graphs with blank rows: the tokens of the CPU's fast paths."""
    model = model_of(name)
    requests = [Request(tuple(range(3, 3 + n)), i, j, 6) for i, n in enumerate((70, 5)) for j in range(3)]

    def responses():
        return generate(model, requests, Sampling(0.0), 3, -1, num_slots=4, capture_layer=2)

    expected = responses()
    lay_side_by_side(model)
    on_cuda()

    def capture_here():
        def capture(step):
            outputs = step()

            def replay():
                for kept, new in zip(outputs, step()):
                    kept.copy_(new)

            return replay, outputs

        return capture

    monkeypatch.setattr(decode_graphs, "capture_on_cuda", capture_here)
    monkeypatch.setattr(kv_cache, "spare_pages", lambda device: 1)
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))
    found = responses()
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    for one, other in zip(found, expected):
        torch.testing.assert_close(one.trunk_ND, other.trunk_ND, atol=1e-4, rtol=1e-4)
