"""Judgements become ranking records, one per annotator and prompt, and a report with the annotators' agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datagen.annotation.agreement import ordinal_alpha
from datagen.annotation.journal import FLAG, KINDS, RANK, Judgement
from datagen.annotation.prompts import Prompt
from engine.base.records import write_jsonl

Judgements = Mapping[tuple[str, str], Judgement]  # by annotator and key


def ranking_rows(prompts: Sequence[Prompt], judgements: Judgements) -> tuple[list[dict[str, Any]], int]:
    """Return the ranking records, in the order of the prompts, and how many rankings were left out.

    Left out are rankings that train nothing: all answers tie, or are one text after an edit. An edited answer stands
    in the place of the answer it was made from, in the record of its annotator alone.
    """
    rows, left_out = [], 0
    by_key = defaultdict(list)
    for (annotator, key), judgement in sorted(judgements.items()):
        if judgement.kind == RANK:
            by_key[key].append((annotator, judgement))
    for prompt in prompts:
        for annotator, judgement in by_key[prompt.key]:
            answers = [judgement.edits.get(k, answer) for k, answer in enumerate(prompt.answers)]
            if len(set(judgement.ranks)) == 1 or len(set(answers)) == 1:
                left_out += 1
                continue
            id = f"{prompt.id}/{annotator}"
            row = {"id": id, **prompt.fields, "responses": answers, "ranks": list(judgement.ranks)}
            rows.append({**row, "annotator": annotator})
    return rows, left_out


def write_rankings(path: Path, prompts: Sequence[Prompt], judgements: Judgements) -> tuple[int, int]:
    """Write the ranking file and return the numbers of records written and left out; without records, remove it."""
    rows, left_out = ranking_rows(prompts, judgements)
    if rows:
        write_jsonl(path, rows)
    else:
        path.unlink(missing_ok=True)
    return len(rows), left_out


@dataclass(frozen=True)
class Report:
    """counts by annotator and kind; alpha over `num_shared` prompts that two or more ranked; flags (id, name, note)."""

    counts: Mapping[str, Counter[str]]
    alpha: float | None
    num_shared: int
    flags: Sequence[tuple[str, str, str]]

    def rows(self) -> list[list[str]]:
        """Return a table row per annotator: the name and the counts of KINDS."""
        return [[name, *(f"{counts[kind]:,}" for kind in KINDS)] for name, counts in sorted(self.counts.items())]

    @property
    def agreement(self) -> str:
        """The agreement in one line."""
        if not self.num_shared:
            return "agreement: no prompt was ranked by two annotators yet"
        shared = f"over {self.num_shared:,} prompt{'s' * (self.num_shared > 1)} that two or more ranked"
        if self.alpha is None:
            return f"agreement: Krippendorff's alpha is undefined {shared}: all ranks are equal"
        return f"agreement: Krippendorff's alpha (ordinal) {self.alpha:.3f} {shared}; 1 is full agreement, 0 is chance"


def report(prompts: Sequence[Prompt], judgements: Judgements) -> Report:
    """Return the report on these prompts. A unit of alpha is an answer; its values are the ranks it got.

    Where an annotator edited an answer, this rank is about another text and is not compared.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    ranked, flags = defaultdict(list), []
    by_key = {prompt.key: prompt for prompt in prompts}
    for (annotator, key), judgement in sorted(judgements.items()):
        if key not in by_key:
            continue
        counts[annotator][judgement.kind] += 1
        if judgement.kind == RANK:
            ranked[key].append(judgement)
        if judgement.kind == FLAG:
            flags.append((by_key[key].id, annotator, judgement.note))
    shared = {key: given for key, given in ranked.items() if len(given) > 1}
    units = [
        [judgement.ranks[k] for judgement in given if k not in judgement.edits]
        for key, given in shared.items()
        for k in range(len(by_key[key].answers))
    ]
    return Report(counts, ordinal_alpha(units), len(shared), flags)
