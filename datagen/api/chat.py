"""What a work function sees of the API: how it asks, what comes back, and how it refuses a record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content": text}
Record = dict[str, Any]


# How an answer ended. BROKEN: the server stopped in the middle; WITHHELD: it does not show what it has.
COMPLETE, CUT, BROKEN, WITHHELD, UNKNOWN = "complete", "cut", "broken", "withheld", "unknown"
# The spellings of finish_reason, in lower case: OpenAI's first, then those of other servers and gateways.
_ENDINGS = {
    COMPLETE: "stop eos eos_token end_turn stop_sequence stop_token complete completed finish finished end_id",
    CUT: "length max_tokens max_length max_new_tokens max_output_tokens model_length token_limit",
    BROKEN: "abort aborted cancelled canceled error",
    WITHHELD: "content_filter content_filtered safety recitation blocklist prohibited_content spii refusal error_toxic",
}
_ENDING_OF = {"": COMPLETE} | {word: ending for ending, words in _ENDINGS.items() for word in words.split()}


def ending_of(finish_reason: str) -> str:
    """What a finish_reason means, in any server's spelling."""
    return _ENDING_OF.get(finish_reason.lower(), UNKNOWN)


@dataclass(frozen=True)
class Reply:
    """One answer of the API.

    finish_reason      as the API gave it: "stop", "length", "content_filter", "eos_token", "" for none, ...
    prompt_tokens      as billed by the API; where it reports none, an upper bound (bytes)
    completion_tokens  likewise
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def ending(self) -> str:
        """COMPLETE, CUT, ..."""
        return ending_of(self.finish_reason)

    @property
    def fault(self) -> str | None:
        """Why the text cannot be whole. None where it may be: after an unknown reason its text must show that."""
        if self.ending in (COMPLETE, UNKNOWN):
            return None
        return f"finish_reason: {self.finish_reason}{'; raise --max-tokens' if self.ending == CUT else ''}"


class Rejected(Exception):
    """Raised by a work function, or by `ask` itself: the record goes to the quarantine with the reason.

    reply: the answer at fault. `--retry-quarantined` asks for that one again, and for the last one where none is named.
    """

    def __init__(self, reason: str, reply: Reply | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reply = reply


class Unanswered(Rejected):
    """Raised by `ask`: the API gave no answer that can be used."""


# await ask(messages, **params): params go into the request as they are (max_tokens, ...), but for `temperature`, which
# the settings may replace or leave out, and `nonce`, which is not sent: it tells apart requests that are to be asked
# several times. See datagen.run.runner.
Ask = Callable[..., Awaitable[Reply]]
Work = Callable[[Record, Ask], Awaitable[list[Record]]]


@dataclass(frozen=True)
class Request:
    """One chat completion to be asked for; equal requests are one request, whichever endpoint or key answers.

    max_tokens_field: what the limit of the answer is called when it is sent; newer OpenAI models call it
        `max_completion_tokens`.
    """

    model: str
    messages: tuple[Message, ...]
    params: Mapping[str, Any]
    nonce: Any = None
    max_tokens_field: str = "max_tokens"

    @property
    def key(self) -> bytes:
        """16 bytes: the hash of the content, under which the journal holds the answer."""
        return content_hash([self.model, self.messages, self.params, self.nonce])

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens the answer may have."""
        return self.params["max_tokens"]

    def body(self) -> bytes:
        """The JSON that is posted."""
        params = dict(self.params)
        limit = params.pop("max_tokens")
        sent = {"model": self.model, "messages": self.messages, self.max_tokens_field: limit, **params}
        return json.dumps(sent).encode()


def content_hash(value: Any) -> bytes:
    """16 bytes that depend on a JSON value alone, not on the order of its keys. TypeError if it is none."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def make_request(
    model: str, default_max_tokens: int, messages: Sequence[Message], nonce: Any = None, **params: Any
) -> Request:
    """The request of one `ask(messages, **params)`."""
    assert not {"n", "stream"} & params.keys(), "one whole answer a request: draw several by nonce"
    params.setdefault("max_tokens", default_max_tokens)
    return Request(model, tuple(messages), params, nonce)
