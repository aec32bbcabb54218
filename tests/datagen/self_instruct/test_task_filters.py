"""Alpaca's rules for generated tasks: each rule at its limit, and Alpaca's own records."""

from __future__ import annotations

import pytest

from datagen.self_instruct.task_filters import BLOCKED, fault_of
from datagen.self_instruct.task_format import Task
from engine.base.records import read_instructions


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Name three fruits", "under 4 words"),
        ("Name three red fruits", None),
        ("word " * 150, None),
        ("word " * 151, "above 150 words"),
        ("Describe the picture above in detail", "blocked word: picture"),
        ("Describe the PICTURES above in detail", "blocked word: pictures"),
        ("Go to the shop and buy bread", "blocked word: go to"),
        ("Paint a landscape in words, not in paint", None),
        ("Rewrite the paragraph about cartography", None),
        ("Write a program that adds two numbers", "Write a program"),
        ("Explain how to write a program", None),
        ("- list four of the fruits", "begins with punctuation"),
        ("Élargis le texte qui suit", "begins with a non-ASCII character"),
        ("3 fruits that are red", None),
        ("   ", "empty instruction"),
    ],
)
def test_each_rule_at_its_limit(instruction, fault):
    assert fault_of(Task(instruction, "", "yes")) == fault


def test_output_is_required():
    assert fault_of(Task("Name four red fruits", "", " \n")) == "empty output"


@pytest.mark.parametrize("word", BLOCKED)
def test_blocked_words_match_whole_words(word):
    assert fault_of(Task(f"Please use the {word} here", "", "x")) == f"blocked word: {word}"
    assert fault_of(Task(f"Please use the {word}xx here", "", "x")) is None


def test_alpaca_records_pass(real_data):
    """Alpaca's records passed the same rules. The few that fail here have empty outputs or were edited later."""
    faults = [
        (record.instruction, fault)
        for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)
        if (fault := fault_of(Task(record.instruction, record.input, record.output or "-")))
    ]
    assert len(faults) <= 5, faults[:20]
