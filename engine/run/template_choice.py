"""Choose the prompt template of a command, by one rule for all commands.

--template, if given; else the template that the model was trained with, as the model or its run records it; else the
model's own chat template; else Alpaca's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.base.errors import UserError
from engine.base.strict_json import read_object
from engine.run.folder import template_in_run
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_instruction
from engine.text.templates import CHAT, RECORD, TEMPLATES, Template, load_template, recorded_template
from engine.text.tokenizer import load_tokenizer
from engine.text.tokenizer_files import TOKENIZER_BYTES

DEFAULT = "alpaca"


@dataclass(frozen=True)
class Choice:
    """The chosen template, and why it was chosen."""

    template: Template | ChatTemplate
    why: str

    @property
    def shown(self) -> str:
        """For a command's header."""
        return f"{self.template.name} ({self.why})"


def check_template(given: str | None) -> None:
    """UserError for a --template that is wrong whatever the model."""
    if given not in (None, CHAT):
        load_template(given)


def choose_template(given: str | None, model_dir: str | os.PathLike[str], tokenizer: Any) -> Choice:
    """Choose the template by the rule above; `tokenizer` is the model's."""
    if given is not None:
        template = ChatTemplate(tokenizer) if given == CHAT else load_template(given)
        return Choice(template, f"given{_trained_otherwise(template, Path(model_dir), tokenizer)}")
    if found := _recorded(Path(model_dir), tokenizer):
        return found
    if tokenizer.chat_template:
        return Choice(ChatTemplate(tokenizer), "the model has one and no record of another")
    return Choice(TEMPLATES[DEFAULT], "the default: the model has neither a record nor a chat template")


def check_reward_template(reward_dir: str | os.PathLike[str], choice: Choice, tokenizer: Any) -> str:
    """Compare a reward model's template with the policy's; return a note for the header.

    UserError unless both make the same prompts. Without a record, only prompts without input are compared.
    """
    theirs = load_tokenizer(reward_dir)
    found = _recorded(Path(reward_dir), theirs)
    probes = [("x", ""), ("x", "y")] if found else [("x", "")]
    if not found and not theirs.chat_template:
        return "its prompt template is not recorded"
    template = found.template if found else ChatTemplate(theirs)
    ours = [encode_instruction(tokenizer, choice.template, *probe) for probe in probes]
    if ours != [encode_instruction(theirs, template, *probe) for probe in probes]:
        same_name = ", one of the same name with another text" if template.name == choice.template.name else ""
        raise UserError(
            f"--reward {reward_dir} was trained with the prompt template {template.name}, the policy has "
            f"{choice.template.name}{same_name}: train the reward model with the policy's --template, or give PPO the "
            "reward model's"
        )
    return "the same prompt template"


def _recorded(model_dir: Path, tokenizer: Any) -> Choice | None:
    """Return the template that a model was trained with, if recorded. UserError for a record that cannot be used."""
    file = model_dir / "tokenizer_config.json"
    record = read_object(file, "fetch it again", TOKENIZER_BYTES).get(RECORD) if file.is_file() else None
    why = "the model was trained with it"
    if record is None:
        file, record = template_in_run(model_dir)
        why = "the model's run used it"
    if record is None:
        return None
    if isinstance(record, str):  # runs wrote a name alone
        record = {"name": record}
    if not isinstance(record, dict):
        raise UserError(f"{file}: {RECORD!r} is {record!r:.40}, no template: take it out, or fetch the file again")
    if record == {"name": CHAT}:
        return Choice(ChatTemplate(tokenizer), why)
    if record.keys() != {"name"}:
        return Choice(recorded_template(record, file), why)
    try:
        return Choice(load_template(str(record["name"])), why)
    except UserError as error:
        raise UserError(
            f"{file} names the model's prompt template, which is not there, give --template ({error})"
        ) from error


def _trained_otherwise(template: Template | ChatTemplate, model_dir: Path, tokenizer: Any) -> str:
    """Return a note for the header when the model was trained with another template, else an empty string."""
    try:
        found = _recorded(model_dir, tokenizer)
    except UserError as error:
        return f"; {error}"
    differs = found and found.template.record() != template.record()
    return f"; the model was trained with {found.template.name}" if differs else ""
