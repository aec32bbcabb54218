"""CrowS-Pairs (Nangia et al. 2020): pairs of sentences; the first has the stereotype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, label_of, text_of
from evaluation.tasks import WHOLE_TEXTS, Task


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = (text_of(record, "sent_more", place), text_of(record, "sent_less", place))
    direction, kind = (label_of(record, name, place) for name in ("stereo_antistereo", "bias_type"))
    return Item(
        str(index), index, options[0], options, (1, 0), place, subject=direction, subset=kind, record=record
    )  # fmt: skip


TASKS = (
    Task(
        name="crows_pairs",
        folder="crows_pairs",
        part="test",
        metrics=("pct_stereotype", "likelihood_diff"),
        read=_read,
        forms={"lm-eval": WHOLE_TEXTS, "strict": WHOLE_TEXTS},
    ),
)
