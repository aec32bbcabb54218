"""What every report says about generated answers: language, repetition, whether they ended, and their length."""

from __future__ import annotations

from engine.base.in_language import in_language
from engine.base.languages import get_language
from engine.reward_functions import repetition
from evaluation.checks.text import Check

_REPETITION = repetition(3)


def form_checks(lang: str) -> dict[str, Check]:
    """Return the checks by name, for answers that should be in this language.

    wrong_language  share of answers in another language (engine/base/in_language.py)
    repetition      share of an answer's word trigrams that occurred in it before
    ended           share of answers that ended before --max-new-tokens
    length          tokens of an answer, its end token included
    """
    language = get_language(lang)
    return {
        "wrong_language": lambda _, answers: sum(not in_language(a.text, language) for a in answers) / len(answers),
        "repetition": lambda _, answers: sum(abs(_REPETITION("", a.text)) for a in answers) / len(answers),
        "ended": lambda _, answers: sum(a.ended for a in answers) / len(answers),
        "length": lambda _, answers: sum(a.num_tokens for a in answers) / len(answers),
    }
