"""Helpers: serve a model in the test's process with a client, or in a thread for blocking clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiohttp.test_utils import TestClient, TestServer

from engine.serving.app import Server, ServerSettings
from engine.serving.ask import AskReader, Limits
from launch.serve import Loaded
from tests.threads import in_another_thread

CHAT = {"messages": [{"role": "user", "content": "Say good morning"}], "max_tokens": 8}
TEXT = {"prompt": "Good morning", "max_tokens": 8}
NAME, MAX_OPEN = "small", 12


@asynccontextmanager
async def running(
    loaded: Loaded, max_open: int = MAX_OPEN, **settings: Any
) -> AsyncIterator[tuple[TestClient, Server]]:
    """Yield a client and a server of this model. The engine must be idle."""
    engine = loaded.engine
    limits = Limits(NAME, engine.model.vocab_size, engine.max_length, max_open, 16)
    server = Server(
        engine,
        loaded.tokenizer,
        AskReader(loaded.tokenizer, loaded.dialogs, limits),
        ServerSettings(max_open, **settings),
    )
    async with TestClient(TestServer(server.app())) as client:
        yield client, server


@contextmanager
def in_a_thread(loaded: Loaded, **settings: Any) -> Iterator[str]:
    """Yield the base URL of a server in another thread, for blocking clients."""

    @asynccontextmanager
    async def client() -> AsyncIterator[TestClient]:
        async with running(loaded, **settings) as (opened, _):
            yield opened

    with in_another_thread(client, "/v1") as url:
        yield url


def with_client(loaded: Loaded, test: Callable[[TestClient, Server], Any], **settings: Any) -> Any:
    """Run `test(client, server)` and check that it leaves no open request."""

    async def run() -> Any:
        async with running(loaded, **settings) as (client, server):
            try:
                result = await test(client, server)
            except AssertionError:
                if server.worker.failure:
                    raise server.worker.failure  # noqa: B904  the cause of the failed assertion
                raise
            await idle(server)
            return result

    return asyncio.run(run())


def served(test: Callable[[TestClient, Server], Any], **settings: Any) -> Callable[[Loaded], None]:
    """Turn a coroutine test(client, server) into a test with the fixture `loaded`."""

    def run(loaded: Loaded) -> None:
        with_client(loaded, test, **settings)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def idle(server: Server) -> None:
    """Wait until no request is open and all pages and slots are free. TimeoutError after 10 s."""
    engine = server.worker.engine
    pool = engine.scheduler.pool
    async with asyncio.timeout(10):
        while server._open or not engine.is_idle or len(engine.rows) or pool.num_free < pool.num_pages:
            await asyncio.sleep(0.01)


async def post(client: TestClient, path: str, body: Any, **how: Any) -> tuple[int, Any]:
    """Send a POST request and return (status, JSON)."""
    async with client.post(f"/v1/{path}", json=body, **how) as response:
        return response.status, await response.json()


async def events(client: TestClient, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the events of a streamed answer without the last one, which must be [DONE]."""
    async with client.post(f"/v1/{path}", json={**body, "stream": True}) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        text = await response.text()
    *lines, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]
