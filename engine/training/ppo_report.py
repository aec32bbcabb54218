"""What PPO reports of an iteration: metrics of its rollouts and updates, and its line on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import correlation, pstdev

import torch
from torch import Tensor

from engine.cli.console import Console, short
from engine.distributed.world import World
from engine.objectives.experience import Experience
from engine.run.folder import Run
from engine.settings import PPOSettings
from engine.training.metrics import Metrics
from engine.training.ppo_loss import PPOTerms, half_square
from engine.training.ppo_progress import Progress

_RETURN, _ERROR = "return", "return - value"  # moments that `derive` replaces


def measure_rollouts(
    metrics: Metrics,
    x: Experience,
    ppo: PPOSettings,
    kl_T: Tensor,
    kl_coef: float,
    ended_S: Tensor,
    rollout_logprob_A: Tensor,
    ranks: int,
) -> None:
    """Add the metrics of this rank's rollouts, sums over responses.

    `kl_T` is the KL estimate and `kl_coef` its weight in the reward, `ended_S` whether a response has an EOS,
    `rollout_logprob_A` the log-probability at which generation sampled each action.
    """
    rollouts, actions = x.batch.num_sequences, x.action_T.sum()
    metrics.add("objective/kl", (x.logprob_T - x.ref_logprob_T).sum(), rollouts)
    metrics.add("objective/scores", x.score_S.sum(), rollouts)
    metrics.add("objective/non_score_reward", -kl_coef * kl_T.sum(), rollouts)
    metrics.add("objective/rlhf_reward", x.reward_T.sum(), rollouts)
    metrics.add("objective/entropy", -x.logprob_T.sum(), rollouts)
    metrics.add("rollout/response_length", actions, rollouts)
    metrics.add("rollout/ended_with_eos", ended_S.sum(), rollouts)
    difference_A = (x.logprob_T[x.action_T] - rollout_logprob_A).abs()
    metrics.add("rollout/logprob_difference", difference_A.sum(), actions)
    metrics.maximum("rollout/max_logprob_difference", difference_A.max())  # no response is without an action
    length_S = actions_of(x)
    metrics.add("rollout/empty", ((length_S == 1) & ended_S).sum(), rollouts)
    metrics.add("rollout/tokens", actions.double(), 1 / ranks)
    if ppo.samples_per_prompt > 1:
        score_GK = x.score_S.view(-1, ppo.samples_per_prompt)
        equal = (score_GK == score_GK[:, :1]).all(1).sum()
        metrics.add("rollout/equal_prompts", equal, len(score_GK))
    if x.return_T is None:
        return
    return_A, error_A = x.return_T[x.action_T].double(), (x.return_T - x.value_T)[x.action_T].double()
    for name, y_A in ((_RETURN, return_A), (_ERROR, error_A)):
        metrics.add(name, y_A.sum(), actions)
        metrics.add(f"{name}, squared", y_A.square().sum(), actions)


def actions_of(x: Experience) -> Tensor:
    """Return int64 [S], the number of actions of each response, including its EOS."""
    counts_S = torch.zeros(x.batch.num_sequences, dtype=torch.int64, device=x.action_T.device)
    return counts_S.index_add(0, x.batch.sequence_T, x.action_T.long())


def derive(x: dict[str, float], scores: Sequence[float], lengths: Sequence[int]) -> None:
    """Replace moments in `x` by explained variance; add statistics of the scores and lengths of all rollouts."""
    spread = {n: x.pop(f"{n}, squared") - x.pop(n) ** 2 for n in (_RETURN, _ERROR) if n in x}
    if spread.get(_RETURN, 0.0) > 0:
        x["val/explained_variance"] = 1 - spread[_ERROR] / spread[_RETURN]
    x["rollout/score_std"] = pstdev(scores)
    if x["rollout/score_std"] > 0 and len(set(lengths)) > 1:
        x["rollout/score_length_correlation"] = correlation(scores, lengths)


def measure_update(metrics: Metrics, terms: PPOTerms, weight: float) -> None:
    """Add the sums over actions of one microbatch of an update; `weight` is 0 for a stand-in."""
    log_ratio_A = terms.log_ratio_A.detach()
    count, losses = len(log_ratio_A) * weight, terms.divisor * weight
    metrics.add("loss/policy_avg", terms.policy * weight, losses)
    if terms.kl is not None:
        metrics.add("loss/kl_avg", terms.kl * weight, losses)
    metrics.add("policy/approxkl_avg", half_square(terms) * weight, count)
    metrics.add("policy/clipfrac_avg", terms.policy_clipped * weight, count)
    metrics.add("policy/entropy_avg", terms.entropy_A.sum() * weight, count)
    if terms.value is not None:
        metrics.add("loss/value_avg", terms.value * weight, losses)
        metrics.add("val/clipfrac_avg", terms.value_clipped * weight, count)
    ratio = "val" if terms.value is not None else "policy"
    metrics.add(f"{ratio}/ratio", log_ratio_A.exp().sum() * weight, count)
    metrics.first(f"{ratio}/first_ratio_error", (log_ratio_A.exp() - 1).abs().sum() * weight, count)


def report(
    iteration: int,
    total: int,
    at: Progress,
    rates: tuple[float, float | None],
    kl_coef: float,
    world: World,
    run: Run,
    console: Console,
    moved: Mapping[str, float],
    planned: int,
) -> dict[str, float]:
    """Reduce one iteration's numbers over the ranks; log and print them. Returns them by name.

    With --target-kl, `moved` has policy/updates, of `planned`, and policy/last_kl; else it is empty.
    """
    x = at.metrics.read(world)
    mine = list(zip(at.experience.score_S.tolist(), actions_of(at.experience).tolist()))
    scores, lengths = zip(*sum(world.gather(mine), []))
    derive(x, scores, lengths)
    x |= {"lr": rates[0]} | ({} if rates[1] is None else {"critic_lr": rates[1]})
    x |= {"objective/kl_coef": kl_coef, "time/collect_s": at.collect_s, "time/update_s": at.update_s}
    x |= moved
    x["eps"] = len(scores) / (at.collect_s + at.update_s)
    x["time/generation_tokens_per_s"] = x["rollout/tokens"] / x["time/generation_s"]
    run.log(iteration + 1, x)
    run.scores(iteration + 1, scores)
    console.row(row(f"{iteration + 1}/{total}", x, planned))
    for line in at.watch.look(iteration + 1, x):
        console.say(line)
    return x


def first_and_last(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return score, KL and reward of the first and last iteration, for result.json."""
    names = {"score": "objective/scores", "kl": "objective/kl", "reward": "objective/rlhf_reward"}
    ends = (("first", history[0]), ("last", history[-1]))
    return {f"{what}_{when}": x[name] for what, name in names.items() for when, x in ends}


