"""linear_logprob and linear_logits of a head in 8 or 4 bits: the numbers of its values, a block of them at a time."""

import pytest
import torch

from engine.models.quantised import quantise
from kernels.common.bench import extra_bytes
from kernels.common.codes import Codes
from kernels.linear_logprob import linear_logits, linear_logprob, linear_logprob_reference
from tests.kernels.logprob_problems import problem, shrink_blocks


def of_codes(weight_VD, bits):
    return Codes(*quantise(weight_VD, bits), weight_VD.shape[1], weight_VD.dtype)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "vocab", "size"), [(1, 1, 1), (33, 257, 40), (70, 1009, 64)])
def test_the_numbers_of_the_values(monkeypatch, bits, dtype, tokens, vocab, size):
    shrink_blocks(monkeypatch)
    h_TD, W_VD, target_T, weights = problem(tokens, vocab, size, 0, dtype)
    codes = of_codes(W_VD, bits)
    found = {}
    for name, function, W, wide in (
        ("codes", linear_logprob, codes, dtype),
        ("truth", linear_logprob_reference, codes.values().double(), torch.float64),
        ("unrounded weight", linear_logprob_reference, W_VD.double(), torch.float64),
    ):
        h = h_TD.to(wide, copy=True).requires_grad_()
        outputs = function(h, W, target_T, 0.7)
        torch.stack([(o * w).sum() for o, w in zip(outputs, weights)]).sum().backward()
        found[name] = [x.detach().double() for x in (*outputs, h.grad)]
    limits = [2e-5] * 3 + [2e-5 if dtype == torch.float32 else 2**-7]
    for ours, truth, limit in zip(found["codes"], found["truth"], limits):
        assert (ours - truth).abs().max() <= limit * truth.abs().max().clamp(min=1)
    if vocab > 1:
        assert (found["codes"][0] - found["unrounded weight"][0]).abs().max() > 1e-4


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [False, True])
def test_logits_of_codes(bits, dtype, given):
    generator = torch.Generator().manual_seed(1)
    h_TD, W_VD = (torch.randn(n, 75, generator=generator).to(dtype) for n in (5, 30_000))  # three blocks
    codes, out_TV = of_codes(W_VD, bits), torch.empty(5, 30_000) if given else None
    found = linear_logits(h_TD, codes, out_TV)
    assert found.dtype == torch.float32 and (found is out_TV or not given)
    torch.testing.assert_close(found, (h_TD.double() @ codes.values().double().T).float(), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_the_whole_weight_is_never_dequantised(bits):
    h_TD, W_VD, target_T, _ = problem(8, 100_003, 256, 0)
    codes = of_codes(W_VD, bits)
    h_TD.requires_grad_()

    def step():
        outputs = linear_logprob(h_TD, codes, target_T)
        (outputs[0].sum() + outputs[2].sum()).backward()
        return *outputs, h_TD.grad

    assert extra_bytes(step) <= 32 << 20 < W_VD.nbytes / 2
    with torch.no_grad():
        assert extra_bytes(lambda: (linear_logits(h_TD, codes),)) <= 32 << 20
