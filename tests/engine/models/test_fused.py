"""Fast paths against each block's own forward, for every kind of model; a family without one runs and agrees."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from engine.batch import PackedBatch
from engine.generation.generate import Request, generate
from engine.generation.kv_cache import KVCache
from engine.generation.sampling import Sampling
from engine.models import build_model, fused
from engine.models.attend import causal_attend
from engine.models.fused import FAST_PATHS, block_step, logits
from engine.models.side_by_side import lay_side_by_side
from kernels import bf16_passes
from kernels.skinny_linear import MAX_ROWS_ON_VECTORS
from kernels.skinny_linear.cpu import library
from tests.engine.models.tiny import CONFIGS, ONE_OF_EACH, SEQUENCES, assert_close, logits_of, randomise
from tests.kernels.units import no_unit, run_on

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")
FORWARD = nn.Module.__call__
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


WITH_FAST_PATH = [name for name, config in CONFIGS.items() if config().model_type in FAST_PATHS]


@pytest.mark.parametrize("name", WITH_FAST_PATH)
def test_few_rows_equal_the_forward(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    batch = PackedBatch.from_sequences(SEQUENCES)
    attend, block = causal_attend(batch), model.layers[0]
    path = FAST_PATHS[model.config.model_type]
    with torch.no_grad():
        assert block_step(block, model.embed(batch), attend) is path.few_rows
        assert block_step(block, model.embed(batch), None) is FORWARD, "a pack has the bits of training"
        assert_close(logits_of(model, batch, attend), logits_of(model, batch), 2e-5)
    assert block_step(block, model.embed(batch), attend) is FORWARD, "with gradients"


@pytest.mark.parametrize("name", WITH_FAST_PATH)
def test_many_rows_equal_the_forward(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    batch = PackedBatch.from_sequences([*SEQUENCES, *SEQUENCES * (MAX_ROWS_ON_VECTORS // sum(map(len, SEQUENCES)))])
    attend, h_TD, block = causal_attend(batch), model.embed(batch), model.layers[0]
    with torch.no_grad(), run_on(unit=False):
        assert block_step(block, h_TD, attend) is FAST_PATHS[model.config.model_type].many_rows
        assert block_step(model.layers[1].bfloat16(), h_TD.bfloat16(), attend) is FORWARD
        model.layers[1].float()
        before = h_TD.clone()
        assert_close(logits_of(model, batch, attend), logits_of(model, batch), 2e-5)
        model.run(h_TD, batch, 0, model.num_layers, attend)
        assert torch.equal(h_TD, before), "the caller's input is unchanged"
    assert block_step(block, h_TD, attend) is FORWARD, "with gradients"


@no_unit
def test_matrix_unit_runs_few_rows_at_any_number_of_rows():
    """Otherwise the bits of a row would change with the number of rows."""
    block = build_model(ONE_OF_EACH["llama"](), seed=0).layers[0]
    with torch.no_grad(), run_on(unit=True):
        h_TD = torch.zeros(9000, block.q.in_features)
        assert block_step(block, h_TD, lambda *_: None) is FAST_PATHS["llama"].few_rows


@pytest.mark.parametrize("family", ONE_OF_EACH)
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0)], ids=["greedy", "sampled"])
def test_family_without_fast_path_generates_the_same_tokens(family, sampling, monkeypatch):
    model = build_model(ONE_OF_EACH[family](), seed=0)
    randomise(model)
    requests = [Request(tuple(s), i, i % 3, 12) for i, s in enumerate(SEQUENCES)]

    def responses():
        return generate(model, requests, sampling, 3, -1, num_slots=3, capture_layer=2)

    fast = responses()
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    calls = []
    model.layers[-1].register_forward_hook(lambda *_: calls.append(1))
    plain = responses()
    assert calls, "the block's forward ran"
    assert [r.tokens for r in plain] == [r.tokens for r in fast]
    for one, other in zip(plain, fast):
        assert_close(one.trunk_ND, other.trunk_ND, 2e-5)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_logits_of_a_bfloat16_model_are_float32(name):
    """Rounded to bfloat16 they would keep 8 bits, fewer than the layers before them kept."""
    model = build_model(ONE_OF_EACH[name](), seed=0)
    randomise(model)
    model.bfloat16()
    h_SD = torch.randn(9, model.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        found = logits(model, h_SD)
        assert found.dtype == torch.float32
        assert_close(found, (model.norm(h_SD).double() @ model.head_weight.double().T).float(), 1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "llama, head size of its own", "qwen3", "gemma3"])
def test_bfloat16_kernels_are_as_exact_as_plain_pytorch(name, monkeypatch):
    """Gradients of all weights of a pack in training, against float64; and training runs the kernels."""
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    model = model.bfloat16()
    batch = PackedBatch.from_sequences(SEQUENCES)

    def gradients(dtype):
        copied = build_model(CONFIGS[name](), seed=0).to(dtype)
        copied.load_state_dict(model.state_dict())
        logits_of(copied, batch).double().logsumexp(-1).sum().backward()
        return torch.cat([p.grad.double().flatten() for p in copied.parameters()])

    truth, ours = gradients(torch.float64), gradients(torch.bfloat16)
    monkeypatch.setattr(bf16_passes, "fits", lambda x: False)
    plain = gradients(torch.bfloat16)
    assert not torch.equal(ours, plain)
    assert (ours - truth).norm() <= 1.05 * (plain - truth).norm()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", WITH_FAST_PATH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sharing", [False, True])
def test_fast_path_on_a_gpu_is_nearly_as_exact_as_the_forward(name, dtype, sharing, monkeypatch):
    """Five rows over random pages, two of which share a page: hidden states and the cache, against float64."""
    model = build_model(CONFIGS[name](), seed=0).requires_grad_(False)
    randomise(model)
    model = model.to("cuda", dtype)
    lay_side_by_side(model)
    position_S = torch.tensor([70, 100, 3, 64, 191], device="cuda")
    table_SB = torch.tensor([[0, 1, 0], [0, 2, 0], [3, 0, 0], [4, 5, 0], [6, 7, 8]], dtype=torch.int32, device="cuda")
    bounds, shared = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 2, 3, 4, 5], [64, 0, 0, 0]))
    generator = torch.Generator().manual_seed(3)
    h_SD = torch.randn(5, model.hidden_size, generator=generator).to("cuda", dtype)
    pages = torch.randn(KVCache(model, 9).k_LPGNK.shape, generator=generator).to("cuda", dtype)

    @torch.no_grad()
    def outcome(model):
        cache = KVCache(model, 9)
        cache.k_LPGNK.copy_(pages)
        cache.v_LPGNK.copy_(pages)
        attend = cache.decode(table_SB, position_S, *((bounds, shared) if sharing else ()))
        batch = PackedBatch.of_singles(position_S, position_S)
        out_SD = model.run(h_SD.to(model.head_weight.dtype), batch, 0, model.num_layers, attend)
        return [x.double() for x in (out_SD, cache.k_LPGNK[:, :9], cache.v_LPGNK[:, :9])]

    assert block_step(model.layers[0], h_SD, causal_attend) is FORWARD, "with gradients"
    ours = outcome(model)
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    for found, plain, exact in zip(ours, outcome(model), outcome(copy.deepcopy(model).double()), strict=True):
        error, its_error = ((x - exact).norm() for x in (found, plain))
        assert error <= 1.3 * its_error + 2e-6 * exact.norm()
