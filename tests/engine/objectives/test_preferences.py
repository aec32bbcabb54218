"""DPO's losses against numbers computed by hand, and their gradients against autograd of the formula in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from engine.objectives.preferences import best_loss, implicit_rewards, pairs_loss, plackett_luce_loss, sums_of


def close(actual, expected, rel=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=rel, atol=1e-7)


def gradient(x, loss):
    return torch.autograd.grad(loss, x)[0]


def cost(difference):
    """-log sigmoid."""
    return math.log(1 + math.exp(-difference))


def test_sums_of_responses_lie_end_to_end():
    x_A = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], requires_grad=True)
    sum_S = sums_of(x_A, (2, 1, 3))
    assert sum_S.tolist() == [3, 4, 56]
    assert gradient(x_A, (sum_S * torch.tensor([1.0, 2.0, 3.0])).sum()).tolist() == [1, 1, 2, 3, 3, 3]


def test_implicit_reward_by_hand():
    logprob_S, ref_logprob_S = torch.tensor([-3.0, -8.0]), torch.tensor([-5.0, -6.0])
    close(implicit_rewards(logprob_S, ref_logprob_S, 0.1), [0.2, -0.2])
    close(implicit_rewards(logprob_S, ref_logprob_S, 0.1, torch.tensor([4, 10])), [0.05, -0.02])


def test_a_policy_equal_to_its_reference_pays_log_2_a_pair():
    reward_S = implicit_rewards(torch.tensor([-3.0] * 9), torch.tensor([-3.0] * 9), 0.1)
    ranks = [[1, 2], [4, 3, 2, 1], [1, 1, 2]]
    close(pairs_loss(reward_S, ranks), 3 * math.log(2))
    close(pairs_loss(reward_S, ranks, 0.3), 3 * math.log(2))
    # choices among 2; 4, 3 and 2; twice among 2
    close(plackett_luce_loss(reward_S, ranks), math.log(2) + math.log(24) + 2 * math.log(2))


def test_three_responses_by_hand():
    reward_S = torch.tensor([0.5, 0.2, -0.4], requires_grad=True)
    close(pairs_loss(reward_S, [[2, 1, 3]]), (cost(-0.3) + cost(0.9) + cost(0.6)) / 3)
    weights = [math.exp(r) for r in (0.5, 0.2, -0.4)]
    probability = weights[1] / sum(weights) * weights[0] / (weights[0] + weights[2])
    loss = plackett_luce_loss(reward_S, [[2, 1, 3]])
    close(loss, -math.log(probability))
    first, second = [w / sum(weights) for w in weights], [w / (weights[0] + weights[2]) for w in weights]
    close(gradient(reward_S, loss), [first[0] + second[0] - 1, first[1] - 1, first[2] + second[2]])


def test_plackett_luce_is_a_distribution_over_orders():
    reward_S = torch.tensor([0.3, -1.2, 0.9, 0.1])
    orders = itertools.permutations([1, 2, 3, 4])
    close(torch.stack([(-plackett_luce_loss(reward_S, [order])).exp() for order in orders]).sum(), 1.0)


def test_ties_by_hand():
    """Tied responses are not compared: each of the first two beats the third, no more."""
    reward_S = torch.tensor([0.5, 0.2, -0.4])
    close(pairs_loss(reward_S, [[1, 1, 2]]), (cost(0.9) + cost(0.6)) / 2)
    close(plackett_luce_loss(reward_S, [[1, 1, 2]]), cost(0.9) + cost(0.6))
    # The first is chosen among all three; the tied ones have nothing below them.
    close(plackett_luce_loss(reward_S, [[1, 2, 2]]), math.log(1 + math.exp(-0.3) + math.exp(-0.9)))
    for loss in (pairs_loss, plackett_luce_loss):
        tied_S = torch.tensor([0.5, 0.2], requires_grad=True)
        assert loss(tied_S, [[3, 3]]) == 0 and gradient(tied_S, loss(tied_S, [[3, 3]])).tolist() == [0, 0]


def test_two_responses_are_alike_in_both_losses():
    reward_S = torch.tensor([0.7, -0.3, 1.0, 2.0])
    torch.testing.assert_close(pairs_loss(reward_S, [[1, 2], [1, 2]]), plackett_luce_loss(reward_S, [[1, 2], [1, 2]]))


def test_label_smoothing_by_hand():
    """With a smoothing of 0.2 the gradient of a pair ends where sigmoid(difference) is 0.8."""
    close(pairs_loss(torch.tensor([0.6, 0.0]), [[1, 2]], 0.2), 0.8 * cost(0.6) + 0.2 * cost(-0.6))
    at_rest_S = torch.tensor([math.log(4), 0.0], requires_grad=True)
    close(gradient(at_rest_S, pairs_loss(at_rest_S, [[1, 2]], 0.2)), [0.0, 0.0])


def test_best_response_by_hand():
    logprob_S, length_S = torch.tensor([-6.0, -4.0, -9.0, -1.0, -8.0]), torch.tensor([3, 4, 3, 5, 2])
    # the second of the first prompt, 1 nat a token; both tied ones of the second prompt, 3 and 0.2
    close(best_loss(logprob_S[:2], length_S[:2], [[2, 1]]), 1.0)
    close(best_loss(logprob_S, length_S, [[2, 1], [1, 1, 2]]), 1.0 + (3.0 + 0.2) / 2)


RANKS = ((1, 2), (3, 1, 2), (1, 1, 2, 3), (2, 2, 1), (1, 5, 3, 3, 2))


def direct(policy_S, reference_S, loss, beta, smoothing):
    """The paper's formulas, response by response, in float64."""
    total, first = 0.0, 0
    for ranks in RANKS:
        reward = [beta * (policy_S[first + i] - reference_S[first + i]) for i in range(len(ranks))]
        pairs = [(i, j) for i in range(len(ranks)) for j in range(len(ranks)) if ranks[i] < ranks[j]]
        if loss == "pairs":
            for i, j in pairs:
                better, worse = torch.sigmoid(reward[i] - reward[j]), torch.sigmoid(reward[j] - reward[i])
                total = total - ((1 - smoothing) * better.log() + smoothing * worse.log()) / len(pairs)
        else:
            for i in range(len(ranks)):
                below = [reward[j].exp() for k, j in pairs if k == i]
                total = total - (reward[i].exp() / (reward[i].exp() + sum(below))).log()
        first += len(ranks)
    return total


