"""A block in few passes against a block module by module, for every kind of model."""

from __future__ import annotations

import pytest
import torch

from engine.batch import PackedBatch
from engine.models import build_model
from engine.models.attend import causal_attend
from engine.models.fused import ByModule, FewRows, ManyRows, block_ops, logits
from kernels import bf16_passes
from kernels.skinny_linear import MAX_ROWS_ON_VECTORS
from kernels.skinny_linear.cpu import library
from tests.engine.models.tiny import CONFIGS, ONE_OF_EACH, SEQUENCES, assert_close, logits_of, randomise
from tests.kernels.units import no_unit, run_on

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler here")


@pytest.mark.parametrize("name", CONFIGS)
def test_few_passes_give_what_the_modules_give(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    batch = PackedBatch.from_sequences(SEQUENCES)
    attend = causal_attend(batch)
    with torch.no_grad():
        by_module = logits_of(model, batch)
        first = model.layers[0]
        weight = first.qkv.weight if hasattr(first, "qkv") else first.q.weight
        assert isinstance(block_ops(model.embed(batch), attend, weight), FewRows)
        assert isinstance(block_ops(model.embed(batch), None, weight), ByModule), "a pack has the bits of training"
        assert_close(logits_of(model, batch, attend), by_module, 2e-5)
    assert isinstance(block_ops(model.embed(batch), attend, weight), ByModule), "with gradients"


@pytest.mark.parametrize("name", CONFIGS)
def test_many_rows_give_what_the_modules_give(name):
    model = build_model(CONFIGS[name](), seed=0)
    randomise(model)
    batch = PackedBatch.from_sequences([*SEQUENCES, *SEQUENCES * (MAX_ROWS_ON_VECTORS // sum(map(len, SEQUENCES)))])
    attend, h_TD = causal_attend(batch), model.embed(batch)
    first = model.layers[0]
    weight = first.qkv.weight if hasattr(first, "qkv") else first.q.weight
    with torch.no_grad(), run_on(unit=False):
        assert isinstance(block_ops(h_TD, attend, weight), ManyRows)
        assert isinstance(block_ops(h_TD.bfloat16(), attend, weight.bfloat16()), ByModule)
        before = h_TD.clone()
        assert_close(logits_of(model, batch, attend), logits_of(model, batch), 2e-5)
        model.run(h_TD, batch, 0, model.num_layers, attend)
        assert torch.equal(h_TD, before), "the input belongs to the caller"
    assert isinstance(block_ops(h_TD, attend, weight), ByModule), "with gradients"


@no_unit
def test_on_the_matrix_unit_no_number_of_rows_changes_the_way():
    """The bits of a row would change with it."""
    h_TD, weight = torch.zeros(9000, 4), torch.zeros(3, 4)
    with torch.no_grad(), run_on(unit=True):
        assert isinstance(block_ops(h_TD, lambda *_: None, weight), FewRows)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_logits_of_a_bfloat16_model_are_not_rounded_again(name):
    """What sampling sees: bfloat16 would keep 8 bits of them, less than the layers before them kept."""
    model = build_model(ONE_OF_EACH[name](), seed=0)
    randomise(model)
    model.bfloat16()
    h_SD = torch.randn(9, model.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        found = logits(model, h_SD)
        assert found.dtype == torch.float32
        assert_close(found, (model.norm(h_SD).double() @ model.head_weight.double().T).float(), 1e-5)


@pytest.mark.parametrize("name", ["llama, tied", "llama, head size of its own", "qwen3"])
def test_passes_in_bfloat16_are_no_less_exact_than_the_modules(name, monkeypatch):
    """Gradients of all weights, against float64, of a pack in training; and the passes are those that run there."""
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
