"""Compare answers with accepted ones: equal after normalisation, or contained."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from evaluation.data.questions import Answer, Question

Check = Callable[[Question, Sequence[Answer]], float]
_BEFORE_DIGITS, _BETWEEN_DIGITS = "-−+", ".,:/٫٬"


def mean_of(check: Callable[[Question, str], float]) -> Check:
    """Return the mean of a check over the answers of a question."""

    def mean(question: Question, answers: Sequence[Answer]) -> float:
        return sum(check(question, answer.text) for answer in answers) / len(answers)

    return mean


def normalised(text: str) -> str:
    """Return a text for comparison: small letters, digits of every script as 0 to 9, and no punctuation.

    Signs stay where they belong to a number: -5, 3.14, 10:30. Other signs become blanks, runs of blanks one blank.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    return " ".join("".join(_kept(text, i) for i in range(len(text))).split())


def _kept(text: str, i: int) -> str:
    """Return the character, or a blank in the place of a sign that is in no number."""
    if unicodedata.category(text[i])[0] not in "PS":
        return text[i]
    before, after = text[i - 1 : i] if i else "", text[i + 1 : i + 2]
    if text[i] in _BEFORE_DIGITS and after.isdecimal() and not before.isalnum():
        return "-" if text[i] == "−" else text[i]
    return text[i] if text[i] in _BETWEEN_DIGITS and before.isdecimal() and after.isdecimal() else " "


@mean_of
def exact_match(question: Question, answer: str) -> float:
    """Return 1 if the normalised answer equals a normalised reference, else 0."""
    return float(normalised(answer) in map(normalised, question.references))


@mean_of
def contains(question: Question, answer: str) -> float:
    """Return 1 if a reference begins at the beginning of one of the answer's words, else 0.

    Endings may follow it ("Kathmandu's"), but a number is a whole number. In Chinese it may begin anywhere.
    """
    text = normalised(answer)
    return float(any(_occurs(reference, text) for reference in map(normalised, question.references) if reference))


def _occurs(reference: str, text: str) -> bool:
    start = text.find(reference)
    while start >= 0:
        before, after = text[start - 1 : start] if start else " ", text[start + len(reference) :][:1]
        begins = before == " " or "\u3400" <= reference[0] <= "\u9fff"
        cut = reference[-1].isdecimal() and (after.isdecimal() or after in (*_BETWEEN_DIGITS,))
        if begins and not (cut and after):
            return True
        start = text.find(reference, start + 1)
    return False
