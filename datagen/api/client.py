"""The API client: a request goes through limits, budget, attempts and back-off, to a reply that is in the journal."""

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
from datagen.api.journal import NOTHING, Journal, Tokens
from datagen.api.pricing import Ledger, token_bound
from datagen.api.rate_limits import Headers, Lane, Lanes, read_headers
from datagen.api.settings import ApiSettings, Endpoint
from engine.base.errors import UserError

MAX_BODY_BYTES = 16 * 2**20
MAX_RETRY_AFTER_S = 3600.0
_OTHER_FILES = 64
# So many requests got no answer, and none got one: it is not the requests, it is the settings.
HOPELESS_AFTER = 20


@dataclass
class Counts:
    """What happened so far in this run. retries: by reason, without what differs from case to case."""

    asked: int = 0
    on_their_way: int = 0
    tokens: Tokens = NOTHING
    retries: Counter[str] = field(default_factory=Counter)


class Client:
    """Asks until there is an answer; use it as an async context manager."""

    def __init__(
        self, settings: ApiSettings, endpoints: list[Endpoint], journal: Journal, rng: random.Random | None = None
    ) -> None:
        """rng: draws the jitter of the back-off. UserError for a budget without a price, or too few files."""
        _allow_connections(settings.concurrency * len(endpoints))
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
        # Connections are bounded by the lanes; cookies and redirects could carry things between hosts.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            auto_decompress=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def complete(self, request: Request, leaving: Callable[[bool], None] = lambda _: None) -> Reply:
        """The reply, which is in the journal when this returns.

        leaving: told True before an attempt is sent, and False when it ended without a reply; in between, cancelling
        would lose what may be paid for.
        Unanswered for a request that gets no answer (the journal keeps the reason), UserError where none will get one.
        """
        body, bound = request.body(), token_bound(request)
        reason = ""
        for attempt in range(self._settings.max_attempts):
            outcome, lane = await self._attempt(request, body, bound, leaving)
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
        if self._unanswered >= HOPELESS_AFTER and not self._was_answered:
            advice = "check the settings, then run again with --retry-quarantined"
            raise UserError(f"none of {self._unanswered} requests was answered, the last one: {reason}: {advice}")
        raise Unanswered(reason)

    async def _attempt(
        self, request: Request, body: bytes, bound: Tokens, leaving: Callable[[bool], None]
    ) -> tuple[Outcome, Lane]:
        loop = asyncio.get_running_loop()
        await self.ledger.hold(bound)
        try:
            index = await self._lanes.take(sum(bound))
        except asyncio.CancelledError:
            self.ledger.release(bound)
            raise
        lane, endpoint = self._lanes.lanes[index], self._endpoints[index]
        used = sum(bound)
        leaving(True)
        self.counts.on_their_way += 1
        try:
            number = await self._journal.sent(bound)
            sent_s = loop.time()
            outcome, headers = await self._post(endpoint, body, request)
            if headers is not None:
                lane.learn(headers, loop.time())
            if isinstance(outcome, TryAgain) and outcome.overloaded:
                lane.concurrency.overloaded(sent_s, loop.time())
            elif not isinstance(outcome, TryAgain):
                lane.concurrency.succeeded()
            used = await self._settle(number, request, outcome, bound)
        finally:
            self.counts.on_their_way -= 1
            lane.give_back(sum(bound), used, loop.time())
            self.ledger.release(bound)
            self._lanes.wake()
        if not isinstance(outcome, Reply):
            leaving(False)
        return outcome, lane

    async def _settle(self, number: int, request: Request, outcome: Outcome, bound: Tokens) -> int:
        """Writes down what an attempt has cost; the number of tokens that the server counts."""
        if isinstance(outcome, Reply):
            tokens = Tokens(outcome.prompt_tokens, outcome.completion_tokens)
            await self._journal.put(request.key, outcome, number)
            self.counts.asked += 1
        else:
            tokens = NOTHING if isinstance(outcome, Fatal) else outcome.tokens
            if tokens is None:
                self.ledger.lost(bound)
                return sum(bound)
            self._journal.closed(number, tokens)
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
            return Fatal(f"{endpoint.host} shows a certificate that is not trusted: check --base-url"), None
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
            return TryAgain(f"cannot connect: {_os_reason(error)}"), None
        except TimeoutError as error:
            phase = "first byte" if isinstance(error, aiohttp.SocketTimeoutError) else "total"
            return TryAgain(f"timeout ({phase})", tokens=None, overloaded=True), None
        except (aiohttp.ClientError, OSError) as error:
            # The exception's own text is not shown: it may hold headers.
            return TryAgain(f"connection lost: {type(error).__name__}", tokens=None), None
        if answer is None:
            return TryAgain(f"malformed answer: above {MAX_BODY_BYTES >> 20} MiB", tokens=None), headers
        return read_response(status, answer, request, endpoint, headers.retry_after_s), headers

    async def _back_off(self, attempt: int, outcome: TryAgain, lane: Lane) -> None:
        """Sleeps: exponentially longer, with jitter; at least as long as the API asks, which holds for the lane."""
        after_s = outcome.retry_after_s
        if after_s is not None and after_s > MAX_RETRY_AFTER_S:
            hours = f"{after_s / 3600:.1f} hours"
            raise UserError(f"the API asks to come back in {hours} ({outcome.reason}): run again then")
        ceiling_s = min(self._settings.max_backoff_s, self._settings.backoff_s * 2**attempt)
        delay_s = ceiling_s * self._rng.uniform(0.5, 1.0)
        if after_s is not None:
            lane.pause(after_s, asyncio.get_running_loop().time())
            delay_s = after_s + self._settings.backoff_s * self._rng.uniform(0.0, 1.0)
        await asyncio.sleep(delay_s)


def _allow_connections(count: int) -> None:
    """Raises the process's soft limit on open files where it would not do. UserError where the hard one does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(f"{count} requests at once need {needed} open files, {hard} are allowed: lower --concurrency")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def _read_body(response: aiohttp.ClientResponse) -> bytes | None:
    """The whole body, or None where it is too long to be an answer."""
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
