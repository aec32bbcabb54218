"""Chats as token ids, and a chat template with which transformers renders the same ids.

A chat is the concatenation of its turns, each as in training: a user's message as an instruction in the prompt
template, encoded like every prompt (with a dummy prefix if the tokenizer has one), then the answer and EOS. BOS, if the
tokenizer has one, comes only before the first turn, unless the template writes it. System turns are put before the next
user's message. With the model's own chat template, that renders the chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engine.base.errors import UserError
from engine.text.chat_template import ChatTemplate
from engine.text.templates import RECORD, Piece, Template
from engine.text.tokenizer import copy_of, decode, encode_prompt, encode_rendered, encode_response

_BEFORE_PROMPTS = ("", " ")  # the dummy prefix as text, where it would be lost
ROLES = ("system", "user", "assistant")
# First characters of answers: if a template's last character merges with one of them, an answer rendered after its
# prompt as text has other tokens than in training.
_ANSWERS = ("x", "The", "1", "(", "да", "न", "ا", "中")


def encode_instruction(
    tokenizer: Any, template: Template | ChatTemplate, instruction: str, input: str = ""
) -> list[int]:
    """Return the token ids of a record's prompt."""
    pieces = template.pieces(instruction, input)
    return (encode_rendered if isinstance(template, ChatTemplate) else encode_prompt)(tokenizer, pieces)


def encode_chat(tokenizer: Any, template: Template | ChatTemplate, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return the token ids of a chat; each message has a role (system, user, assistant) and content.

    After a user's turn they end where the next answer begins. UserError for another role.
    """
    if isinstance(template, ChatTemplate):
        return encode_rendered(tokenizer, template.turns(messages))
    return _encode_turns(tokenizer, template, messages)[0]


def encode_answers(
    tokenizer: Any, template: Template | ChatTemplate, messages: Sequence[Mapping[str, str]], eos_ids: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of encode_chat, and from where to where each answer among them stands, end token included.

    An answer begins where the chat before it ends, and it ends with the first of `eos_ids` or of the tokenizer's EOS,
    which a model's own chat template must write after it. UserError if the template renders an answer otherwise when
    more follows, because generation would not see what was trained.
    """
    if not isinstance(template, ChatTemplate):
        return _encode_turns(tokenizer, template, messages)
    ids, spans, ends = encode_chat(tokenizer, template, messages), [], {tokenizer.eos_token_id, *eos_ids}
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = encode_chat(tokenizer, template, messages[:i])
        start, said = len(before), encode_response(tokenizer, message["content"])[:-1]
        end = next((at for at in range(start, len(ids)) if ids[at] in ends), None)
        if ids[:start] != before or end is None or _text(tokenizer, ids[start:end]) != _text(tokenizer, said):
            raise UserError(
                f"the model's chat template does not keep message {i + 1} as an answer of its own, with a token after "
                "it that ends a response: give --template alpaca, or a file, or records of one turn"
            )
        spans.append((start, end + 1))
    return ids, spans


def chat_text(template: Template | ChatTemplate, messages: Sequence[Mapping[str, str]], eos: str) -> str:
    """Return a chat as text, up to where the next answer begins. In a template of ours, `eos` follows an answer."""
    if isinstance(template, ChatTemplate):
        return "".join(piece.text for piece in template.turns(messages))
    text, system = "", ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system += content + "\n"
        else:
            text += template.format(system + content) if role == "user" else content + eos
            system = ""
    return text


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return decode(tokenizer, ids).strip()


def _encode_turns(
    tokenizer: Any, template: Template, messages: Sequence[Mapping[str, str]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return encode_answers for a template of ours."""
    bos, system = encode_prompt(tokenizer, ""), ""
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system += content + "\n"
        elif role == "user":
            ids += encode_prompt(tokenizer, template.pieces(system + content), first=False)
            system = ""
        elif role == "assistant":
            answer = encode_response(tokenizer, content)
            spans.append((len(ids), len(ids) + len(answer)))
            ids += answer
        else:
            raise UserError(f"a message has the role {role!r}: give one of {', '.join(ROLES)}")
    if ids[: len(bos)] == bos:
        return ids, spans
    return [*bos, *ids], [(start + len(bos), end + len(bos)) for start, end in spans]


def chat_template(template: Template, bos: str, first: str, later: str | None) -> str:
    """Return encode_chat as a Jinja template; `first` and `later` come before the first and the other prompts.

    `bos` is what the tokenizer puts before every text. With `later` None, a chat with an answer is refused.
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
    """Return a copy of the tokenizer whose chat template gives the ids of encode_chat; the original is unchanged.

    The saved copy records the template (template_choice.py). A model's own chat template stays. Otherwise a chat
    template is written, with or without SentencePiece's dummy prefix after special tokens; if neither gives the ids of
    training, the copy has none. Two limits of rendering as text: an answer that begins with white space may merge with
    its prompt, and "</s>" in a message becomes the EOS token.
    """
    tokenizer = copy_of(tokenizer)
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
