"""Chats: turns as token ids, and the chat template with which transformers' tokenizers render the same ids.

A chat is its turns laid end to end, each as it stood in training: a user's words as an instruction in the prompt
template, begun as every prompt is (with a dummy prefix where the tokenizer has one), and behind it the answer, closed
by EOS. BOS, where the tokenizer has one, stands before the first alone, unless the template writes it. System turns are
laid before the next user's words. Nothing was trained on earlier turns. With the model's own chat template the whole
chat is as that renders it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.base.errors import UserError
from engine.text.chat_template import ChatTemplate
from engine.text.templates import RECORD, Piece, Template
from engine.text.tokenizer import encode_prompt, encode_rendered, encode_response

_BEFORE_PROMPTS = ("", " ")  # the dummy prefix written out, where it is lost
ROLES = ("system", "user", "assistant")
# First characters of answers: where a template's last character merges with one of them, an answer that is rendered
# behind its prompt as text has other tokens than it was trained and sampled with.
_ANSWERS = ("x", "The", "1", "(", "да", "न", "ا", "中")


def encode_instruction(
    tokenizer: Any, template: Template | ChatTemplate, instruction: str, input: str = ""
) -> list[int]:
    """Token ids of the prompt that a record's fields make."""
    pieces = template.pieces(instruction, input)
    return (encode_rendered if isinstance(template, ChatTemplate) else encode_prompt)(tokenizer, pieces)


def encode_chat(tokenizer: Any, template: Template | ChatTemplate, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a chat: each message has a role (system, user, assistant) and its content.

    What comes back ends where the next answer begins when the last turn is the user's. UserError for another role.
    """
    if isinstance(template, ChatTemplate):
        return encode_rendered(tokenizer, template.turns(messages))
    bos, ids, system = encode_prompt(tokenizer, ""), [], ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system += content + "\n"
        elif role == "user":
            ids += encode_prompt(tokenizer, template.pieces(system + content), first=False)
            system = ""
        elif role == "assistant":
            ids += encode_response(tokenizer, content)
        else:
            raise UserError(f"a message has the role {role!r}: give one of {', '.join(ROLES)}")
    return ids if ids[: len(bos)] == bos else [*bos, *ids]


def chat_template(template: Template, bos: str, first: str, later: str | None) -> str:
    """encode_chat as text, in Jinja: `first` and `later` stand before the first prompt and before the others.

    `bos` is what the tokenizer puts before every text. With `later` None a chat with an answer in it is refused.
    """
    pieces = template.pieces("x")
    at = pieces.index(Piece("x", is_own=False))
    around = ("".join(piece.text for piece in part) for part in (pieces[:at], pieces[at + 1 :]))
    before, after, first, later_text = (json.dumps(text, ensure_ascii=False) for text in (*around, first, later or ""))
    writes_bos = bos == "" or json.loads(before).startswith(bos)
    refusal = "this model\\'s prompt template ends in a character that merges with an answer: give one user turn"
    answer = f"{{{{- raise_exception('{refusal}') -}}}}" if later is None else "{{- message['content'] + eos_token -}}"
    return (
        ("" if writes_bos else "{{- bos_token -}}")
        + f"{{%- set ns = namespace(system='', begin={first}) -%}}{{%- for message in messages -%}}"
        "{%- if message['role'] == 'system' -%}{%- set ns.system = ns.system + message['content'] + '\\n' -%}"
        "{%- elif message['role'] == 'user' -%}"
        f"{{{{- ns.begin + {before} + ns.system + message['content'] + {after} -}}}}"
        f"{{%- set ns.system = '' -%}}{{%- set ns.begin = {later_text} -%}}"
        f"{{%- elif message['role'] == 'assistant' -%}}{answer}"
        "{%- else -%}{{- raise_exception('roles are system, user and assistant, not ' + message['role']) -}}"
        "{%- endif -%}{%- endfor -%}"
    )


def with_chat_template(tokenizer: Any, template: Template | ChatTemplate) -> Any:
    """A copy of the tokenizer that renders chats to the ids of encode_chat; what trains and encodes is not touched.

    What is saved of the copy records the template (template_choice.py). The model's own chat template stays.
    Otherwise one is written: SentencePiece's dummy prefix is lost after a special token that is written out, unless it
    is written out too. Where neither spelling gives the ids of training the copy has no chat template. Two limits of
    rendering by text: an answer that begins with white space may merge with its prompt, and "</s>" in a message is read
    as the EOS token.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs[RECORD] = template.record()
    if isinstance(template, ChatTemplate):
        return tokenizer
    bos = tokenizer.bos_token if encode_prompt(tokenizer, "") else ""
    question = {"role": "user", "content": "x"}
    chats = [[question, {"role": "assistant", "content": answer}, question] for answer in _ANSWERS]

    def exact(*chats: Sequence[Mapping[str, str]]) -> bool:
        return all(
            tokenizer.apply_chat_template(chat)["input_ids"] == encode_chat(tokenizer, template, chat) for chat in chats
        )

    for first in _BEFORE_PROMPTS:
        for later in (*_BEFORE_PROMPTS, None):
            tokenizer.chat_template = chat_template(template, bos, first, later)
            if exact([question]) and (later is None or exact(*chats)):
                return tokenizer
    tokenizer.chat_template = None
    return tokenizer
