"""Use a model's own chat template (Jinja) as a prompt template.

Token ids equal transformers' apply_chat_template(add_generation_prompt=True), except for special tokens written in a
message: transformers makes them tokens, here they are encoded as text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.codec import codec_of
from engine.text.templates import CHAT, Piece


class ChatTemplate:
    """Has the methods of engine.text.templates.Template, and `turns` for a whole dialog."""

    name = CHAT

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        """UserError for a tokenizer whose chat template cannot render a user turn."""
        self._tokenizer = tokenizer
        self._salt = secrets.token_hex(16)  # cannot occur in a message
        if not tokenizer.chat_template:
            raise UserError(
                f"--template {CHAT} asks for the chat template of {tokenizer.name_or_path or 'the model'}, which has "
                "none: give alpaca, plain, or a file"
            )
        word = secrets.token_hex(8)
        if word not in self.format(word):
            raise UserError("the model's chat template leaves the user's words out: give --template alpaca, or a file")

    def pieces(self, instruction: str, input: str = "") -> list[Piece]:
        """Return the prompt of one user turn: the instruction and, after an empty line, the input."""
        content = f"{instruction}\n\n{input}" if input.strip() else instruction
        return self.turns([{"role": "user", "content": content}])

    def format(self, instruction: str, input: str = "") -> str:
        """Return the prompt as text."""
        return "".join(piece.text for piece in self.pieces(instruction, input))

    def record(self) -> dict[str, str]:
        """Return the record that an exported model keeps; the template itself is in the tokenizer's files."""
        return {"name": self.name}

    def turns(self, messages: Sequence[Mapping[str, str]]) -> list[Piece]:
        """Render a dialog up to the start of the next answer. UserError for messages that the template refuses.

        Special tokens in messages become separate pieces. While the template renders, each is replaced by a word, so
        the template can trim and cut messages as usual.
        """
        special, found = codec_of(self._tokenizer).special, []

        def stand_in(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{self._salt}{len(found) - 1:06x}"

        safe = [{**message, "content": special.sub(stand_in, message["content"])} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program and may fail in any way
            raise UserError(f"the model's chat template refuses these messages: {error}") from error
        if not text:
            raise UserError("the model's chat template makes an empty prompt of these messages: give --template")
        parts = re.split(f"{self._salt}([0-9a-f]{{6}})", text)
        return [
            Piece(found[int(part, 16)], is_own=False) if i % 2 else Piece(part, is_own=True)
            for i, part in enumerate(parts)
        ]
