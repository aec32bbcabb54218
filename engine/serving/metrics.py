"""Server metrics in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# Upper bounds of the time buckets, in seconds.
_BOUNDS_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass
class Times:
    """A histogram of durations in seconds."""

    buckets: list[int] = field(default_factory=lambda: [0] * len(_BOUNDS_S))
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        for i, bound in enumerate(_BOUNDS_S):
            self.buckets[i] += seconds <= bound


@dataclass
class Metrics:
    """Counters of the HTTP server: answers by path and status, tokens, waiting times."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    disconnects: int = 0
    prompt_tokens: int = 0
    first_token: Times = field(default_factory=Times)
    whole: Times = field(default_factory=Times)

    def lines(self, counters: Mapping[str, float], gauges: Mapping[str, float]) -> str:
        """Render these counters and the engine's."""
        return "\n".join(self._lines(counters, gauges)) + "\n"

    def _lines(self, counters: Mapping[str, float], gauges: Mapping[str, float]) -> Iterator[str]:
        yield "# TYPE rlhf_http_answers_total counter"
        for (path, status), count in sorted(self.answers.items()):
            yield f'rlhf_http_answers_total{{path="{path}",status="{status}"}} {count}'
        own = {"disconnects_total": self.disconnects, "prompt_tokens_total": self.prompt_tokens}
        for kind, values in (("counter", own | dict(counters)), ("gauge", gauges)):
            for name, value in values.items():
                yield f"# TYPE rlhf_{name} {kind}"
                yield f"rlhf_{name} {value:.10g}"
        for name, times in (("first_token_seconds", self.first_token), ("answer_seconds", self.whole)):
            yield f"# TYPE rlhf_{name} histogram"
            for bound, count in zip(_BOUNDS_S, times.buckets):
                yield f'rlhf_{name}_bucket{{le="{bound:g}"}} {count}'
            yield f'rlhf_{name}_bucket{{le="+Inf"}} {times.count}'
            yield f"rlhf_{name}_sum {times.seconds:.6f}"
            yield f"rlhf_{name}_count {times.count}"
