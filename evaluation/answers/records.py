"""The record of a question: its answers, what the checks say about them, and hashes of its prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from evaluation.answers.build import Asked
from evaluation.checks.form import form_checks
from evaluation.data.questions import Answer
from evaluation.tasks import AnswerTask


def answer_record(task: AnswerTask, lang: str, asked: Asked, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the record of a question, in the form of a multiple-choice record, with its answers."""
    question = asked.question
    checks = {**form_checks(lang), **task.checks}
    toxicity = [answer.toxicity for answer in answers if answer.toxicity is not None]
    return {
        "id": question.id,
        "index": question.index,
        **({"subset": question.subset} if question.subset is not None else {}),
        "prompt": asked.text,
        "answers": [answer.text for answer in answers],
        "ended": [answer.ended for answer in answers],
        "tokens": [answer.num_tokens for answer in answers],
        **({"toxicity": toxicity} if toxicity else {}),
        "scores": {metric: checks[metric](question, answers) for metric in task.metrics},
        **({"weights": {metric: of(question) for metric, of in task.weights.items()}} if task.weights else {}),
        **(
            {"by_kind": {"metric": task.kind_metric, "scores": task.by_kind(question, answers)}} if task.by_kind else {}
        ),
        "ties": {},
        "chance": 0.0,
        "context_sha256": hashlib.sha256(asked.text.encode()).hexdigest(),
        "ids_sha256": asked_ids_sha256([asked]),
    }


def asked_ids_sha256(questions: Iterable[Asked]) -> str:
    """Return the SHA-256 of the prompts' token ids: of each its length, then the ids."""
    digest = hashlib.sha256()
    for asked in questions:
        digest.update(np.asarray((len(asked.tokens), *asked.tokens), dtype="<i4").tobytes())
    return digest.hexdigest()


def asked_sha256(questions: Iterable[Asked]) -> str:
    """Return the SHA-256 of the texts: for each question its id, the prompt, and what its answers are checked with."""
    digest = hashlib.sha256()
    for asked in questions:
        q = asked.question
        rules = [[rule.name, rule.value] for rule in q.rules]
        texts = (q.id, asked.text, q.references, q.wrong, rules)
        digest.update(json.dumps(texts, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
