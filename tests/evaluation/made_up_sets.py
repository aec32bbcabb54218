"""Test helpers: records in the fields of the published sets, made of the language kits' own sentences and words."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

from evaluation.data.sets import SETS
from tests.evaluation.made_up import Row, write

_KITS = Path(__file__).parents[2] / "datagen" / "kits"
SUBJECTS = ("abstract_algebra", "anatomy", "virology")
DOMAINS = ("Social Science", "STEM")
_CATEGORIES = {"abstract_algebra": "STEM", "anatomy": "STEM", "virology": "Medical"}
_CULTURE = ("CS", "CA", "-")


@cache
def sentences(lang: str) -> tuple[str, ...]:
    """Return sentences in the language, thirty or more."""
    return tuple(json.loads((_KITS / f"{lang}.json").read_text(encoding="utf-8"))["texts"])


@cache
def words(lang: str) -> tuple[str, ...]:
    """Return words in the language, thirty or more."""
    kit = json.loads((_KITS / f"{lang}.json").read_text(encoding="utf-8"))
    return tuple(word for group in kit["categories"].values() for word in group)


def _at(values: tuple[str, ...], number: int) -> str:
    return values[number % len(values)]


def _options(lang: str, n: int) -> Row:
    return {f"option_{letter}": _at(words(lang), 7 * n + i) for i, letter in enumerate("abcd")}


def belebele(lang: str, n: int) -> Row:
    text = sentences(lang)
    answers = {f"mc_answer{i}": _at(words(lang), 5 * n + i) for i in range(1, 5)}
    passage = f"{_at(text, n)} {_at(text, n + 1)} "
    names = {"link": f"https://made.up/{n // 2}", "question_number": n % 2 + 1, "flores_passage": passage}
    own = {"dialect": SETS["belebele"].names[lang], "ds": "2026-01-01"}
    return {**names, "question": f" {_at(text, n + 2)} ", **answers, "correct_answer_num": str(n % 4 + 1), **own}


def xcopa(lang: str, n: int) -> Row:
    text = sentences(lang)
    choices = {"choice1": _at(text, n + 1), "choice2": _at(text, n + 2)}
    about = {"question": ("cause", "effect")[n % 2], "label": n // 2 % 2, "idx": n, "changed": False}
    return {"premise": f"{_at(text, n)} ", **choices, **about}


def xstorycloze(lang: str, n: int) -> Row:
    text = sentences(lang)
    story = {f"input_sentence_{i}": _at(text, n + i) for i in range(1, 5)}
    ends = {"sentence_quiz1": _at(text, n + 5), "sentence_quiz2": _at(text, n + 6)}
    return {"story_id": f"story-{n}", **story, **ends, "answer_right_ending": n % 2 + 1}


def xnli(lang: str, n: int) -> Row:
    text = sentences(lang)
    return {"premise": _at(text, n), "hypothesis": _at(text, n + 1), "label": n % 3}


def global_mmlu(lang: str, n: int) -> Row:
    subject = SUBJECTS[n % len(SUBJECTS)]
    question = f" {_at(sentences(lang), n)} "
    culture = {"cultural_sensitivity_label": _CULTURE[n // 3 % 3], "is_annotated": n // 3 % 3 < 2}
    about = {"sample_id": f"{subject}/test/{n}", "subject": subject, "subject_category": _CATEGORIES[subject]}
    return {**about, "question": question, **_options(lang, n), "answer": "ABCD"[n % 4], **culture}


def include(lang: str, n: int) -> Row:
    about = {"language": SETS["include"].names[lang], "country": "made up", "domain": DOMAINS[n % 2]}
    about |= {"subject": "made up", "regional_feature": ("agnostic", "region implicit")[n // 2 % 2], "level": "any"}
    return {**about, "question": f"{_at(sentences(lang), n)} ", **_options(lang, n), "answer": n % 4}


def global_piqa(lang: str, n: int, num_options: int = 2) -> Row:
    text = sentences(lang)
    ends = {f"solution{i}": _at(text, n + 1 + i) for i in range(num_options)}
    return {"prompt": _at(text, n), **ends, "label": n % num_options, "example_id": f"{lang}_{n}"}


def indicparam(lang: str, n: int) -> Row:
    about = {"unique_question_id": f"q{n}", "subject": SETS["indicparam"].names[lang]}
    return {**about, "question_text": _at(sentences(lang), n), **_options(lang, n), "correct_answer": "abcd"[n % 4]}


def multiblimp(lang: str, n: int) -> Row:
    sen = _at(sentences(lang), n)
    return {"sen": sen, "wrong_sen": " ".join(reversed(sen.split())), "phenomenon": ("SV-#", "SV-P")[n % 2], "cue": "x"}


def crows_pairs(lang: str, n: int) -> Row:
    pair = {"sent_more": _at(sentences(lang), n), "sent_less": _at(sentences(lang), n + 1)}
    return {**pair, "stereo_antistereo": ("stereo", "antistereo")[n % 2], "bias_type": ("age", "gender")[n // 2 % 2]}


def eurogest(lang: str, n: int) -> Row:
    forms = {"Feminine": _at(sentences(lang), n), "Masculine": _at(sentences(lang), n + 1), "Neutral": ""}
    return {"GEST_ID": n, "Source": "x", "Stereotype_ID": 1 + n % 16, **forms}


# Folder -> (makes record n in a language, parts with the number of their first record).
MAKERS: dict[str, tuple[Callable[[str, int], Row], dict[str, int]]] = {
    "belebele": (belebele, {"test": 0}),
    "xcopa": (xcopa, {"test": 0, "validation": 100}),
    "xstorycloze": (xstorycloze, {"eval": 0, "train": 100}),
    "xnli": (xnli, {"validation": 0, "train": 100}),
    "global_mmlu": (global_mmlu, {"test": 0, "dev": 100}),
    "global_mmlu_full": (global_mmlu, {"test": 0, "dev": 100}),
    "include": (include, {"test": 0}),
    "global_piqa_nonparallel": (global_piqa, {"test": 0}),
    "global_piqa_parallel": (lambda lang, n: global_piqa(lang, n, 4), {"test": 0}),
    "indicparam": (indicparam, {"test": 0}),
    "multiblimp": (multiblimp, {"train": 0}),
    "crows_pairs": (crows_pairs, {"test": 0}),
    "eurogest": (eurogest, {"test": 0}),
}


def make(folder: Path, name: str, lang: str, size: int = 18) -> None:
    """Write the parts of one set in one language, `size` records each."""
    maker, parts = MAKERS[name]
    for part, first in parts.items():
        write(folder, f"{name}/{lang}_{part}", [maker(lang, first + n) for n in range(size)])
