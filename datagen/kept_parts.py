"""The parts of a text that a translation must keep: code, URLs, placeholders, blanks and numbers; the rest is prose."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import NamedTuple

# An unclosed fence holds all that follows.
FENCED = re.compile(r"^[ \t]*(```+|~~~+)[^\n]*(?:\n.*?(?:^[ \t]*\1[ \t]*$|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
# ASCII alone, since Chinese goes on behind a URL without a space.
_URL = re.compile(r"(?:https?://|www\.)[!#-&*-;=?-Z\\^_a-z|~]+|[\w.+-]+@[\w-]+\.[\w.-]+", re.ASCII)
_URL_END = ".,;:!?*_"
_PLACEHOLDER = re.compile(
    r"\{\{\s*\w+\s*\}\}|\$?\{\w*\}|%\(\w+\)[sdf]|%[sd]\b|\[\[\w+\]\]"
    r"|</?[A-Za-z][\w-]*(?:\s+[\w-]+=(?:\"[^\"]*\"|'[^']*'|[^\s>]+))*\s*/?>",
    re.ASCII,
)
_BLANK = re.compile(r"_{2,}")
_NUMBER_IN_WORD = r"(?<![A-Za-z])\d+(?:st|nd|rd|th)\b"
_BETWEEN_DIGITS = ".,'\u2019\u066b\u066c\u00a0\u202f\u2009"
# 12,345.6 or, with spaces in it, 12 345,6.
_NUMBER = re.compile(rf"\d+(?:(?:[{_BETWEEN_DIGITS}]|(?<!\d\d\d\d) (?=\d\d\d(?!\d)))\d+)*")
# Numbers that other languages write in other ways: ordinals, hours of the twelve-hour clock, 2 million.
_REWRITTEN = re.compile(
    rf"{_NUMBER_IN_WORD}|\d[\d:.]*\s*(?:[ap]\.?m\b\.?|o'clock)"
    r"|\d[\d.,]*[\s-]*(?:hundreds?|thousands?|[mbtr]+illions?|[kmb]\b)",
    re.IGNORECASE,
)
# Words that may become digits; "may" and "march" are months as well.
_NUMBER_WORD = re.compile(
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen(?:th)?|\w+ty|\w+tieth|hundreds?|thousands?|[mbtr]+illions?"
    r"|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|once|twice|thrice|double|twofold|triple|half|quarter"
    r"|both|dozens?|pair|couple|single|decades?|century|centuries|\w+ties|noon|midnight|[ap]\.?m|o'clock"
    r"|january|february|march|april|may|june|july|august|september|october|november|december"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|[ivx]+)\b",
    re.IGNORECASE,
)
# A string that stands alone on its line is a comment too; those in the code are kept.
_COMMENT = re.compile(
    r"""^[ \t]*(?:\"\"\".*?\"\"\"|\'\'\'.*?\'\'\')[ \t]*$|(?P<kept>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"|/\*.*?\*/|<!--.*?-->|(?:(?<=\s)|^)(?:#|//|--)[^\n]*|(?<=[;{})])//[^\n]*|^[ \t]*[%;][^\n]*",
    re.DOTALL | re.MULTILINE,
)


class Parts(NamedTuple):
    """What must be kept, in the order in which it stands in the text, and the rest.

    code     fenced blocks without their comments, one string each, the line of the fence first
    inline   `code` between backticks
    numbers  as written, in ASCII digits
    """

    code: tuple[str, ...]
    inline: tuple[str, ...]
    urls: tuple[str, ...]
    placeholders: tuple[str, ...]
    blanks: tuple[str, ...]
    numbers: tuple[str, ...]
    prose: str


def split_parts(text: str) -> Parts:
    """Takes a text apart; in the prose each part has left a blank."""
    code, text = _take(FENCED, text)
    inline, text = _take(_INLINE_CODE, text)
    urls, text = _take(_URL, text)
    placeholders, text = _take(_PLACEHOLDER, text)
    blanks, text = _take(_BLANK, text)
    digits = ascii_digits(text)
    return Parts(
        tuple(code_without_comments(block) for block in code),
        inline,
        tuple(url.rstrip(_URL_END) for url in urls),
        placeholders,
        ("__",) * len(blanks),
        tuple(_NUMBER.findall(digits)),
        text,
    )


def _take(pattern: re.Pattern[str], text: str) -> tuple[tuple[str, ...], str]:
    return tuple(match[0] for match in pattern.finditer(text)), pattern.sub(" ", text)


def lost_part(source: str, target: str) -> str | None:
    """What a translation lost, changed or added, in a few words; None if all is kept."""
    before, after = split_parts(source), split_parts(target)
    for name, what in (
        ("code", "code in fences"),
        ("inline", "inline code"),
        ("urls", "URLs"),
        ("placeholders", "placeholders"),
        ("blanks", "blanks"),
    ):
        if difference := _difference(Counter(getattr(before, name)), Counter(getattr(after, name))):
            return f"{what}: {difference}"
    if difference := _difference_of_numbers(before, after):
        return f"numbers: {difference}"
    return None


def _difference(before: Counter[str], after: Counter[str]) -> str | None:
    for what, rest in (("lost", before - after), ("added", after - before)):
        if rest:
            return f"{what} {next(iter(rest))!r:.60}"
    return None


def _difference_of_numbers(before: Parts, after: Parts) -> str | None:
    """Numbers of the source that are not in the translation; or new ones where no word of the source is a number.

    Separators may differ (1,000.5 and 1.000,5), digits may be of any script, and letters may be numbers (三); what is
    habitually written in another way (2 million, 3 pm, 4th) may go missing.
    """
    rewritten = _REWRITTEN.findall(ascii_digits(before.prose))
    rewritable = Counter(_plain(number) for text in rewritten for number in _NUMBER.findall(text))
    plain = Counter(map(_plain, before.numbers)), Counter(map(_plain, after.numbers))
    groups = Counter(_groups(before.numbers)), Counter(_groups(after.numbers))
    missing = plain[0] - plain[1] - rewritable - Counter(_letter_numbers(after.prose))
    if missing and groups[0] - groups[1]:
        return f"lost {next(n for n in before.numbers if _plain(n) in missing)}"
    added = plain[1] - plain[0]
    if added and groups[1] - groups[0] and not rewritten and not _NUMBER_WORD.search(before.prose):
        return f"added {next(n for n in after.numbers if _plain(n) in added)}"
    return None


def _plain(number: str) -> str:
    """Significant digits: no separators, no leading zeros, and none of three or more at the end (50,000 is 5万)."""
    digits = re.sub(r"\D", "", number).lstrip("0") or "0"
    return re.sub(r"0{3,}$", "", digits) or "0"


def _groups(numbers: tuple[str, ...]) -> list[str]:
    return [group for number in numbers for group in re.findall(r"\d+", number)]


def _letter_numbers(text: str) -> list[str]:
    """The numbers that single letters stand for: Chinese ones, and Roman ones of one character."""
    values = (unicodedata.numeric(letter, 0.5) for letter in text if not letter.isdecimal())
    return [_plain(str(int(value))) for value in values if value == int(value)]


def ascii_digits(text: str) -> str:
    """The text with the decimal digits of every script as 0 to 9."""
    return re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), text)


def code_without_comments(code: str) -> str:
    """The lines of code that do something; blank ones and spaces at their ends are dropped too."""
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
    """Most lines look like a program's, though no fence says so. One line with "=" alone may as well be a formula."""
    lines = [line for line in text.split("\n") if line.strip() and not _COMMENT_LINE.match(line)]
    found = [bool(_CODE_LINE.search(line) or (len(lines) > 1 and _ASSIGNMENT.match(line))) for line in lines]
    return bool(lines) and sum(found) >= _CODE_SHARE * len(lines)
