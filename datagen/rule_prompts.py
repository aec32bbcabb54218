"""`python -m datagen rules`: instructions with rules that a program checks, in the words of a language kit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from datagen.kits import Kit, load_kit
from engine.base.errors import UserError
from engine.base.jsonl import write_objects
from engine.base.rules import has_text, read_rules

WORDS = Path(__file__).parent / "text" / "rule_words.json"
DEFAULT_SIZE = 200
MOST_RULES = 3
KEYS = ["name", "text"]  # the keys that the sentences of json_object name
# Kinds that one answer cannot follow together: JSON is all of an answer, so it goes with keywords and length only.
FORMATS = ("numbered_list", "json_object", "title")
NO_JSON = ("title", "ends_with", "max_sentences", "language", "numbered_list")


@cache
def _words() -> dict[str, dict[str, str]]:
    return json.loads(WORDS.read_text(encoding="utf-8"))


def make_prompts(lang: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Return `size` records {id, prompt, rules} with one to three rules each; of different seeds, different ones.

    UserError for a language without a kit or without words for rules.
    """
    kit = load_kit(lang)
    if lang not in _words():
        raise UserError(f"{WORDS.name} has no words for {lang!r}: choose one of {', '.join(_words())}, or add them")
    return [_record(kit, _words()[lang], f"{lang}_{n}", Random(f"{seed}/rules/{n}")) for n in range(size)]


def _record(kit: Kit, words: dict[str, str], name: str, rng: Random) -> dict[str, Any]:
    topic = rng.choice(kit.words)
    kinds = [kind for kind in words if kind != "write"]
    rng.shuffle(kinds)
    chosen: list[str] = []
    for kind in kinds:
        if len(chosen) < 1 + rng.randrange(MOST_RULES) and not any(_clash(kind, other) for other in chosen):
            chosen.append(kind)
    # The title and the list are named first, the end last, as they stand in the answer.
    chosen.sort(key=lambda kind: (kind == "ends_with", kind not in FORMATS))
    values: dict[str, Any] = {}
    for kind in chosen:
        values[kind] = _value(kit, kind, topic, values, rng)
    sentences = [words["write"].format(word=topic)]
    sentences += [words[kind].format(n=_shown(kit, value), text=value) for kind, value in values.items()]
    rules = [{"rule": kind, "value": value} for kind, value in values.items()]
    read_rules(rules)
    gap = "" if sentences[0].endswith("。") else " "
    return {"id": name, "prompt": gap.join(sentences), "rules": rules}


def _clash(a: str, b: str) -> bool:
    """Return whether two kinds contradict each other."""
    pair = {a, b}
    if "json_object" in pair:
        return bool(pair & set(NO_JSON))
    # A list has a sentence in each line, and a title is one.
    return "max_sentences" in pair and bool(pair & {"numbered_list", "title"})


def _value(kit: Kit, kind: str, topic: str, values: dict[str, Any], rng: Random) -> Any:
    """Return the value of a rule: one that an answer about the topic can follow beside the others."""
    drawn: dict[str, Callable[[], Any]] = {
        "max_words": lambda: rng.choice((30, 40, 50)),
        "max_sentences": lambda: rng.choice((2, 3)),
        "numbered_list": lambda: rng.choice((3, 4)),
        "json_object": lambda: KEYS,
        "title": lambda: True,
        "language": lambda: kit.code,
        "keyword": lambda: _other_word(kit, topic, values, rng),
        "forbidden": lambda: _other_word(kit, topic, values, rng),
        "ends_with": lambda: _sentence(kit, values, rng),
    }
    return drawn[kind]()


def _other_word(kit: Kit, topic: str, values: dict[str, Any], rng: Random) -> str:
    """Return a word that neither contains nor is contained in the topic or another value."""
    taken = [topic, *(value for value in values.values() if isinstance(value, str))]
    free = [word for word in kit.words if not any(has_text(a, word) or has_text(word, a) for a in taken)]
    return rng.choice(free)


def _sentence(kit: Kit, values: dict[str, Any], rng: Random) -> str:
    """Return a sentence to end with, without the forbidden word."""
    forbidden = values.get("forbidden")
    return rng.choice([text for text in kit.texts if forbidden is None or not has_text(text, forbidden)])


def _for_ppo(record: dict[str, Any]) -> dict[str, str]:
    rules = json.dumps(record["rules"], ensure_ascii=False)
    return {"id": record["id"], "instruction": record["prompt"], "input": "", "output": rules}


def _shown(kit: Kit, value: Any) -> str:
    return kit.show(value) if type(value) is int else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m datagen rules`."""
    parser.add_argument("--lang", required=True, metavar="CODE", help="language, such as ne")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write, .jsonl")
    parser.add_argument("--size", type=int, default=DEFAULT_SIZE, metavar="N", help=f"prompts ({DEFAULT_SIZE})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other seeds draw other prompts (0)")
    parser.add_argument("--for-ppo", action="store_true", help="write prompts for PPO: the rules are the output")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")


def run(args: argparse.Namespace) -> None:
    """Make and write the prompts."""
    if args.size < 1:
        raise UserError(f"--size is {args.size}: give 1 or more")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"--output {args.output} exists: --overwrite replaces it, or name another file")
    records = make_prompts(args.lang, args.size, args.seed)
    if args.for_ppo:
        records = [_for_ppo(record) for record in records]
    write_objects(args.output, records)
    print(f"{len(records):>8,}  {args.output}")
