"""Seed tasks written by people: the 30 of this project, and files of others in the schema of Self-Instruct's 175."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from datagen.self_instruct.task_format import Task
from datagen.sources import check_surrogates
from engine.base.errors import UserError
from engine.base.records import read_records

SEEDS_FILE = Path(__file__).parents[1] / "seeds" / "seeds.jsonl"


class Seed(NamedTuple):
    """A seed task and where it comes from, "FILE:LINE"."""

    where: str
    task: Task


def read_seeds(path: str | Path) -> list[Seed]:
    """The tasks of a file; of one with several `instances` the first.

    Records are Self-Instruct's {instruction, instances: [{input, output}, ...]} or plain {instruction, input, output}.
    UserError naming file, line and field.
    """
    seeds = []
    for line, fields in read_records(path):
        where = f"{path}:{line}"
        check_surrogates(fields, where)
        instances = fields.get("instances", [fields])
        if not isinstance(instances, list) or not instances or not isinstance(instances[0], dict):
            raise UserError(f"{where}: field 'instances' is {instances!r:.60}: it must be a list of {{input, output}}")
        values = [fields.get("instruction"), instances[0].get("input", ""), instances[0].get("output")]
        for name, value in zip(Task._fields, values, strict=True):
            if not isinstance(value, str) or (name != "input" and not value.strip()):
                raise UserError(f"{where}: field {name!r} is {value!r:.60}: a seed needs a text there")
        seeds.append(Seed(where, Task(*values)))
    return seeds


def draw_seeds(seeds: Sequence[Seed], count: int, seed: int, request: int) -> list[Seed]:
    """The examples of one request: they depend on (seed, request) alone, so a run that is resumed asks the same."""
    return Random(f"{seed}/{request}").sample(seeds, count)
