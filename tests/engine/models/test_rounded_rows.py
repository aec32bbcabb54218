"""Rows of zeros in bfloat16 on a CPU: products of few different sizes, and the numbers of the pack alone."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.batch import PackedBatch
from engine.models import build_model, decoder
from engine.models.attend import causal_attend
from engine.models.rounded_rows import ROWS, rows_to_add
from tests.engine.models.tiny import ONE_OF_EACH, SEQUENCES, randomise

BATCH = PackedBatch.from_sequences([*SEQUENCES * 3, [5, 6, 7]])  # 147 tokens: 45 rows are added
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.linear.default)


@pytest.fixture(params=ONE_OF_EACH, scope="module")
def model(request):
    model = build_model(ONE_OF_EACH[request.param](), seed=0)
    randomise(model)
    return model.bfloat16()


class Rows(TorchDispatchMode):
    """Collects the sizes of the left factor of each product."""

    def __init__(self):
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.sizes.update(args[-2].shape)
        return func(*args, **(kwargs or {}))


def outputs_and_gradients(model, attend=None):
    """Return h_TD, the rows of all products, and the gradients of a sum over the tokens' outputs."""
    model = copy.deepcopy(model)
    with Rows() as rows:
        h_TD = model.run(model.embed(BATCH), BATCH, 0, model.num_layers, attend)
        h_TD.float().square().mean().backward()
    return h_TD.detach(), rows.sizes, {n: w.grad for n, w in model.layers.named_parameters() if w.grad is not None}


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("attend", [None, causal_attend(BATCH)], ids=["pack", "attention from outside"])
def test_outputs_and_gradients_are_those_of_the_pack_alone(model, attend, monkeypatch):
    found, rows, gradients = outputs_and_gradients(model, attend)
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "rows_to_add", lambda _: 0)
        expected, plain_rows, plain_gradients = outputs_and_gradients(model, attend)
    assert BATCH.num_tokens in plain_rows and BATCH.num_tokens not in rows and 3 * ROWS in rows
    assert found.shape == expected.shape and relative(found, expected) < 0.01
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        assert relative(gradient, plain_gradients[name]) < 0.03, name


def test_no_rows_for_float32_or_for_few_rows_or_for_a_multiple():
    assert rows_to_add(torch.zeros(130, 8)) == 0
    assert [rows_to_add(torch.zeros(n, 8, dtype=torch.bfloat16)) for n in (1, 63, 64, 65, 128, 190)] == [
        0, 0, 0, 63, 0, 2,
    ]  # fmt: skip
