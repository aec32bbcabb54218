"""Tests of detecting tasks about the English language, and of detecting refusals."""

from __future__ import annotations

from collections import Counter

import pytest

from datagen.text.language_tasks import language_task
from datagen.text.refusals import adds_refusal, is_refusal
from engine.base.records import read_records


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
def test_language_task_kinds(instruction, kind):
    assert language_task(instruction) == kind


def test_alpaca_has_few_language_tasks(real_data):
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
def test_is_refusal(text, expected):
    assert is_refusal(text) is expected


def test_adds_refusal_unless_the_source_refuses():
    assert adds_refusal("Write a poem.", "عذراً، لا أستطيع ذلك.", "ar")
    assert adds_refusal("Write a poem.", "I'm sorry, I can't do that.", "ar")
    assert not adds_refusal("I am sorry, there is no poem.", "عذراً، لا توجد قصيدة.", "ar")
    assert not adds_refusal("Write a poem.", "اكتب قصيدة.", "ar")
    assert not adds_refusal("Write a poem.", "Skribu poemon.", "eo")


@pytest.mark.parametrize(
    ("lang", "source", "target"),
    [
        ("es", "My deepest sympathies on your loss.", "Lo siento mucho por la pérdida."),
        ("de", "My condolences, may he rest in peace.", "Es tut mir leid, möge er in Frieden ruhen."),
        ("hu", "What a blow for the family!", "Sajnálom, micsoda csapás a családnak!"),
        ("it", "Poor you, such a long flight!", "Mi dispiace, un volo così lungo!"),
        ("vi", "Our thoughts are with you.", "Tôi rất tiếc, chúng tôi luôn nghĩ đến bạn."),
        ("ar", "Safi is a city in Morocco.", "آسفي مدينة في المغرب."),
        ("id", "Be kind to your brother.", "Maafkanlah saudaramu."),
        ("de", "Excuses are of no use.", "Entschuldigungen nützen nichts."),
        ("zh", "There is insufficient information to answer this question.", "无法回答此问题。"),
        ("es", "I can't translate this text.", "No puedo traducir este texto."),
        ("fr", "As an AI language model, I have no body.", "En tant que modèle de langage, je n'ai pas de corps."),
    ],
)
def test_false_friends_of_refusals_pass(lang, source, target):
    assert not adds_refusal(source, target, lang)


def test_finds_refusal_although_the_source_says_cannot():
    source = "Why can't we see the stars during the day?"
    assert adds_refusal(source, "Lo siento, pero no puedo ayudarte con esa solicitud.", "es")
    assert adds_refusal(source, "Žao mi je, ali ne mogu da prevedem ovaj tekst.", "sr")
    assert adds_refusal("Name a fruit.", "Nem tudom teljesíteni ezt a kérést.", "hu")


def test_few_alpaca_outputs_are_taken_for_refusals(real_data):
    """Of all 52,002 outputs, 39 are taken for refusals and 22 of these are refusals."""
    outputs = [row["output"] for _, row in read_records(real_data / "alpaca_en.jsonl.gz")]
    assert sum(map(is_refusal, outputs[::26])) <= 5
