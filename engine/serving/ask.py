"""Parse and check the body of an API request, field by field."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.generation.sampling import Sampling
from engine.serving.dialog import DialogEncoder
from engine.serving.errors import ApiError, bad_request
from engine.serving.fields import Fields
from engine.text.chats import ROLES
from engine.text.tokenizer import encode_prompt

MAX_TOP, MAX_STOPS, MAX_STOP_CHARACTERS = 20, 16, 1000
# Known fields without effect here; clients may send them.
_IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
# Known fields that are not implemented: accepted only with their neutral values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class Limits:
    """Limits of a request: max_length of prompt plus response in tokens, max_choices of prompts times n."""

    model_name: str
    vocab_size: int
    max_length: int
    max_choices: int
    chat_tokens: int  # limit of a chat answer that asks for none


@dataclass(frozen=True)
class Ask:
    """A parsed request: n responses to each prompt. num_top is None without log-probabilities."""

    is_chat: bool
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str | None, ...]  # texts of the prompts; None if they came as tokens
    n: int
    max_tokens: int
    min_tokens: int
    sampling: Sampling
    stops: tuple[str, ...]
    seed: int
    stream: bool
    include_usage: bool
    num_top: int | None
    echo: bool

    @property
    def num_choices(self) -> int:
        return len(self.prompts) * self.n


class AskReader:
    """Parses bodies. Methods raise ApiError for what cannot be served. They are slow because they tokenise."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, dialogs: DialogEncoder, limits: Limits):
        self._tokenizer, self._dialogs, self.limits = tokenizer, dialogs, limits

    def chat(self, body: bytes) -> Ask:
        """Parse a request to /v1/chat/completions."""
        fields = self._fields(body)
        prompt = self._dialog(fields.take("messages"))
        wants = fields.flag("logprobs")
        num_top = fields.integer("top_logprobs", None, 0, MAX_TOP)
        if num_top and not wants:
            raise bad_request("top_logprobs needs logprobs: true", "top_logprobs")
        wanted = fields.integer("max_completion_tokens", None, 1)
        wanted = fields.integer("max_tokens", None, 1) if wanted is None else wanted
        fields.drop("max_tokens")
        room = self.limits.max_length - len(prompt)
        max_tokens = max(min(self.limits.chat_tokens, room), 1) if wanted is None else wanted
        return self._ask(fields, True, (prompt,), (None,), max_tokens, (num_top or 0) if wants else None, False)

    def completion(self, body: bytes) -> Ask:
        """Parse a request to /v1/completions."""
        fields = self._fields(body)
        prompts, texts = zip(*self._prompts(fields.take("prompt")))
        echo = fields.flag("echo")
        fields.drop_if("logprobs", False)
        num_top = fields.integer("logprobs", None, 0, MAX_TOP)
        max_tokens = fields.integer("max_tokens", 16, 0 if echo else 1)
        return self._ask(fields, False, prompts, texts, max_tokens, num_top, echo)

    def _fields(self, body: bytes) -> Fields:
        try:
            value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"the body is no JSON in UTF-8: {error}") from error
        if not isinstance(value, dict):
            raise bad_request("the body must be a JSON object")
        fields = Fields(value)
        name = fields.text("model", self.limits.model_name)
        if name != self.limits.model_name:
            message = f"there is no model {name[:100]!r} here, only {self.limits.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")
        fields.drop(*_IGNORED)
        for key, nothing in _NEUTRAL.items():
            if (asked := fields.take(key)) is not None and asked not in nothing:
                raise bad_request(f"{key} is not supported: leave it out", key, "unsupported_parameter")
        return fields

    def _ask(
        self,
        fields: Fields,
        is_chat: bool,
        prompts: Sequence[tuple[int, ...]],
        texts: Sequence[str | None],
        max_tokens: int,
        num_top: int | None,
        echo: bool,
    ) -> Ask:
        for prompt in prompts:
            self._check_length(prompt, max_tokens, "messages" if is_chat else "prompt")
        sampling = Sampling(
            fields.number("temperature", 1.0, 0.0, 2.0),
            fields.integer("top_k", 0, 0, 1 << 31),
            fields.number("top_p", 1.0, 0.0, 1.0) or math.ulp(0.0),  # 0: only the chosen token's
            fields.number("min_p", 0.0, 0.0, 1.0),
            fields.number("repetition_penalty", 1.0, 0.01, 100.0),
        )
        seed = fields.integer("seed", None, -(1 << 63), (1 << 63) - 1)
        stream, options = fields.flag("stream"), fields.take("stream_options")
        if options is not None and not (stream and isinstance(options, dict)):
            raise bad_request("stream_options must be an object, and needs stream: true", "stream_options")
        ask = Ask(
            is_chat,
            tuple(prompts),
            tuple(texts),
            fields.integer("n", 1, 1, self.limits.max_choices),
            max_tokens,
            fields.integer("min_tokens", 0, 0, max_tokens),
            sampling,
            self._stops(fields.take("stop")),
            secrets.randbits(63) if seed is None else seed,
            stream,
            Fields(options or {}).flag("include_usage"),
            num_top,
            echo,
        )
        fields.must_be_empty()
        if ask.num_choices > self.limits.max_choices:
            most = self.limits.max_choices
            raise bad_request(f"{len(prompts)} prompts times n = {ask.n} are more than {most}: ask for fewer", "n")
        return ask

    def _check_length(self, prompt: tuple[int, ...], max_tokens: int, param: str) -> None:
        if not prompt:
            raise bad_request("a prompt has no tokens: give some text", param)
        if len(prompt) + max_tokens > self.limits.max_length:
            raise bad_request(
                f"the prompt has {len(prompt)} tokens and up to {max_tokens} shall follow, the model serves "
                f"{self.limits.max_length} together: shorten the prompt or lower max_tokens",
                param,
                "context_length_exceeded",
            )

    def _stops(self, value: Any) -> tuple[str, ...]:
        stops = [] if value is None else [value] if isinstance(value, str) else value
        if not (isinstance(stops, list) and all(isinstance(stop, str) and stop for stop in stops)):
            raise bad_request("stop must be a text or a list of texts, none of them empty", "stop")
        if len(stops) > MAX_STOPS or any(len(stop) > MAX_STOP_CHARACTERS for stop in stops):
            raise bad_request(f"stop may hold {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters each", "stop")
        return tuple(_checked(stop, "stop") for stop in stops)

    def _prompts(self, value: Any) -> list[tuple[tuple[int, ...], str | None]]:
        """Return tokens and text of each prompt: of a text, a list of texts, a list of tokens, or a list of those."""
        several = isinstance(value, list) and value and not all(_is_token(item) for item in value)
        prompts = value if several else [value]
        if len(prompts) > self.limits.max_choices:
            raise bad_request(f"{len(prompts)} prompts are more than {self.limits.max_choices}: ask for fewer")
        return [self._prompt(prompt) for prompt in prompts]

    def _prompt(self, value: Any) -> tuple[tuple[int, ...], str | None]:
        if isinstance(value, str):
            return tuple(encode_prompt(self._tokenizer, _checked(value, "prompt"))), value
        if not (isinstance(value, list) and all(map(_is_token, value))):
            raise bad_request("prompt must be a text, a list of texts, a list of tokens or a list of those", "prompt")
        if any(not 0 <= token < self.limits.vocab_size for token in value):
            raise bad_request(f"a token of the prompt is not in 0 to {self.limits.vocab_size - 1}", "prompt")
        return tuple(value), None

    def _dialog(self, messages: Any) -> tuple[int, ...]:
        if not (isinstance(messages, list) and messages):
            raise bad_request("messages must be a list with at least one message", "messages")
        turns = [_turn(message, f"messages[{i}]") for i, message in enumerate(messages)]
        try:
            return self._dialogs.encode(turns)
        except UserError as error:
            raise bad_request(str(error), "messages") from error


def _turn(message: Any, param: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise bad_request(f"{param} must be an object with role and content", param)
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise bad_request(f"{param}.role must be system, user or assistant", param)
    content = message.get("content")
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise bad_request(f"{param}.content must be a text, or a list of text parts", param)
    return {"role": role, "content": _checked(content, param)}


def _checked(text: str, param: str) -> str:
    """Return the text. ApiError for half a surrogate pair, which no tokenizer can read."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise bad_request(f"{param} holds half a character (a lone surrogate)", param)
    return text


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


Reader = Callable[[bytes], Ask]
