"""Find the parts that a translation must keep: code, URLs, placeholders, blanks, and numbers in prose."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from datagen.text.number_faults import number_fault

# An unclosed fence runs to the end of the text.
FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*(?:\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
# ASCII only: Chinese text follows a URL without a space.
_URL = re.compile(r"(?:https?://|www\.)[!#-&*-;=?-Z\\^_a-z|~]+|[\w.+-]+@[\w-]+\.[\w.-]+", re.ASCII)
_URL_END = ".,;:!?*_"
_PLACEHOLDER = re.compile(
    r"\{\{\s*\w+\s*\}\}|\$?\{\w*\}|%\(\w+\)[sdf]|%[sd]\b|\[\[\w+\]\]"
    r"|</?[A-Za-z][\w-]*(?:\s+[\w-]+=(?:\"[^\"]*\"|'[^']*'|[^\s>]+))*\s*/?>",
    re.ASCII,
)
_BLANK = re.compile(r"_{2,}")
# A triple-quoted string alone on its lines counts as a comment. Other strings are kept.
_COMMENT = re.compile(
    r"""^[ \t]*(?:\"\"\".*?\"\"\"|\'\'\'.*?\'\'\')[ \t]*$|(?P<kept>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"|/\*.*?\*/|<!--.*?-->|(?:(?<=\s)|^)(?:#|//|--)[^\n]*|(?<=[;{})])//[^\n]*|^[ \t]*[%;][^\n]*",
    re.DOTALL | re.MULTILINE,
)


class Parts(NamedTuple):
    """The parts to keep unchanged, in text order, and the remaining prose.

    code     fenced blocks without comments, one string per block, starting with the fence line
    inline   `code` between backticks
    prose    the text with each part replaced by a space
    """

    code: tuple[str, ...]
    inline: tuple[str, ...]
    urls: tuple[str, ...]
    placeholders: tuple[str, ...]
    blanks: tuple[str, ...]
    prose: str


def split_parts(text: str) -> Parts:
    """Split a text into the parts to keep and the prose around them."""
    code, text = _take(FENCED, text)
    inline, text = _take(_INLINE_CODE, text)
    urls, text = _take(_URL, text)
    placeholders, text = _take(_PLACEHOLDER, text)
    blanks, text = _take(_BLANK, text)
    return Parts(
        tuple(code_without_comments(block) for block in code),
        inline,
        tuple(url.rstrip(_URL_END) for url in urls),
        placeholders,
        ("__",) * len(blanks),
        text,
    )


def _take(pattern: re.Pattern[str], text: str) -> tuple[tuple[str, ...], str]:
    return tuple(match[0] for match in pattern.finditer(text)), pattern.sub(" ", text)


def lost_part(source: str, target: str, lang: str = "") -> str | None:
    """Describe the first part that a translation into `lang` lost, changed or added; None if it keeps them all."""
    before, after = split_parts(source), split_parts(target)
    for name, label in (
        ("code", "code in fences"),
        ("inline", "inline code"),
        ("urls", "URLs"),
        ("placeholders", "placeholders"),
        ("blanks", "blanks"),
    ):
        if difference := _difference(Counter(getattr(before, name)), Counter(getattr(after, name))):
            return f"{label}: {difference}"
    if difference := number_fault(before.prose, after.prose, lang):
        return f"numbers: {difference}"
    return None


def _difference(before: Counter[str], after: Counter[str]) -> str | None:
    for change, parts in (("lost", before - after), ("added", after - before)):
        if parts:
            return f"{change} {next(iter(parts))!r:.60}"
    return None


def code_without_comments(code: str) -> str:
    """Return the code without comments, blank lines and trailing spaces."""
    bare = _COMMENT.sub(lambda match: match["kept"] or "", code)
    return "\n".join(line.rstrip() for line in bare.split("\n") if line.strip())


_CODE_LINE = re.compile(
    r"^(?!\s*\d+[.)]).*[;{]\s*$|^\s*[})\]]+[;,]?\s*$|^\s*(?:def|class|elif|else:|try:|except|print|function|var|let|const)\b"
    r"|^\s*(?:public|private|static|using|fn|func|return)\b|^\s*(?:for|while|if|with)\b.*:$"
    r"|^\s*(?:import|package)\s+[\w.]+;?$|^\s*from\s+[\w.]+\s+import\b"
    r"|^\s*(?:\#include|\#define|\#!|//|/\*|\*/|<\?|<!|</?[a-z][^>]*>)"
    r"|^\s*(?:SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE)\b|^\s*[\w.\[\]]+\([^()]*\)+;?$"
)
_ASSIGNMENT = re.compile(r"^\s*[\w.\[\]\"']+\s*(?:=|\+=|-=|:=)\s*\S")
_COMMENT_LINE = re.compile(r"\s*(?:#|//|\*)")
_CODE_SHARE = 0.6


def is_code(text: str) -> bool:
    """Whether at least 60 % of the lines look like code, without a fence. A single line with "=" may be a formula."""
    lines = [line for line in text.split("\n") if line.strip() and not _COMMENT_LINE.match(line)]
    found = [bool(_CODE_LINE.search(line) or (len(lines) > 1 and _ASSIGNMENT.match(line))) for line in lines]
    return bool(lines) and sum(found) >= _CODE_SHARE * len(lines)
