"""Find stop strings in a response token by token, and where to cut its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.tokenizer import decode

UNFINISHED = "\ufffd"  # an incomplete character decodes to this
_WAIT_TOKENS = 4  # a character has at most four bytes, so it needs at most four tokens


class Stop(NamedTuple):
    """`text` before the stop string, and num_tokens, how many tokens it takes; the last may contain more."""

    text: str
    num_tokens: int


class StopMatcher:
    """Follows one response. Only new tokens are decoded, so the cost per token does not grow.

    A stop string may begin and end inside tokens and span several. Incomplete characters wait for their bytes.
    UserError for an empty stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str]):
        if not all(stops):
            raise UserError("a stop string is empty: every response would be empty, leave it out")
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self._text = ""
        self._ends: list[int] = []  # length of the text up to each token
        self._unread: list[int] = []

    @property
    def text(self) -> str:
        """The text of the tokens so far, without an incomplete character at the end."""
        return self._text

    def whole_text(self) -> str:
        """The text of all tokens, when no more will come."""
        return self._text + decode(self.tokenizer, self._unread)

    def _give_up_waiting(self, new: str) -> None:
        """Take over the oldest unread tokens whose text later tokens cannot change."""
        for cut in range(len(self._unread) - _WAIT_TOKENS, 0, -1):
            head = decode(self.tokenizer, self._unread[:cut])
            if head + decode(self.tokenizer, self._unread[cut:]) == new:
                self._text += head
                self._unread = self._unread[cut:]
                return

    def feed(self, tokens: Sequence[int]) -> Stop | None:
        """Feed the next tokens. Returns the stop string that begins first, if they complete one, else None.

        Do not feed again after a stop.
        """
        for token in tokens:
            self._unread.append(token)
            new = decode(self.tokenizer, self._unread)
            if new.endswith(UNFINISHED):
                self._ends.append(len(self._text) + len(new.rstrip(UNFINISHED)))
                self._give_up_waiting(new)
                continue
            longest = max(map(len, self.stops), default=0)
            searched = max(len(self._text) - longest + 1, 0)
            self._text += new
            self._unread = []
            self._ends.append(len(self._text))
            found = [at for stop in self.stops if (at := self._text.find(stop, searched)) >= 0]
            if found:
                cut = min(found)
                num_tokens = next(i for i, end in enumerate(self._ends, 1) if end >= cut) if cut else 0
                return Stop(self._text[:cut], num_tokens)
        return None
