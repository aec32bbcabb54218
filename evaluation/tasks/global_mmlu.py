"""Global-MMLU and its Lite version (Singh et al. 2025): MMLU in many languages, with culturally sensitive parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine.base.errors import UserError
from evaluation.data.items import Item, id_of, lettered_answer, lettered_options, text_of
from evaluation.data.lettered import ask_cloze, ask_english, ask_letters, letters_of, stripped_options
from evaluation.tasks import Form, Task
from evaluation.tasks.mmlu import GROUPS

# cultural_sensitivity_label -> subset. Most questions of the full set have no label: "-".
SUBSETS = {"CS": "culturally_sensitive", "CA": "culturally_agnostic", "-": None, None: None}


def _reader(subject: str) -> Callable[[Mapping[str, Any], str, int], Item]:
    def read(record: Mapping[str, Any], place: str, index: int) -> Item:
        options = lettered_options(record, place)
        label = record.get("cultural_sensitivity_label") or None
        if not isinstance(label, str | None) or label not in SUBSETS:
            shown = f"field 'cultural_sensitivity_label' is {label!r:.60}, it must be CS, CA or -"
            raise UserError(f"{place}: {shown}: fix the record or remove it")
        return Item(
            id=id_of(record, "sample_id", index, place),
            index=index,
            question=text_of(record, "question", place),
            options=options,
            truth=lettered_answer(record, len(options), place),
            place=place,
            subject=text_of(record, subject, place),
            subset=SUBSETS[label],
            record=record,
        )

    return read


_DEV = ("dev",)


def _tasks(name: str, subject: str, first: bool, groups: Mapping[str, tuple[str, ...]]) -> tuple[Task, Task]:
    """Return the letters task and the cloze task.

    subject  the field whose values lm-eval treats as tasks of their own
    first    take the first solved questions of dev instead of drawing them
    """
    letters = {
        "lm-eval": Form(ask_english, 0, _DEV, options=letters_of, by_subject=True, in_order=first),
        "strict": Form(ask_letters, 5, _DEV, options=letters_of, by_subject=True, in_order=first),
    }
    cloze = {"strict": Form(ask_cloze, 5, _DEV, options=stripped_options, by_subject=True, in_order=first)}
    read = _reader(subject)
    return (
        Task(name, name, "test", ("acc",), read, letters, groups),
        Task(f"{name}_cloze", name, "test", ("acc_norm", "acc", "acc_bytes"), read, cloze, groups),
    )


TASKS = (
    *_tasks("global_mmlu", "subject_category", first=False, groups={}),
    *_tasks("global_mmlu_full", "subject", first=True, groups=GROUPS),
)
