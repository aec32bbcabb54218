"""Long texts in pieces, cut at the borders of paragraphs, and put together again to the last space."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from datagen.api.pricing import estimate_tokens
from datagen.text.kept_parts import FENCED

_PARAGRAPH_BORDER = re.compile(r"\s*\n[^\S\n]*\n\s*")
_LINE_BORDER = re.compile(r"\s*\n\s*")
_OUTER = re.compile(r"(\s*)(.*?)(\s*)", re.DOTALL)


class Pieces(NamedTuple):
    """A text as texts and what is between, before and behind them: gaps has one more item than texts.

    No text is empty, or begins or ends with white space; the gaps are white space only.
    """

    texts: tuple[str, ...]
    gaps: tuple[str, ...]

    def join(self, texts: Sequence[str]) -> str:
        """Other texts, as many, in the places of these, with the same gaps."""
        assert len(texts) == len(self.texts), (len(texts), len(self.texts))
        return self.gaps[0] + "".join(text.strip() + gap for text, gap in zip(texts, self.gaps[1:]))


def split_text(text: str, limit_tokens: int) -> Pieces:
    """Pieces of up to limit_tokens (estimated), as long as can be, cut at empty lines, or else at line breaks.

    Nothing is cut inside a code fence, and a line stays whole: a piece without a border may be longer than the limit.
    """
    lead, core, tail = _OUTER.fullmatch(text).groups()
    if not core:
        return Pieces((), (text,))
    texts, gaps = [], [lead]
    for unit, gap in _units(core, limit_tokens):
        if texts and estimate_tokens(texts[-1] + gaps[-1] + unit) <= limit_tokens:
            texts[-1] += gaps.pop() + unit
        else:
            texts.append(unit)
        gaps.append(gap)
    gaps[-1] += tail
    return Pieces(tuple(texts), tuple(gaps))


def _units(text: str, limit_tokens: int) -> Iterator[tuple[str, str]]:
    """Paragraphs with the gaps behind them; lines, where a paragraph is above the limit."""
    for paragraph, gap in _cut(text, _PARAGRAPH_BORDER):
        if estimate_tokens(paragraph) <= limit_tokens:
            yield paragraph, gap
        else:
            *lines, (last, _) = _cut(paragraph, _LINE_BORDER)
            yield from lines
            yield last, gap


def _cut(text: str, border: re.Pattern[str]) -> list[tuple[str, str]]:
    fences = [match.span() for match in FENCED.finditer(text)]
    parts, start = [], 0
    for match in border.finditer(text):
        if not any(a < match.end() and match.start() < b for a, b in fences):
            parts.append((text[start : match.start()], match[0]))
            start = match.end()
    return [*parts, (text[start:], "")]
