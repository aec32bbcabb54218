"""MultiBLiMP (Jumelet et al. 2025): pairs of sentences that differ in a word; one of them breaks a rule of grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, label_of, text_of
from evaluation.tasks import WHOLE_TEXTS, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = (text_of(record, "sen", place), text_of(record, "wrong_sen", place))
    subject = label_of(record, "phenomenon", place)
    return Item(str(index), index, options[0], options, (1, 0), place, subject=subject, record=record)


TASKS = (
    Task(
        name="multiblimp",
        folder="multiblimp",
        part="train",  # the only part, and its name
        metrics=("acc", "acc_norm"),
        read=_read,
        forms={"lm-eval": WHOLE_TEXTS, "strict": WHOLE_TEXTS},
    ),
)
