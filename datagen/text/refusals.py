"""Detect refusals, answers in which a model says that it will not or cannot do a task, in all our languages."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

from datagen.text.number_words import plain_words

FILE = Path(__file__).with_name("refusals.json")
_HEAD = 200  # characters to search: a refusal says so at once
_OPENING = 40  # characters: without an apology, "I cannot" must start within these
_QUOTES = " \t\r\n\"'“”„«»‘’{[(¡¿*_#>"
# A source that itself apologises or says "I cannot": its translation does the same.
_REFUSES = re.compile(
    r"\b(?:sorry|apolog\w+|pardon|excuse me|forgive me|regret\w*|unfortunately|regrettably|sadly|afraid)\b"
    r"|\b(?:i|we) (?:\w+ )?(?:cannot|can t|can not|could not|couldn t|won t|unable|not able|do not|don t)\b|\bi m not\b"
)
_CANNOT = re.compile(
    r"\b(?:cannot|can t|can not|could not|couldn t|unable|not able|impossible|not possible|won t|no way|insufficient"
    r"|not enough)\b"
)
# A source with feelings that other languages express with an apology.
_REGRETS = re.compile(
    r"\b(?:condolen\w*|sympath\w*|mourn\w*|grie[fv]\w*|passing|passed away|loss|lost|death|died|funeral|sad\w*|heart\w*"
    r"|pity|shame|too bad|awful|terrible|horrible|unable|cannot|can t|forg[ie]v\w*|excus\w*|alas|oops|oh no"
    r"|miss(?:ed)? you)\b"
)
_MODEL = re.compile(r"\b(?:ai|artificial intelligence|language model|chatbot|assistant)\b")
_NO_LETTER = r"(?![^\W\d_]|[\u0900-\u0963\u0970-\u0d7f])"


def is_refusal(text: str) -> bool:
    """Whether a whole answer refuses a task, in any of our languages."""
    return any(_kind_of(text, lang) in ("model", "task", "bare") for lang in _patterns())


def adds_refusal(source: str, target: str, lang: str) -> bool:
    """Whether a translation starts like a refusal, in its language or in English, and its English source does not."""
    kinds = {_kind_of(target, code) for code in (lang, "en")} - {None}
    text = plain_words(source, "en")
    return any(
        not pattern.search(text)
        for kind, pattern in (("model", _MODEL), ("task", _REFUSES), ("bare", _CANNOT))
        if kind in kinds
    ) or ("other" in kinds and not (_REFUSES.search(text) or _REGRETS.search(text)))


def _kind_of(text: str, lang: str) -> str | None:
    """Return how a text refuses, or None if it does not.

    "model"   "as a language model ..."
    "task"    an apology, "I cannot", and a word about the task or help
    "other"   an apology with one of these or with "but" directly after it; not an apology alone, since condolences
              start with one
    "bare"    "I cannot" at the start and a word about the task or help, without an apology
    """
    if lang not in _patterns():
        return None
    patterns = _patterns()[lang]
    head = " ".join(plain_words(text[: 2 * _HEAD], lang).split()).lstrip(_QUOTES)[:_HEAD]
    if patterns["model"].match(head):
        return "model"
    apology = patterns["apology"].match(head)
    rest = head[apology.end() :] if apology else head
    cannot, task, helps = (patterns[name].search(rest) for name in ("cannot", "task", "help"))
    if apology and (cannot or task or patterns["but"].match(rest)):
        return "task" if cannot and (task or helps) else "other"
    return "bare" if not apology and cannot and cannot.start() < _OPENING and (task or helps) else None


@functools.cache
def _patterns() -> dict[str, dict[str, re.Pattern[str]]]:
    """Compile refusals.json: language -> name -> pattern. "apology" and "but" must end a word, except in Chinese."""
    compiled = {}
    for lang, patterns in json.loads(FILE.read_text(encoding="utf-8")).items():
        end = "" if lang == "zh" else _NO_LETTER
        plain = {name: plain_words(pattern, lang) for name, pattern in patterns.items()}
        plain["apology"] = f"(?:{plain['apology']}){end}"
        plain["but"] = f"[\\s,.;:!…،。，！]*(?:{plain['but']}){end}"
        compiled[lang] = {name: re.compile(pattern) for name, pattern in plain.items()}
    return compiled
