"""Rate limiting: requests and tokens per minute as the server counts them, and adaptive concurrency."""

from __future__ import annotations

import asyncio
import email.utils
import math
import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass


class Window:
    """Allows at most `limit` requests, or tokens, in any period of window_s, as the server counts them.

    An amount counts from before it is sent until window_s after its answer, because the server counts it at some time
    in between. Usage by others, as the headers report it, counts until the reset time they give. Starts are spread
    evenly, with bursts of up to one second's worth, because servers divide the minute into shorter periods.
    """

    def __init__(self, limit: int | None, window_s: float = 60.0) -> None:
        self.limit = limit
        self.window_s = window_s
        self._open = 0  # acquired and not yet answered
        self._closed: deque[tuple[float, int]] = deque()  # (end of counting, amount), sorted by end
        self._closed_sum = 0
        self._others: list[tuple[float, int]] = []  # (end of counting, amount): ends rise, amounts fall
        self._paced_s = -math.inf  # earliest time of the next start if starts were spaced evenly, without bursts

    def used(self, now_s: float) -> int:
        """Return the amount that counts against the limit now."""
        self._forget(now_s)
        return self._open + self._closed_sum + (self._others[0][1] if self._others else 0)

    def _forget(self, now_s: float) -> None:
        while self._closed and self._closed[0][0] <= now_s:
            self._closed_sum -= self._closed.popleft()[1]
        while self._others and self._others[0][0] <= now_s:
            del self._others[0]

    def wait_s(self, amount: int, now_s: float) -> float:
        """Return the seconds until `amount` may be acquired: 0 for now, inf if it depends on answers in flight."""
        if self.limit is None:
            return 0.0
        used = self.used(now_s)
        if used and used + amount > self.limit:  # an amount above the limit is allowed once nothing else counts
            ends_s = [entries[0][0] for entries in (self._closed, self._others) if entries]
            return min(ends_s, default=math.inf) - now_s
        return max(0.0, self._paced_s - self._burst_s() - now_s)

    def _burst_s(self) -> float:
        return min(1.0, self.window_s / 60)

    def acquire(self, amount: int, now_s: float) -> None:
        """Count `amount` from now on."""
        self._open += amount
        if self.limit:
            self._paced_s = max(self._paced_s, now_s) + amount * self.window_s / self.limit

    def release(self, taken: int, amount: int, now_s: float) -> None:
        """End a request that acquired `taken` and used `amount`. `amount` counts for one more period from now."""
        self._open -= taken
        if amount > 0:
            self._closed.append((now_s + self.window_s, amount))
            self._closed_sum += amount
        if self.limit:
            self._paced_s -= (taken - amount) * self.window_s / self.limit

    def learn(self, limit: int | None, remaining: int | None, reset_s: float | None, now_s: float) -> None:
        """Apply the limits of an answer's headers where they are stricter than the known ones."""
        if limit is not None and limit > 0 and (self.limit is None or limit < self.limit):
            self.limit = limit
        if self.limit is None or remaining is None or remaining < 0:
            return
        self._forget(now_s)
        others = self.limit - self._open - self._closed_sum - remaining
        until_s = now_s + min(self.window_s, reset_s if reset_s is not None else self.window_s)
        if others > 0 and not any(end >= until_s and amount >= others for end, amount in self._others):
            lasting = [(end, amount) for end, amount in self._others if end > until_s or amount > others]
            self._others = sorted([*lasting, (until_s, others)])


class Concurrency:
    """Limit on the requests in flight, by additive increase and multiplicative decrease.

    The first request runs alone, because its headers may contain the limits. Then the limit is `start` and doubles with
    each round of answers. Each overload halves it. After the first overload it grows by one per round.
    """

    def __init__(self, maximum: int, start: int = 16) -> None:
        self.limit = 1.0
        self.in_flight = 0
        self._maximum, self._start = maximum, min(start, maximum)
        self._doubles = True
        self._probing = True
        self._was_full = False
        self._halved_s = -math.inf

    def has_room(self) -> bool:
        """Return whether one more request may start."""
        has_room = self.in_flight < int(self.limit)
        self._was_full |= not has_room
        return has_room

    def record_success(self) -> None:
        """Raise the limit after an answer."""
        if self._probing:
            self._probing, self.limit = False, float(self._start)
        elif self._was_full:  # success below the limit does not show that the limit may grow
            self.limit = min(self._maximum, self.limit + (1 if self._doubles else 1 / self.limit))
            self._was_full = self.in_flight >= self.limit / 2

    def record_overload(self, sent_s: float, now_s: float) -> None:
        """Halve the limit after a 429, an overload or a timeout. Ignores requests sent before the last halving."""
        self._doubles = self._probing = False
        if sent_s > self._halved_s:
            self.limit = max(1.0, self.limit / 2)
            self._halved_s = now_s


