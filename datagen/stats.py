"""`python -m datagen stats`: lengths by language and source, and the most frequent verbs and objects of instructions.

These are the two statistics of Lai et al. 2023: Table 2 (average lengths of prompts and responses) and Figure 1 (the
most frequent root verbs and their direct objects, as a sunburst).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from datagen.sources import read_sources
from datagen.statistics.lengths import UNKNOWN, languages_of, length_lines, measure
from datagen.statistics.root_verbs import Root, by_rules, by_spacy
from datagen.statistics.sunburst import Verb, write_figure
from engine.base.errors import UserError

OBJECTS_PER_VERB = 4
_FIGURE_SUFFIXES = (".svg", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="instructions: {instruction, input, output}")
    parser.add_argument("--figure", nargs="+", type=Path, default=[], metavar="FILE", help="verbs as .svg or .png")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="verbs in the list and the figure (20)")
    parser.add_argument(
        "--spacy", metavar="MODEL", help="find verbs with this spaCy pipeline (default: rules for English)"
    )


def run(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise UserError(f"--top {args.top} must be 1 or more")
    for path in args.figure:
        if path.suffix not in _FIGURE_SUFFIXES:
            raise UserError(f"--figure {path}: the name must end in .svg or .png")
    records = read_sources(args.files)
    languages = languages_of(records)
    print("\n".join(length_lines(measure(records, languages))), end="\n\n")

    readable = [r for r, language in zip(records, languages) if args.spacy or language in ("en", UNKNOWN)]
    if not readable:
        if args.figure:
            raise UserError(
                "--figure: no record is in English, which the rules need: pass --spacy MODEL for its language"
            )
        print("no verbs: the rules read only English; pass --spacy MODEL for other languages")
        return
    find = by_spacy(args.spacy) if args.spacy else by_rules
    roots = list(find(record.fields["instruction"] for record in readable))
    verbs = top_verbs(roots, args.top)
    print("\n".join(verb_lines(verbs, roots)))
    for path in args.figure:
        write_figure(path, verbs, len(roots))
        print(f"wrote {path}")


def top_verbs(roots: Iterable[Root], top: int) -> list[Verb]:
    """Return the `top` verbs with an object by frequency, each with its four top objects. Ties are alphabetical."""
    pairs = Counter(root for root in roots if root.object)
    counts: Counter[str] = Counter()
    objects: dict[str, Counter[str]] = {}
    for (verb, noun), count in pairs.items():
        counts[verb] += count
        objects.setdefault(verb, Counter())[noun] += count
    return [Verb(verb, count, _most(objects[verb], OBJECTS_PER_VERB)) for verb, count in _most(counts, top)]


def verb_lines(verbs: Sequence[Verb], roots: Sequence[Root]) -> list[str]:
    """Return a header and one line per verb: count, share of all instructions, objects."""
    with_object = sum(bool(root.object) for root in roots)
    share = with_object / max(len(roots), 1)
    lines = [f"{with_object:,} of {len(roots):,} instructions ({share:.1%}) have a root verb with a direct object"]
    for verb in verbs:
        objects = ", ".join(f"{noun} {count:,}" for noun, count in verb.objects)
        lines.append(f"{verb.verb:12} {verb.count:>7,} {verb.count / len(roots):>6.1%}  {objects}")
    return lines


def _most(counts: Counter[str], top: int) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]
