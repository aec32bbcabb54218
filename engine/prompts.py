"""Prompt templates: how an instruction and its input become the text that a response follows.

`alpaca` is the format of Stanford Alpaca (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca). Its preambles and
headings are kept to the letter, because published models, Okapi's among them, were trained on them. Alpaca's prompt
stops at "### Response:"; the line break before the response is put at the end of the prompt here, as most of its
descendants do, so that a response is exactly the text that a user reads.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UserError
from engine.strict_json import reason_of

TEMPLATE_CHARACTERS = 100_000
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_SEPARATOR = re.compile(r"^---[ \t]*(?:\r?\n|$)", re.MULTILINE)


@dataclass(frozen=True)
class Template:
    """Two forms of a prompt: for an instruction with an input, and for one alone."""

    with_input: str
    without_input: str

    def format(self, instruction: str, input: str = "") -> str:
        """The prompt, ending where the response begins. A blank input takes the form without one."""
        form = self.with_input if input.strip() else self.without_input
        values = {"instruction": instruction, "input": input}
        # One pass over the form: braces inside the record's own text are text.
        return _PLACEHOLDER.sub(lambda match: values[match[1]], form)


TEMPLATES = {
    "alpaca": Template(
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    # For small models: no tokens spent on a preamble that they must first learn to ignore.
    "plain": Template("{instruction}\n{input}\n=> ", "{instruction}\n=> "),
}


def load_template(name: str | os.PathLike[str]) -> Template:
    """A template by name ("alpaca", "plain") or from a UTF-8 text file.

    The file holds {instruction} and {input}, each once. A line `---` may divide it into two forms: above it the form
    with an input, below it the form without; a file with one form uses it for both. The line break before `---` and
    the one at the end of the file belong to neither form: leave an empty line to end a prompt with a line break.
    UserError where neither a name nor a file fits, or a placeholder is missing, repeated or unknown.
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
        near = difflib.get_close_matches(str(name), TEMPLATES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"template {str(name)!r} is no template and no readable file ({reason_of(error)}): {hint}"
            f"use {', '.join(TEMPLATES)} or the path of a text file"
        ) from None
    if len(text) > TEMPLATE_CHARACTERS:
        raise UserError(f"template {path} has more than {TEMPLATE_CHARACTERS:,} characters: name the right file")
    forms = [form.removesuffix("\n") for form in _SEPARATOR.split(text)]
    if len(forms) > 2:
        raise UserError(f"template {path} has {len(forms) - 1} lines '---': keep one, between its two forms")
    _check_form(path, forms[0], ("instruction", "input"))
    if len(forms) == 2:
        _check_form(path, forms[1], ("instruction",))
    return Template(forms[0], forms[-1])


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
