"""Which tasks are about the English language, and which answers are refusals."""

from __future__ import annotations

from collections import Counter

import pytest

from datagen.language_tasks import language_task
from datagen.refusals import is_refusal, refused_part
from engine.records import read_records


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("Translate the sentence into French.", "translation"),
        ("How do you say 'good night' in Spanish?", "translation"),
        ("Give the German word for bridge.", "translation"),
        ("Correct the grammar of this text.", "grammar"),
        ("Identify the verbs in the sentence.", "grammar"),
        ("Rewrite it in the passive voice.", "grammar"),
        ("Fix the mistakes.", "grammar"),
        ("Put the verb into the past tense.", "grammar"),
        ("Find the misspelled word.", "spelling"),
        ("Give me five words that start with b.", "spelling"),
        ("List words that rhyme with moon.", "spelling"),
        ("Put the names in alphabetical order.", "spelling"),
        ("Write a program that checks the spelling of a word.", None),
        ("Describe German history after 1945.", None),
        ("Explain how vaccines work.", None),
        ("Plan a trip to French Polynesia with a friend.", None),
        ("Write a haiku about spring.", None),
    ],
)
def test_kinds(instruction, kind):
    assert language_task(instruction) == kind


def test_alpacas_tasks_about_language_are_few(real_data):
    counts = Counter(language_task(row["instruction"]) for _, row in read_records(real_data / "alpaca_en.jsonl.gz"))
    assert sum(counts.values()) == 52_002
    assert 0.03 < 1 - counts[None] / 52_002 < 0.08
    assert counts["translation"] > 200 and counts["grammar"] > 1_000 and counts["spelling"] > 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't translate that.", True),
        ("I cannot help with this request.", True),
        ("As an AI language model, I have no opinion.", True),
        ("Tôi xin lỗi, nhưng tôi không thể dịch.", True),
        ("माफ गर्नुहोस्, म यो गर्न सक्दिनँ।", True),
        ('{"instruction": "Say sorry"}', False),
        ("Apple pie is sweet.", False),
        ("Icy roads", False),
    ],
)
def test_refusals(text, expected):
    assert is_refusal(text) is expected


def test_a_translation_may_refuse_only_what_its_source_refuses():
    assert refused_part("Write a poem.", "عذراً، لا أستطيع ذلك.", "ar")
    assert refused_part("Write a poem.", "I'm sorry, I can't do that.", "ar")
    assert not refused_part("I am sorry, there is no poem.", "عذراً، لا توجد قصيدة.", "ar")
    assert not refused_part("Write a poem.", "اكتب قصيدة.", "ar")
    assert not refused_part("Write a poem.", "Skribu poemon.", "eo")