@dataclass(frozen=True)
class Headers:
    """The limits in an answer's headers; None for a missing or invalid header.

    retry_after_s, reset_requests_s, reset_tokens_s   seconds from now
    """

    retry_after_s: float | None
    limit_requests: int | None
    limit_tokens: int | None
    remaining_requests: int | None
    remaining_tokens: int | None
    reset_requests_s: float | None
    reset_tokens_s: float | None


def read_headers(headers: Mapping[str, str]) -> Headers:
    """Read retry-after-ms, Retry-After (seconds or a date) and x-ratelimit-*. Limits of 0 or less are ignored."""

    def count(name: str, least: int) -> int | None:
        text = headers.get(f"x-ratelimit-{name}", "").strip()
        return int(text) if re.fullmatch(r"\d{1,15}", text) and int(text) >= least else None

    return Headers(
        retry_after_s=_retry_after(headers),
        limit_requests=count("limit-requests", 1),
        limit_tokens=count("limit-tokens", 1),
        remaining_requests=count("remaining-requests", 0),
        remaining_tokens=count("remaining-tokens", 0),
        reset_requests_s=parse_duration(headers.get("x-ratelimit-reset-requests", "")),
        reset_tokens_s=parse_duration(headers.get("x-ratelimit-reset-tokens", "")),
    )


_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = r"(\d+(?:\.\d+)?)(ms|h|m|s)"


def parse_duration(text: str) -> float | None:
    """Return the seconds of a text such as "6m0s", "20ms" or "1.5"; None for any other text."""
    text = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(f"({_PART})+", text):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(_PART, text))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    milliseconds = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
        return float(milliseconds) / 1000
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    until_s = _date_s(text)
    if until_s is None:
        return None
    now_s = _date_s(headers.get("date", ""))  # the server's clock, if it sends it
    return max(0.0, until_s - (now_s if now_s is not None else time.time()))


def _date_s(text: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError):
        return None


class Lane:
    """The limits of one endpoint and key."""

    def __init__(
        self, concurrency: int, requests_per_min: int | None, tokens_per_min: int | None, window_s: float
    ) -> None:
        self.concurrency = Concurrency(concurrency)
        self.requests = Window(requests_per_min, window_s)
        self.tokens = Window(tokens_per_min, window_s)
        self.paused_until_s = -math.inf

    def wait_s(self, tokens: int, now_s: float) -> float:
        """Return the seconds until a request of up to `tokens` tokens may start: inf if it must wait for an answer."""
        if not self.concurrency.has_room():
            return math.inf
        waits = (self.requests.wait_s(1, now_s), self.tokens.wait_s(tokens, now_s), self.paused_until_s - now_s)
        return max(0.0, *waits)

    def acquire(self, tokens: int, now_s: float) -> None:
        """Count a request that starts now."""
        self.concurrency.in_flight += 1
        self.requests.acquire(1, now_s)
        self.tokens.acquire(tokens, now_s)

    def release(self, taken_tokens: int, used_tokens: int, now_s: float) -> None:
        """Count the end of a request, successful or not."""
        self.concurrency.in_flight -= 1
        self.requests.release(1, 1, now_s)
        self.tokens.release(taken_tokens, used_tokens, now_s)

    def learn(self, headers: Headers, now_s: float) -> None:
        """Apply the limits in an answer's headers."""
        self.requests.learn(headers.limit_requests, headers.remaining_requests, headers.reset_requests_s, now_s)
        self.tokens.learn(headers.limit_tokens, headers.remaining_tokens, headers.reset_tokens_s, now_s)
        for window, remaining, reset_s in (
            (self.requests, headers.remaining_requests, headers.reset_requests_s),
            (self.tokens, headers.remaining_tokens, headers.reset_tokens_s),
        ):
            if window.limit is None and remaining == 0 and reset_s is not None:
                self.pause(min(reset_s, window.window_s), now_s)

    def pause(self, seconds: float, now_s: float) -> None:
        """Start no request for `seconds`."""
        self.paused_until_s = max(self.paused_until_s, now_s + seconds)


class Lanes:
    """Assigns each request to a free lane, first come first served."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def acquire(self, tokens: int) -> int:
        """Wait until a request of up to `tokens` tokens may start, and return the index of its lane."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, future))
        self.wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # a lane was assigned at the same moment: release it
                now_s = asyncio.get_running_loop().time()
                self.lanes[future.result()].release(tokens, 0, now_s)
            raise

    def wake(self) -> None:
        """Start all waiting requests that may start now. Call it after each request ends."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            tokens, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            now_s = loop.time()
            waits = [(lane.wait_s(tokens, now_s), lane.concurrency.in_flight, i) for i, lane in enumerate(self.lanes)]
            wait_s, _, chosen = min(waits)
            if wait_s > 0:
                if wait_s < math.inf:
                    self._timer = loop.call_later(wait_s, self.wake)
                return
            self._waiting.popleft()
            self.lanes[chosen].acquire(tokens, now_s)
            future.set_result(chosen)