@pytest.mark.parametrize(("loss", "smoothing"), [("pairs", 0.0), ("pairs", 0.1), ("plackett-luce", 0.0)])
def test_gradient_equals_that_of_the_formula(loss, smoothing):
    generator = torch.Generator().manual_seed(0)
    policy_S, reference_S = 10 * torch.randn(2, sum(map(len, RANKS)), generator=generator) - 40
    ours_S, theirs_S = policy_S.clone().requires_grad_(), policy_S.double().requires_grad_()
    expected = direct(theirs_S, reference_S.double(), loss, 0.3, smoothing)
    reward_S = implicit_rewards(ours_S, reference_S, 0.3)
    actual = pairs_loss(reward_S, RANKS, smoothing) if loss == "pairs" else plackett_luce_loss(reward_S, RANKS)
    assert float(actual) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(gradient(ours_S, actual).double(), gradient(theirs_S, expected), rtol=1e-4, atol=1e-6)


def test_pairs_equal_the_sigmoid_loss_of_trl():
    """TRL's arithmetic on pairs: difference of the log ratios of the policy and of the reference, then -logsigmoid."""
    generator = torch.Generator().manual_seed(1)
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps = 5 * torch.randn(4, 6, generator=generator) - 30
    for smoothing in (0.0, 0.15):
        logits = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
        log_sigmoid = torch.nn.functional.logsigmoid
        losses = -log_sigmoid(0.1 * logits) * (1 - smoothing) - log_sigmoid(-0.1 * logits) * smoothing
        logprob_S = torch.stack([chosen_logps, rejected_logps], 1).flatten()
        ref_logprob_S = torch.stack([ref_chosen_logps, ref_rejected_logps], 1).flatten()
        ours = pairs_loss(implicit_rewards(logprob_S, ref_logprob_S, 0.1), [[1, 2]] * 6, smoothing)
        torch.testing.assert_close(ours / 6, losses.mean(), rtol=1e-5, atol=1e-6)


def test_large_wrong_difference_gives_finite_losses():
    for loss in (pairs_loss, plackett_luce_loss):
        reward_S = torch.tensor([-500.0, 500.0], requires_grad=True)
        close(loss(reward_S, [[1, 2]]), 1000.0)
        assert gradient(reward_S, loss(reward_S, [[1, 2]])).tolist() == [-1, 1]
