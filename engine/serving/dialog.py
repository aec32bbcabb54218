"""Convert a dialog's turns to the tokens of a prompt, and shorten a dialog that is too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.chat_template import ChatTemplate
from engine.text.chats import encode_chat
from engine.text.templates import Template

Turn = Mapping[str, str]  # {"role": one of engine.text.chats.ROLES, "content": text}


class DialogEncoder:
    """Converts dialogs to prompts with the token ids of training (engine/text/chats.py)."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, template: Template | ChatTemplate):
        self._tokenizer, self._template = tokenizer, template

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Return the token ids up to the start of the next answer. UserError for turns that cannot be rendered."""
        if not turns or turns[-1]["role"] != "user":
            raise UserError("the last message must be the user's: the model answers that")
        ids = tuple(encode_chat(self._tokenizer, self._template, turns))
        if not ids:
            raise UserError("these messages make a prompt without a token: give some text, or another --template")
        return ids


def cut_to_fit(encoder: DialogEncoder, turns: Sequence[Turn], max_tokens: int) -> tuple[tuple[int, ...], list[Turn]]:
    """Return (prompt of at most max_tokens, its turns), dropping the oldest questions and their answers.

    System turns stay. UserError if the last question alone is too long.
    """
    kept = list(turns)
    while len(tokens := encoder.encode(kept)) > max_tokens:
        questions = [i for i, turn in enumerate(kept) if turn["role"] == "user"]
        if len(questions) == 1:
            raise UserError(f"this message makes a prompt of {len(tokens)} tokens, {max_tokens} fit: shorten it")
        kept = [t for i, t in enumerate(kept) if t["role"] == "system" or i >= questions[1]]
    return tokens, kept
