"""Malformed requests and clients that disconnect: the server answers in its format and stays healthy."""

from __future__ import annotations

import asyncio
import json
from random import Random

import aiohttp
import pytest

from launch.serve import ModelSettings, load
from tests.launch.serving import CHAT, TEXT, idle, post, with_client

JUNK = [
    *(None, True, -1, 0, 1, 2, 1 << 70, 1e308, -0.5, "", "x", "\x00\ud800", "नेपाली 😀", "a" * 5000),
    *([], [None], [[]], [[1, 2], "a"], [1, 400], {}, {"a": {}}, [{"role": "user"}], [{"role": 3, "content": []}]),
]
NAMES = (
    *("messages", "prompt", "model", "max_tokens", "max_completion_tokens", "n", "stop", "seed", "stream", "logprobs"),
    *(
        "top_logprobs",
        "echo",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "logit_bias",
    ),
    *("stream_options", "tools", "best_of", "suffix", "user", "surprise"),
)
GOOD = [
    ("chat/completions", CHAT),
    ("completions", TEXT),
    ("completions", {**TEXT, "echo": True, "logprobs": 3, "max_tokens": 0}),
    ("completions", {**TEXT, "prompt": [[5, 9], [7]], "n": 2, "stop": ["a", "\n"]}),
    ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2, "n": 2}),
]
STATUSES = {200, 400, 404, 405, 413, 429}
GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01",
    b"GET / HTTP/9\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"pro',
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
]


def malformed(rng: Random) -> tuple[str, bytes]:
    """Return (path, body) of a valid request with fields replaced, removed or added, or with damaged bytes."""
    path, body = rng.choice(GOOD)
    body = {**body, "stream": rng.random() < 0.4}
    for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 4))):
        name = rng.choice((*body, rng.choice(NAMES)))
        if rng.random() < 0.2:
            body.pop(name, None)
        else:
            body[name] = rng.choice(JUNK)
    data = json.dumps(body).encode()
    if rng.random() < 0.1:
        at = rng.randrange(len(data))
        data = rng.choice((data[:at], data[:at] + rng.randbytes(3) + data[at:], rng.randbytes(40), b"[" * 2000 + data))
    return rng.choice((path, path, path, path, path, "models", "nothing/../x")), data


async def ask(client, rng: Random, seen: dict[int, int]) -> None:
    """Send one request, then read the answer or disconnect."""
    if rng.random() < 0.05:
        await send_garbage(client, rng.choice(GARBAGE))
        return
    path, data = malformed(rng)
    leaves = rng.random()
    try:
        async with asyncio.timeout(rng.random() * 0.02 if leaves < 0.1 else 30):
            async with client.post(f"/v1/{path}", data=data) as response:
                seen[response.status] = seen.get(response.status, 0) + 1
                assert response.status in STATUSES, (response.status, data, await response.text())
                if leaves < 0.2:
                    await response.content.readany()
                    response.close()
                    return
                text = await response.text()
                if response.content_type == "text/event-stream":
                    assert text.endswith("data: [DONE]\n\n"), (data, text[-300:])
                elif response.status != 200:
                    assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, data
                else:
                    assert json.loads(text)["choices" if path != "models" else "data"], data
    except TimeoutError:
        assert leaves < 0.1, data
    except aiohttp.ClientConnectionError:
        assert leaves < 0.2, data


async def send_garbage(client, data: bytes) -> None:
    """Send bytes that are not a request, then close."""
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(data)
    await writer.drain()
    try:
        async with asyncio.timeout(0.05):
            answer = await reader.read(100)
        assert not answer or answer[:10] in (b"HTTP/1.1 4", b"HTTP/1.0 4"), answer
    except TimeoutError:
        pass
    writer.close()


def stays_healthy(folder, num_requests: int, at_once: int) -> None:
    loaded = load(ModelSettings(str(folder), template="plain", max_length=128, slots=6))
    seen: dict[int, int] = {}

    async def test(client, server):
        reference = {**TEXT, "seed": 4, "n": 2, "logprobs": 2}
        before = (await post(client, "completions", reference))[1]["choices"]
        left = iter(range(num_requests))

        async def one_client() -> None:
            for number in left:
                await ask(client, Random(number), seen)

        await asyncio.gather(*(one_client() for _ in range(at_once)))
        await idle(server)
        assert (await post(client, "completions", reference))[1]["choices"] == before
        async with client.get("/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        assert server._answering == 0

    with_client(loaded, test, max_open=40)
    assert seen[200] > num_requests / 8
    assert seen[400] > num_requests / 8


def test_300_malformed_requests(folder):
    stays_healthy(folder, 300, 16)


@pytest.mark.slow
def test_10_000_malformed_requests(folder):
    stays_healthy(folder, 10_000, 64)
