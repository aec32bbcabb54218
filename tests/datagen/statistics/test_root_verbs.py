"""Tests of root verbs and direct objects: cases by hand, and 100 labelled instructions of Alpaca."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.statistics.root_verbs import NONE, Root, by_rules, by_spacy, root_of, singular
from engine.base.errors import UserError
from engine.base.records import read_instructions

# Record number (from 0, released order), root verb, and head noun of its direct object, labelled by reading; "-" if
# there is none. The records were drawn with Python's random.Random(7).sample, then sorted.
_LABELS = """
2457 create sentence, 2569 generate simile, 3052 choose example, 3164 translate statement, 3249 identify formula,
3801 write script, 3873 classify sentence, 3906 identify type, 4054 rank ingredient, 4114 be -, 4578 come -,
4747 describe trend, 4797 identify -, 5364 write title, 5632 describe strategy, 5944 describe theme, 6168 find word,
6385 be -, 6753 analyze sequence, 7719 give measure, 7737 compute root, 8113 name reason, 8727 tell -,
9453 generate sentence, 9886 select condition, 9960 suggest method, 10810 write description, 11781 provide example,
11844 suggest title, 12312 punctuate -, 13497 analyze sentence, 14070 translate -, 14488 provide example,
14630 write script, 15772 name element, 15997 rewrite sentence, 16280 create test, 18870 make suggestion,
18979 explain -, 19645 write lyric, 19677 write program, 20216 generate recipe, 20587 make list, 21222 make list,
22416 create sentence, 22510 generate proverb, 23696 edit text, 23965 name country, 24405 find example,
25875 compare style, 25996 explain feature, 27402 explain -, 27405 rewrite paragraph, 27468 explain -,
27636 create function, 27821 arrange city, 28022 write story, 28419 explain -, 29414 find antonym, 29699 guess age,
30513 identify difference, 32044 name person, 32447 describe purpose, 32533 convert m, 33255 affect market,
33550 calculate rate, 34419 write sentence, 34846 write description, 35119 inspire person, 35434 generate story,
35896 generate rap, 36113 describe algorithm, 36481 make list, 36717 design website, 36986 give example,
37057 predict consequence, 37415 suggest way, 37434 find sentence, 37645 be -, 37821 use simile, 38115 do -,
38193 make recipe, 38207 design logo, 38374 describe process, 38375 be -, 39908 reverse sequence, 40567 write post,
41119 describe layering, 41328 rewrite sentence, 41871 come -, 42659 name difference, 43792 format text,
44590 change instruction, 44695 make relationship, 45809 generate list, 46668 identify word, 47804 identify component,
49619 evaluate statement, 50936 form word, 51106 discuss role
"""


def _labels():
    for label in _LABELS.split(","):
        number, verb, noun = label.split()
        yield int(number), Root(verb, noun.replace("-", ""))


def test_rules_agree_with_labels(real_data):
    records = list(read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False))
    labels = dict(_labels())
    assert len(labels) == 100
    found = dict(zip(labels, by_rules(records[number].instruction for number in labels), strict=True))
    verbs = sum(found[number].verb == label.verb for number, label in labels.items())
    pairs = sum(found[number] == label for number, label in labels.items())
    wrong = {number: (found[number], label) for number, label in labels.items() if found[number] != label}
    assert verbs >= 95, wrong
    assert pairs >= 92, wrong


@pytest.mark.parametrize(
    ("instruction", "root"),
    [
        ("Write a short, rhyming poem about rain.", ("write", "poem")),
        ("Please list five healthy snacks for children", ("list", "snack")),
        ("Given a paragraph and a title, rewrite the title.", ("rewrite", "title")),
        ("Using the words below create a story.", ("create", "story")),
        ("Could you kindly summarize this article?", ("summarize", "article")),
        ("You are given two numbers. Add them.", ("add", "")),
        ("Your task is to find the largest number in the list.", ("find", "number")),
        ("Compare and contrast the two main characters.", ("compare", "character")),
        ("Come up with a slogan.", ("come", "")),
        ("Make up a riddle.", ("make", "riddle")),
        ("Give me three reasons to exercise", ("give", "reason")),
        ("Explain why the sky is blue.", ("explain", "")),
        ("What is the capital of Peru?", ("be", "")),
        ("How does sleep affect memory?", ("affect", "memory")),
        ("Convert 20 miles into kilometres", ("convert", "mile")),
        ("Plan a 7-day trip to Kyoto", ("plan", "trip")),
        ('Translate "good night" into French', ("translate", "")),
        ("Deseed the peppers.", ("deseed", "pepper")),
        ("Who?", ("", "")),
        ("", ("", "")),
        ("नमस्ते संसार", ("", "")),
    ],
)
def test_root_by_hand(instruction, root):
    assert root_of(instruction) == root


def test_singular():
    words = "stories classes boxes viruses people analysis news essays cities"
    assert [singular(w) for w in words.split()] == [
        "story",
        "class",
        "box",
        "virus",
        "person",
        "analysis",
        "news",
        "essay",
        "city",
    ]


_WORDS = ["write", "the", "a", "list", "given", ",", "and", ".", "you", "to", "using", "of", "me", "sun"]


@given(st.text() | st.lists(st.sampled_from(_WORDS)).map(" ".join))
def test_root_of_accepts_any_text(text):
    verb, noun = root_of(text)
    assert verb or not noun


def test_missing_spacy_error_offers_the_rules():
    try:
        import spacy  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="pip install spacy, or leave --spacy out"):
            by_spacy("en_core_web_sm")
    else:
        with pytest.raises(UserError, match="no such pipeline is installed"):
            by_spacy("no_such_pipeline")


def test_text_without_words_gives_none():
    assert list(by_rules(["", "???"])) == [NONE, NONE]
