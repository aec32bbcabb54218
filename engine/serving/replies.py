"""Build response bodies in the API's format, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from engine.serving.ask import Ask
from engine.serving.token_names import TokenNames
from engine.serving.token_scores import TokenScore
from engine.serving.worker import Delta

_LEAST = -9999.0  # the API's value for probability 0: JSON has no infinity


class Replies:
    """Builds the bodies of one request's answer. The deltas of a choice must come in order."""

    def __init__(self, ask: Ask, model_name: str, names: TokenNames):
        self._ask, self._names = ask, names
        kind = ("chat.completion" if ask.is_chat else "text_completion") + (
            ".chunk" if ask.stream and ask.is_chat else ""
        )
        prefix = "chatcmpl" if ask.is_chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model_name,
        }
        self._length: dict[int, int] = {}  # length of a choice's text so far
        self._num_tokens = [0] * ask.num_choices

    @property
    def tells_usage(self) -> bool:
        """Return whether the client asked for `last_chunk`."""
        return self._ask.include_usage

    def choice(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a choice of a whole answer or of a chunk."""
        if not self._ask.max_tokens:  # one token was sampled to run the prompt
            delta = delta._replace(text="", scores=(), num_tokens=0, end="length")
        self._num_tokens[index] = delta.num_tokens
        begins = index not in self._length
        start = self._length.setdefault(index, 0)
        if self._ask.is_chat:
            said: dict[str, Any] = {"content": delta.text}
            if begins or not self._ask.stream:
                said = {"role": "assistant", **said, "refusal": None}
            logprobs = None if self._ask.num_top is None else self._chat_logprobs(delta.scores)
            name = "delta" if self._ask.stream else "message"
            return {"index": index, name: said, "logprobs": logprobs, "finish_reason": delta.end}
        echoed = self._echoed(index) if begins else ""
        logprobs = None if self._ask.num_top is None else self._logprobs(index, delta, begins, start)
        self._length[index] += len(echoed) + len(delta.text)
        return {"index": index, "text": echoed + delta.text, "logprobs": logprobs, "finish_reason": delta.end}

    def whole(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        return {**self._head, "choices": sorted(choices, key=lambda c: c["index"]), "usage": self._usage()}

    def chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a streamed event."""
        return {**self._head, "choices": [choice]} | ({"usage": None} if self._ask.include_usage else {})

    def last_chunk(self) -> dict[str, Any]:
        """Return the usage, streamed after all choices if asked for."""
        return {**self._head, "choices": [], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        prompt, new = sum(map(len, self._ask.prompts)), sum(self._num_tokens)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def _prompt_of(self, index: int) -> tuple[tuple[int, ...], str | None]:
        which = index // self._ask.n
        return self._ask.prompts[which], self._ask.texts[which]

    def _echoed(self, index: int) -> str:
        if not self._ask.echo:
            return ""
        tokens, text = self._prompt_of(index)
        return self._names.text(tokens) if text is None else text

    def _chat_logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            raw = list(self._names.bytes_of(token))
            return {"token": self._names.name(token), "logprob": max(logprob, _LEAST), "bytes": raw}

        content = [
            {**entry(s.token, s.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in s.top]}
            for s in scores
        ]
        return {"content": content, "refusal": None}

    def _logprobs(self, index: int, delta: Delta, begins: bool, start: int) -> dict[str, list[Any]]:
        tokens, scores = [s.token for s in delta.scores], [*delta.scores]
        offsets = self._names.offsets(tokens, start)
        if self._ask.echo and begins:
            prompt, _ = self._prompt_of(index)
            echoed = len(self._echoed(index))
            tokens, scores = [*prompt, *tokens], [None, *delta.prompt_scores, *scores]
            offsets = [*self._names.offsets(prompt, start), *(offset + echoed for offset in offsets)]
        return {
            "tokens": [self._names.name(token) for token in tokens],
            "token_logprobs": [s and max(s.logprob, _LEAST) for s in scores],
            "top_logprobs": [s and self._top(s) for s in scores] if self._ask.num_top else None,
            "text_offset": offsets,
        }

    def _top(self, score: TokenScore) -> dict[str, float]:
        """Return log-probabilities by token name, likeliest first, always with the token itself."""
        top: dict[str, float] = {}
        for token, logprob in (*score.top, (score.token, score.logprob)):
            top.setdefault(self._names.name(token), max(logprob, _LEAST))
        return top
