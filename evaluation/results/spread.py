"""Several draws of shots: the mean of each document's scores over the draws, and the spread of each mean."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.base.errors import UserError
from evaluation.results.compare import Z95
from evaluation.results.summary import Record, Summary

# What differs between draws in a task's entry of the manifest.
OF_DRAWS = ("seeds", "prompts_sha256", "token_ids_sha256")


@dataclass(frozen=True)
class Draw:
    """One draw of shots for one task in one language.

    about    the task's entry in the manifest
    records  of all documents, in order of index; empty on every rank but the first
    """

    seed: int
    about: Mapping[str, Any]
    records: Sequence[Record]


def about_draws(draws: Sequence[Draw], seeds: Sequence[int]) -> dict[str, Any]:
    """Return one manifest entry for all draws: the seeds asked for, and the hashes of each draw in a list.

    Fewer hashes than seeds: seeds that drew the same shots were scored once.
    """
    about = draws[0].about
    hashes = {name: [draw.about[name] for draw in draws] for name in OF_DRAWS if name in about}
    return {**about, "seed": "several", "seeds": list(seeds), **hashes}


def combine(draws: Sequence[Draw]) -> list[dict[str, Any]]:
    """Return a record per document, with the mean of its scores over the draws; a tie in any draw is a tie.

    UserError if the draws have other documents: then their means do not measure the same.
    """
    first, *others = [{record["index"]: record for record in draw.records} for draw in draws]
    for draw, other in zip(draws[1:], others):
        if first.keys() != other.keys():
            raise UserError(
                f"--seeds: seed {draws[0].seed} and seed {draw.seed} give other documents of {draw.about['task']}, as "
                f"protocol {draw.about['protocol']} draws them too: leave out --limit and --bad-records skip, or give "
                "one --seed"
            )
    return [_mean_record([record, *(other[index] for other in others)]) for index, record in sorted(first.items())]


def _mean_record(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    contexts = "".join(record["context_sha256"] for record in records)
    return {
        "id": first["id"],
        "index": first["index"],
        **{name: first[name] for name in ("subject", "subset") if name in first},
        "ties": {metric: any(record["ties"][metric] for record in records) for metric in first["ties"]},
        "scores": {
            metric: math.fsum(record["scores"][metric] for record in records) / len(records)
            for metric in first["scores"]
        },
        "chance": first["chance"],
        "context_sha256": hashlib.sha256(contexts.encode()).hexdigest(),
    }


def spread_of(lines: Sequence[Summary], by_seed: Mapping[int, Sequence[Summary]]) -> dict[str, dict[str, Any]]:
    """Return line name -> metric -> the value of each draw, their standard deviation, and an interval.

    lines    summaries of the combined records; by_seed: those of each draw

    std is the standard deviation over the draws, n - 1 in the denominator; None for one draw. low and high are the
    95 % interval of the mean over the draws, for other documents with these draws; None for one document.
    """
    found: dict[str, dict[str, Any]] = {}
    by_name = [{line.name: line for line in of_draw} for of_draw in by_seed.values()]
    for line in lines:
        for metric, mean in line.metrics.items():
            values = [of_draw[line.name].metrics[metric].value for of_draw in by_name]
            known = not math.isnan(mean.stderr)
            found.setdefault(line.name, {})[metric] = {
                "seeds": list(by_seed),
                "values": values,
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "low": mean.value - Z95 * mean.stderr if known else None,
                "high": mean.value + Z95 * mean.stderr if known else None,
            }
    return found
