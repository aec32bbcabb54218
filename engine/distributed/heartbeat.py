"""Find a rank that hangs: each rank tells the others every second what it does; a silent or late one is named.

Uses UDP, because a stopped rank blocks the collectives. Two rules: a rank that is silent for SILENT_S (or `timeout_s`,
if less) is stopped, dead or cut off. While phases are named (`at`), a run in which no rank has moved for `timeout_s`
hangs, and the rank in the earliest phase is named. A rank that was never heard is not judged, so a network without UDP
changes nothing.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

SILENT_S = 45.0
INTERVAL_S = 1.0
ALIVE, LEFT, FAILED = "alive", "left", "failed"
TEXT = 400  # characters of a phase or a mistake that are sent, to keep a datagram below about 1,500 bytes


@dataclass
class Peer:
    """The last known state of a rank; times by the observer's clock."""

    heard_at: float | None = None
    moved_at: float = 0.0
    moves: int = -1
    phase_number: int = 0
    phase: str | None = None
    waits: bool = False  # waits in a collective
    state: str = ALIVE
    mistake: str = ""


def verdict(peers: Sequence[Peer], me: int, now: float, timeout_s: float) -> tuple[list[int], str] | None:
    """Return the ranks that hang and the message; None while all is well. `peers` includes this rank."""
    here = {rank: p for rank, p in enumerate(peers) if p.state == ALIVE and p.heard_at is not None}
    silent = [rank for rank, p in here.items() if now - p.heard_at > min(timeout_s, SILENT_S)]
    if silent:
        seconds = min(now - here[rank].heard_at for rank in silent)
        return silent, (
            f"{_names(silent)} not been heard of for {seconds:.0f} s, last {_doing(here[silent[0]])}: its process is "
            "stopped or has died, or its machine is gone; look there, then continue with --resume"
        )
    still_s = min(now - p.moved_at for p in here.values())
    if peers[me].phase is None or still_s <= timeout_s:
        return None
    behind = min(p.phase_number for p in here.values())
    slow = [rank for rank, p in here.items() if p.phase_number == behind]
    slow = [rank for rank in slow if not here[rank].waits] or slow
    return slow, (
        f"{_names(slow)} not moved for {still_s:.0f} s, {_doing(here[slow[0]])}, and the others wait; "
        f"--hang-timeout is {timeout_s:g}: look at what it does there (py-spy dump), or raise the limit, then "
        "continue with --resume"
    )


