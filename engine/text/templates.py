"""Prompt templates: turn an instruction and its input into the text before a response.

`alpaca` is the format of Stanford Alpaca (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca), letter by letter,
because published models such as Okapi's were trained on it. Here the line break after "### Response:" belongs to the
prompt, as in most descendants, so that a response is exactly the text that a user reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine.base.errors import UserError
from engine.base.nearest import nearest_hint
from engine.base.strict_json import reason_of

TEMPLATE_CHARACTERS = 100_000
CHAT = "chat"  # the name of a model's own chat template (chat_template.py)
RECORD = "prompt_template"  # key of tokenizer_config.json for an exported model's template
TEMPLATE_HELP = (
    "prompt template: alpaca, plain, chat (the model's chat template), or a file; where none is given, the one that "
    "the model was trained with, else its chat template, else alpaca"
)
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SEPARATOR = re.compile(r"^---[ \t]*(?:\r?\n|$)", re.MULTILINE)


class Piece(NamedTuple):
    """Part of a prompt: a template's text, in which special tokens are tokens, or a record's, which is only text."""

    text: str
    is_own: bool


@dataclass(frozen=True)
class Template:
    """Two forms of a prompt: with an input and without."""

    with_input: str
    without_input: str
    name: str = field(default="", compare=False)

    def pieces(self, instruction: str, input: str = "") -> list[Piece]:
        """Return the prompt up to the response. A blank input uses the form without input."""
        form = self.with_input if input.strip() else self.without_input
        return list(_filled(form, {"instruction": instruction, "input": input}))

    def format(self, instruction: str, input: str = "") -> str:
        """Return the prompt as text."""
        return "".join(piece.text for piece in self.pieces(instruction, input))

    def record(self) -> dict[str, str]:
        """Return the record that an exported model keeps."""
        return {"name": self.name, "with_input": self.with_input, "without_input": self.without_input}


def _filled(form: str, values: dict[str, str]) -> Iterator[Piece]:
    """Fill a form in one pass, so that braces in the record's text stay text."""
    end = 0
    for match in _PLACEHOLDER.finditer(form):
        yield Piece(form[end : match.start()], is_own=True)
        yield Piece(values[match[1]], is_own=False)
        end = match.end()
    yield Piece(form[end:], is_own=True)


TEMPLATES = {
    "alpaca": Template(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
        "alpaca",
    ),
    # For small models: no preamble that they would first have to learn to ignore.
    "plain": Template("{instruction}\n{input}\n=> ", "{instruction}\n=> ", "plain"),
}


def load_template(name: str | os.PathLike[str]) -> Template:
    """Load a template by name ("alpaca", "plain") or from a UTF-8 text file.

    The file contains {instruction} and {input}, once each. A line `---` may split it into the form with input (above)
    and the form without (below); a file with one form uses it for both. The line breaks before `---` and at the end of
    the file do not count: add an empty line to end a prompt with a line break. Special tokens are written by name:
    <|im_start|>. UserError for an unknown name or file, or a placeholder that is missing, repeated or unknown.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    path = Path(name)
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(TEMPLATE_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"template {path} is not UTF-8 (byte {error.start}): save the file as UTF-8") from None
    except (OSError, ValueError) as error:
        hint = nearest_hint(str(name), [*TEMPLATES, CHAT])
        raise UserError(
            f"template {str(name)!r} is no template and no readable file ({reason_of(error)}): {hint}"
            f"use {', '.join(TEMPLATES)}, {CHAT} or the path of a text file"
        ) from None
    if len(text) > TEMPLATE_CHARACTERS:
        raise UserError(f"template {path} has more than {TEMPLATE_CHARACTERS:,} characters: name the right file")
    forms = [form.removesuffix("\n") for form in _SEPARATOR.split(text)]
    if len(forms) > 2:
        raise UserError(f"template {path} has {len(forms) - 1} lines '---': keep one, between its two forms")
    _check_form(path, forms[0], ("instruction", "input"))
    if len(forms) == 2:
        _check_form(path, forms[1], ("instruction",))
    return Template(forms[0], forms[-1], path.name)


def recorded_template(record: Mapping[str, Any], file: Path) -> Template:
    """Rebuild a template from Template.record, read from a file. UserError for anything else."""
    name, *forms = (record.get(key) for key in ("name", "with_input", "without_input"))
    if not (isinstance(name, str) and all(isinstance(form, str) for form in forms)):
        raise UserError(f"{file}: {RECORD!r} is no template with a name and two forms: take it out, or fetch it again")
    _check_form(file, forms[0], ("instruction", "input"))
    if forms[1] != forms[0]:
        _check_form(file, forms[1], ("instruction",))
    return Template(*forms, name)


def _check_form(path: Path, form: str, wanted: tuple[str, ...]) -> None:
    which = "with an input" if "input" in wanted else "without an input"
    found = _PLACEHOLDER.findall(form)
    for name in found:
        if name not in wanted:
            allowed = " and ".join(f"{{{n}}}" for n in wanted)
            raise UserError(f"template {path}: {{{name}}} in the form {which} is not filled: use only {allowed}")
    for name in wanted:
        if (count := found.count(name)) != 1:
            raise UserError(f"template {path}: {{{name}}} stands {count} times in the form {which}: write it once")
