"""Exact match and contained answers after normalisation, and what every report says about answers: by hand."""

import pytest

from evaluation.checks.form import form_checks
from evaluation.checks.text import contains, exact_match, normalised
from evaluation.data.questions import Answer, Question


def question(*references, wrong=()):
    return Question("q", 0, "p", "FILE:1", references, wrong)


def answers(*texts):
    return [Answer(text, 3, True) for text in texts]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The  Cat, \n sat. ", "the cat sat"),
        ("\uff13\uff0e\uff11\uff14", "3.14"),
        ("४२ वर्ष।", "42 वर्ष"),
        ("-5 °C", "-5 c"),
        ("\u22125", "-5"),
        ("1,000 - 2", "1,000 2"),
        ("10:30; e.g. so", "10:30 e g so"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("...", ""),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_exact_match():
    found = [exact_match(question("Kathmandu", "४२"), answers(text)) for text in ("kathmandu.", "42", "Kathmandu city")]
    assert found == [1.0, 1.0, 0.0]
    assert exact_match(question("a"), answers("a", "b", "b", "A!")) == 0.5


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("Kathmandu", "It is in Kathmandu, I think.", 1.0),
        ("काठमाडौँ", "यो काठमाडौँमा छ", 1.0),
        ("mandu", "Kathmandu", 0.0),
        ("5", "15 or 51", 0.0),
        ("5", "5.5 or 1,5", 0.0),
        ("5", "15 or 5.", 1.0),
        ("北京", "首都是北京。", 1.0),
        ("Paris", "", 0.0),
        ("?", "?", 0.0),
    ],
)
def test_contains(reference, text, expected):
    assert contains(question(reference), answers(text)) == expected


def test_form_of_answers():
    """Two answers: the first repeats three of six trigrams; one is in another script, one has not ended."""
    checks = form_checks("ne")
    given = [Answer("a b c a b c a b", 8, True), Answer("म हरेक बिहान", 4, False)]
    found = {name: check(question(), given) for name, check in checks.items()}
    assert found == {"wrong_language": 0.5, "repetition": 0.25, "ended": 0.5, "length": 6.0}
