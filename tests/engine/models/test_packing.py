"""Models on packs: equal to single sequences, layers run in parts, attention and caches from outside."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import build_model, length_limit
from engine.models.bloom import alibi_slopes
from engine.models.rotary import inverse_frequencies
from kernels.attention import attention
from tests.engine.models.tiny import (
    CONFIGS,
    LLAMA3,
    ONE_OF_EACH,
    SEQUENCES,
    VOCABULARY,
    YARN,
    assert_close,
    bloom,
    gemma3,
    llama,
    logits_of,
    mistral,
    randomise,
)

MODELS = {}
for _name, _make in ONE_OF_EACH.items():
    MODELS[_name] = build_model(_make(), seed=0)
    randomise(MODELS[_name])

each_family = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@each_family
@settings(max_examples=20, deadline=None)
@given(sequences=st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5))
@torch.no_grad()
def test_pack_equals_single_sequences(model, sequences):
    together = logits_of(model, PackedBatch.from_sequences(sequences))
    alone = torch.cat([logits_of(model, PackedBatch.from_sequences([s])) for s in sequences])
    assert_close(together, alone, 1e-5)


@each_family
def test_gradients_of_a_pack_are_sums_over_sequences(model):
    def gradients(batches):
        model.zero_grad()
        for batch in batches:
            logprob_TV = logits_of(model, batch).log_softmax(-1)
            (-logprob_TV.gather(1, batch.target_T[:, None]).sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    together = gradients([PackedBatch.from_sequences(SEQUENCES)])
    alone = gradients([PackedBatch.from_sequences([s]) for s in SEQUENCES])
    for name in together:
        assert together[name].abs().max() > 0, name
        assert_close(together[name], alone[name], 1e-5)
    model.zero_grad()


@each_family
@torch.no_grad()
def test_layers_in_two_runs_give_the_same_bits(model):
    batch = PackedBatch.from_sequences(SEQUENCES)
    h_TD, top = model.embed(batch), model.num_layers - 4
    in_parts = model.run(model.run(h_TD, batch, 0, top), batch, top, model.num_layers)
    assert torch.equal(in_parts, model.run(h_TD, batch, 0, model.num_layers))
    assert torch.equal(model.run(h_TD, batch, 2, 2), h_TD)


@each_family
def test_blocks_outside_the_model_run_and_train(model):
    class Top(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(copy.deepcopy(block) for block in model.layers[-4:])

    batch, top, seen = PackedBatch.from_sequences(SEQUENCES), Top(), []

    def attend(layer, q_THK, k_TGK, v_TGK, options):
        seen.append(layer)
        return attention(q_THK, k_TGK, v_TGK, batch.cu_seqlens, batch.lengths, *options)

    with torch.no_grad():
        h_TD = model.run(model.embed(batch), batch, 0, 1)
        expected = model.run(h_TD, batch, 1, 5)
    out = type(model).run_layers(top.blocks, h_TD, batch, attend)
    assert torch.equal(out, expected)
    assert seen == [1, 2, 3, 4]
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in top.parameters())


@each_family
@torch.no_grad()
def test_decode_with_cache_equals_whole_sequences(model):
    """Prefill 4 and 2 tokens of two sequences, then decode one token per step, as generation does."""
    sequences, prefilled = [SEQUENCES[0][:9], SEQUENCES[4][:7]], [4, 2]
    expected = [logits_of(model, PackedBatch.from_sequences([s])) for s in sequences]
    cache = {}

    def attend(layer, q_THK, k_TGK, v_TGK, options):
        outputs = []
        for s, (q, k, v) in enumerate(zip(*(x.split(batch.lengths) for x in (q_THK, k_TGK, v_TGK)))):
            if (layer, s) in cache:
                k, v = (torch.cat(pair) for pair in zip(cache[layer, s], (k, v)))
            cache[layer, s] = k, v
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
            scores = torch.einsum("qhk,nhk->hqn", q, k) * (options.scale or model.head_size**-0.5)
            if options.slopes_H is not None:
                scores = scores + options.slopes_H[:, None, None] * torch.arange(len(k))
            distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
            seen = (distance >= 0) & (distance < (options.window or len(k)))
            outputs.append(torch.einsum("hqn,nhk->qhk", scores.masked_fill(~seen, -torch.inf).softmax(-1), v))
        return torch.cat(outputs)

    batch = PackedBatch.from_sequences([s[:n] for s, n in zip(sequences, prefilled)])
    parts = logits_of(model, batch, attend).split(batch.lengths)
    actual = [[part] for part in parts]
    for step in range(5):
        at = [n + step for n in prefilled]
        batch = PackedBatch.from_sequences([[s[i]] for s, i in zip(sequences, at)])
        batch = dataclasses.replace(batch, positions_T=torch.tensor(at))
        for s, logits_V in enumerate(logits_of(model, batch, attend)):
            actual[s].append(logits_V[None])
    for s in range(2):
        assert_close(torch.cat(actual[s]), expected[s], 1e-5)


@each_family
def test_training_after_inference_mode(model):
    alibi_slopes.cache_clear()
    inverse_frequencies.cache_clear()
    batch = PackedBatch.from_sequences(SEQUENCES)
    with torch.inference_mode():
        logits_of(model, batch)
    logits_of(model, batch).sum().backward()
    model.zero_grad()
    assert not alibi_slopes(6, batch.tokens_T.device).is_inference()
    assert not inverse_frequencies(MODELS["llama"].layers[0].rotary, batch.tokens_T.device).is_inference()


LINEAR = {"rope_type": "linear", "rope_theta": 700.0, "factor": 3.0}


@pytest.mark.parametrize(("config", "limit"), [
    (mistral(sliding_window=8), (256, "max_position_embeddings")),
    (gemma3(), (256, "max_position_embeddings")),
    (llama(rope_parameters=LINEAR | {"rope_type": "dynamic"}), (256, "max_position_embeddings")),
    (llama(rope_parameters=YARN), (256, "max_position_embeddings")),
    # Scaled positions: 256 is the length before scaling, unless the scaling names a shorter original length.
    (llama(rope_parameters=LINEAR), (768, "max_position_embeddings")),
    (llama(rope_parameters={**LINEAR, "original_max_position_embeddings": 64}), (256, "max_position_embeddings")),
    (llama(rope_parameters=LLAMA3), (256, "max_position_embeddings")),
    (llama(rope_parameters={k: LLAMA3[k] for k in list(LLAMA3)[:-1]}), (2048, "max_position_embeddings")),
    (bloom(n_head=8, seq_length=256), None),
])  # fmt: skip
def test_too_long_sequence_is_refused(config, limit):
    model = build_model(config, seed=0)
    assert length_limit(config) == limit
    assert model.max_length == (limit and limit[0])
    longest = limit[0] if limit else 2100
    logits_of(model, PackedBatch.from_sequences([[1] * longest, [2]]))
    if limit:
        with pytest.raises(UserError, match=rf"{longest + 1} tokens, the model serves {longest} \({limit[1]} in its"):
            logits_of(model, PackedBatch.from_sequences([[2], [1] * (longest + 1)]))


def first_value(model_type, name):
    """Return the value of a vector in a new model: transformers' own."""
    if "alpha" in name:  # xIELU's curvatures: softplus of these is 0.8, and 0.3 + 1/2
        return math.log(math.exp(0.8 if name.endswith("alpha_p") else 0.3) - 1)
    centred = model_type == "gemma3_text"  # its norms multiply by 1 + weight
    return 0.0 if name.endswith("bias") or centred else 1.0


def test_same_seed_gives_the_same_new_model():
    for make in CONFIGS.values():
        one, same, other = (build_model(make(initializer_range=0.5), seed=seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[name], same[name]) for name in one)
        for name, tensor in one.items():
            if tensor.ndim == 2:
                assert not torch.equal(tensor, other[name])
                assert 0.4 < tensor.std() < 0.6
            else:
                assert torch.equal(tensor, torch.full_like(tensor, first_value(make().model_type, name)))


def test_unsupported_configs_are_refused():
    with pytest.raises(UserError, match="6 heads cannot be shared by 4"):
        build_model(CONFIGS["llama, tied"](num_key_value_heads=4), seed=0)
    with pytest.raises(UserError, match="the activation is 'gelu': only silu is supported"):
        build_model(CONFIGS["llama, tied"](hidden_act="gelu"), seed=0)
    with pytest.raises(UserError, match="hidden_size is 48, not a multiple of 7"):
        build_model(CONFIGS["bloom, 6 heads"](n_head=7), seed=0)
