"""The HTTP server: OpenAI's routes over one worker, streaming, limits, a bearer token, health and metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web
from transformers import PreTrainedTokenizerFast

from engine.serving.ask import Ask, AskReader, Reader
from engine.serving.errors import ApiError, bad_request
from engine.serving.live import BROKEN, LiveEngine, LiveRequest
from engine.serving.metrics import Metrics
from engine.serving.replies import Replies
from engine.serving.text_stream import TextStream
from engine.serving.token_names import TokenNames
from engine.serving.worker import FAILED, Delta, Job, Worker

_SECONDS_TO_SEND = 60.0  # a client that needs longer to send its body or read a chunk is disconnected
_POLL_S = 0.05


@dataclass(frozen=True)
class ServerSettings:
    """max_open limits running plus waiting choices; api_key None allows every client."""

    max_open: int
    max_body_bytes: int = 1 << 20
    api_key: str | None = None


class Server:
    """Serves one model. Use `app` once, inside a running event loop; call `drain` before shutdown."""

    def __init__(
        self, engine: LiveEngine, tokenizer: PreTrainedTokenizerFast, reader: AskReader, settings: ServerSettings
    ):
        self._loop = asyncio.get_running_loop()
        self.worker = Worker(engine, lambda deltas: self._loop.call_soon_threadsafe(_put, deltas))
        self.metrics = Metrics()
        self._tokenizer, self._reader, self._settings = tokenizer, reader, settings
        self._names, self._created = TokenNames(tokenizer), int(time.time())
        self._draining = False
        self._open: set[Job] = set()
        self._answering = 0
        # One thread: long prompts do not block the event loop, and tokenizers are not thread-safe.
        self._readers = ThreadPoolExecutor(1, "reader")

    def app(self) -> web.Application:
        """Return the application; its start-up starts the worker, its clean-up stops it."""
        app = web.Application(
            middlewares=[self._count, self._form_errors, self._check_key], client_max_size=self._settings.max_body_bytes
        )
        app.add_routes([
            web.post("/v1/chat/completions", lambda request: self._complete(request, self._reader.chat)),
            web.post("/v1/completions", lambda request: self._complete(request, self._reader.completion)),
            web.get("/v1/models", self._models),
            web.get("/v1/models/{name:.+}", self._model),
            web.get("/health", self._health),
            web.get("/metrics", self._show_metrics),
        ])  # fmt: skip
        app.cleanup_ctx.append(self._running)
        return app

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for open ones. Returns whether all were answered in time."""
        self._draining = True
        end = time.monotonic() + seconds
        while self._answering and time.monotonic() < end:
            await asyncio.sleep(_POLL_S)
        return not self._answering

    async def _running(self, app: web.Application) -> AsyncIterator[None]:
        self.worker.start()
        yield
        await asyncio.to_thread(self.worker.stop)
        self._readers.shutdown(cancel_futures=True)

    @web.middleware
    async def _count(self, request: web.Request, handler) -> web.StreamResponse:
        began = time.monotonic()
        response = await handler(request)
        route = request.match_info.route.resource
        self.metrics.answers[route.canonical if route else "none", response.status] += 1
        if request.method == "POST" and response.status == 200:
            self.metrics.whole.add(time.monotonic() - began)
        return response

    @web.middleware
    async def _form_errors(self, request: web.Request, handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ApiError as error:
            return _error(error)
        except web.HTTPException as error:
            about = {
                404: f"there is nothing at {request.path[:100]}",
                405: f"{request.path[:100]} does not take {request.method}",
                413: f"the body is longer than {self._settings.max_body_bytes:,} bytes: send less",
            }
            return _error(ApiError(error.status, about.get(error.status, error.reason)))

    @web.middleware
    async def _check_key(self, request: web.Request, handler) -> web.StreamResponse:
        key = self._settings.api_key
        if key is not None and request.path != "/health":
            given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
            if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), key.encode()):
                raise ApiError(401, "the Authorization header holds no valid key", code="invalid_api_key")
        return await handler(request)

    async def _complete(self, request: web.Request, read: Reader) -> web.StreamResponse:
        if self._draining or self.worker.failure:
            raise ApiError(503, "the server is shutting down", retry_after_s=10)
        self._answering += 1
        try:
            try:
                async with asyncio.timeout(_SECONDS_TO_SEND):
                    body = await request.read()
            except TimeoutError as error:
                raise ApiError(408, f"the body did not come within {_SECONDS_TO_SEND:.0f} s") from error
            except web.RequestPayloadError as error:
                raise bad_request(f"the body cannot be read: {' '.join(str(error).split())}") from error
            ask = await self._loop.run_in_executor(self._readers, read, body)
            async with self._deltas(ask) as deltas:
                replies = Replies(ask, self._reader.limits.model_name, self._names)
                return await (self._stream(request, deltas, replies) if ask.stream else self._whole(deltas, replies))
        finally:
            self._answering -= 1

    @asynccontextmanager
    async def _deltas(self, ask: Ask) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
        """Yield (choice, delta) as they come, until all choices have ended. On exit, open choices are cancelled."""
        if len(self._open) + ask.num_choices > self._settings.max_open:
            raise ApiError(
                429, f"{len(self._open)} responses are open, at most {self._settings.max_open} may be: come back later",
                code="rate_limit_exceeded", retry_after_s=1,
            )  # fmt: skip
        queue: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        jobs = [self._job(ask, index, queue) for index in range(ask.num_choices)]
        self._open |= set(jobs)
        self.metrics.prompt_tokens += sum(map(len, ask.prompts))
        began, left = time.monotonic(), set(range(len(jobs)))

        async def deltas() -> AsyncIterator[tuple[int, Delta]]:
            is_first = True
            while left:
                index, delta = await queue.get()
                if is_first and ask.stream:
                    self.metrics.first_token.add(time.monotonic() - began)
                is_first = False
                if delta.end:
                    left.discard(index)
                    self._open.discard(jobs[index])
                if delta.end == BROKEN:
                    raise ApiError(500, "the model's probabilities are no numbers: its weights are damaged", code="nan")
                if delta.end == FAILED:
                    raise ApiError(500, "the model failed in a step, the server ends", code="step_failed")
                yield index, delta

        self.worker.submit(jobs)
        try:
            yield deltas()
        finally:
            self._open -= set(jobs)
            if left:
                self.worker.cancel([jobs[index] for index in left])

    def _job(self, ask: Ask, index: int, queue: asyncio.Queue[tuple[int, Delta]]) -> Job:
        request = LiveRequest(
            ask.prompts[index // ask.n], ask.seed, index, max(ask.max_tokens, 1), ask.min_tokens,
            sampling=ask.sampling, num_top=ask.num_top, score_prompt=ask.echo and ask.num_top is not None,
        )  # fmt: skip
        text = TextStream(self._tokenizer, ask.stops)
        return Job(request, text, ask.stream, lambda delta: queue.put_nowait((index, delta)))

    async def _whole(self, deltas: AsyncIterator[tuple[int, Delta]], replies: Replies) -> web.Response:
        return web.json_response(replies.whole([replies.choice(index, delta) async for index, delta in deltas]))

    async def _stream(
        self, request: web.Request, deltas: AsyncIterator[tuple[int, Delta]], replies: Replies
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})

        async def send(event: str) -> None:
            async with asyncio.timeout(_SECONDS_TO_SEND):
                await response.write(f"data: {event}\n\n".encode())

        try:
            async for index, delta in deltas:
                if not response.prepared:  # not earlier: an immediate failure has its own status
                    await response.prepare(request)
                await send(json.dumps(replies.chunk(replies.choice(index, delta))))
            if replies.tells_usage:
                await send(json.dumps(replies.last_chunk()))
            await send("[DONE]")
            await response.write_eof()
        except ApiError as error:
            if not response.prepared:
                raise
            await send(json.dumps(error.body))
            await response.write_eof()
        except (ConnectionError, TimeoutError):
            self.metrics.disconnects += 1
        except asyncio.CancelledError:
            self.metrics.disconnects += 1
            raise
        return response

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._about_model()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self._reader.limits.model_name:
            raise ApiError(404, "there is no model of this name here", "model", "model_not_found")
        return web.json_response(self._about_model())

    def _about_model(self) -> dict[str, object]:
        limits = self._reader.limits
        about = {"id": limits.model_name, "object": "model", "created": self._created, "owned_by": "local"}
        return {**about, "max_model_len": limits.max_length}

    async def _health(self, request: web.Request) -> web.Response:
        state = "failed" if self.worker.failure else "draining" if self._draining else "ok"
        return web.json_response({"status": state}, status=200 if state == "ok" else 503)

    async def _show_metrics(self, request: web.Request) -> web.Response:
        engine, counts = self.worker.engine, self.worker.counts
        pool, rows = engine.scheduler.pool, len(engine.rows)
        counters = {
            "steps_total": counts.steps,
            "step_seconds_total": counts.step_seconds,
            "new_tokens_total": counts.new_tokens,
            "prompt_tokens_run_total": engine.prompt_tokens_run,
            "cancelled_total": counts.cancelled,
        }
        gauges = {
            "decoding": rows,
            "open": len(self._open),
            "cache_pages": pool.num_pages,
            "cache_pages_free": pool.num_free,
        }
        return web.Response(
            text=self.metrics.lines(counters, gauges), headers={"Content-Type": "text/plain; version=0.0.4"}
        )


def _put(deltas: list[tuple[Job, Delta]]) -> None:
    for job, delta in deltas:
        job.put(delta)


def _error(error: ApiError) -> web.Response:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return web.json_response(error.body, status=error.status, headers=headers)
