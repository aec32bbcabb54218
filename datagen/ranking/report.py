"""What rankings say about the one who made them: favoured places, favoured lengths, ties, and agreement with itself."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any


@dataclass
class RankReport:
    """Counts over ranked records; pairs are of distinct responses of one record.

    best, expected    for each place, A first: how often the response there had rank 1, a tie of n counting 1/n, and how
                      often without bias; shown: in how many records there was such a place
    first_wins        pairs without a tie that the response shown earlier won: half of them without bias
    longer_wins       pairs of different lengths, without a tie, that the longer response won, of longer_pairs
    again_*           of records that were ranked again in the opposite order: how many; their pairs; pairs with the
                      same relation (>, = or <); pairs that turned round; again_failed had no second verdict
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
        """Counts one row of `rank`: responses, ranks, shown, and ranks_again where it was ranked twice."""
        shown, ranks, again = row["shown"], row["ranks"], row.get("ranks_again")
        self.records += 1
        self._add_places(shown, ranks)
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

    def _add_places(self, shown: Sequence[int], ranks: Sequence[int]) -> None:
        winners = [place for place, k in enumerate(shown) if ranks[k] == 1]
        while len(self.shown) < len(shown):
            self.shown.append(0)
            self.best.append(0.0)
            self.expected.append(0.0)
        for place in range(len(shown)):
            self.shown[place] += 1
            self.best[place] += (place in winners) / len(winners)
            self.expected[place] += 1 / len(shown)

    def _add_pair(self, relation: int, longer: int) -> None:
        self.pairs += 1
        self.ties += relation == 0
        self.first_wins += relation > 0
        self.longer_pairs += relation != 0 and longer != 0
        self.longer_wins += relation * longer > 0

    def lines(self) -> list[str]:
        """The shares, for a person."""
        places = [
            f"{name} {_share(best, shown)} ({_share(expected, shown)})"
            for name, best, expected, shown in zip(ascii_uppercase, self.best, self.expected, self.shown)
        ]
        lines = [
            f"{self.records:,} records ranked, {self.pairs:,} pairs, {_share(self.ties, self.pairs)} of them ties",
            f"position: the best stood at {', '.join(places)}; in brackets: without bias",
            f"position: the one shown first won {_share(self.first_wins, self.pairs - self.ties)} of the pairs",
            f"length: the longer one won {_share(self.longer_wins, self.longer_pairs)} of the pairs",
        ]
        if self.again_records:
            same, opposite = _share(self.again_same, self.again_pairs), _share(self.again_opposite, self.again_pairs)
            told = f"agreement: {self.again_records:,} records ranked again in the opposite order"
            lines.append(f"{told}: {same} of the pairs as before, {opposite} the other way round")
        if self.again_failed:
            lines.append(f"agreement: {self.again_failed:,} more gave no second ranking")
        return lines


def _relation(ranks: Sequence[int], a: int, b: int) -> int:
    """1 where a is better, -1 where b is, 0 for a tie."""
    return (ranks[a] < ranks[b]) - (ranks[a] > ranks[b])


def _share(part: float, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
