"""Measure the checks' false alarms and misses on a labelled sample: `python -m tests.datagen.text.checks_sample`.

The sample is checks_sample.txt: English texts with good and faulty translations into the 26 languages, written for this
purpose, in two halves with different texts. The checks were tuned on one half. The other half was judged once before
any change was made for it; docs/troubleshooting.md has that figure. More faults are derived from the good translations,
the same in each run: a changed digit, a number left out, the English source, the translation into another language.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from datagen.kits import kit_codes, load_kit
from datagen.simulate.translation import carry
from datagen.tasks.kinds import KINDS, all_tasks, draw_task, is_finite
from datagen.text.checks import fault_of_translation
from engine.base.languages import LANGUAGES

SAMPLE = Path(__file__).with_name("checks_sample.txt")
HALVES = ("tune", "report")
# Language -> the language whose translation replaces it as a fault: a related one if there is one.
OTHER = {
    "ru": "uk", "uk": "ru", "de": "nl", "nl": "de", "zh": "vi", "fr": "es", "es": "it", "it": "ro", "ro": "it",
    "vi": "id", "id": "vi", "ar": "hi", "hu": "sk", "da": "de", "sk": "hu", "ca": "es", "sr": "ru", "hr": "sk",
    "hi": "mr", "ne": "hi", "mr": "ne", "bn": "hi", "ta": "te", "te": "kn", "kn": "te", "ml": "ta",
}  # fmt: skip


class Case(NamedTuple):
    """One labelled translation. kind: the name of its block in the file, or how the fault was made."""

    half: str
    kind: str
    lang: str
    source: str
    target: str
    is_good: bool


def written_cases(path: Path = SAMPLE) -> Iterator[Case]:
    """Read the cases of the sample file."""
    name = half = source = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            name, half = line.removeprefix("## ").split()
        elif line.startswith("en: "):
            source = line.removeprefix("en: ").replace("\\n", "\n")
        elif line and not line.startswith("#"):
            lang, mark, text = line[:2], line[2], line[4:].replace("\\n", "\n")
            yield Case(half, name, lang, source, text, mark == ":")


def made_faults(good: list[Case]) -> Iterator[Case]:
    """Derive faults from good translations."""
    texts = {(case.kind, case.lang): case.target for case in good}
    for case in good:
        for kind, target in {
            "another digit": _change_a_number(case, lambda digits: str((int(digits[0]) + 1) % 9 + 1) + digits[1:]),
            "a number left out": _change_a_number(case, lambda digits: ""),
            "left in English": case.source,
            "another language": texts.get((case.kind, OTHER[case.lang]), ""),
        }.items():
            if target and target != case.target:
                yield case._replace(kind=kind, target=target, is_good=False)


_NUMBER = re.compile(r"(?<![\d.,])\d[\d.,\u00a0]*\d|(?<![\d.,])\d(?!\d|\.\s)")


def _change_a_number(case: Case, change: Callable[[str], str]) -> str:
    """Return the target with one number changed, the last one that both texts have in digits; "" if there is none."""
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), case.target)
    numbers = set(_NUMBER.findall(case.source))
    found = [number for number in _NUMBER.finditer(text) if number[0] in numbers]
    if not found:
        return ""
    start, end = found[-1].span()
    return case.target[:start] + change(found[-1][0]) + case.target[end:]


# Task kinds whose phrasings differ in their numbers between languages ("add 1 to 7", "which number is next to 7").
_DIFFERENT_NUMBERS = ("number_to_word", "word_to_number", "next_number", "previous_number")


def kit_cases(tasks_per_kind: int = 5) -> Iterator[Case]:
    """Yield tasks of the English kit with the same prompts from the kits of the other languages, as good cases."""
    english = load_kit("en")
    for lang in (code for code in kit_codes() if code != "en"):
        rng = Random(f"checks {lang}")
        for kind in KINDS:
            every = all_tasks(english, kind) if is_finite(kind) else []
            for _ in range(tasks_per_kind):
                task = rng.choice(every) if every else draw_task(english, kind, rng)
                there = carry(task, english, load_kit(lang))
                if there is None or kind in _DIFFERENT_NUMBERS:
                    continue
                before, after = (f"{one.instruction}\n{one.input}".strip() for one in (task, there))
                yield Case("kits", kind, lang, before, after, True)


def fault_of(case: Case) -> str | None:
    """Return the fault that the checks find, or None."""
    return fault_of_translation(case.source, case.target, LANGUAGES[case.lang])


def all_cases() -> list[Case]:
    """Return all cases: written, derived, and from the kits."""
    written = list(written_cases())
    return [*written, *made_faults([case for case in written if case.is_good]), *kit_cases()]


def main() -> None:
    """Print the rejected good translations and the missed faults of each part."""
    parser = argparse.ArgumentParser(prog="python -m tests.datagen.text.checks_sample", description=__doc__)
    parser.add_argument("--show", choices=(*HALVES, "kits"), help="list the wrongly judged cases of this part")
    shown = parser.parse_args().show
    counts: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
    for case in all_cases():
        fault = fault_of(case)
        wrong = (fault is not None) == case.is_good
        for row in ("good ones rejected",) if case.is_good else ("faults missed", f"  {case.kind}"):
            counts[case.half, row][wrong] += 1
        if wrong and case.half == shown:
            print(f"{'rejected' if case.is_good else 'missed'} {case.kind} {case.lang}: {fault}\n    {case.target!r}")
    print(f"{'part':<8}{'':<28}{'wrong':>8}{'of':>8}{'share':>9}")
    for (half, row), count in counts.items():
        print(f"{half:<8}{row:<28}{count[True]:>8,}{count.total():>8,}{count[True] / count.total():>9.1%}")


if __name__ == "__main__":
    main()
