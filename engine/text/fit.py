"""How well a tokenizer fits a language: tokens per word, tokens per character, bytes per token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from engine.base.languages import Language

# Scripts that are written without spaces between words (ISO 15924).
NO_SPACES = {"Hans", "Hant", "Hani", "Jpan", "Hira", "Kana", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}


@dataclass(frozen=True)
class Fit:
    """Sums over some texts in one tokenizer."""

    tokens: int
    words: int
    characters: int  # Unicode code points, spaces included
    bytes: int  # of UTF-8
    parts: int = 0  # tokens that are not whole characters: bytes of one, or unknown

    @property
    def per_word(self) -> float:
        return self.tokens / self.words

    @property
    def per_character(self) -> float:
        return self.tokens / self.characters

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def share_of_parts(self) -> float:
        return self.parts / self.tokens


def has_spaces(language: Language) -> bool:
    """Return whether words of the language are split at spaces. In the others, each character counts as a word."""
    return language.scripts[0] not in NO_SPACES


def measure(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], spaces: bool = True) -> Fit:
    """Return the sums over the texts, each encoded alone, without special tokens.

    spaces: words are split at whitespace; without it, every character but whitespace is a word.
    """
    tokens, words, characters, size = Counter(), 0, 0, 0
    for text in texts:
        tokens.update(tokenizer.encode(text, add_special_tokens=False))
        words += len(text.split()) if spaces else sum(not c.isspace() for c in text)
        characters += len(text)
        size += len(text.encode("utf-8"))
    parts = sum(count for token, count in tokens.items() if _is_part(tokenizer, token))
    return Fit(tokens.total(), words, characters, size, parts)


def longest_words(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], count: int) -> list[tuple[str, int]]:
    """Return the `count` words with the most tokens, and how many, most first; each word is encoded alone."""
    words = {word for text in texts for word in text.split()}
    lengths = ((word, len(tokenizer.encode(word, add_special_tokens=False))) for word in words)
    return sorted(lengths, key=lambda pair: (-pair[1], pair[0]))[:count]


def _is_part(tokenizer: PreTrainedTokenizerFast, token: int) -> bool:
    return token == tokenizer.unk_token_id or "\ufffd" in tokenizer.decode([token])
