"""Prompts that several sequences share are run once: outputs and gradients stay, rows become fewer."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batch import PackedBatch
from engine.models import build_model
from tests.engine.models.tiny import ONE_OF_EACH, VOCABULARY, assert_close, randomise

MODELS = {}
for _name, _make in ONE_OF_EACH.items():
    MODELS[_name] = build_model(_make(), seed=0)
    randomise(MODELS[_name])
each_family = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
TOKENS = st.integers(0, VOCABULARY - 1)
PROMPT = [5, 9, 33, 60, 2, 17, 8, 8]
# Two prompts, whose responses do not stand together, and a prompt with one response.
SEQUENCES = [[*PROMPT, 1], [7, 7, 7, 3, 4], [*PROMPT, 2, 5, 6], [3, 2, 1], [*PROMPT, 1], [7, 7, 7, 9], [7, 7, 7, 3]]
PROMPT_LENS = [8, 3, 8, 2, 8, 3, 3]
SHARED = PackedBatch.from_sequences(SEQUENCES, prompt_lens=PROMPT_LENS)
WHOLE = PackedBatch.from_sequences(SEQUENCES)


@st.composite
def packs(draw):
    """Sequences with few prompts in any order, and the prompts' lengths."""
    prompts = draw(st.lists(st.lists(TOKENS, min_size=6, max_size=9), min_size=1, max_size=3))
    chosen = draw(st.lists(st.sampled_from(prompts), min_size=4, max_size=9))
    sequences = [[*prompt, *draw(st.lists(TOKENS, max_size=3))] for prompt in chosen]
    return sequences, [len(prompt) for prompt in chosen]


@each_family
@settings(max_examples=20, deadline=None)
@given(pack=packs())
@torch.no_grad()
def test_outputs_are_those_of_whole_sequences(model, pack):
    sequences, prompt_lens = pack
    shared = PackedBatch.from_sequences(sequences, prompt_lens=prompt_lens)
    whole = PackedBatch.from_sequences(sequences)
    outputs = (model.run(model.embed(batch), batch, 0, model.num_layers) for batch in (shared, whole))
    assert_close(*outputs, 1e-5)


def run_with_gradients(model, batch, dtype, **options):
    """Return the output, the gradients of a weighted sum over it, and the rows of each layer."""
    model, rows = copy.deepcopy(model).to(dtype), []
    for block in model.layers:
        block.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    h_TD = model.run(model.embed(batch), batch, 0, model.num_layers, **options)
    weight_TD = torch.randn(h_TD.shape, generator=torch.Generator().manual_seed(1))
    (h_TD.float() * weight_TD).sum().backward()
    return h_TD.detach(), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}, set(rows)


@each_family
def test_gradients_are_those_of_whole_sequences_and_each_layer_runs_fewer_rows(model):
    found, gradients, rows = run_with_gradients(model, SHARED, torch.float32)
    expected, plain, plain_rows = run_with_gradients(model, WHOLE, torch.float32)
    assert rows == {8 + (1 + 3 + 1) + 3 + (2 + 1 + 1) + 3} and plain_rows == {len(WHOLE.tokens_T)}
    assert_close(found, expected, 1e-5)
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, plain[name], 1e-5)


@each_family
def test_bfloat16_gradients_are_as_near_to_those_of_float32_as_without_sharing(model):
    def gradient(batch, dtype):
        return torch.cat([x.double().flatten() for x in run_with_gradients(model, batch, dtype)[1].values()])

    exact = gradient(WHOLE, torch.float32)
    error, plain_error = ((gradient(batch, torch.bfloat16) - exact).norm() for batch in (SHARED, WHOLE))
    assert error < 1.3 * plain_error < 0.1 * exact.norm()


def test_recomputation_changes_no_bit(model=MODELS["llama"]):
    _, gradients, _ = run_with_gradients(model, SHARED, torch.float32)
    _, recomputed, _ = run_with_gradients(model, SHARED, torch.float32, recompute=True)
    assert all(torch.equal(gradient, recomputed[name]) for name, gradient in gradients.items())


def test_sums_in_bfloat16_are_rounded_once():
    tokens = [[1, 2]] * 9
    shared = PackedBatch.from_sequences(tokens, prompt_lens=[2] * 9).shared
    x_U = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.full((18, 1), 1 / 256, dtype=torch.bfloat16)
    gradient[0] = 1.0  # 1 + 1/256 is not a bfloat16: a sum rounded each time would stay 1
    shared.spread(x_U).backward(gradient)
    assert x_U.grad[0].item() == 1 + 8 / 256


@pytest.mark.parametrize("prompt_lens", [None, [1] * 7, [0] * 7], ids=["not known", "too short to pay", "no prompts"])
def test_packs_without_much_to_share_are_run_whole(prompt_lens):
    assert PackedBatch.from_sequences(SEQUENCES, prompt_lens=prompt_lens).shared is None


def test_attention_of_the_caller_sees_all_tokens():
    seen = []

    def attend(index, q_THK, k_TGK, v_TGK, options):
        seen.append(len(q_THK))
        return torch.zeros_like(q_THK)

    model = MODELS["llama"]
    model.run(model.embed(SHARED), SHARED, 0, 1, attend)
    assert seen == [SHARED.num_tokens]
