"""Build the prompts of a generation task: read its records, format them with the model's template, check lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.base.errors import UserError
from engine.base.languages import get_language
from engine.text.chats import encode_instruction
from evaluation.data.files import Data, Source
from evaluation.data.questions import Question
from evaluation.data.scripts import check_script
from evaluation.protocols import DEFAULT_PROTOCOL, Protocol
from evaluation.tasks import AnswerTask


@dataclass(frozen=True)
class Asked:
    """A question as the model gets it: with the template, as text and as token ids."""

    question: Question
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TaskQuestions:
    """The questions of one generation task in one language; the fields are those of TaskDocuments."""

    task: AnswerTask
    lang: str
    protocol: str
    asked: list[Asked]
    counts: dict[str, int]
    sources: tuple[Source, ...]
    shots: int = 0


def build_questions(
    task: AnswerTask,
    lang: str,
    data: Data,
    tokenizer: Any,
    template: Any,
    protocol: Protocol,
    max_prompt_length: int,
    *,
    limit: int | None = None,
    split: str | None = None,
    skip_bad: bool = False,
) -> TaskQuestions:
    """Return the questions of a task in file order. Arguments as of evaluation/scoring/build.py.

    UserError for a bad record and a prompt above max_prompt_length tokens, with file and line; with skip_bad, they are
    counted and left out. UserError for a file in the script of another language.
    """
    records = data.read(task.folder, lang, split or task.part)
    counts: Counter[str] = Counter()
    asked: list[Asked] = []
    for index, (place, record) in enumerate(records.rows):
        if limit is not None and len(asked) == limit:
            break
        try:
            asked.append(_ask(task.read(record, place, index), tokenizer, template, max_prompt_length))
        except UserError:
            if not skip_bad:
                raise
            counts["bad_records"] += 1
    if not asked:
        raise UserError(f"{records.source.name}: no record of {len(records.rows)} can be used: fix the file")
    check_script(get_language(lang), records.source.name, (a.question.prompt for a in asked))
    counts["documents"] = len(asked)
    counts["prompt_tokens"] = sum(len(a.tokens) for a in asked)
    return TaskQuestions(task, lang, protocol.name, asked, dict(counts), (records.source,))


def check_task(
    task: AnswerTask, lang: str, data: Data, protocol: Protocol, shots: int | None, split: str | None
) -> None:
    """UserError for what `build_questions` would not find, before a model is loaded: files, packages, protocol."""
    if protocol.name != DEFAULT_PROTOCOL:
        raise UserError(
            f"task {task.name} has no form for --protocol {protocol.name}: its answers are generated, choose "
            f"--protocol {DEFAULT_PROTOCOL}"
        )
    if shots:
        raise UserError(f"--shots {shots}: task {task.name} has no solved questions: leave --shots out")
    if not data.has(task.folder, lang, split or task.part):
        data.read(task.folder, lang, split or task.part)  # raises with the name of the missing file
    if task.requires:
        task.requires(task.name)


def _ask(question: Question, tokenizer: Any, template: Any, max_prompt_length: int) -> Asked:
    tokens: Sequence[int] = encode_instruction(tokenizer, template, question.prompt)
    if len(tokens) > max_prompt_length:
        raise UserError(
            f"{question.place}: the prompt has {len(tokens)} tokens, the limit is {max_prompt_length} (max length less "
            "new tokens): raise --max-length, lower --max-new-tokens, or leave it out with --bad-records skip"
        )
    return Asked(question, template.format(question.prompt), tuple(tokens))
