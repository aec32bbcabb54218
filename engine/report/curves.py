"""The curves of a report: which metrics, one line per run, and the smoothed mean over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.report.reading import RunFolder

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One plot: a metric against the step, or against another metric (`against`).

    `heldout` names the same quantity on held-out data, drawn in the same plot.
    """

    name: str
    title: str
    stage: str
    metric: str
    unit: str
    against: str | None = None
    against_unit: str = "step"
    is_share: bool = False
    heldout: str | None = None


CURVES = (
    Curve("pretrain_loss", "Pretraining: loss", "pretrain", "loss/pretrain", "nats per token"),
    Curve(
        "pretrain_bits", "Pretraining: first held-out text", "pretrain", "eval/bits_per_byte", "bits per byte",
        heldout="eval/bits_per_byte",
    ),
    Curve("sft_loss", "SFT: loss", "sft", "loss/sft", "nats per token", heldout="eval/loss"),
    Curve("reward_loss", "Reward model: loss", "reward", "loss/reward", "nats per prompt", heldout="eval/loss"),
    Curve(
        "reward_accuracy", "Reward model: pairs ordered rightly", "reward", "reward/accuracy", "%", is_share=True,
        heldout="eval/accuracy",
    ),
    Curve("dpo_loss", "DPO: loss", "dpo", "loss/dpo", "nats per prompt", heldout="eval/loss"),
    Curve(
        "dpo_accuracy", "DPO: pairs ordered rightly", "dpo", "rewards/accuracies", "%", is_share=True,
        heldout="eval/accuracy",
    ),
    Curve("dpo_margins", "DPO: margin of the implicit reward", "dpo", "rewards/margins", "nats times beta"),
    Curve("dpo_chosen", "DPO: log ratio of the better answer", "dpo", "log_ratio/chosen", "nats per response"),
    Curve("dpo_rejected", "DPO: log ratio of the worse answer", "dpo", "log_ratio/rejected", "nats per response"),
    Curve("ppo_score", "PPO: score", "ppo", "objective/scores", "score", heldout="heldout/score"),
    Curve(
        "ppo_exact_match", "PPO: right answers to held-out prompts", "ppo", "heldout/exact_match", "%", is_share=True,
        heldout="heldout/exact_match",
    ),
    Curve("ppo_kl", "PPO: KL to the reference", "ppo", "objective/kl", "nats per response", heldout="heldout/kl"),
    Curve(
        "ppo_frontier", "PPO: score against KL", "ppo", "objective/scores", "score",
        "objective/kl", "KL, nats per response",
    ),
    Curve("ppo_entropy", "PPO: entropy", "ppo", "policy/entropy_avg", "nats per token"),
    Curve(
        "ppo_length", "PPO: length of responses", "ppo", "rollout/response_length", "tokens", heldout="heldout/length"
    ),
    Curve(
        "ppo_ended", "PPO: responses that end by themselves", "ppo", "rollout/ended_with_eos", "%", is_share=True,
        heldout="heldout/ended",
    ),
    Curve("ppo_clipped", "PPO: clipped ratios", "ppo", "policy/clipfrac_avg", "% of tokens", is_share=True),
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """The lines of one experiment: each run, and their mean over a window of steps.

    heldout   mean over the runs on held-out data, by step
    halves    half of its 95 % interval at each of these points; [] for several runs, or where none was logged
    kept      (step, value on held-out data) of each run that --keep-best has exported a step of
    """

    label: str
    each: list[Points]
    mean: Points
    window: int
    heldout: Points = field(default_factory=list)
    halves: list[float] = field(default_factory=list)
    kept: Points = field(default_factory=list)


def experiments(runs: Sequence[RunFolder]) -> list[tuple[str, list[RunFolder]]]:
    """Return (label, runs), grouping runs that differ only in their seed."""
    by_experiment: dict[str, list[RunFolder]] = defaultdict(list)
    for run in runs:
        by_experiment[run.experiment].append(run)
    return [
        (members[0].name if len(members) == 1 else f"{members[0].name} ({len(members)} seeds)", members)
        for members in by_experiment.values()
    ]


def lines_of(curve: Curve, runs: Sequence[RunFolder]) -> list[Line]:
    """Return one line per experiment that logged the metric, in training or on held-out data."""
    lines = []
    for label, members in experiments(runs):
        each = [points for run in members if curve.metric != curve.heldout and (points := _points(curve, run))]
        heldout = [points for run in members if (points := _heldout(curve, run))]
        if not each and not heldout:
            continue
        mean = _mean(each) if curve.against is None else _mean_in_order(each)
        window = 2 * (len(mean) // 40) + 1
        kept = [
            (step, values[step])
            for run in members
            if (values := dict(_heldout(curve, run))) and (step := run.stages[curve.stage].kept_step) in values
        ]
        halves = _halves(curve, members[0], heldout[0]) if len(heldout) == len(members) == 1 else []
        lines.append(Line(label, each, smooth(mean, window), window, _mean(heldout), halves, kept))
    return lines


def _heldout(curve: Curve, run: RunFolder) -> Points:
    """Return a run's points on held-out data. Scores normalised in training are on another scale, so they have none."""
    stage = run.stages.get(curve.stage)
    if curve.heldout is None or stage is None:
        return []
    if curve.heldout == "heldout/score" and stage.settings.get("score_norm", "none") != "none":
        return []
    return [(step, (100 if curve.is_share else 1) * value) for step, value in stage.column(curve.heldout)]


def _halves(curve: Curve, run: RunFolder, points: Points) -> list[float]:
    halves = dict(run.stages[curve.stage].column(f"{curve.heldout}_half"))
    return [(100 if curve.is_share else 1) * halves.get(step, 0.0) for step, _ in points] if halves else []


def smooth(points: Points, window: int) -> Points:
    """Smooth both coordinates by a centred window, narrower at the ends, so that a steep curve is not shifted."""
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
    """Mean over the runs that have a step."""
    values: dict[float, list[float]] = defaultdict(list)
    for points in each:
        for x, y in points:
            values[x].append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(values.items())]


def _mean_in_order(each: Sequence[Points]) -> Points:
    """Mean of both coordinates, point by point, as far as all runs go."""
    return [tuple(statistics.fmean(c) for c in zip(*points)) for points in zip(*each)]


def score_histograms(runs: Sequence[RunFolder]) -> list[tuple[str, list[float], list[float]]]:
    """Return (label, scores of the first step, scores of the last step), with all seeds of an experiment.

    Old runs without scores.jsonl have only the scores of their samples.
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
