"""Split long texts into chunks at paragraph borders, and join them again exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from datagen.api.pricing import estimate_tokens
from datagen.text.kept_parts import FENCED

_PARAGRAPH_BORDER = re.compile(r"\s*\n[^\S\n]*\n\s*")
_LINE_BORDER = re.compile(r"\s*\n\s*")
_OUTER = re.compile(r"(\s*)(.*?)(\s*)", re.DOTALL)


class Chunks(NamedTuple):
    """The chunks of a text, and the white space before, between and after them.

    No chunk is empty or has outer white space. There is one gap more than chunks.
    """

    texts: tuple[str, ...]
    gaps: tuple[str, ...]

    def join(self, texts: Sequence[str]) -> str:
        """Join other texts, as many as the chunks, with the same gaps."""
        assert len(texts) == len(self.texts), (len(texts), len(self.texts))
        return self.gaps[0] + "".join(text.strip() + gap for text, gap in zip(texts, self.gaps[1:]))


def split_text(text: str, limit_tokens: int) -> Chunks:
    """Split a text at empty lines, or else at line breaks, into chunks of at most `limit_tokens` (estimated).

    Makes each chunk as long as the limit allows. Never splits a line or a code fence, so one line or fence may exceed
    the limit.
    """
    lead, core, tail = _OUTER.fullmatch(text).groups()
    if not core:
        return Chunks((), (text,))
    texts, gaps = [], [lead]
    for unit, gap in _units(core, limit_tokens):
        if texts and estimate_tokens(texts[-1] + gaps[-1] + unit) <= limit_tokens:
            texts[-1] += gaps.pop() + unit
        else:
            texts.append(unit)
        gaps.append(gap)
    gaps[-1] += tail
    return Chunks(tuple(texts), tuple(gaps))


def _units(text: str, limit_tokens: int) -> Iterator[tuple[str, str]]:
    """Yield paragraphs, each with the gap after it; for a paragraph above the limit, its lines."""
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
