"""The simulator: a local OpenAI-compatible server with plausible answers and, on request, faults and rate limits."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import email.utils
import hashlib
import json
import os
import random
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datagen.api.chat import Message
from datagen.api.pricing import estimate_prompt_tokens, estimate_tokens
from datagen.simulate.answers import simulated_answer
from datagen.simulate.faults import FAULTS, Response, completion, error_response, parse_faults
from engine.base.errors import UserError

_MAX_HEAD_BYTES = 2**16
_DRIP_S = 0.02


@dataclass
class Counts:
    """Counters of the server.

    answers          hash of a request -> the number of usable answers sent for it: what a client pays for
    over_limit       requests that arrived while a limit was used up
    on_their_way     requests in flight now; most_on_their_way is the maximum so far
    """

    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    over_limit: int = 0
    on_their_way: int = 0
    most_on_their_way: int = 0


class _Limit:
    """A limit on the amount in any window, by the arrival times of requests. None: no limit."""

    def __init__(self, limit: int | None, window_s: float) -> None:
        self.limit, self.window_s = limit, window_s
        self._taken: deque[list[float]] = deque()  # [time, amount]; the amount is corrected once the usage is known

    def remaining(self, now_s: float) -> int:
        while self._taken and self._taken[0][0] <= now_s - self.window_s:
            self._taken.popleft()
        return int((self.limit or 0) - sum(amount for _, amount in self._taken))

    def take(self, amount: int, now_s: float) -> list[float]:
        self._taken.append([now_s, amount])
        return self._taken[-1]

    def reset_s(self, now_s: float) -> float:
        return max(0.0, self._taken[0][0] + self.window_s - now_s) if self._taken else 0.0


class Simulator:
    """An HTTP server on 127.0.0.1, as an async context manager. `url` is its --base-url.

    faults: name (see simulate/faults.py) -> share of the requests. The fault of a request depends on the seed, the
    request and the number of its earlier attempts, not on its arrival time. Limits apply to each key. A request counts
    when it arrives, with the tokens of its prompt plus max_tokens; the answer corrects this to the tokens used.
    """

    def __init__(
        self,
        port: int = 0,
        faults: Mapping[str, float] | None = None,
        requests_per_min: int | None = None,
        tokens_per_min: int | None = None,
        latency_s: float = 0.0,
        seed: int = 0,
        window_s: float = 60.0,
        answer: Callable[[Sequence[Message], int], str] = simulated_answer,
    ) -> None:
        self.counts = Counts()
        self._port = port
        self._faults = dict(faults or {})
        self._limits = (requests_per_min, tokens_per_min)
        self._latency_s, self._seed, self._window_s = latency_s, seed, window_s
        self._answer = answer
        self._by_key: dict[str, tuple[_Limit, _Limit]] = {}
        self._asked: Counter[str] = Counter()
        self._connections: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """The --base-url for clients."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> Simulator:
        try:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, backlog=4096)
        except OSError as error:
            reason = os.strerror(error.errno)
            raise UserError(f"cannot listen on --port {self._port} ({reason}): choose another") from error
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection stays open."""
        request_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.counts.on_their_way += 1
        self.counts.most_on_their_way = max(self.counts.most_on_their_way, self.counts.on_their_way)
        try:
            response, content_key = self._respond(request_line, headers.get("authorization", ""), body)
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            if response.is_answered and content_key:
                self.counts.answers[content_key] += 1
            return await _send(response, writer)
        finally:
            self.counts.on_their_way -= 1

    def _respond(self, request_line: str, authorization: str, body: bytes) -> tuple[Response, str]:
        method, path, *_ = [*request_line.split(" "), "", ""]
        if path == "/counts":
            return Response(200, json.dumps(vars(self.counts)).encode()), ""
        if method != "POST" or not path.endswith("/chat/completions"):
            return error_response(404, "not_found", "only POST .../chat/completions is here"), ""
        try:
            asked = json.loads(body)
            messages, max_tokens = (
                asked["messages"],
                int(asked.get("max_tokens", asked.get("max_completion_tokens", 16))),
            )
        except (ValueError, KeyError, TypeError):
            return error_response(400, "invalid_request_error", "the body is no chat request"), ""
        self.counts.requests += 1
        content_key = hashlib.blake2b(body, digest_size=16).hexdigest()
        attempt = self._asked[content_key]
        self._asked[content_key] += 1
        stream = f"{self._seed}/{content_key}/{attempt}"
        return self._respond_within_limits(authorization, messages, max_tokens, stream), content_key

    def _respond_within_limits(self, key: str, messages: list[Message], max_tokens: int, stream: str) -> Response:
        now_s = asyncio.get_running_loop().time()
        requests, tokens = self._by_key.setdefault(key, tuple(_Limit(n, self._window_s) for n in self._limits))
        prompt_tokens = estimate_prompt_tokens(messages)
        taken = None
        if requests.limit is not None and requests.remaining(now_s) < 1:
            return self._over_limit(requests, now_s)
        if tokens.limit is not None and tokens.remaining(now_s) < min(prompt_tokens + max_tokens, tokens.limit):
            return self._over_limit(tokens, now_s)
        requests.take(1, now_s)
        taken = tokens.take(prompt_tokens + max_tokens, now_s)
        text = self._answer(messages, self._seed)
        completion_tokens = min(estimate_tokens(text), max_tokens)
        taken[1] = prompt_tokens + completion_tokens
        body = json.dumps(completion(text, prompt_tokens, completion_tokens)).encode()
        good = Response(200, body, _limit_headers(requests, tokens, now_s))
        draw = random.Random(stream).random()
        for name, share in self._faults.items():
            draw -= share
            if draw < 0:
                self.counts.faults[name] += 1
                return FAULTS[name](good)
        return good

    def _over_limit(self, limit: _Limit, now_s: float) -> Response:
        self.counts.over_limit += 1
        wait_ms = str(int(limit.reset_s(now_s) * 1000) + 1)
        return error_response(429, "rate_limit_exceeded", "a limit is used up", retry_after_ms=wait_ms)


def _limit_headers(requests: _Limit, tokens: _Limit, now_s: float) -> dict[str, str]:
    headers = {}
    for name, limit in (("requests", requests), ("tokens", tokens)):
        if limit.limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = str(limit.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, limit.remaining(now_s)))
            headers[f"x-ratelimit-reset-{name}"] = f"{limit.reset_s(now_s):.3f}s"
    return headers


async def _send(response: Response, writer: asyncio.StreamWriter) -> bool:
    """Send the response, with its delivery fault if it has one. Returns whether the connection stays open."""
    headers = {"content-type": "application/json", "date": email.utils.formatdate(usegmt=True), **response.headers}
    headers["content-length"] = str(len(response.body))
    lines = [f"HTTP/1.1 {response.status} Simulated", *(f"{name}: {value}" for name, value in headers.items())]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    half = response.body[: len(response.body) // 2]
    if response.delivery == "hang":
        await asyncio.Event().wait()
    if response.delivery == "drip":
        writer.write(head)
        for byte in response.body[:-1]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(_DRIP_S)
        await asyncio.Event().wait()
    sent = {"reset_before": b"", "reset_headers": head, "reset_half": head + half, "short_close": head + half}
    writer.write(sent.get(response.delivery, head + response.body))
    await writer.drain()
    if response.delivery.startswith("reset"):
        if response.delivery != "reset_before":
            await asyncio.sleep(0.01)  # a reset discards data that the client has not read yet
        with contextlib.suppress(OSError):  # the client may have closed first
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return response.delivery == "whole"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `python -m datagen simulate`."""
    parser.add_argument("--port", type=int, default=8080, metavar="N", help="on 127.0.0.1; 0 picks a free port (8080)")
    parser.add_argument("--faults", default="", metavar="LIST", help="for example 429:0.1,hang:0.01")
    parser.add_argument("--rpm", type=int, metavar="N", help="requests per minute and key (no limit)")
    parser.add_argument("--tpm", type=int, metavar="N", help="tokens per minute and key (no limit)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="S", help="seconds before an answer (0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of answers and faults (0)")


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve_forever(args))


async def _serve_forever(args: argparse.Namespace) -> None:
    limits = args.rpm, args.tpm
    async with Simulator(args.port, parse_faults(args.faults), *limits, args.latency, args.seed) as simulator:
        counts = f"{simulator.url.removesuffix('v1')}counts"
        print(f"--base-url {simulator.url}    counters: {counts}    stop with Ctrl-C", flush=True)
        await asyncio.Event().wait()
