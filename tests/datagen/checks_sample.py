"""How often the checks reject a good translation, and miss a faulty one: `python -m tests.datagen.checks_sample`.

The sample is checks_sample.txt: English texts with translations into the 26 languages, written for this purpose, some
good and some faulty, in two halves of different texts. The checks were tuned on one half alone; the other is reported.
More faults are made from the good translations, the same ones in each run: another digit in a number, a number left
out, English left, the translation into another language in its place.
"""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from datagen.checks import fault_of_translation
from datagen.kits import kit_codes, load_kit
from datagen.simulate_translation import carry
from datagen.tasks import KINDS, all_tasks, draw_task, is_finite
from engine.languages import LANGUAGES

SAMPLE = Path(__file__).with_name("checks_sample.txt")
HALVES = ("tune", "report")
# The language whose translation is put in place of each one's: a relative where there is one.
OTHER = {
    **{"ru": "uk", "uk": "ru", "de": "nl", "nl": "de", "zh": "vi", "fr": "es", "es": "it", "it": "ro", "ro": "it"},
    **{"vi": "id", "id": "vi", "ar": "hi", "hu": "sk", "da": "de", "sk": "hu", "ca": "es", "sr": "ru", "hr": "sk"},
    **{"hi": "mr", "ne": "hi", "mr": "ne", "bn": "hi", "ta": "te", "te": "kn", "kn": "te", "ml": "ta"},
}


class Case(NamedTuple):
    """One translation and what it is; kind is the name of its block, or how it was made."""

    half: str
    kind: str
    lang: str
    source: str
    target: str
    is_good: bool


def written_cases(path: Path = SAMPLE) -> Iterator[Case]:
    """The cases of the file."""
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
    """Faults made from good translations."""
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


def _change_a_number(case: Case, change) -> str:
    """The target with its last number in digits changed; "" without one, and for the 1. 2. 3. of a list."""
    text = re.sub(r"[^\D0-9]", lambda digit: str(unicodedata.decimal(digit[0])), case.target)
    found = re.findall(r"(?<![\d.,])\d[\d.,\u00a0]*\d|(?<![\d.,])\d(?![\d]|\.\s)", text)
    numbers = [number for number in found if number in case.source]
    if not numbers:
        return ""
    at = text.rindex(numbers[-1])
    return case.target[:at] + change(numbers[-1]) + case.target[at + len(numbers[-1]) :]


def kit_cases(tasks_a_kind: int = 5) -> Iterator[Case]:
    """Tasks of the English kit as the kits of the other languages have them, question and answer each on its own."""
    english = load_kit("en")
    for lang in (code for code in kit_codes() if code != "en"):
        rng = Random(f"checks {lang}")
        for kind in KINDS:
            every = all_tasks(english, kind) if is_finite(kind) else []
            for _ in range(tasks_a_kind):
                task = rng.choice(every) if every else draw_task(english, kind, rng)
                there = carry(task, english, load_kit(lang))
                if there is None or kind in ("number_to_word", "word_to_number"):
                    continue
                before, after = (f"{one.instruction}\n{one.input}".strip() for one in (task, there))
                yield Case("kits", kind, lang, before, after, True)


def fault_of(case: Case) -> str | None:
    """What the checks say of a case."""
    return fault_of_translation(case.source, case.target, LANGUAGES[case.lang])


def all_cases() -> list[Case]:
    """Everything: written, made, and from the kits."""
    written = list(written_cases())
    return [*written, *made_faults([case for case in written if case.is_good]), *kit_cases()]


def main() -> None:
    """Print, for each half, the good translations that are rejected and the faults that are missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.datagen.checks_sample", description=__doc__)
    parser.add_argument("--show", choices=(*HALVES, "kits"), help="list the wrongly judged ones of this part")
    shown = parser.parse_args().show
    counts: dict[tuple[str, bool, str], Counter] = defaultdict(Counter)
    for case in all_cases():
        fault = fault_of(case)
        wrong = (fault is not None) == case.is_good
        kind = "all" if case.is_good else case.kind
        counts[case.half, case.is_good, kind][wrong] += 1
        if wrong and case.half == shown:
            print(f"{'rejected' if case.is_good else 'missed'} {case.kind} {case.lang}: {fault}\n    {case.target!r}")
    print(f"{'part':<8}{'':<44}{'wrong':>8}{'of':>8}{'share':>9}")
    for (half, is_good, kind), count in counts.items():
        label = "good ones rejected" if is_good else f"faults missed: {kind}"
        total = count.total()
        print(f"{half:<8}{label:<44}{count[True]:>8,}{total:>8,}{count[True] / total:>9.1%}")
    for half in HALVES:
        faults = sum((c for (part, is_good, _), c in counts.items() if part == half and not is_good), Counter())
        print(f"{half:<8}{'faults missed: all':<44}{faults[True]:>8,}{faults.total():>8,}{faults[True] / faults.total():>9.1%}")


if __name__ == "__main__":
    main()
