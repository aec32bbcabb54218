"""Helpers for tests of the API client: fast settings, simple work functions, an event loop with a virtual clock."""

from __future__ import annotations

import asyncio
import json
import selectors
from pathlib import Path
from typing import Any

from datagen.api.chat import Rejected
from datagen.api.settings import ApiSettings
from datagen.run.runner import Summary, run
from datagen.translation.answer_json import parse_answer_object


def quick_settings(*urls: str, **changes: Any) -> ApiSettings:
    """Return settings for a local server: back-off in milliseconds, timeouts below half a second."""
    quick = {"backoff_s": 0.002, "max_backoff_s": 0.01, "concurrency": 8, "max_tokens": 64, "model": "gpt-4o-mini"}
    timeouts = {"connect_timeout_s": 0.3, "first_byte_timeout_s": 0.3, "total_timeout_s": 0.4}
    return ApiSettings(**{"base_urls": urls, "key_variables": ("TEST_API_KEY",), **quick, **timeouts, **changes})


def echo(messages, seed=0) -> str:
    """Answer with a JSON object that contains the last message."""
    return json.dumps({"answer": messages[-1]["content"], "turns": len(messages)})


async def ask_twice(record, ask) -> list[dict]:
    """Work function of two turns: the second repeats the first answer. Answers must be JSON objects with both keys."""
    messages = [{"role": "user", "content": f"say {record['n']}"}]
    replies = []
    for turn in range(2):
        reply = await ask(messages, temperature=0)
        if reply.finish_reason != "stop":
            raise Rejected(f"finish_reason is {reply.finish_reason}", reply)
        try:
            answer = parse_answer_object(reply.text)
        except ValueError as error:
            raise Rejected(f"no JSON object: {error}", reply) from None
        if set(answer) != {"answer", "turns"}:
            raise Rejected(f"keys {sorted(answer)}", reply)
        replies.append(answer["answer"])
        messages += [
            {"role": "assistant", "content": reply.text},
            {"role": "user", "content": f"and {turn} {record['n']}"},
        ]
    return [{"n": record["n"], "replies": replies}]


async def ask_once(record, ask) -> list[dict]:
    """Work function of one turn."""
    reply = await ask([{"role": "user", "content": f"say {record['n']}"}])
    return [{"n": record["n"], "text": reply.text}]


def numbers(count: int) -> list[dict]:
    """Return the records {"n": 0}, {"n": 1}, ..."""
    return [{"n": n} for n in range(count)]


async def run_in(folder: Path, records, work, settings: ApiSettings, **more: Any) -> Summary:
    """Call `run` with its three files in a folder."""
    return await run(
        records, work, settings, folder / "journal", folder / "out.jsonl", folder / "quarantine.jsonl", **more
    )


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a JSON Lines file, or [] if it does not exist."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class _Jump(selectors.SelectSelector):
    """A selector that moves the loop's clock forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "deadlock: all tasks wait, and no timer is set"
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock that jumps to the next timer."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jump.now_s


def run_virtually(coroutine) -> Any:
    """Like asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
