"""How fast requests may leave: limits a minute that are never passed, and a concurrency that yields to overload."""

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
    """At most `limit` requests, or tokens, within any period of window_s, as the server counts them.

    What is taken counts from before it is sent until window_s after its answer came: the moment at which the server
    counted it lies in between. What the server counts besides (headers tell) counts until the reset it names. The
    starts are spread evenly, with bursts of a second's worth: servers cut the minute into shorter periods.
    """

    def __init__(self, limit: int | None, window_s: float = 60.0) -> None:
        self.limit = limit
        self.window_s = window_s
        self._open = 0  # taken, and not answered yet
        self._closed: deque[tuple[float, int]] = deque()  # (until when it counts, how much), in order of time
        self._closed_sum = 0
        self._told: list[tuple[float, int]] = []  # (until when, how much), later and less from one to the next
        self._paced_s = -math.inf  # the clock if every start had waited its turn

    def used(self, now_s: float) -> int:
        """What counts against the limit."""
        self._forget(now_s)
        return self._open + self._closed_sum + (self._told[0][1] if self._told else 0)

    def _forget(self, now_s: float) -> None:
        while self._closed and self._closed[0][0] <= now_s:
            self._closed_sum -= self._closed.popleft()[1]
        while self._told and self._told[0][0] <= now_s:
            del self._told[0]

    def wait_s(self, amount: int, now_s: float) -> float:
        """How long until so much may be taken: 0 for now, inf while it depends on answers on their way."""
        if self.limit is None:
            return 0.0
        used = self.used(now_s)
        if used and used + amount > self.limit:  # one above the limit by itself leaves alone
            ends_s = [entries[0][0] for entries in (self._closed, self._told) if entries]
            return min(ends_s, default=math.inf) - now_s
        return max(0.0, self._paced_s - self._burst_s() - now_s)

    def _burst_s(self) -> float:
        return min(1.0, self.window_s / 60)

    def take(self, amount: int, now_s: float) -> None:
        """Counts it from now on."""
        self._open += amount
        if self.limit:
            self._paced_s = max(self._paced_s, now_s) + amount * self.window_s / self.limit

    def give_back(self, taken: int, amount: int, now_s: float) -> None:
        """It was answered: `taken` were set aside, `amount` were used, and count for one period from now on."""
        self._open -= taken
        if amount > 0:
            self._closed.append((now_s + self.window_s, amount))
            self._closed_sum += amount
        if self.limit:
            self._paced_s -= (taken - amount) * self.window_s / self.limit

    def learn(self, limit: int | None, remaining: int | None, reset_s: float | None, now_s: float) -> None:
        """Takes over what an answer's headers say, where it is stricter than what is known."""
        if limit is not None and limit > 0 and (self.limit is None or limit < self.limit):
            self.limit = limit
        if self.limit is None or remaining is None or remaining < 0:
            return
        self._forget(now_s)
        others = self.limit - self._open - self._closed_sum - remaining
        until_s = now_s + min(self.window_s, reset_s if reset_s is not None else self.window_s)
        if others > 0 and not any(end >= until_s and amount >= others for end, amount in self._told):
            lasting = [(end, amount) for end, amount in self._told if end > until_s or amount > others]
            self._told = sorted([*lasting, (until_s, others)])


class Concurrency:
    """Additive increase, multiplicative decrease of the requests on their way at once.

    One request goes ahead alone, since its headers may tell the limits; then the number doubles with every round of
    answers until the first overload, which halves it; from then on it grows by one a round.
    """

    def __init__(self, most: int, start: int = 16) -> None:
        self.limit = 1.0
        self.on_their_way = 0
        self._most, self._start = most, min(start, most)
        self._doubles = True
        self._probing = True
        self._was_full = False
        self._halved_s = -math.inf

    def has_room(self) -> bool:
        """Whether one more may leave."""
        has_room = self.on_their_way < int(self.limit)
        self._was_full |= not has_room
        return has_room

    def succeeded(self) -> None:
        """An answer came."""
        if self._probing:
            self._probing, self.limit = False, float(self._start)
        elif self._was_full:  # a limit that is not reached says nothing
            self.limit = min(self._most, self.limit + (1 if self._doubles else 1 / self.limit))
            self._was_full = self.on_their_way >= self.limit / 2

    def overloaded(self, sent_s: float, now_s: float) -> None:
        """A 429, an overload or a timeout; halves once for all that were sent before the last time it did."""
        self._doubles = self._probing = False
        if sent_s > self._halved_s:
            self.limit = max(1.0, self.limit / 2)
            self._halved_s = now_s


@dataclass(frozen=True)
class Headers:
    """What an answer's headers say about limits; None where they say nothing that makes sense.

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
    """Reads retry-after-ms, Retry-After (seconds or a date) and x-ratelimit-*. Limits of 0 or below mean nothing."""

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
    """Seconds of "6m0s", "20ms", "1.5"; None for anything else."""
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
    now_s = _date_s(headers.get("date", ""))  # the server's own clock, where it tells it
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
        """How long until a request that may need so many tokens may leave: 0 for now, inf for "after an answer"."""
        if not self.concurrency.has_room():
            return math.inf
        waits = (self.requests.wait_s(1, now_s), self.tokens.wait_s(tokens, now_s), self.paused_until_s - now_s)
        return max(0.0, *waits)

    def take(self, tokens: int, now_s: float) -> None:
        """A request leaves."""
        self.concurrency.on_their_way += 1
        self.requests.take(1, now_s)
        self.tokens.take(tokens, now_s)

    def give_back(self, taken_tokens: int, used_tokens: int, now_s: float) -> None:
        """It ended, in whatever way."""
        self.concurrency.on_their_way -= 1
        self.requests.give_back(1, 1, now_s)
        self.tokens.give_back(taken_tokens, used_tokens, now_s)

    def learn(self, headers: Headers, now_s: float) -> None:
        """Takes over what the headers of an answer say."""
        self.requests.learn(headers.limit_requests, headers.remaining_requests, headers.reset_requests_s, now_s)
        self.tokens.learn(headers.limit_tokens, headers.remaining_tokens, headers.reset_tokens_s, now_s)
        for window, remaining, reset_s in (
            (self.requests, headers.remaining_requests, headers.reset_requests_s),
            (self.tokens, headers.remaining_tokens, headers.reset_tokens_s),
        ):
            if window.limit is None and remaining == 0 and reset_s is not None:
                self.pause(min(reset_s, window.window_s), now_s)

    def pause(self, seconds: float, now_s: float) -> None:
        """Nothing leaves for so long."""
        self.paused_until_s = max(self.paused_until_s, now_s + seconds)


class Lanes:
    """Hands requests to the lane that is free, first come first served."""

    def __init__(self, lanes: list[Lane]) -> None:
        self.lanes = lanes
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, tokens: int) -> int:
        """The number of the lane that a request which may need so many tokens leaves by, once it may."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, future))
        self.wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was let go in the same moment
                now_s = asyncio.get_running_loop().time()
                self.lanes[future.result()].give_back(tokens, 0, now_s)
            raise

    def wake(self) -> None:
        """Lets go whatever may go now; to be called whenever a request ended."""
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
            waits = [
                (lane.wait_s(tokens, now_s), lane.concurrency.on_their_way, i) for i, lane in enumerate(self.lanes)
            ]
            wait_s, _, chosen = min(waits)
            if wait_s > 0:
                if wait_s < math.inf:
                    self._timer = loop.call_later(wait_s, self.wake)
                return
            self._waiting.popleft()
            self.lanes[chosen].take(tokens, now_s)
            future.set_result(chosen)
