"""The thread that runs the model: it takes jobs from any thread and delivers new tokens after each step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.device import use
from engine.serving.live import BROKEN, Event, LiveEngine, LiveRequest
from engine.serving.text_stream import TextStream
from engine.serving.token_scores import TokenScore

FAILED = "failed"  # end of a response whose step raised an error


class Delta(NamedTuple):
    """The new part of a response: text, token scores if asked for, and how it ends, if it does.

    num_tokens counts all tokens sampled for it so far.
    """

    text: str
    scores: tuple[TokenScore, ...]
    prompt_scores: tuple[TokenScore, ...]
    num_tokens: int
    end: str | None


@dataclass(eq=False)
class Job:
    """A response to generate: `put` receives each delta if it streams, else one delta at the end."""

    request: LiveRequest
    text: TextStream
    streams: bool
    put: Callable[[Delta], None]
    num_tokens: int = 0
    _text: str = ""
    _scores: list[TokenScore] = field(default_factory=list)
    _num_scores_put: int = 0
    _prompt_scores: tuple[TokenScore, ...] = ()

    def take(self, event: Event) -> Delta | None:
        """Return the delta of an event, or None."""
        self.num_tokens += 1
        self._prompt_scores = self._prompt_scores or tuple(event.prompt_scores)
        if event.score is not None:
            self._scores.append(event.score)
        if event.end == BROKEN:
            return self.failed(BROKEN)
        # An EOS is not text: it decodes to nothing and cannot be part of a stop string.
        self._text += "" if event.end == "stop" else self.text.feed(event.token)
        end = "stop" if self.text.stop else event.end
        if end:
            self._text += self.text.finish()
        if end or (self.streams and self._text and not (self._scores and self.text.holds_back)):
            return self._delta(end)
        return None

    def failed(self, end: str) -> Delta:
        """Return the delta that ends a job without an answer."""
        return Delta("", (), (), self.num_tokens, end)

    def _delta(self, end: str | None) -> Delta:
        kept = self.text.stop.num_tokens if self.text.stop else len(self._scores)
        scores = tuple(self._scores[self._num_scores_put : kept])
        self._num_scores_put += len(scores)
        delta = Delta(self._text, scores, self._prompt_scores, self.num_tokens, end)
        self._text, self._prompt_scores = "", ()
        return delta


@dataclass
class Counts:
    """Counters of the worker; only its thread changes them."""

    steps: int = 0
    step_seconds: float = 0.0
    new_tokens: int = 0
    cancelled: int = 0


class Worker:
    """Runs from `start` to `stop`. `failure` is the error of a step, after which the worker and all jobs have ended."""

    def __init__(self, engine: LiveEngine, deliver: Callable[[list[tuple[Job, Delta]]], None]):
        """`deliver` is called after each step in the worker's thread; it passes each delta to the job's owner."""
        self.engine, self.counts = engine, Counts()
        self.failure: BaseException | None = None
        self._deliver = deliver
        self._changed = threading.Condition()
        self._inbox: deque[tuple[str, Sequence[Job]]] = deque()
        self._stopping = False
        self._job_of: dict[int, Job] = {}
        self._index_of: dict[Job, int] = {}
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step; open jobs get nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, from any thread. Neighbours with equal prompts share the prefill."""
        self._send("add", jobs)

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancel jobs, from any thread: after the current step they get nothing more."""
        self._send("cancel", jobs)

    def _send(self, what: str, jobs: Sequence[Job]) -> None:
        with self._changed:
            if self.failure is None:
                self._inbox.append((what, jobs))
                self._changed.notify()
                return
        if what == "add":
            self._deliver([(job, job.failed(FAILED)) for job in jobs])

    def _run(self) -> None:
        try:
            use(self.engine.device)
            while True:
                with self._changed:
                    while self.engine.is_idle and not self._inbox and not self._stopping:
                        self._changed.wait()
                    inbox, self._inbox = self._inbox, deque()
                if self._stopping:
                    return
                for what, jobs in inbox:
                    self._add(jobs) if what == "add" else self._cancel(jobs)
                if not self.engine.is_idle:
                    self._step()
        except BaseException as error:  # noqa: BLE001  kept, to be raised by whoever runs the server
            with self._changed:
                self.failure = error
                inbox = self._inbox
            left = [*self._index_of, *(job for what, jobs in inbox if what == "add" for job in jobs)]
            self._deliver([(job, job.failed(FAILED)) for job in left])

    def _add(self, jobs: Sequence[Job]) -> None:
        for index, job in zip(self.engine.add([job.request for job in jobs]), jobs):
            self._job_of[index], self._index_of[job] = job, index

    def _cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            index = self._index_of.pop(job, None)
            if index is not None:
                del self._job_of[index]
                self.engine.cancel(index)
                self.counts.cancelled += 1

    def _step(self) -> None:
        began = time.perf_counter()
        events, deltas = self.engine.advance(), []
        for event in events:
            job = self._job_of[event.index]
            delta = job.take(event)
            if delta is None:
                continue
            deltas.append((job, delta))
            if delta.end:
                del self._job_of[event.index], self._index_of[job]
                if not event.end:  # a stop string, which the engine does not know
                    self.engine.cancel(event.index)
        self.counts.steps += 1
        self.counts.new_tokens += len(events)
        self.counts.step_seconds += time.perf_counter() - began
        if deltas:  # last, so that delivered answers are already counted
            self._deliver(deltas)
