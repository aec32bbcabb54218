"""Helpers: answers to rank, and a client of the page's server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from datagen.annotation.app import Annotation
from datagen.annotation.journal import Journal
from datagen.annotation.prompts import read_prompts

ROWS = [
    {"id": "ar", "instruction": "ما هي عاصمة المغرب؟", "input": "", "responses": ["الرباط", "الدار البيضاء", "فاس"]},
    {"id": "ne", "instruction": "राजधानी", "input": "नेपाल", "responses": ["काठमाडौं", "पोखरा", "काठमाडौं", ""]},
    {
        "id": "talk",
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3 + 3?"},
        ],
        "responses": ["6", "7"],
    },
]


def write_answers(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write the rows as the responses of launch/sample.py and return the file."""
    path = folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@asynccontextmanager
async def serving(folder: Path, seed: int = 0, api_key: str | None = None) -> AsyncIterator[TestClient]:
    """Serve the answers in the folder; a new server reads the journal again."""
    prompts, _ = read_prompts(folder / "responses.jsonl")
    with Journal(folder / "out.jsonl.judgements.jsonl") as journal:
        async with TestClient(TestServer(Annotation(prompts, journal, seed, api_key).app())) as client:
            yield client


def with_client(folder: Path, test: Callable[[TestClient], Any], **how: Any) -> Any:
    """Run a coroutine test(client) against a server of its own."""

    async def run() -> Any:
        async with serving(folder, **how) as client:
            return await test(client)

    return asyncio.run(run())


async def prompt(client: TestClient, annotator: str, **query: Any) -> dict[str, Any]:
    """Return a prompt as the page gets it."""
    async with client.get("/api/prompt", params={"annotator": annotator, **query}) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def judge(
    client: TestClient, seen: dict[str, Any], kind: str = "rank", **said: Any
) -> tuple[int, dict[str, Any]]:
    """Judge a prompt as the page does. Give `by_text` {answer: rank} instead of `ranks` in the order shown."""
    body = {name: seen[name] for name in ("annotator", "key", "shown")}
    body |= {"kind": kind, "revision": seen["revision"] + 1}
    if by_text := said.pop("by_text", None):
        body["ranks"] = [by_text[text] for text in seen["answers"]]
    async with client.post("/api/judge", json={**body, **said}) as response:
        return response.status, await response.json()
