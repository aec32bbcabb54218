"""Losses against numbers computed by hand; gradients on both sides of every clip."""

from __future__ import annotations

import math

import pytest
import torch

from engine.objectives.losses import (
    kl_estimate,
    kl_loss,
    mean_per_sequence,
    policy_loss,
    ranking_loss,
    ranking_pairs,
    value_loss,
)


def close(actual, expected, rel=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rel, atol=1e-7)


def gradient(x, loss):
    return torch.autograd.grad(loss, x)[0]


def test_pairs_of_two_prompts_by_hand():
    """The first ranking has a tie between its second and third response; the second prompt's best comes last."""
    better_P, worse_P, weight_P = ranking_pairs([[1, 2, 2, 3], [2, 1]])
    assert list(zip(better_P.tolist(), worse_P.tolist())) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (5, 4)]
    close(weight_P, [0.2] * 5 + [1.0])
    assert (better_P.dtype, worse_P.dtype, weight_P.dtype) == (torch.int64, torch.int64, torch.float32)


def test_ranks_need_not_be_consecutive():
    assert [x.tolist() for x in ranking_pairs([[7, 3, 3]])] == [[1, 2], [0, 0], [0.5, 0.5]]


def test_prompt_with_only_ties_contributes_no_pair():
    pairs = ranking_pairs([[1, 1, 1], [2, 1]])
    assert [x.tolist() for x in pairs] == [[4], [3], [1.0]]
    assert [x.tolist() for x in ranking_pairs([[2, 2]])] == [[], [], []]
    score_S = torch.zeros(2, requires_grad=True)
    loss = ranking_loss(score_S, *ranking_pairs([[2, 2]]))
    assert loss.item() == 0 and gradient(score_S, loss).tolist() == [0, 0]


def test_ranking_loss_by_hand():
    score_S = torch.tensor([1.0, 0.2, -0.5, 0.7, 0.3, -0.1], requires_grad=True)
    loss = ranking_loss(score_S, *ranking_pairs([[1, 2, 2, 3], [2, 1]]))

    def minus_log_sigmoid(difference):
        return math.log(1 + math.exp(-difference))

    # better minus worse: 1.0-0.2, 1.0+0.5, 1.0-0.7, 0.2-0.7, -0.5-0.7; then -0.1-0.3
    first = sum(minus_log_sigmoid(d) for d in (0.8, 1.5, 0.3, -0.5, -1.2)) / 5
    second = minus_log_sigmoid(-0.4)
    close(loss, first + second)

    def push(difference):  # minus the derivative of the loss with respect to the difference
        return 1 / (1 + math.exp(difference))

    expected = [
        -(push(0.8) + push(1.5) + push(0.3)) / 5,
        (push(0.8) - push(-0.5)) / 5,
        (push(1.5) - push(-1.2)) / 5,
        (push(0.3) + push(-0.5) + push(-1.2)) / 5,
        push(-0.4),
        -push(-0.4),
    ]
    close(gradient(score_S, loss), expected)


def test_prompts_weigh_equally_for_any_number_of_responses():
    """With equal scores each pair costs log 2, and so does each prompt."""
    pairs = ranking_pairs([[1, 2], [4, 3, 2, 1], [1, 1, 2]])
    close(ranking_loss(torch.zeros(9), *pairs), 3 * math.log(2))


def test_large_wrong_difference_gives_finite_loss():
    close(ranking_loss(torch.tensor([-500.0, 500.0]), *ranking_pairs([[1, 2]])), 1000.0)


