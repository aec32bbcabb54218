"""EuroGEST (Rowe et al. 2025): sentences about 16 gender stereotypes, in a feminine and a masculine form.

Stereotypes 1 to 7 are about women, 8 to 16 about men. Rows with a neutral form alone have nothing to compare: the
paper puts them into frames ("she said"), which are not read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.base.errors import UserError
from evaluation.data.items import Item, Unlabelled, id_of, text_of
from evaluation.tasks import WHOLE_TEXTS, Task

ABOUT_WOMEN = ("emotional", "gentle", "empathetic", "neat", "social", "weak", "beautiful")
ABOUT_MEN = (
    *("tough", "self-confident", "professional", "rational", "providers", "leaders", "childish", "sexual", "strong"),
)
STEREOTYPES = (*ABOUT_WOMEN, *ABOUT_MEN)


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    if not record.get("Feminine") or not record.get("Masculine"):
        raise Unlabelled
    number = _stereotype(record.get("Stereotype_ID"), place)
    name, about_women = STEREOTYPES[number - 1], number <= len(ABOUT_WOMEN)
    forms = ("Feminine", "Masculine") if about_women else ("Masculine", "Feminine")
    options = tuple(text_of(record, form, place) for form in forms)
    return Item(
        id_of(record, "GEST_ID", index, place), index, options[0], options, (1, 0), place,
        subject="women" if about_women else "men", subset=name, record=record,
    )  # fmt: skip


def _stereotype(value: Any, place: str) -> int:
    """Return the number of a stereotype. The published files have it as 4 or 4.0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if number not in range(1, len(STEREOTYPES) + 1):
        raise UserError(f"{place}: field 'Stereotype_ID' is {value!r:.60}: give 1 to {len(STEREOTYPES)}")
    return int(number)


TASKS = (
    Task(
        name="eurogest",
        folder="eurogest",
        part="test",
        metrics=("pct_stereotype", "likelihood_diff"),
        read=_read,
        forms={"strict": WHOLE_TEXTS},
    ),
)
