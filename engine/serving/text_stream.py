"""Stream a response's text: send what is certain, hold back what may become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from engine.generation.stop_strings import Stop, StopMatcher


class TextStream:
    """Follows one response. `stop` is set when its text contains a stop string, which ends it.

    Held back: bytes of an incomplete character, and the longest end of the text that starts a stop string.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stops: Sequence[str] = ()):
        self._matcher = StopMatcher(tokenizer, stops)
        self._sent = 0
        self.stop: Stop | None = None

    def feed(self, token: int) -> str:
        """Feed a token; return the new text that is certain. Do not feed after a stop."""
        assert self.stop is None
        self.stop = self._matcher.feed([token])
        return self._send(self.stop.text if self.stop else self._certain())

    def finish(self) -> str:
        """Return the rest of the text, after the last token."""
        return self._send(self.stop.text if self.stop else self._matcher.whole_text())

    @property
    def holds_back(self) -> bool:
        """Return whether some text is held back."""
        return self.stop is None and self._sent < len(self._matcher.whole_text())

    def _certain(self) -> str:
        text = self._matcher.text
        longest = max(map(len, self._matcher.stops), default=1)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._matcher.stops):
                return text[:-length]
        return text

    def _send(self, text: str) -> str:
        new, self._sent = text[self._sent :], max(len(text), self._sent)
        return new
