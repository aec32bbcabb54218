"""The curves of a report: which metric of which stage, one line a run and the mean of seeds, smoothed."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.report.reading import RunFolder

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One picture: a metric against the step, or against another metric (`against`)."""

    name: str
    title: str
    stage: str
    metric: str
    unit: str
    against: str | None = None
    against_unit: str = "step"
    is_share: bool = False


CURVES = (
    Curve("sft_loss", "SFT: loss", "sft", "loss/sft", "nats a token"),
    Curve("sft_heldout", "SFT: loss on held-out data", "sft", "eval/loss", "nats a token"),
    Curve("reward_accuracy", "Reward model: pairs ordered rightly", "reward", "reward/accuracy", "%", is_share=True),
    Curve("reward_heldout", "Reward model: held-out pairs right", "reward", "eval/accuracy", "%", is_share=True),
    Curve("ppo_score", "PPO: score", "ppo", "objective/scores", "score"),
    Curve("ppo_kl", "PPO: KL to the reference", "ppo", "objective/kl", "nats a response"),
    Curve(
        "ppo_frontier", "PPO: score against KL", "ppo", "objective/scores", "score",
        "objective/kl", "KL, nats a response",
    ),
    Curve("ppo_entropy", "PPO: entropy", "ppo", "policy/entropy_avg", "nats a token"),
    Curve("ppo_length", "PPO: length of responses", "ppo", "rollout/response_length", "tokens"),
    Curve(
        "ppo_ended", "PPO: responses that end by themselves", "ppo", "rollout/ended_with_eos", "%", is_share=True
    ),
    Curve("ppo_clipped", "PPO: clipped ratios", "ppo", "policy/clipfrac_avg", "% of tokens", is_share=True),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """What is drawn of one experiment: each of its runs, and their mean over a window of steps."""

    label: str
    each: list[Points]
    mean: Points
    window: int


def experiments(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """(label, runs): runs that differ in their seed alone are together."""
    by_experiment: dict[str, list[RunFolder]] = defaultdict(list)
    for run in runs:
        by_experiment[run.experiment].append(run)
    return [
        (members[0].name if len(members) == 1 else f"{members[0].name} ({len(members)} seeds)", members)
        for members in by_experiment.values()
    ]


def lines_of(curve: Curve, runs: Sequence[RunFolder]) -> list[Line]:
    """The curve's lines, an experiment each; none of an experiment that logged no such metric."""
    lines = []
    for label, members in experiments(runs):
        each = [points for run in members if (points := _points(curve, run))]
        if each:
            mean = _mean(each) if curve.against is None else _mean_in_order(each)
            window = 2 * (len(mean) // 40) + 1
            lines.append(Line(label, each, smooth(mean, window), window))
    return lines


def smooth(points: Points, window: int) -> Points:
    """The mean of each point and its neighbours, `window` in all and fewer at the ends, where the same many lie on both
    sides: a steep curve is not shifted. Both coordinates, so that a path stays one."""
    half, out = window // 2, []
    for i in range(len(points)):
        reach = min(half, i, len(points) - 1 - i)
        part = points[i - reach : i + reach + 1]
        out.append((statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)))
    return out


def _points(curve: Curve, run: RunFolder) -> Points:
    if (stage := run.stages.get(curve.stage)) is None:
        return []
    factor = 100 if curve.is_share else 1
    values = [(step, factor * value) for step, value in stage.column(curve.metric)]
    if curve.against is None:
        return values
    places = dict(stage.column(curve.against))
    return [(places[step], value) for step, value in values if step in places]


def _mean(each: Sequence[Points]) -> Points:
    """Over the runs that have a step."""
    values: dict[float, list[float]] = defaultdict(list)
    for points in each:
        for x, y in points:
            values[x].append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(values.items())]


def _mean_in_order(each: Sequence[Points]) -> Points:
    """Of both coordinates, point by point as far as all runs go."""
    return [tuple(statistics.fmean(c) for c in zip(*points)) for points in zip(*each)]


def score_histograms(runs: Sequence[RunFolder]) -> list[tuple[str, list[float], list[float]]]:
    """(label, scores of the rollouts of the first step, and of the last), the seeds of an experiment together.

    Runs of before scores.jsonl was written have the few scores of their samples.
    """
    found = []
    for label, members in experiments(runs):
        first, last = [], []
        for run in members:
            if "ppo" not in run.stages:
                continue
            stage = run.stages["ppo"]
            scores = dict(stage.scores)
            if not scores:
                for row in stage.samples:
                    if "score" in row:
                        scores.setdefault(row["step"], []).append(row["score"])
            if len(scores) > 1:
                first += scores[min(scores)]
                last += scores[max(scores)]
        if first:
            found.append((label, first, last))
    return found
