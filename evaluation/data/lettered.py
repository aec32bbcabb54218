"""The formats of multiple-choice tasks: options under letters, scored by their letter or by their text."""

from __future__ import annotations

from evaluation.data.items import Item
from evaluation.data.prompt_words import PromptWords

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def lines_of(item: Item, strip: bool = False) -> str:
    """Return a line break, a letter and the text of each option: a line break, then "A. red", and so on."""
    texts = (option.strip() if strip else option for option in item.options)
    return "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, texts))


def letters_of(item: Item) -> tuple[str, ...]:
    """Return the letters of the item's options."""
    return tuple(LETTERS[: len(item.options)])


def stripped_options(item: Item) -> tuple[str, ...]:
    """Return the texts of the options without blanks around them."""
    return tuple(option.strip() for option in item.options)


def ask_english(item: Item, words: PromptWords) -> str:
    """Return the question, the options under letters and "Answer:", as lm-eval's exam tasks."""
    return f"{item.question.strip()}{lines_of(item)}\nAnswer:"


def ask_letters(item: Item, words: PromptWords) -> str:
    """Return the question, the options under letters and the word for "Answer:"."""
    return f"{item.question.strip()}{lines_of(item, strip=True)}\n{words.answer}"


def ask_cloze(item: Item, words: PromptWords) -> str:
    """Return the question after its word, and the word for "Answer:", without the options."""
    return f"{words.question}{words.gap}{item.question.strip()}\n{words.answer}"


def go_on(item: Item, words: PromptWords) -> str:
    """Return the question alone: the options continue it."""
    return item.question.strip()
