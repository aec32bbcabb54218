"""A server of a test in another thread, for blocking clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from aiohttp.test_utils import TestClient


@contextmanager
def in_another_thread(client: Callable[[], AbstractAsyncContextManager[TestClient]], path: str = "/") -> Iterator[str]:
    """Yield the URL of a path while `client()` is open in another thread."""
    address: list[str] = []
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with client() as opened:
            address.append(str(opened.make_url(path)))
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(30)
        yield address[0]
    finally:
        done.set()
        thread.join(30)
