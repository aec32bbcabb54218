"""`python -m datagen COMMAND`: dispatch to a command and suggest the nearest name for a misspelt command or flag."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from datagen import benchmark, embedded, import_records, instruct, rank, rouge_filter, simulate, stats, translate
from engine.base.errors import UserError
from engine.base.nearest import nearest


class Command(NamedTuple):
    """A command: its summary and example for --help, its flags, and its function."""

    summary: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


COMMANDS = {
    "embedded": Command(
        "write the data sets of a language kit: tasks with checkable answers",
        "python -m datagen embedded --lang ne --output runs/ne/data",
        embedded.add_arguments,
        embedded.run,
    ),
    "instruct": Command(
        "generate new tasks from seed tasks with a model (Self-Instruct, as in Alpaca)",
        "python -m datagen instruct --target 1000 --output new.jsonl --pool alpaca.jsonl --budget 5",
        instruct.add_arguments,
        instruct.run,
    ),
    "filter": Command(
        "drop candidates that repeat the pool or each other (ROUGE-L above 0.7, as in Alpaca)",
        "python -m datagen filter --pool alpaca.jsonl --candidates new.jsonl --output kept.jsonl --rejected near.jsonl",
        rouge_filter.add_arguments,
        rouge_filter.run,
    ),
    "translate": Command(
        "translate English instruction records and check every answer",
        "python -m datagen translate --lang ne --data new.jsonl --output new_ne.jsonl --budget 5",
        translate.add_arguments,
        translate.run,
    ),
    "rank": Command(
        "rank the responses of launch/sample.py with a model, after translation into English",
        "python -m datagen rank --lang ne --data responses.jsonl --output ranking.jsonl --rerank-share 0.05",
        rank.add_arguments,
        rank.run,
    ),
    "benchmark": Command(
        "translate ARC, HellaSwag, MMLU and TruthfulQA; option order and answer keys stay",
        "python -m datagen benchmark --lang ne --data m_arc/en_test.json m_mmlu/en_dev.json --output benchmarks",
        benchmark.add_arguments,
        benchmark.run,
    ),
    "import": Command(
        "turn published data of people (Aya, OASST, Okapi, Alpaca, ShareGPT) into records, by language",
        "python -m datagen import oasst trees.jsonl.gz --lang vi --output sft.jsonl --rankings ranking.jsonl",
        import_records.add_arguments,
        import_records.run,
    ),
    "simulate": Command(
        "serve a local OpenAI-compatible API with plausible answers, faults and limits",
        "python -m datagen simulate --port 8080 --faults 429:0.1,hang:0.01 --rpm 600",
        simulate.add_arguments,
        simulate.run,
    ),
    "stats": Command(
        "print lengths by language and source, and the most frequent verbs and objects of instructions",
        "python -m datagen stats alpaca_en.jsonl new_en.jsonl --figure verbs.svg",
        stats.add_arguments,
        stats.run,
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{' '.join(message.split())} (see --help)")


def main(argv: Sequence[str]) -> int:
    """Run one command line and return the exit status: 0, 2 for a user error (one line), 130 after Ctrl-C."""
    try:
        return _dispatch(list(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.strerror}: {error.filename}: check the path and the free disk space", file=sys.stderr)
    return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
        example = next(iter(COMMANDS.values())).example
        print("\n".join(["usage: python -m datagen COMMAND [--help]", "", *lines, "", f"example: {example}"]))
        return 0
    name, *flags = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}: the commands are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"python -m datagen {name}",
        description=command.summary,
        epilog=f"example: {command.example}",
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    known = [flag for action in parser._actions for flag in action.option_strings]
    # Check before parsing: argparse would report a missing flag instead of the misspelt one.
    for flag in (word.split("=")[0] for word in flags if word.startswith("--")):
        if flag not in known:
            raise UserError(f"unknown flag {flag}{nearest(flag, known)} (see --help)")
    command.run(parser.parse_args(flags))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
