"""Shards of a sampling run: whatever a kill, a full disk or another writer does, whole responses are found again."""

from __future__ import annotations

import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.frames import pack_frame
from engine.generation.shards import (
    EOS,
    LENGTH,
    STOP,
    SavedResponse,
    Shard,
    Shards,
    remove_shards,
    shard_path,
    shard_paths,
)

RUN = {"seed": 1, "stop": None, "temperature": 0.1}
RESPONSES = [
    SavedResponse(0, 0, "", 1, EOS),
    SavedResponse(7, 1, "शुभ प्रभात\n\u2028", 9, LENGTH),
    SavedResponse(7, 0, "x" * 300, 12, STOP),
]


@pytest.fixture
def output(tmp_path):
    return tmp_path / "o[1].jsonl"


def fill(output, responses, rank=0, replaces=False):
    with Shard(output, rank, RUN, replaces) as shard:
        for response in responses:
            shard.append(response)
    return shard.path.read_bytes() if shard.path.exists() else b""


def held(output):
    shards = Shards(output)
    return {key: next(shards.read([key])) for key in shards.keys()}  # noqa: SIM118 (no mapping)


def by_key(responses):
    return {(r.prompt_id, r.sample_id): r for r in responses}


def test_shards_of_several_ranks_are_read_in_any_order(output):
    fill(output, RESPONSES[:1], rank=0, replaces=True)
    fill(output, RESPONSES[1:], rank=11)
    shards = Shards(output)
    assert [p.name for p in shard_paths(output)] == ["o[1].jsonl.rank0.part", "o[1].jsonl.rank11.part"]
    assert (len(shards), shards.damage) == (3, 0)
    assert [(first["run"], first["replaces"]) for first in shards.runs.values()] == [(RUN, True), (RUN, False)]
    wanted = [(7, 0), (0, 0), (7, 1)]
    assert list(shards.read(wanted)) == [by_key(RESPONSES)[key] for key in wanted]


@given(data=st.data())
def test_truncated_shard_keeps_whole_responses(data):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "o.jsonl")
        whole = fill(output, RESPONSES)
        ends, at = [], len(pack_frame({"t": "run", "v": 1, "run": RUN, "replaces": False}))
        for p, k, x, n, e in RESPONSES:
            at += len(pack_frame({"t": "response", "p": p, "k": k, "x": x, "n": n, "e": e}))
            ends.append(at)
        assert ends[-1] == len(whole)
        cut = data.draw(st.integers(0, len(whole)))
        shard_path(output, 0).write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        assert held(output) == by_key(RESPONSES[:kept])
        assert fill(output, RESPONSES[kept:]) == whole
        assert held(output) == by_key(RESPONSES)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_damaged_byte_loses_at_most_one_response(place, flip):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "o.jsonl")
        data = bytearray(fill(output, RESPONSES))
        first = len(pack_frame({"t": "run", "v": 1, "run": RUN, "replaces": False}))
        place = first + place % (len(data) - first)
        data[place] ^= flip
        shard_path(output, 0).write_bytes(data)
        shards = Shards(output)
        assert len(shards) == len(RESPONSES) - 1
        assert shards.damage > 0
        assert set(held(output).items()) <= set(by_key(RESPONSES).items())


def test_empty_shard_is_removed(output):
    fill(output, [])
    assert shard_paths(output) == []
    with pytest.raises(KeyboardInterrupt), Shard(output, 0, RUN):
        raise KeyboardInterrupt
    assert shard_paths(output) == []


def test_second_writer_is_refused(output):
    with Shard(output, 0, RUN) as shard:
        for forbidden in (lambda: Shard(output, 0, RUN), lambda: remove_shards(output)):
            with pytest.raises(UserError, match="is being written by another run: wait for it"):
                forbidden()
        shard.append(RESPONSES[0])
    assert held(output) == by_key(RESPONSES[:1])
    remove_shards(output)
    assert shard_paths(output) == []


def test_foreign_file_is_refused(output):
    path = shard_path(output, 0)
    whole = fill(output, RESPONSES)
    path.write_bytes(b"my notes, which are none of its business")
    with pytest.raises(UserError, match="is not a shard of a sampling run"):
        Shards(output)
    path.write_bytes(whole[10:])
    with pytest.raises(UserError, match="has lost its beginning: --overwrite"):
        Shards(output)
    path.write_bytes(pack_frame({"t": "run", "v": 2}))
    with pytest.raises(UserError, match="version 2, this program reads 1"):
        Shards(output)


def test_shard_changed_while_reading_is_detected(output):
    whole = fill(output, RESPONSES)
    shards = Shards(output)
    shard_path(output, 0).write_bytes(whole[:-1] + b"!")
    with pytest.raises(UserError, match="changed on the disk at byte"):
        list(shards.read([(0, 0), (7, 0)]))


@contextmanager
def disk_of(num_bytes):
    """No file may grow beyond this, as if the disk were full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_line(output):
    whole = fill(output, RESPONSES)
    remove_shards(output)
    for room in (5, len(whole) - 5):
        with disk_of(room), pytest.raises(UserError, match="make room; the same command then continues") as said:
            fill(output, RESPONSES)
        assert "\n" not in str(said.value)
    assert held(output) == by_key(RESPONSES[:2])
    assert fill(output, RESPONSES[2:]) == whole


@pytest.mark.parametrize(
    "odd",
    [{"t": "response"}, {"p": -1, "k": 0, "x": "", "n": 1, "e": EOS}, {"p": 0, "k": 0, "x": b"", "n": 1, "e": EOS}],
)
def test_valid_checksum_around_wrong_content(output, odd):
    whole = fill(output, RESPONSES)
    shard_path(output, 0).write_bytes(whole + pack_frame(odd))
    with pytest.raises(UserError, match=f"is not a shard of a sampling run at byte {len(whole)}: move it away"):
        Shards(output)
