"""A model's own chat template as a prompt template: its tokenizer's Jinja, in which a user's words stay words.

The ids are those of transformers' apply_chat_template(add_generation_prompt=True), but for special tokens written in a
message: transformers makes tokens of them, here they are encoded by their characters.
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
        """UserError for a tokenizer whose chat template cannot render what a user says."""
        self._tokenizer = tokenizer
        self._salt = secrets.token_hex(16)  # no message can hold it
        if not tokenizer.chat_template:
            raise UserError(
                f"--template {CHAT} asks for the chat template of {tokenizer.name_or_path or 'the model'}, which has "
                "none: give alpaca, plain, or a file"
            )
        word = secrets.token_hex(8)
        if word not in self.format(word):
            raise UserError("the model's chat template leaves the user's words out: give --template alpaca, or a file")

    def pieces(self, instruction: str, input: str = "") -> list[Piece]:
        """The prompt of one turn: the instruction, and after an empty line the input, are what the user says."""
        content = f"{instruction}\n\n{input}" if input.strip() else instruction
        return self.turns([{"role": "user", "content": content}])

    def format(self, instruction: str, input: str = "") -> str:
        """The prompt as text."""
        return "".join(piece.text for piece in self.pieces(instruction, input))

    def record(self) -> dict[str, str]:
        """What an exported model keeps of it: the template itself lies among the tokenizer's files."""
        return {"name": self.name}

    def turns(self, messages: Sequence[Mapping[str, str]]) -> list[Piece]:
        """A dialog, ending where the next answer begins. UserError for messages that the template refuses.

        Only special tokens in messages become pieces of their own. While the template renders, each has a stand-in
        that the template sees as a word: so it may trim and cut a message as it always does.
        """
        special, found = codec_of(self._tokenizer).special, []

        def stand_in(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{self._salt}{len(found) - 1:06x}"

        safe = [{**message, "content": special.sub(stand_in, message["content"])} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program, and may fail in any way
            raise UserError(f"the model's chat template refuses these messages: {error}") from error
        if not text:
            raise UserError("the model's chat template makes an empty prompt of these messages: give --template")
        parts = re.split(f"{self._salt}([0-9a-f]{{6}})", text)
        return [
            Piece(found[int(part, 16)], is_own=False) if i % 2 else Piece(part, is_own=True)
            for i, part in enumerate(parts)
        ]
