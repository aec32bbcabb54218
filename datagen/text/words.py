"""Split a text into words: rouge_score's tokenizer (ASCII only), and one for every script."""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable

Tokenizer = Callable[[str], list[str]]

_ROUGE_TOKEN = re.compile(r"[a-z0-9]+")

# Scripts without spaces between words: a token is one letter with its marks.
_UNSPACED = re.compile(
    r"[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"
    r"\U00020000-\U000323AF]"
)


def rouge_words(text: str) -> list[str]:
    """Return rouge_score's tokens (no stemmer): runs of a-z and 0-9 in the lower-cased text."""
    return _ROUGE_TOKEN.findall(text.lower())


def unicode_words(text: str) -> list[str]:
    """Return the words of a text in any script: runs of letters, marks and digits, after NFKC and case folding.

    Vowel signs stay with their letters (Python's \\w would split Hindi words at each). Each Chinese, Japanese, Thai,
    Lao, Burmese or Khmer letter is one word, because these scripts put no space between words.
    """
    return _unicode_token().findall(unicodedata.normalize("NFKC", text).casefold())


TOKENIZERS: dict[str, Tokenizer] = {"rouge": rouge_words, "unicode": unicode_words}


@functools.cache
def _unicode_token() -> re.Pattern[str]:
    """Compile the word pattern: one unspaced letter with its marks, or a run of other letters, marks and digits."""
    kinds = {"L": [], "M": [], "N": []}
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))[0]
        if kind in kinds:
            kinds[kind].append(code)
    unspaced = [code for kind in "LN" for code in kinds[kind] if _UNSPACED.match(chr(code))]
    spaced = sorted({code for codes in kinds.values() for code in codes} - set(unspaced))
    return re.compile(f"[{_ranges(unspaced)}][{_ranges(kinds['M'])}]*|[{_ranges(spaced)}]+")


def _ranges(codes: list[int]) -> str:
    """Return the body of a regex character class with exactly these code points."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(codes)), lambda pair: pair[1] - pair[0]):
        run = [code for _, code in group]
        parts.append(f"\\U{run[0]:08x}-\\U{run[-1]:08x}")
    return "".join(parts)
