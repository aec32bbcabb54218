"""Report on the judge: position bias, length bias, ties, and agreement with its own second ranking."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any


@dataclass
class RankReport:
    """Counts over ranked records. A pair is two distinct responses of one record.

    shown, best, expected    per position, A first: records that have this position; how often its response had rank 1
                             (a tie of n counts 1/n); the same without bias
    first_wins               untied pairs in which the response shown first won; half of them without bias
    longer_wins              pairs in which the longer response won, out of longer_pairs (untied, different lengths)
    again_*                  records ranked a second time in reverse order: their number; their pairs; pairs with the
                             same relation (>, = or <); pairs with the opposite relation; again_failed: records without
                             a valid second ranking
    """

    records: int = 0
    pairs: int = 0
    ties: int = 0
    first_wins: int = 0
    longer_wins: int = 0
    longer_pairs: int = 0
    again_records: int = 0
    again_failed: int = 0
    again_pairs: int = 0
    again_same: int = 0
    again_opposite: int = 0
    shown: list[int] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one row of `rank`: responses, ranks, shown, and ranks_again if it was ranked twice."""
        shown, ranks, again = row["shown"], row["ranks"], row.get("ranks_again")
        self.records += 1
        self._add_positions(shown, ranks)
        for earlier, later in itertools.combinations(shown, 2):
            longer = len(row["responses"][earlier]) - len(row["responses"][later])
            self._add_pair(_relation(ranks, earlier, later), longer)
            if again is not None:
                relation = _relation(ranks, earlier, later)
                self.again_pairs += 1
                self.again_same += relation == _relation(again, earlier, later)
                self.again_opposite += relation * _relation(again, earlier, later) < 0
        self.again_records += again is not None
        self.again_failed += again is None and "ranks_again" in row

    def _add_positions(self, shown: Sequence[int], ranks: Sequence[int]) -> None:
        winners = [position for position, k in enumerate(shown) if ranks[k] == 1]
        while len(self.shown) < len(shown):
            self.shown.append(0)
            self.best.append(0.0)
            self.expected.append(0.0)
        for position in range(len(shown)):
            self.shown[position] += 1
            self.best[position] += (position in winners) / len(winners)
            self.expected[position] += 1 / len(shown)

    def _add_pair(self, relation: int, longer: int) -> None:
        self.pairs += 1
        self.ties += relation == 0
        self.first_wins += relation > 0
        self.longer_pairs += relation != 0 and longer != 0
        self.longer_wins += relation * longer > 0

    def lines(self) -> list[str]:
        """Return the report as lines for the console."""
        positions = [
            f"{name} {_share(best, shown)} ({_share(expected, shown)})"
            for name, best, expected, shown in zip(ascii_uppercase, self.best, self.expected, self.shown)
        ]
        lines = [
            f"{self.records:,} records ranked, {self.pairs:,} pairs, {_share(self.ties, self.pairs)} of them ties",
            f"position: the best was at {', '.join(positions)}; in brackets: without bias",
            f"position: the response shown first won {_share(self.first_wins, self.pairs - self.ties)} of the pairs",
            f"length: the longer response won {_share(self.longer_wins, self.longer_pairs)} of the pairs",
        ]
        if self.again_records:
            same, opposite = _share(self.again_same, self.again_pairs), _share(self.again_opposite, self.again_pairs)
            records = f"agreement: {self.again_records:,} records ranked again in reverse order"
            lines.append(f"{records}: {same} of the pairs unchanged, {opposite} reversed")
        if self.again_failed:
            lines.append(f"agreement: {self.again_failed:,} more records gave no valid second ranking")
        return lines


def _relation(ranks: Sequence[int], a: int, b: int) -> int:
    """Return 1 if a is better, -1 if b is better, 0 for a tie."""
    return (ranks[a] < ranks[b]) - (ranks[a] > ranks[b])


def _share(part: float, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
