"""Trained modules on a pack and on single sequences: equal outputs and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.batch import PackedBatch, action_mask
from engine.models import build_model
from engine.training.modules import LanguageModule, Policy, RewardModule
from engine.training.trunk import Trunk
from tests.engine.models.tiny import ONE_OF_EACH, SEQUENCES, VOCABULARY, randomise

BATCH = PackedBatch.from_sequences(SEQUENCES)
PROMPT_LENS = [3, 1, 5, 1, 10]  # the second and third sequences have no response
ACTION_T = action_mask(BATCH, PROMPT_LENS)
TEMPERATURE = 0.7

each_family = pytest.mark.parametrize("family", ONE_OF_EACH)


def model_of(family: str) -> nn.Module:
    model = build_model(ONE_OF_EACH[family](), seed=0)
    randomise(model)
    return model.double()


def parts() -> list[tuple[PackedBatch, torch.Tensor, torch.Tensor]]:
    """Return for each sequence (pack of one, its action columns in that pack, its columns in the whole pack)."""
    columns = [BATCH.columns([s]) for s in range(len(SEQUENCES))]
    return [(PackedBatch.from_sequences([s]), ACTION_T[c].nonzero()[:, 0], c) for s, c in zip(SEQUENCES, columns)]


def gradients(module: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}


def assert_same_gradients(together, alone):
    assert together.keys() == alone.keys()
    for name in together:
        assert together[name].abs().max() > 0, f"{name} is not trained"
        error = (together[name] - alone[name]).abs().max() / together[name].abs().max()
        assert error < 1e-5, name


def assert_same(together, alone):
    # 1e-5 because linear_logprob computes in float32 for every input dtype.
    torch.testing.assert_close(together.double(), alone.double(), rtol=1e-5, atol=1e-5)


def weights_of(count: int) -> torch.Tensor:
    """Return a different loss weight for each column, so that swapped columns change the loss."""
    return torch.linspace(0.5, 2.0, count, dtype=torch.float64)


@each_family
def test_language_model(family):
    module = LanguageModule(model_of(family))
    columns_A = ACTION_T.nonzero()[:, 0]
    weight_T = weights_of(BATCH.num_tokens)
    together = module(BATCH, None, columns_A)
    alone = [module(batch, None, own) for batch, own, _ in parts()]
    assert together.dtype == torch.float32
    assert_same(together, torch.cat(alone))
    own_weights = [weight_T[c][own] for _, own, c in parts()]
    assert_same_gradients(
        gradients(module, (together * weight_T[columns_A]).sum()),
        gradients(module, sum((x * w).sum() for x, w in zip(alone, own_weights))),
    )


@each_family
@torch.no_grad()
def test_logprobs_equal_softmax_of_next_tokens(family):
    """The reference computes all logits, one sequence at a time."""
    model = model_of(family)
    logprob_A = LanguageModule(model)(BATCH, None, ACTION_T.nonzero()[:, 0]).tolist()
    expected = []
    for sequence, prompt_len in zip(SEQUENCES, PROMPT_LENS):
        batch = PackedBatch.from_sequences([sequence])
        logits_TV = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers)) @ model.head_weight.T
        for t in range(prompt_len - 1, len(sequence) - 1):
            expected.append(logits_TV[t].log_softmax(-1)[sequence[t + 1]].item())
    assert logprob_A == pytest.approx(expected, abs=1e-5)


@each_family
@pytest.mark.parametrize("top_layers", [0, 2, 5])
def test_reward_model(family, top_layers):
    torch.manual_seed(0)
    model = model_of(family)
    trunk = Trunk(model, 5 - top_layers)
    module = RewardModule(model, torch.randn(48), trunk.split)
    together = module(BATCH, trunk(BATCH))
    alone = torch.cat([module(batch, trunk(batch)) for batch, _, _ in parts()])
    assert together.shape == (len(SEQUENCES),)
    assert_same(together, alone)
    weight_S = weights_of(len(SEQUENCES))
    got = gradients(module, (together * weight_S).sum())
    assert_same_gradients(got, gradients(module, (alone * weight_S).sum()))
    layers = {int(name.split(".")[2]) for name in got if name.startswith("body.layers.")}
    assert layers == set(range(5 - top_layers, 5))
    assert {"score.weight", "body.final_norm.weight"} <= got.keys()
    assert not any("embedding" in name for name in got)


def test_score_depends_on_every_token_of_its_sequence():
    module = RewardModule(model_of("bloom"), torch.randn(48, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        base_S = module(BATCH, None)
        for s, sequence in enumerate(SEQUENCES):
            for t in {0, len(sequence) - 1}:
                changed = [list(x) for x in SEQUENCES]
                changed[s][t] = (changed[s][t] + 1) % VOCABULARY
                moved_S = (module(PackedBatch.from_sequences(changed), None) - base_S).abs() > 1e-6
                assert moved_S.tolist() == [i == s for i in range(len(SEQUENCES))]


def policy_of(family: str, top_layers: int | None) -> tuple[nn.Module, Policy]:
    """Return (model, policy) as the trainer builds them, with a nonzero value head."""
    model = model_of(family)
    policy = Policy(model, None if top_layers is None else model.num_layers - top_layers)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.value.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, policy


@torch.no_grad()
def trunk_of(model: nn.Module, top_layers: int | None) -> torch.Tensor | None:
    if top_layers is None:
        return None
    return model.run(model.embed(BATCH), BATCH, 0, model.num_layers - top_layers)


@each_family
@pytest.mark.parametrize("top_layers", [1, 4, 5, None])
def test_policy(family, top_layers):
    model, policy = policy_of(family, top_layers)
    trunk_TD = trunk_of(model, top_layers)
    columns_A = ACTION_T.nonzero()[:, 0]
    together = policy(BATCH, trunk_TD, columns_A, TEMPERATURE)
    alone = [
        policy(batch, None if trunk_TD is None else trunk_TD[columns], own, TEMPERATURE)
        for batch, own, columns in parts()
    ]
    alone = [torch.cat(column) for column in zip(*alone)]
    weight_A = weights_of(len(columns_A))
    losses = []
    for logprob_A, entropy_A, value_A in (together, alone):
        assert logprob_A.dtype == entropy_A.dtype == value_A.dtype == torch.float32
        losses.append(((logprob_A + 0.3 * entropy_A + 0.7 * value_A) * weight_A).sum())
    for one, other in zip(together, alone):
        assert_same(one, other)
    got = gradients(policy, losses[0])
    assert_same_gradients(got, gradients(policy, losses[1]))
    if top_layers is not None:
        assert {name.split(".")[2] for name in got if ".layers." in name} == {str(i) for i in range(5 - top_layers, 5)}
        assert all(p.grad is None for p in (model.embedding.weight, model.head_weight))


@each_family
@torch.no_grad()
def test_policy_equals_its_model_at_temperature(family):
    """The top on a stored trunk and a policy of all layers give the logprobs of the language model."""
    columns_A = ACTION_T.nonzero()[:, 0]
    model = model_of(family)
    h_TD = model.run(model.embed(BATCH), BATCH, 0, model.num_layers)
    log_p_AV = (model.norm(h_TD[columns_A]) @ model.head_weight.T / TEMPERATURE).log_softmax(-1)
    expected_A = log_p_AV.gather(1, BATCH.target_T[columns_A, None])[:, 0]
    for top_layers in (1, 4, 5, None):
        model, policy = policy_of(family, top_layers)
        logprob_A, entropy_A, value_A = policy(BATCH, trunk_of(model, top_layers), columns_A, TEMPERATURE)
        assert_same(logprob_A, expected_A)
        assert_same(entropy_A, -(log_p_AV.exp() * log_p_AV).sum(-1))
        assert_same(value_A, policy.value(model.norm(h_TD[columns_A])))


@each_family
@pytest.mark.parametrize("top_layers", [2, None])
def test_reference_equals_untrained_policy_and_never_changes(family, top_layers):
    model, policy = policy_of(family, top_layers)
    reference = policy.reference()
    columns_A, trunk_TD = ACTION_T.nonzero()[:, 0], trunk_of(model, top_layers)

    def logprobs():
        mine = policy(BATCH, trunk_TD, columns_A, TEMPERATURE)[0]
        return mine, reference(BATCH, trunk_TD, columns_A, TEMPERATURE)

    mine_A, before_A = logprobs()
    assert torch.equal(mine_A, before_A)
    assert not before_A.requires_grad
    assert not any(p.requires_grad for p in reference.parameters())
    mine_A.sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter += 0.01 * parameter.grad.sign()
    mine_A, after_A = logprobs()
    assert torch.equal(after_A, before_A)
    assert (mine_A - before_A).abs().max() > 0.01


@each_family
def test_policy_trains_the_model_in_place(family):
    """Generation runs the tensors that the optimizer changes; there is no weight sync."""
    model, policy = policy_of(family, 2)
    own = {id(p) for p in model.parameters()}
    body = list(policy.body.parameters())
    assert body
    assert all(id(p) in own for p in body)
    assert policy.head_VD is model.head_weight
    assert not any(p is model.head_weight for p in policy.parameters())