def stopped_by_kl(ppo: PPOSettings, at: Progress, total: int) -> str | None:
    """Say that --stop-kl ends the run after its newest iteration of `total`; None if it does not."""
    if ppo.stop_kl is None or not at.history or not at.history[-1]["objective/kl"] > ppo.stop_kl:
        return None
    return (
        f"stopped after iteration {at.iteration} of {total}: the KL to the reference is "
        f"{at.history[-1]['objective/kl']:.4g} nats per response, above --stop-kl {ppo.stop_kl:g}"
    )


def row(iteration: str, x: Mapping[str, float], planned: int) -> dict[str, str]:
    """Format an iteration's metrics for the console."""
    return {
        "iteration": iteration, "score": short(x["objective/scores"]), "kl": short(x["objective/kl"]),
        "reward": short(x["objective/rlhf_reward"]), "entropy": short(x["policy/entropy_avg"]),
        "length": f"{x['rollout/response_length']:.1f}", "eos": f"{x['rollout/ended_with_eos']:.0%}",
        "clipped": f"{x['policy/clipfrac_avg']:.1%}",
        **({"updates": f"{x['policy/updates']}/{planned}"} if "policy/updates" in x else {}),
        **({"value loss": short(x["loss/value_avg"])} if "loss/value_avg" in x else {}),
        "rollout s": f"{x['time/generation_s']:.1f}", "update s": f"{x['time/update_s']:.1f}",
    }  # fmt: skip
