"""The API client: send a request within limits and budget, retry with back-off, journal the reply."""

from __future__ import annotations

import asyncio
import random
import resource
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from datagen.api.answers import Fatal, Outcome, Refused, TryAgain, read_response
from datagen.api.chat import Reply, Request, Unanswered
from datagen.api.journal import NO_TOKENS, Journal, Tokens
from datagen.api.pricing import Ledger, token_bound
from datagen.api.rate_limits import Headers, Lane, Lanes, read_headers
from datagen.api.settings import ApiSettings, Endpoint
from engine.base.errors import UserError

MAX_BODY_BYTES = 16 * 2**20
MAX_RETRY_AFTER_S = 3600.0
_SPARE_FILES = 64
# If this many requests fail before any succeeds, the settings are wrong, not the requests.
GIVE_UP_AFTER_UNANSWERED = 20


@dataclass
class Counts:
    """Counters of the current run. retries: count per reason, cut at the first colon."""

    asked: int = 0
    in_flight: int = 0
    tokens: Tokens = NO_TOKENS
    retries: Counter[str] = field(default_factory=Counter)


class Client:
    """Sends requests and retries them until they are answered. Use it as an async context manager."""

    def __init__(
        self, settings: ApiSettings, endpoints: list[Endpoint], journal: Journal, rng: random.Random | None = None
    ) -> None:
        """rng: draws the back-off jitter. UserError for a budget without a price or a low open-file limit."""
        _raise_file_limit(settings.concurrency * len(endpoints))
        self.counts = Counts()
        self.ledger = Ledger(settings, journal)
        self._settings = settings
        self._endpoints = endpoints
        self._journal = journal
        self._rng = rng or random.Random()
        self._timeout = aiohttp.ClientTimeout(
            total=settings.total_timeout_s,
            sock_connect=settings.connect_timeout_s,
            sock_read=settings.first_byte_timeout_s,
        )
        limits = (settings.concurrency, settings.requests_per_min, settings.tokens_per_min, settings.window_s)
        self._lanes = Lanes([Lane(*limits) for _ in endpoints])
        self._was_answered = False
        self._unanswered = 0

    async def __aenter__(self) -> Client:
        # The lanes bound the connections. Cookies (and redirects, see _post) could carry data between hosts.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def complete(self, request: Request, set_in_flight: Callable[[bool], None] = lambda _: None) -> Reply:
        """Return the reply, after writing it to the journal.

        set_in_flight: called with True before an attempt is sent and with False when it ends without a reply. Do not
            cancel in between: the answer may already be charged.
        Raises Unanswered if this request gets no answer (the journal keeps the reason), UserError if no request will.
        """
        body, bound = request.body(), token_bound(request)
        reason = ""
        for attempt in range(self._settings.max_attempts):
            outcome, lane = await self._attempt(request, body, bound, set_in_flight)
            if isinstance(outcome, Reply):
                self._was_answered = True
                return outcome
            if isinstance(outcome, Fatal):
                raise UserError(outcome.reason)
            if isinstance(outcome, Refused):
                reason = outcome.reason
                break
            reason = f"gave up after {attempt + 1} attempts: {outcome.reason}"
            self.counts.retries[outcome.reason.split(":")[0]] += 1
            if attempt + 1 < self._settings.max_attempts:
                await self._back_off(attempt, outcome, lane)
        await self._journal.put_refusal(request.key, reason)
        self._unanswered += 1
        if self._unanswered >= GIVE_UP_AFTER_UNANSWERED and not self._was_answered:
            advice = "check the settings, then run again with --retry-quarantined"
            raise UserError(f"none of {self._unanswered} requests was answered; last error: {reason}: {advice}")
        raise Unanswered(reason)

    async def _attempt(
        self, request: Request, body: bytes, bound: Tokens, set_in_flight: Callable[[bool], None]
    ) -> tuple[Outcome, Lane]:
        loop = asyncio.get_running_loop()
        await self.ledger.reserve(bound)
        try:
            index = await self._lanes.acquire(sum(bound))
        except asyncio.CancelledError:
            self.ledger.release(bound)
            raise
        lane, endpoint = self._lanes.lanes[index], self._endpoints[index]
        used = sum(bound)
        set_in_flight(True)
        self.counts.in_flight += 1
        try:
            number = await self._journal.begin_attempt(bound)
            sent_s = loop.time()
            outcome, headers = await self._post(endpoint, body, request)
            if headers is not None:
                lane.learn(headers, loop.time())
            if isinstance(outcome, TryAgain) and outcome.overloaded:
                lane.concurrency.record_overload(sent_s, loop.time())
            elif not isinstance(outcome, TryAgain):
                lane.concurrency.record_success()
            used = await self._settle(number, request, outcome, bound)
        finally:
            self.counts.in_flight -= 1
            lane.release(sum(bound), used, loop.time())
            self.ledger.release(bound)
            self._lanes.wake()
        if not isinstance(outcome, Reply):
            set_in_flight(False)
        return outcome, lane

    async def _settle(self, number: int, request: Request, outcome: Outcome, bound: Tokens) -> int:
        """Record the cost of an attempt and return the number of tokens the server counts for it."""
        if isinstance(outcome, Reply):
            tokens = Tokens(outcome.prompt_tokens, outcome.completion_tokens)
            await self._journal.put(request.key, outcome, number)
            self.counts.asked += 1
        else:
            tokens = NO_TOKENS if isinstance(outcome, Fatal) else outcome.tokens
            if tokens is None:
                self.ledger.add_unsettled(bound)
                return sum(bound)
            self._journal.end_attempt(number, tokens)
        self.counts.tokens += tokens
        return sum(tokens)

    async def _post(self, endpoint: Endpoint, body: bytes, request: Request) -> tuple[Outcome, Headers | None]:
        try:
            async with self._session.post(
                endpoint.url, data=body, headers=endpoint.headers, proxy=endpoint.proxy, allow_redirects=False
            ) as response:
                headers = read_headers(response.headers)
                answer = await _read_body(response)
                status = response.status
        except aiohttp.ConnectionTimeoutError:
            return TryAgain("timeout while connecting", overloaded=True), None
        except aiohttp.ClientConnectorCertificateError:
            return Fatal(f"{endpoint.host} has an untrusted certificate: check --base-url"), None
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            return TryAgain(f"cannot connect: {_os_reason(error)}"), None
        except TimeoutError as error:
            phase = "first byte" if isinstance(error, aiohttp.SocketTimeoutError) else "total"
            return TryAgain(f"timeout ({phase})", tokens=None, overloaded=True), None
        except (aiohttp.ClientError, OSError) as error:
            # Do not show the exception's text: it may contain headers.
            return TryAgain(f"connection lost: {type(error).__name__}", tokens=None), None
        if answer is None:
            return TryAgain(f"malformed answer: above {MAX_BODY_BYTES >> 20} MiB", tokens=None), headers
        return read_response(status, answer, request, endpoint, headers.retry_after_s), headers

    async def _back_off(self, attempt: int, outcome: TryAgain, lane: Lane) -> None:
        """Sleep with exponential back-off and jitter. A Retry-After sets the minimum and pauses the whole lane."""
        after_s = outcome.retry_after_s
        if after_s is not None and after_s > MAX_RETRY_AFTER_S:
            hours = f"{after_s / 3600:.1f} hours"
            raise UserError(f"the API asks to wait {hours} ({outcome.reason}): run again after that")
        ceiling_s = min(self._settings.max_backoff_s, self._settings.backoff_s * 2**attempt)
        delay_s = ceiling_s * self._rng.uniform(0.5, 1.0)
        if after_s is not None:
            lane.pause(after_s, asyncio.get_running_loop().time())
            delay_s = after_s + self._settings.backoff_s * self._rng.uniform(0.0, 1.0)
        await asyncio.sleep(delay_s)


def _raise_file_limit(count: int) -> None:
    """Raise the soft limit on open files if it is too low. UserError if the hard limit is too low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        limits = f"{needed} open files, the limit is {hard}"
        raise UserError(f"{count} concurrent requests need {limits}: lower --concurrency")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _read_body(response: aiohttp.ClientResponse) -> bytes | None:
    """Return the complete body, or None if it exceeds MAX_BODY_BYTES."""
    parts, size = [], 0
    while part := await response.content.readany():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            response.close()
            return None
    return b"".join(parts)


def _os_reason(error: Exception) -> str:
    cause = getattr(error, "os_error", None)
    return (cause.strerror if cause is not None else None) or type(error).__name__