def _names(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"


def _doing(peer: Peer) -> str:
    return f"in {peer.phase}" if peer.phase else "before or after training"


class Heartbeat:
    """Sends, listens and judges in its own thread; the main thread calls `at`, `tick` and `waits`."""

    def __init__(self, rank: int, size: int, host: str, timeout_s: float, end: Callable[[int], Any] = os._exit):
        """`host`: a name or address that all ranks reach; this rank is reached at the source address of packets to it.

        `end` ends the process with a status.
        """
        self.rank, self.timeout_s, self._exit = rank, timeout_s, end
        family, _, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            own = probe.getsockname()[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((own, 0))
        self.address = self._socket.getsockname()[:2]
        self.key = os.urandom(8).hex()
        self.peers = [Peer() for _ in range(size)]
        self._others: list[tuple[str, int]] = []
        self._moves = 0
        self._said: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, addresses: Sequence[tuple[str, int]], key: str) -> None:
        """Start, with the address of each rank and the first rank's key, which authenticates datagrams."""
        self._others = [tuple(a) for rank, a in enumerate(addresses) if rank != self.rank]
        self.key = key
        self._thread.start()

    def at(self, phase: str | None) -> None:
        """Name the current phase; None while progress is not judged. All ranks name the same phases."""
        me = self.peers[self.rank]
        me.phase, me.phase_number = phase, me.phase_number + 1
        self._moves += 1

    def tick(self) -> None:
        """Report progress of this rank."""
        self._moves += 1

    def waits(self, waits: bool) -> None:
        """Set whether this rank waits for others."""
        self.peers[self.rank].waits = waits
        self._moves += 1

    def leave(self) -> None:
        """Report that this rank is done, so that its silence is expected."""
        self.peers[self.rank].state = LEFT
        self._end()

    def fail(self, mistake: str, say: Callable[[], None]) -> None:
        """Report a user's mistake: the other ranks end, too. Calls `say` unless another rank has said the same."""
        me = self.peers[self.rank]
        me.mistake, me.state = mistake[:TEXT], FAILED
        deadline = time.monotonic() + (2 * INTERVAL_S if self.rank else 0.0)
        while time.monotonic() < deadline and me.mistake not in self._said:
            time.sleep(0.05)
        if me.mistake not in self._said:
            say()
            self._said.add(me.mistake)
        deadline = time.monotonic() + 5 * INTERVAL_S  # if this rank ended, the others' collectives would fail loudly
        while time.monotonic() < deadline and any(p.heard_at and p.state == ALIVE for p in self.peers):
            time.sleep(0.05)
        self._end()

    def _end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for _ in range(3):
            self._send()
        self._socket.close()

    def _run(self) -> None:
        interval = min(INTERVAL_S, self.timeout_s / 10)
        before = time.monotonic()
        while not self._ended.is_set():
            self._send()
            self._listen(time.monotonic() + interval)
            now = time.monotonic()
            if now - before > 3 * interval:  # this process itself was stopped or starved, so the others were not silent
                for peer in self.peers:
                    peer.heard_at = peer.heard_at and now
                    peer.moved_at = now
            before = now
            self._judge(now)

    def _send(self) -> None:
        me = self.peers[self.rank]
        said = me.mistake in self._said
        text = json.dumps(
            [self.key, self.rank, self._moves, me.phase_number, me.phase and me.phase[:TEXT], me.waits, me.state,
             me.mistake, said]
        ).encode()  # fmt: skip
        for address in self._others:
            try:
                self._socket.sendto(text, address)
            except OSError:  # no route now: the other rank sees silence
                continue

    def _listen(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0 and not self._ended.is_set():
            self._socket.settimeout(left)
            try:
                self._note(self._socket.recv(65536))
            except OSError:  # timeout, or an ICMP error from a peer that has ended
                continue

    def _note(self, text: bytes) -> None:
        try:
            key, rank, moves, number, phase, waits, state, mistake, said = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            return  # not from a rank
        if key != self.key or not 0 <= rank < len(self.peers) or rank == self.rank:
            return
        peer, now = self.peers[rank], time.monotonic()
        if moves != peer.moves:
            peer.moves, peer.moved_at = moves, now
        peer.heard_at, peer.phase_number, peer.phase, peer.waits = now, number, phase, waits
        peer.state, peer.mistake = state, mistake
        if said:
            self._said.add(mistake)

    def _judge(self, now: float) -> None:
        me = self.peers[self.rank]
        if me.state != ALIVE:
            return
        me.heard_at = now
        if me.moves != self._moves:
            me.moves, me.moved_at = self._moves, now
        if any(p.state == FAILED for p in self.peers):
            # This rank may be about to end for the same mistake, unless it waits for the failed one.
            until = now + (2 * INTERVAL_S if me.waits else 60.0)
            while me.state == ALIVE and time.monotonic() < until:
                time.sleep(0.05)
            if me.state == ALIVE:
                me.state = LEFT
                for _ in range(3):
                    self._send()
                self._exit(2)
            return
        found = verdict(self.peers, self.rank, now, self.timeout_s)
        if found is None:
            return
        ranks, line = found
        speaker = min((r for r, p in enumerate(self.peers) if r not in ranks and p.state == ALIVE), default=ranks[0])
        if speaker == self.rank:
            print(f"error: {line}", file=sys.stderr, flush=True)
        else:
            time.sleep(2 * INTERVAL_S)  # else a launcher might end the speaking rank too early
        self._exit(1)  # the main thread waits in a collective forever


def meet(rank: int, size: int, host: str, timeout_s: float, gather: Callable[[Any], list[Any]]) -> Heartbeat:
    """Start a heartbeat. `gather` is an all-gather of one item per rank; all ranks call this."""
    heartbeat = Heartbeat(rank, size, host, timeout_s)
    all_of = gather((heartbeat.address, heartbeat.key))
    heartbeat.start([address for address, _ in all_of], all_of[0][1])
    return heartbeat
