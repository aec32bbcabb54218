"""Turn command lines, presets and --config files into frozen dataclasses, and mistakes into one line."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from transformers import HfArgumentParser

from engine.base.errors import UserError
from engine.base.nearest import nearest
from engine.cli.config_file import read_config
from engine.distributed.world import fail_together, leave, why_lost

Presets = Mapping[str, Mapping[str, Any]]


class Parsed(tuple):
    """One instance of each dataclass. `given` names the fields set by a flag or the --config file."""

    given: frozenset[str] = frozenset()


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show each flag with dashes only, to keep --help short."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=110)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = next((o for o in action.option_strings if "_" not in o), action.option_strings[0])
        if action.nargs == 0:
            return flag
        return f"{flag} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.choices:
            return "{" + ",".join(str(c) for c in action.choices) + "}"
        kind = getattr(action.type, "__name__", "value")
        return {"int": "N", "float": "X", "str": "TEXT", "string_to_bool": "BOOL"}.get(kind, "VALUE")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, argparse.SUPPRESS, False) or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        return f"usage: {self._prog} [options]\n\n"


class _OneLine:
    """Raise a parser's error as UserError, without usage text or exit."""

    def error(self, message: str) -> None:
        raise UserError(f"{' '.join(message.split())} (see --help)")


class _Parser(_OneLine, HfArgumentParser):
    pass


class _EarlyParser(_OneLine, argparse.ArgumentParser):
    """Read --config and --preset before the settings are parsed."""


def _as_argv(values: Mapping[str, Any], fields: Sequence[str], source: str) -> list[str]:
    argv: list[str] = []
    given: set[str] = set()
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in given:
            raise UserError(f"{source}: setting {key!r:.60} is given twice: keep one")
        given.add(name)
        if name not in fields:
            raise UserError(f"{source}: unknown setting {key!r:.60}{nearest(name, fields)}")
        if value is None:
            continue
        if isinstance(value, list):
            words = [str(item) for item in value]
            if dashed := next((word for word in words if word.startswith("-")), None):
                raise UserError(f"{source}: {dashed!r} in the list {key!r} would be parsed as a flag: leave it out")
            argv += [f"--{name}", *words]
        else:
            argv.append(f"--{name}={value}")  # one word: a value may start with a dash
    return argv


def parse_settings(
    settings_classes: Sequence[type],
    argv: Sequence[str],
    prog: str,
    description: str,
    presets: Presets | None = None,
    default_preset: Callable[[Sequence[str]], str | None] | None = None,
) -> Parsed:
    """Return one instance of each dataclass from a command line, and record which fields it set.

    Later sources win: defaults of the dataclasses, the preset, `--config FILE`, the flags. `presets` maps names to
    settings. Without `--preset`, `default_preset` chooses a name from the flags and those of the file. UserError for
    any mistake in the command line or the file.
    """
    # The DeepSpeed launcher adds --local_rank=N; the environment holds it too.
    argv = [a for a in argv if not re.fullmatch(r"--local[_-]rank=\d+", a)]
    early = _EarlyParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.set_defaults(preset=None)
    if presets:
        early.add_argument("--preset")
    chosen, flags = early.parse_known_args(argv)

    parser = _Parser(
        settings_classes, prog=prog, description=description, formatter_class=_Formatter, allow_abbrev=False
    )
    parser.add_argument("--config", metavar="FILE", help="YAML or JSON file with any of these settings")
    if presets:
        parser.add_argument("--preset", choices=list(presets), help="a named set of settings")
    fields = [f.name for cls in settings_classes for f in dataclasses.fields(cls)]
    known = [o for action in parser._actions for o in action.option_strings]

    for word in (flag.split("=")[0] for flag in flags):
        if word.startswith("--") and word not in known:
            raise UserError(f"unknown flag {word}{nearest(word, known)}: --help lists all of them")
    sources = _as_argv(read_config(chosen.config), fields, f"--config {chosen.config}") if chosen.config else []
    lists = {action.dest for action in parser._actions if isinstance(action, argparse._ExtendAction)}
    sources = _without(sources, lists & {_dest(word) for word in flags})

    preset = chosen.preset or (default_preset([*sources, *flags]) if default_preset else None)
    if preset is not None:
        if preset not in presets:
            options = list(presets)
            raise UserError(f"--preset {preset} is unknown{nearest(preset, options)}: one of {', '.join(options)}")
        for action in parser._actions:
            if action.dest in presets[preset]:
                action.default, action.required = presets[preset][action.dest], False

    *settings, rest = parser.parse_args_into_dataclasses(
        [*sources, *flags], return_remaining_strings=True, look_for_args_file=False
    )
    settings = [s for s in settings if dataclasses.is_dataclass(s)]  # drop the namespace of --config and --preset
    if rest:
        raise UserError(f"unexpected argument {rest[0]}{nearest(rest[0], known)}: --help lists all flags")
    parsed = Parsed(settings)
    parsed.given = frozenset(_dest(word) for word in [*sources, *flags] if word.startswith("--"))
    return parsed


def _dest(word: str) -> str:
    """Return the field's name of a flag."""
    return word.removeprefix("--").split("=")[0].replace("-", "_")


def _without(argv: Sequence[str], fields: Collection[str]) -> list[str]:
    """Return the words without those of some flags: argparse would add the flags' lists to the file's."""
    kept, keeps = [], True
    for word in argv:
        if word.startswith("--"):
            keeps = _dest(word) not in fields
        kept += [word] if keeps else []
    return kept


def build_settings(settings_classes: Sequence[type], preset: Mapping[str, Any], values: Mapping[str, Any]) -> Parsed:
    """Return one instance of each dataclass from a preset and `values`, as parse_settings does from flags.

    `values` win over the preset, and `given` names them. Other fields take the defaults of their dataclass.
    """
    merged = {**preset, **values}
    fields = [(cls, [f.name for f in dataclasses.fields(cls)]) for cls in settings_classes]
    parsed = Parsed(cls(**{name: merged[name] for name in names if name in merged}) for cls, names in fields)
    parsed.given = frozenset(values)
    return parsed


def main(job: Callable[[Sequence[str]], None]) -> None:
    """Run a launcher: exit 0 on success, 2 with one line on a user's mistake, 1 with a traceback on a bug."""
    try:
        job(sys.argv[1:])
        leave()
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            fail_together("no one reads the output any more", lambda: None)
            sys.exit(128 + signal.SIGPIPE)
        if error.filename is None and error.errno is None:
            raise
        where = f": {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where} (check the path, its permissions and the free disk space)")
    except RuntimeError as error:
        if (line := why_lost(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _output_is_closed() -> bool:
    """Return whether the reader of our output has closed it, as `| head` does; if so, discard further output."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # not a file
        return False
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def fail(message: str) -> None:
    """Print one line and exit with status 2. One rank prints; before the ranks have met, one per machine."""
    line = " ".join(message.split())

    def say() -> None:
        print(f"error: {line}", file=sys.stderr, flush=True)

    if not fail_together(line, say) and os.environ.get("LOCAL_RANK", "0") == "0":
        say()
    sys.exit(2)
