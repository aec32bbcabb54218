"""Documents: tokenized questions with their choices, ready to score."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from evaluation.data.files import Source
from evaluation.tasks import Task

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Choice:
    """One candidate answer. Its score is log p(continuation_ids | context_ids).

    context_ids       ids before the answer, cut to fit, never empty; equal contexts of a document are one object
    continuation_ids  ids to score, never empty
    text              the continuation as text, with the gap before it: " fifty"
    characters        length of the option without the gap in Unicode code points, the divisor of acc_norm; 0 if
                      lm-eval's cleaning deleted all of it
    bytes             the same length in UTF-8 bytes, the divisor of acc_bytes
    truncated         whether ids or whole shots of the prompt were dropped to fit
    """

    context_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    text: str
    characters: int
    bytes: int
    truncated: bool


@dataclass(frozen=True)
class Document:
    """One question with its choices.

    id        the record's id, or its row number in a benchmark without ids (TruthfulQA)
    index     row number in the file, from 0
    gold      index of the right choice; for a task with metric mc2, 1.0 (true) or 0.0 (false) for each choice
    shot_ids  ids of the solved questions before it, in the order of the prompt
    prompt    the whole text before the choices, without the cut from the left that its ids may have
    subject   the subject or domain of the question; None in a benchmark without them
    subset    a part of the benchmark whose score is reported apart; None for none
    """

    task: str
    lang: str
    id: str
    index: int
    gold: int | tuple[float, ...]
    choices: tuple[Choice, ...]
    shot_ids: tuple[str, ...]
    prompt: str
    subject: str | None = None
    subset: str | None = None


@dataclass(frozen=True)
class TaskDocuments:
    """The documents of one task in one language.

    shots          number of shots per question
    documents      in the protocol's order
    counts         name -> number of documents, tokens and special cases (left out, cut, equal options), if above zero
    sources        the files that were read, with their hashes
    empty_context  the token that stands before a choice without a text before it; None if every choice has one
    """

    task: Task
    lang: str
    protocol: str
    shots: int
    documents: list[Document]
    counts: dict[str, int]
    sources: tuple[Source, ...]
    empty_context: str | None = None


def group_tasks(built: Mapping[Key, TaskDocuments]) -> list[dict[Key, TaskDocuments]]:
    """Group the tasks of each benchmark: they share prompts, so one prefix tree serves them."""
    groups: dict[str, dict[Key, TaskDocuments]] = {}
    for key, item in built.items():
        groups.setdefault(item.task.folder, {})[key] = item
    return list(groups.values())
