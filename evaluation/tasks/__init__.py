"""Tasks as data: how a benchmark's records are read and how each protocol writes them, one small file a benchmark.

A file of this folder, or any other .py file named on the command line, adds tasks by its TASKS, a tuple of Task.
"""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from evaluation.data.items import Item
from evaluation.data.prompt_words import PromptWords

TASK_NAME = re.compile(r"\w[\w.-]{0,99}")  # part of the names of files
METRICS = ("acc", "acc_norm", "acc_bytes", "mc1", "mc2")


def _no_header(item: Item) -> str:
    return ""


def _options(item: Item) -> tuple[str, ...]:
    return item.options


def _truth(item: Item) -> tuple[int, ...]:
    return item.truth


@dataclass(frozen=True)
class Form:
    """How one protocol writes a task.

    question      the text of a question up to where its answer follows, without the gap before the answer
    options       the candidates that are scored; a solved shot shows options[gold]
    truth         1 for each right candidate
    shots         how many solved questions come before, unless the user says another number
    pools         parts that shots are drawn from; the first that there is
    spare         of these pools one shot more is drawn than needed, and the question itself left out
    header        text before the first shot, with its own line ends
    by_subject    shots come from the question's own subject, which the protocol treats as a task of its own
    in_order      the pool's first ones in file order, not drawn
    fixed_shots   the number of shots cannot be changed
    """

    question: Callable[[Item, PromptWords], str]
    shots: int
    pools: tuple[str, ...]
    options: Callable[[Item], tuple[str, ...]] = _options
    truth: Callable[[Item], tuple[int, ...]] = _truth
    spare: tuple[str, ...] = ()
    header: Callable[[Item], str] = _no_header
    by_subject: bool = False
    in_order: bool = False
    fixed_shots: bool = False


@dataclass(frozen=True)
class Task:
    """One benchmark.

    name     the value of --tasks, and of the result's files
    folder   where its files lie under --data-dir
    part     the part that is evaluated: "test" reads <lang>_test.json
    metrics  of METRICS, the first is the main one; "mc2" makes a document's gold the truth of each choice
    read     a record, its place and its row number to an Item; items.Unlabelled where it says no answer
    forms    by protocol, "lm-eval", or by protocol and language, "lm-eval/en"
    groups   subjects by group, for averages
    family   a second name, which tasks that belong together share
    """

    name: str
    folder: str
    part: str
    metrics: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str, int], Item]
    forms: Mapping[str, Form]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    family: str = ""

    def form(self, protocol: str, lang: str) -> Form:
        """UserError where the task has no form for this protocol."""
        form = self.forms.get(f"{protocol}/{lang}") or self.forms.get(protocol)
        if form is None:
            known = ", ".join(sorted({name.split("/")[0] for name in self.forms}))
            raise UserError(f"task {self.name} has no form for --protocol {protocol}: it has {known}; choose one")
        return form


def all_tasks() -> dict[str, Task]:
    """The tasks of this folder by name, in the order of the files' names."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {task.name: task for module in modules for task in module.TASKS}


def get_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by name, by family ("truthfulqa": both scores of it), or by the path of a .py file with TASKS.

    UserError, naming the nearest, for any other name, and for two tasks of one name.
    """
    known = all_tasks()
    chosen: list[Task] = []
    for name in names:
        if name.endswith(".py"):
            chosen += _tasks_of_file(Path(name))
        elif name in known:
            chosen.append(known[name])
        elif family := [task for task in known.values() if task.family == name]:
            chosen += family
        else:
            valid = sorted({*known, *(task.family for task in known.values() if task.family)})
            close = difflib.get_close_matches(name, valid, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UserError(f"unknown task {name!r}: {hint}valid ones are {', '.join(valid)}, or a .py file with TASKS")
    taken = [task.name for task in chosen]
    if twice := next((name for name in taken if taken.count(name) > 1), None):
        raise UserError(f"task {twice!r} is named twice in --tasks: name it once")
    return chosen


def _tasks_of_file(path: Path) -> list[Task]:
    if not path.is_file():
        raise UserError(f"task file {path} is not there: check the path")
    spec = importlib.util.spec_from_file_location(f"evaluation_task_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks = getattr(module, "TASKS", None)
    if not isinstance(tasks, tuple) or not tasks or not all(isinstance(task, Task) for task in tasks):
        raise UserError(f"{path} has no TASKS: give it a tuple of evaluation.tasks.Task")
    for task in tasks:
        if not TASK_NAME.fullmatch(task.name):
            raise UserError(f"{path}: task name {task.name!r:.60}: give one of letters, digits, '.', '_' and '-'")
        if not task.metrics or set(task.metrics) - set(METRICS):
            raise UserError(f"{path}: metrics {task.metrics!r} of {task.name!r}: use of {', '.join(METRICS)}")
    return list(tasks)
