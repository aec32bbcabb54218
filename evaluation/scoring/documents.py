"""What a protocol hands to the scorer: documents with their choices as token ids, nothing left to tokenise."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.data.files import Source
from evaluation.tasks import Task


@dataclass(frozen=True)
class Choice:
    """One candidate answer. Its score is the sum of log p(continuation_ids | context_ids).

    context_ids       ids before it, already cut to fit; never empty. Choices of a document share the object if equal
    continuation_ids  ids that are scored; never empty
    text              the continuation as text, with the gap before it: " fifty"
    characters        length of the candidate without that gap, in Unicode code points (acc_norm divides by it); 0 where
                      lm-eval's cleaning left nothing of it
    bytes             the same in UTF-8 bytes (acc_bytes divides by it)
    truncated         ids or whole shots of the prompt were dropped to fit
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

    id       the record's own id, or its row number where the benchmark has none (TruthfulQA)
    index    row number in the file, from 0
    gold     index of the right choice; for a task scored by mc2, 1.0 or 0.0 for each choice: true or not
    shot_ids ids of the solved questions before it, in the order of the prompt
    prompt   the whole text before the choices, before anything is cut from the left of its ids
    subject  MMLU's subject; None elsewhere
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


@dataclass(frozen=True)
class TaskDocuments:
    """One task in one language, ready to score.

    documents  in the protocol's order
    counts     what was handled by rule, by name: left out, cut, equal options; only counts above zero
    sources    the files that were read, with their hashes
    """

    task: Task
    lang: str
    protocol: str
    shots: int
    documents: list[Document]
    counts: dict[str, int]
    sources: tuple[Source, ...]
