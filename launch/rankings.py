"""What launch/reward.py and launch/dpo.py read: a model, and rankings to train on and to hold out."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.mixture import Mixture, Source, names_of
from engine.base.records import RankingRecord, read_rankings
from engine.planning.disk import kept_tokens, num_trained
from engine.run.template_choice import Choice, check_template
from engine.settings import BatchSettings, DPOSettings, RewardSettings, RunSettings
from engine.text.encoding import RankedExamples, encode_rankings
from engine.text.eos import eos_ids_of
from engine.training.heldout import Estimate
from engine.training.rankings import by_prompt
from engine.training.rankings import split as split_prompts
from launch import sft
from launch.common import Job, check_files, checked_reader, embedded_data, say_overlap, stage_model
from launch.lengths import fit_job
from launch.sources import read_sources


@dataclass(frozen=True)
class Inputs:
    """The inputs of a stage that trains on rankings, read and checked."""

    model_dir: str | Path
    model: Any
    tokenizer: Any
    eos_ids: Sequence[int]
    choice: Choice
    data: str
    mixture: Mixture
    rankings: list[RankedExamples]
    heldout: list[RankedExamples]
    batch: BatchSettings  # with lengths that fit the model

    @property
    def names(self) -> dict[str, Any]:
        """What was read, for the model card."""
        return {"base model": self.model_dir, "rankings": self.data}

    def header(self, top: str, disk: str, steps: Sequence[Sequence[int]]) -> dict[str, str]:
        """The rows of the job's header; `top` says which layers are trained."""
        count, responses = len(self.rankings), sum(len(r.examples) for r in self.rankings)
        return {
            "model": f"{self.model_dir} ({top} of {self.model.num_layers} layers trained)",
            "data": f"{self.data} ({count:,} rankings, {responses:,} responses)",
            **self.mixture.rows(steps),
            "template": self.choice.shown,
            "held out": f"{len(self.heldout):,} rankings" if self.heldout else "nothing",
            "plan": f"{len(steps)} steps of {len(steps[0])} rankings",
            "disk": disk,
        }

    def disk(self, job: Job, split: int | None, passes: int, columns: int = 0) -> str:
        """The header's line about the disk; the outputs of the layers below `split` are read `passes` times.

        A checkpoint holds `columns` numbers a response.
        """
        lengths = [len(e.tokens) for r in self.rankings for e in r.examples]
        kept = kept_tokens(lengths, self.model, passes, self.batch.trunk_cache) if split else 0
        trained = num_trained(self.model, split)
        columns *= len(lengths) + sum(len(r.examples) for r in self.heldout)
        return job.disk(len(self.rankings), self.batch, self.model, trained, kept_tokens=kept, columns=columns)


def read_inputs(job: Job, run_settings: RunSettings, batch: BatchSettings, own: RewardSettings | DPOSettings) -> Inputs:
    """Read the model and the rankings, by default the embedded ones; without --eval-data hold out a share of them.

    UserError for the first mistake in them, before an earlier stage runs where it can be seen there.
    """
    check_template(batch.template)
    sources, heldout_file = run_settings.sources, run_settings.eval_data
    read = checked_reader(job, batch, read_rankings)
    if run_settings.model is None:
        check_files(read, *(source.path for source in sources), heldout_file)
    model_dir = run_settings.model or stage_model(run_settings, "sft", sft.run, job, batch.template)
    if not sources:
        embedded = embedded_data(run_settings, job)
        sources = (Source(str(embedded / "ranking.jsonl")),)
        heldout_file = heldout_file or embedded / "ranking_heldout.jsonl"
    (batch,) = fit_job(job, model_dir, batch)
    model, tokenizer = job.load(model_dir, own)
    eos_ids = eos_ids_of(model_dir, tokenizer, model.vocab_size)
    choice = job.choose_template(batch.template, model_dir, tokenizer)

    def grouped(path, records):
        encoded = encode_rankings(records, tokenizer, choice.template, batch.max_length, batch.truncate)
        return grouped_by_prompt(job, path, records, encoded, batch.tokens_per_microbatch)

    parts = read_sources(read, sources)
    heldout_records = read(heldout_file) if heldout_file else []
    say_overlap(job.console, [record for part in parts for record in part], heldout_records)
    # Rankings of one prompt in several files stay apart, but on the same side of a split.
    groups: dict[Hashable, list[tuple[int, RankedExamples]]] = {}
    for f, (source, part) in enumerate(zip(sources, parts)):
        for prompt, members in grouped(source.path, part).items():
            groups.setdefault(prompt, []).extend((f, ranking) for ranking in members)
    data = names_of(sources)
    if heldout_file:
        trained = [pair for members in groups.values() for pair in members]
        heldout = [ranking for members in grouped(heldout_file, heldout_records).values() for ranking in members]
    else:
        trained, left = split_prompts(groups, own.heldout, run_settings.seed, data)
        heldout = [ranking for _, ranking in left]
    counts = tuple(sum(f == g for g, _ in trained) for f in range(len(sources)))
    if empty := [source.path for source, count in zip(sources, counts) if not count]:
        raise UserError(f"{empty[0]}: --heldout takes all of its prompts: give --eval-data FILE, or more prompts")
    rankings = [ranking for _, ranking in sorted(trained, key=lambda x: x[0])]
    mixture = Mixture(tuple(sources), counts)
    return Inputs(model_dir, model, tokenizer, eos_ids, choice, data, mixture, rankings, heldout, batch)


def grouped_by_prompt(
    job: Job, path: str, records: Sequence[RankingRecord], encoded: Sequence[RankedExamples], most_tokens: int
) -> dict[Hashable, list[RankedExamples]]:
    """Return {prompt: its rankings}, and print what was merged and dropped.

    UserError if a ranking exceeds most_tokens, since its responses share a microbatch, or if no ranking remains.
    """
    for ranking in encoded:
        if ranking.num_tokens > most_tokens:
            raise UserError(
                f"{path}: the {len(ranking.examples)} responses of ranking {ranking.id} have {ranking.num_tokens} "
                f"tokens in total, --tokens-per-microbatch is {most_tokens}: raise it"
            )
    prompt_of = {record.id: record.prompt for record in records}
    groups, lines = by_prompt(encoded, prompt_of, most_tokens)
    for line in lines:
        job.console.say(f"{path}: {line}")
    if not groups:
        raise UserError(f"{path} has no usable ranking: give responses that differ, or raise --max-length")
    return groups


def estimate_of(result: Mapping[str, Any], name: str, when: str) -> Estimate:
    """Return a measure of a result with its interval; `when` is "_before" or "". One prompt has no interval."""
    return Estimate(result[f"{name}{when}"], result.get(f"half_intervals{when}", {}).get(name, math.inf))
