"""Read and draw human-written seed tasks: the 30 built in, and files in the schema of Self-Instruct's 175."""

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
    """A seed task and its location, "FILE:LINE"."""

    where: str
    task: Task


def read_seeds(path: str | Path) -> list[Seed]:
    """Read the tasks of a file, with the first instance of each.

    Records are Self-Instruct's {instruction, instances: [{input, output}, ...]} or plain {instruction, input, output}.
    UserError with file, line and field for a bad record.
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
                raise UserError(f"{where}: field {name!r} is {value!r:.60}: a seed needs a string there")
        seeds.append(Seed(where, Task(*values)))
    return seeds


def draw_seeds(seeds: Sequence[Seed], count: int, seed: int, request: int) -> list[Seed]:
    """Draw `count` examples for one request. They depend on (seed, request) only, so a resumed run sends the same."""
    return Random(f"{seed}/{request}").sample(seeds, count)
