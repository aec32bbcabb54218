"""What PPO tells of an iteration: the numbers of its rollouts, and its line on the console."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from engine.console import short
from engine.experience import Experience
from engine.metrics import Metrics


def measure_rollouts(
    metrics: Metrics,
    x: Experience,
    kl_T: Tensor,
    kl_coef: float,
    ended_S: Tensor,
    rollout_logprob_A: Tensor,
    ranks: int,
) -> None:
    """Add what a rank's rollouts say: sums over responses, under the names users know.

    `kl_T` is the estimate that was charged, `ended_S` whether a response has an EOS, `rollout_logprob_A` the
    log-probability that generation sampled each action with.
    """
    rollouts, actions = x.batch.num_sequences, x.action_T.sum()
    metrics.add("objective/kl", (x.logprob_T - x.ref_logprob_T).sum(), rollouts)
    metrics.add("objective/scores", x.score_S.sum(), rollouts)
    metrics.add("objective/non_score_reward", -kl_coef * kl_T.sum(), rollouts)
    metrics.add("objective/rlhf_reward", x.reward_T.sum(), rollouts)
    metrics.add("objective/entropy", -x.logprob_T.sum(), rollouts)
    metrics.add("rollout/response_length", actions, rollouts)
    metrics.add("rollout/ended_with_eos", ended_S.sum(), rollouts)
    metrics.add("rollout/logprob_difference", (x.logprob_T[x.action_T] - rollout_logprob_A).abs().sum(), actions)
    metrics.add("rollout/tokens", actions.double(), 1 / ranks)


def measure_update(
    metrics: Metrics,
    log_ratio_A: Tensor,
    entropy_A: Tensor,
    policy: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    weight: float,
) -> None:
    """Add what a microbatch of an update says: sums over actions.

    `policy` and `value` are each a loss and the number of actions that its clip decided; `weight` is 0 for a stand-in.
    """
    log_ratio_A, count = log_ratio_A.detach(), len(log_ratio_A) * weight
    metrics.add("loss/policy_avg", policy[0] * weight, count)
    metrics.add("loss/value_avg", value[0] * weight, count)
    metrics.add("policy/approxkl_avg", 0.5 * log_ratio_A.square().sum() * weight, count)
    metrics.add("policy/clipfrac_avg", policy[1] * weight, count)
    metrics.add("policy/entropy_avg", entropy_A.sum() * weight, count)
    metrics.add("val/clipfrac_avg", value[1] * weight, count)
    metrics.add("val/ratio", log_ratio_A.exp().sum() * weight, count)
    metrics.first("val/first_ratio_error", (log_ratio_A.exp() - 1).abs().sum() * weight, count)


def row(iteration: str, x: Mapping[str, float]) -> dict[str, str]:
    """The console's line of an iteration, from what was logged."""
    return {
        "iteration": iteration, "score": short(x["objective/scores"]), "kl": short(x["objective/kl"]),
        "reward": short(x["objective/rlhf_reward"]), "entropy": short(x["policy/entropy_avg"]),
        "length": f"{x['rollout/response_length']:.1f}", "eos": f"{x['rollout/ended_with_eos']:.0%}",
        "clipped": f"{x['policy/clipfrac_avg']:.1%}", "value loss": short(x["loss/value_avg"]),
        "rollout s": f"{x['time/generation_s']:.1f}", "update s": f"{x['time/update_s']:.1f}",
    }  # fmt: skip