def test_kl_estimators_by_hand():
    logprob_T, ref_logprob_T = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.3, -1.6, -0.5])
    # log ratios 0.3, -0.4, 0
    close(kl_estimate(logprob_T, ref_logprob_T, "k1"), [0.3, -0.4, 0.0])
    close(kl_estimate(logprob_T, ref_logprob_T, "k2"), [0.045, 0.08, 0.0])
    close(kl_estimate(logprob_T, ref_logprob_T, "k3"), [math.exp(-0.3) - 1 + 0.3, math.exp(0.4) - 1 - 0.4, 0.0])


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative():
    """Expectations over all outcomes of a small distribution, in float64."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 50, generator=generator, dtype=torch.float64).log_softmax(-1)
    kl = (policy.exp() * (policy - reference)).sum()
    for estimator in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(policy, reference, estimator)).sum()
        assert mean.item() == pytest.approx(kl.item(), rel=1e-12)
    assert (kl_estimate(policy, reference, "k3") >= 0).all()


@pytest.mark.parametrize("log_ratio", [-3.0, -0.2232, -0.2231, -0.1, 0.0, 0.1, 0.1823, 0.1824, 2.0])
@pytest.mark.parametrize("advantage", [1.5, -0.7])
def test_policy_loss_around_its_clip(log_ratio, advantage):
    """log 0.8 = -0.22314 and log 1.2 = 0.18232: ratios just inside and just outside 1 +- 0.2."""
    logprob_A = torch.tensor([-1.0 + log_ratio], requires_grad=True)
    loss, clipped = policy_loss(logprob_A, torch.tensor([-1.0]), torch.tensor([advantage]), 0.2)
    ratio = math.exp(log_ratio)
    decided = ratio > 1.2 if advantage > 0 else ratio < 0.8
    bound = 1.2 if advantage > 0 else 0.8
    assert clipped.item() == decided
    close(loss, -advantage * (bound if decided else ratio), 1e-5)
    close(gradient(logprob_A, loss), [0.0 if decided else -advantage * ratio], 1e-5)


@pytest.mark.parametrize("advantage", [1.5, -0.7])
@pytest.mark.parametrize("log_ratio", [0.25, -0.25])
def test_policy_loss_clips_nothing_on_the_boundary(log_ratio, advantage):
    ratio = torch.tensor(log_ratio).exp().item()
    logprob_A = torch.tensor([log_ratio], requires_grad=True)
    loss, clipped = policy_loss(logprob_A, torch.zeros(1), torch.tensor([advantage]), abs(ratio - 1))
    assert clipped == 0
    close(loss, -advantage * ratio)
    close(gradient(logprob_A, loss), [-advantage * ratio])


def test_policy_loss_sums_and_counts_clipped_actions():
    logprob_A = torch.tensor([1.5, 0.5, 1.0, 2.0]).log()
    loss, clipped = policy_loss(logprob_A, torch.zeros(4), torch.tensor([2.0, -3.0, 4.0, -1.0]), 0.2)
    # clipped at 1.2; clipped at 0.8; not clipped; a worse action that became likelier is never clipped
    close(loss, -2.0 * 1.2 + 3.0 * 0.8 - 4.0 + 2.0)
    assert clipped == 2


@pytest.mark.parametrize(
    ("value", "target", "loss", "slope", "clipped"),
    [
        # the old value is 0 and the clip 0.5
        (0.3, 2.0, 0.5 * 1.7**2, -1.7, 0),  # inside
        (0.49, 2.0, 0.5 * 1.51**2, -1.51, 0),  # just inside
        (0.51, 2.0, 0.5 * 1.5**2, 0.0, 1),  # just past the clip, towards the return: no gradient
        (1.0, 2.0, 0.5 * 1.5**2, 0.0, 1),
        (-1.0, -2.0, 0.5 * 1.5**2, 0.0, 1),  # the same below the old value
        (-0.51, -2.0, 0.5 * 1.5**2, 0.0, 1),
        (-0.49, -2.0, 0.5 * 1.51**2, 1.51, 0),
        (1.0, -1.0, 0.5 * 2.0**2, 2.0, 0),  # past the clip, away from the return: gradient pulls back
        (-1.0, 1.0, 0.5 * 2.0**2, -2.0, 0),
    ],
)
def test_value_loss_around_its_clip(value, target, loss, slope, clipped):
    value_A = torch.tensor([value], requires_grad=True)
    actual, count = value_loss(value_A, torch.zeros(1), torch.tensor([target]), 0.5)
    close(actual, loss)
    close(gradient(value_A, actual), [slope])
    assert count == clipped


def test_value_loss_clips_nothing_on_the_boundary():
    value_A, old_A = torch.tensor([0.5, -0.5]), torch.zeros(2)
    loss, clipped = value_loss(value_A, old_A, torch.tensor([2.0, -2.0]), 0.5)
    close(loss, 0.5 * 1.5**2 * 2)
    assert clipped == 0


def test_value_is_clipped_around_the_old_value():
    loss, clipped = value_loss(torch.tensor([4.0, 2.6]), torch.tensor([3.0, 3.0]), torch.tensor([5.0, 1.0]), 0.5)
    close(loss, 0.5 * (5 - 3.5) ** 2 + 0.5 * (2.6 - 1.0) ** 2)
    assert clipped == 1


def test_kl_loss_by_hand():
    """Slopes with respect to the log-probability: k2's is the log ratio, k3's 1 - exp(-log ratio); times the weight."""
    logprob_A = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    ref_A, weight_A = torch.tensor([-1.3, -1.6, -0.5]), torch.tensor([1.0, 0.5, 2.0])  # log ratios 0.3, -0.4, 0
    loss = kl_loss(logprob_A, ref_A, "k2", weight_A)
    close(loss, 0.045 + 0.5 * 0.08)
    close(gradient(logprob_A, loss), [0.3, 0.5 * -0.4, 0.0])
    loss = kl_loss(logprob_A, ref_A, "k3")
    close(loss, (math.exp(-0.3) - 1 + 0.3) + (math.exp(0.4) - 1 - 0.4))
    close(gradient(logprob_A, loss), [1 - math.exp(-0.3), 1 - math.exp(0.4), 0.0])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_expected_gradient_of_kl_as_a_loss(estimator):
    """Over all outcomes, weighted by the policy: k2 KL(policy || reference), k3 KL(reference || policy), k1 nothing."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    logits.requires_grad_(True)
    policy, reference = logits.log_softmax(-1), reference.log_softmax(-1)
    actual = gradient(logits, kl_loss(policy, reference, estimator, policy.detach().exp()))
    policy = logits.log_softmax(-1)
    direct = {
        "k1": 0 * policy.sum(), "k2": (policy.exp() * (policy - reference)).sum(),
        "k3": (reference.exp() * (reference - policy)).sum(),
    }[estimator]  # fmt: skip
    torch.testing.assert_close(actual, gradient(logits, direct), rtol=1e-9, atol=1e-12)


def test_weights_make_a_sum_of_means():
    """Three actions of sequence 0, one of sequence 2; the clipped ratio 1.5 counts as 1.2."""
    weight_A = mean_per_sequence(torch.tensor([0, 0, 0, 2]), 3)
    close(weight_A, [1 / 3, 1 / 3, 1 / 3, 1.0])
    logprob_A = torch.tensor([1.5, 1.0, 1.0, 1.0]).log()
    loss, clipped = policy_loss(logprob_A, torch.zeros(4), torch.tensor([2.0, 1.0, -4.0, 3.0]), 0.2, weight_A)
    close(loss, -(2.4 + 1.0 - 4.0) / 3 - 3.0)
    assert clipped == 1
    close(
        value_loss(torch.ones(4), torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]), 9.0, weight_A)[0],
        0.5 * (5 / 3 + 9),
    )
