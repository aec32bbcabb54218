"""Tasks: how to read a benchmark's records and how each protocol formats them, one small file per benchmark.

A file adds tasks by its TASKS, a tuple of Task (choices are scored) or AnswerTask (answers are generated). It is a file
of this folder, or any .py file named in --tasks.
"""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.nearest import nearest_hint
from evaluation.checks.form import form_checks
from evaluation.checks.text import Check
from evaluation.data.items import Item
from evaluation.data.prompt_words import PromptWords
from evaluation.data.questions import Answer, Question

TASK_NAME = re.compile(r"\w[\w.-]{0,99}")  # safe as part of a file name
METRICS = ("acc", "acc_norm", "acc_bytes", "mc1", "mc2", "pct_stereotype", "likelihood_diff")
FORM_METRICS = tuple(form_checks("en"))


def _no_header(item: Item) -> str:
    return ""


def _options(item: Item) -> tuple[str, ...]:
    return item.options


def _truth(item: Item) -> tuple[int, ...]:
    return item.truth


@dataclass(frozen=True)
class Form:
    """How one protocol formats a task.

    question      formats a question up to its answer, without the gap before the answer
    shots         number of solved questions before each question, unless --shots sets another
    pools         parts to draw shots from; the first one with a file is used
    options       the candidate answers to score; a shot shows its first right one
    truth         1 for each right option, else 0
    spare         pools that hold the question itself: draw one shot more than needed, then leave the question out
    header        text before the first shot, with its own line breaks
    by_subject    treat each subject as a task of its own: draw a question's shots from its subject
    in_order      take the first items of the pool instead of drawing: in file order, under strict by id
    fixed_shots   --shots may not change the number of shots
    gap           text between a question and an option; None: the one of the prompt words
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
    gap: str | None = None


def _nothing(item: Item, words: PromptWords) -> str:
    return ""


# The options are scored as whole texts, after the token that stands for an empty context.
WHOLE_TEXTS = Form(_nothing, 0, (), fixed_shots=True, gap="")


@dataclass(frozen=True)
class Task:
    """One benchmark.

    name     the value of --tasks, and the start of the names of its result files
    folder   the folder of its files under --data-dir
    part     the part to evaluate: "test" reads <lang>_test.json
    metrics  some of METRICS, the main one first; with "mc2", a document's gold is the truth of each choice
    read     (record, "FILE:LINE", row number) -> Item; raises items.Unlabelled for a record without an answer
    forms    forms by protocol ("lm-eval"), or by protocol and language ("lm-eval/en"), which comes first
    groups   group -> its subjects, for averages
    family   a second name, shared by tasks that belong together
    keep     (record, language) -> whether the record is in this language, for a file that holds several languages
    """

    name: str
    folder: str
    part: str
    metrics: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str, int], Item]
    forms: Mapping[str, Form]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    family: str = ""
    keep: Callable[[Mapping[str, Any], str], bool] | None = None

    def form(self, protocol: str, lang: str) -> Form:
        """Return the form of this protocol and language. UserError if the task has none."""
        form = self.forms.get(f"{protocol}/{lang}") or self.forms.get(protocol)
        if form is None:
            langs = [name.split("/")[1] for name in self.forms if name.startswith(f"{protocol}/")]
            if langs:
                raise UserError(f"task {self.name} has no words for --lang {lang}: choose from {', '.join(langs)}")
            known = ", ".join(sorted({name.split("/")[0] for name in self.forms}))
            raise UserError(f"task {self.name} has no form for --protocol {protocol}: choose from {known}")
        return form


@dataclass(frozen=True)
class AnswerTask:
    """One benchmark whose answers are generated, then checked.

    name, folder, part, family   as of a Task
    read        (record, "FILE:LINE", row number) -> Question
    checks      metric -> its check, the main one first; each sees a question and all its answers
    weights     metric -> the weight of a question in the metric's mean; other metrics weigh questions equally
    by_kind     (question, answers) -> score by kind, reported apart under the name `kind_metric`
    requires    called with the task's name before a run starts; UserError if a package is missing
    is_classified   the answers' toxicity is needed: --toxicity-model
    """

    name: str
    folder: str
    part: str
    read: Callable[[Mapping[str, Any], str, int], Question]
    checks: Mapping[str, Check]
    family: str = ""
    weights: Mapping[str, Callable[[Question], float]] = field(default_factory=dict)
    by_kind: Callable[[Question, Sequence[Answer]], dict[str, float]] | None = None
    kind_metric: str = ""
    requires: Callable[[str], None] | None = None
    is_classified: bool = False
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The task's own metrics, then those of every generation task."""
        return (*self.checks, *(name for name in FORM_METRICS if name not in self.checks))


def all_tasks() -> dict[str, Task]:
    """Return the tasks of this folder whose choices are scored, by name, in the order of the file names."""
    return {name: task for name, task in _of_this_folder().items() if isinstance(task, Task)}


def answer_tasks() -> dict[str, AnswerTask]:
    """Return the tasks of this folder whose answers are generated, by name, in the order of the file names."""
    return {name: task for name, task in _of_this_folder().items() if isinstance(task, AnswerTask)}


def _of_this_folder() -> dict[str, Task | AnswerTask]:
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {task.name: task for module in modules for task in module.TASKS}


def get_tasks(names: Sequence[str]) -> list[Task | AnswerTask]:
    """Return tasks by name, by family ("truthfulqa" is mc1 and mc2), or by the path of a .py file with TASKS.

    UserError for an unknown name, with the nearest known one, and for two tasks of one name.
    """
    known = _of_this_folder()
    chosen: list[Task | AnswerTask] = []
    for name in names:
        if name.endswith(".py"):
            chosen += _tasks_of_file(Path(name))
        elif name in known:
            chosen.append(known[name])
        elif family := [task for task in known.values() if task.family == name]:
            chosen += family
        else:
            valid = sorted({*known, *(task.family for task in known.values() if task.family)})
            hint = nearest_hint(name, valid)
            raise UserError(f"unknown task {name!r}: {hint}choose from {', '.join(valid)}, or a .py file with TASKS")
    taken = [task.name for task in chosen]
    if twice := next((name for name in taken if taken.count(name) > 1), None):
        raise UserError(f"task {twice!r} is named twice in --tasks: name it once")
    return chosen


def _tasks_of_file(path: Path) -> list[Task | AnswerTask]:
    if not path.is_file():
        raise UserError(f"task file {path} does not exist: check the path")
    spec = importlib.util.spec_from_file_location(f"evaluation_task_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks = getattr(module, "TASKS", None)
    if not isinstance(tasks, tuple) or not tasks or not all(isinstance(t, Task | AnswerTask) for t in tasks):
        raise UserError(f"{path} has no valid TASKS: set it to a tuple of evaluation.tasks.Task or AnswerTask")
    for task in tasks:
        if not TASK_NAME.fullmatch(task.name):
            raise UserError(f"{path}: bad task name {task.name!r:.60}: use up to 100 letters, digits, '.', '_' and '-'")
        if isinstance(task, Task) and (not task.metrics or set(task.metrics) - set(METRICS)):
            raise UserError(f"{path}: metrics {task.metrics!r} of {task.name!r}: choose from {', '.join(METRICS)}")
    return list(tasks)
