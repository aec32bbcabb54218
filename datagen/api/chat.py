"""The types of a work function: requests, replies, and the exceptions that reject a record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Record = dict[str, Any]


# How an answer ended. BROKEN: the server stopped in the middle. WITHHELD: a filter hides the answer.
COMPLETE, CUT, BROKEN, WITHHELD, UNKNOWN = "complete", "cut", "broken", "withheld", "unknown"
# Values of finish_reason, in lower case: OpenAI's first, then those of other servers and gateways.
_ENDINGS = {
    COMPLETE: "stop eos eos_token end_turn stop_sequence stop_token complete completed finish finished end_id",
    CUT: "length max_tokens max_length max_new_tokens max_output_tokens model_length token_limit",
    BROKEN: "abort aborted cancelled canceled error",
    WITHHELD: "content_filter content_filtered safety recitation blocklist prohibited_content spii refusal error_toxic",
}
_ENDING_OF = {"": COMPLETE} | {word: ending for ending, words in _ENDINGS.items() for word in words.split()}


def ending_of(finish_reason: str) -> str:
    """Map a finish_reason, in any server's spelling, to COMPLETE, CUT, BROKEN, WITHHELD or UNKNOWN."""
    return _ENDING_OF.get(finish_reason.lower(), UNKNOWN)


@dataclass(frozen=True)
class Reply:
    """One answer of the API.

    finish_reason      as the API sent it: "stop", "length", "content_filter", "eos_token", ...; "" if absent
    prompt_tokens      as billed by the API; if it reports no usage, an upper bound (bytes)
    completion_tokens  likewise
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def ending(self) -> str:
        """The finish_reason as COMPLETE, CUT, BROKEN, WITHHELD or UNKNOWN."""
        return ending_of(self.finish_reason)

    @property
    def fault(self) -> str | None:
        """Why the text is incomplete, or None if it may be complete. For UNKNOWN, the caller must check the text."""
        if self.ending in (COMPLETE, UNKNOWN):
            return None
        return f"finish_reason: {self.finish_reason}{'; raise --max-tokens' if self.ending == CUT else ''}"


class Rejected(Exception):
    """Reject the record: it goes to the quarantine file with the reason. Raised by a work function or by `ask`.

    reply: the faulty answer. `--retry-quarantined` requests it again; if None, it requests the last answer again.
    """

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class Unanswered(Rejected):
    """The API gave no usable answer. Raised by `ask`."""


# await ask(messages, **params) sends params (max_tokens, ...) unchanged, with two exceptions. The settings may replace
# or drop `temperature`. `nonce` is never sent: it distinguishes repeated requests. See datagen.run.runner.
Ask = Callable[..., Awaitable[Reply]]
Work = Callable[[Record, Ask], Awaitable[list[Record]]]


@dataclass(frozen=True)
class Request:
    """One chat completion request. Equal requests share one answer, whichever endpoint or key serves them.

    max_tokens_field: the name under which the answer's token limit is sent; newer OpenAI models use
        `max_completion_tokens`.
    """

    model: str
    messages: tuple[Message, ...]
    params: Mapping[str, Any]
    nonce: Any = None
    max_tokens_field: str = "max_tokens"

    @property
    def key(self) -> bytes:
        """The content hash (16 bytes): the key of the answer in the journal."""
        return content_hash([self.model, self.messages, self.params, self.nonce])

    @property
    def max_tokens(self) -> int:
        """The token limit of the answer."""
        return self.params["max_tokens"]

    def body(self) -> bytes:
        """Return the JSON body of the POST request."""
        params = dict(self.params)
        limit = params.pop("max_tokens")
        sent = {"model": self.model, "messages": self.messages, self.max_tokens_field: limit, **params}
        return json.dumps(sent).encode()


def content_hash(value: Any) -> bytes:
    """Return a 16-byte hash of a JSON value, independent of key order. TypeError if it is not a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def make_request(
    model: str, default_max_tokens: int, messages: Sequence[Message], nonce: Any = None, **params: Any
) -> Request:
    """Build the request of one `ask(messages, **params)`."""
    assert not {"n", "stream"} & params.keys(), "a request returns one complete answer: use nonce to draw several"
    params.setdefault("max_tokens", default_max_tokens)
    return Request(model, tuple(messages), params, nonce)
