"""MMLU (Hendrycks et al. 2021): exam questions with four options, 57 subjects in four groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.data.items import Item, lettered_answer, lettered_options, text_of
from evaluation.data.lettered import ask_english, ask_letters, letters_of, lines_of
from evaluation.data.prompt_words import PromptWords
from evaluation.tasks import Form, Task

GROUPS = {
    "humanities": (
        *("formal_logic", "high_school_european_history", "high_school_us_history", "high_school_world_history"),
        *("international_law", "jurisprudence", "logical_fallacies", "moral_disputes", "moral_scenarios"),
        *("philosophy", "prehistory", "professional_law", "world_religions"),
    ),
    "social_sciences": (
        *("econometrics", "high_school_geography", "high_school_government_and_politics"),
        *("high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology", "human_sexuality"),
        *("professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy"),
    ),
    "stem": (
        *("abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry"),
        *("college_computer_science", "college_mathematics", "college_physics", "computer_security"),
        *("conceptual_physics", "electrical_engineering", "elementary_mathematics", "high_school_biology"),
        *("high_school_chemistry", "high_school_computer_science", "high_school_mathematics", "high_school_physics"),
        *("high_school_statistics", "machine_learning"),
    ),
    "other": (
        *("business_ethics", "clinical_knowledge", "college_medicine", "global_facts", "human_aging", "management"),
        *("marketing", "medical_genetics", "miscellaneous", "nutrition", "professional_accounting"),
        *("professional_medicine", "virology"),
    ),
}


def _read(record: Mapping[str, Any], place: str, index: int) -> Item:
    options = lettered_options(record, place)
    name = text_of(record, "id", place)
    return Item(
        id=name,
        index=index,
        question=text_of(record, "instruction", place),
        options=options,
        truth=lettered_answer(record, len(options), place),
        place=place,
        subject=name.split("/")[0] if "/" in name else None,
        record=record,
    )


def _okapi(item: Item, words: PromptWords) -> str:
    return f"Question: {item.question}\nChoices:{lines_of(item)}\nAnswer:"


def _header(item: Item) -> str:
    subject = (item.subject or "").replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}.\n\n"


_DEV = ("dev",)

TASKS = (
    Task(
        name="mmlu",
        folder="m_mmlu",
        part="test",
        metrics=("acc",),
        read=_read,
        forms={
            "okapi": Form(_okapi, 25, ("validation",), spare=("validation",)),
            "leaderboard-v1": Form(
                ask_english, 5, _DEV, options=letters_of, header=_header, by_subject=True, in_order=True
            ),
            "lm-eval": Form(ask_english, 0, _DEV, options=letters_of, in_order=True),
            "lm-eval/en": Form(
                ask_english, 0, _DEV, options=letters_of, header=_header, by_subject=True, in_order=True
            ),
            "strict": Form(ask_letters, 5, _DEV, options=letters_of, by_subject=True, in_order=True),
        },
        groups=GROUPS,
    ),
)
