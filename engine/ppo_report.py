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


def row(iteration: str, x: Mapping[str, float]) -> dict[str, str]:
    """The console's line of an iteration, from what was logged."""
    return {
        "iteration": iteration, "score": short(x["objective/scores"]), "kl": short(x["objective/kl"]),
        "reward": short(x["objective/rlhf_reward"]), "entropy": short(x["policy/entropy_avg"]),
        "length": f"{x['rollout/response_length']:.1f}", "eos": f"{x['rollout/ended_with_eos']:.0%}",
        "clipped": f"{x['policy/clipfrac_avg']:.1%}", "value loss": short(x["loss/value_avg"]),
        "rollout s": f"{x['time/generation_s']:.1f}", "update s": f"{x['time/update_s']:.1f}",
    }  # fmt: skip
