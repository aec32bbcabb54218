"""Stop strings: telling from the tokens of a response, as they come, when its text holds one, and where to cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from engine.base.errors import UserError
from engine.text.tokenizer import decode

UNFINISHED = "\ufffd"  # what bytes that are no character yet decode to
_WAIT_TOKENS = 4  # a character has at most four bytes, so that after as many tokens the first no longer waits for it


class Stop(NamedTuple):
    """text is what comes before the stop string, num_tokens how many tokens hold it: the last may hold more."""

    text: str
    num_tokens: int


class StopMatcher:
    """Follows one response. Only what is new is decoded, so that a token of a long response costs no more.

    A stop string may begin and end within tokens and spread over several. A character whose bytes are not all there yet
    is waited for. Raises UserError for an empty stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str]):
        if not all(stops):
            raise UserError("a stop string is empty: every response would end before it began, leave it out")
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self._text = ""
        self._ends: list[int] = []  # how much of the text the tokens up to each one make
        self._unread: list[int] = []

    @property
    def text(self) -> str:
        """What the tokens so far make, but for an unfinished character at its end."""
        return self._text

    def whole_text(self) -> str:
        """What the tokens so far make, when no more will come."""
        return self._text + decode(self.tokenizer, self._unread)

    def _give_up_waiting(self, new: str) -> None:
        """Read the tokens, out of many that end in no character, whose text the latest ones can no longer change."""
        for cut in range(len(self._unread) - _WAIT_TOKENS, 0, -1):
            head = decode(self.tokenizer, self._unread[:cut])
            if head + decode(self.tokenizer, self._unread[cut:]) == new:
                self._text += head
                self._unread = self._unread[cut:]
                return

    def feed(self, tokens: Sequence[int]) -> Stop | None:
        """Take the response's next tokens; the stop whose string begins first, if they complete one.

        Once there is one, the matcher has done its work and is not fed again.
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
