"""The journal: damage loses only the damaged frames; one writer; a full disk; the cost of attempts."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.api import journal as journal_module
from datagen.api.chat import Reply
from datagen.api.journal import Journal, Tokens
from engine.base.errors import UserError
from engine.base.frames import MAGIC, pack_frame, scan_frames

BOUND = Tokens(100, 50)
LEAVES = st.one_of(st.integers(0, 2**40), st.text(max_size=40), st.binary(max_size=9))
VALUES = st.dictionaries(st.text(max_size=5), LEAVES)


def reply(text, tokens=(3, 4)):
    return Reply(text, "stop", *tokens)


def write(path, texts):
    """Write a journal with one answer per text, keyed by its number. Returns its bytes."""

    async def go():
        journal = Journal(path)
        for number, text in enumerate(texts):
            await journal.put(bytes([number]) * 16, reply(text), await journal.begin_attempt(BOUND))
        await journal.close()

    asyncio.run(go())
    return path.read_bytes()


def read(path):
    """Return a journal's answers (number -> text), damage, paid tokens and number of unsettled attempts."""
    journal = Journal(path)
    texts = {n: answer.text for n in range(50) if (answer := journal.answer(bytes([n]) * 16))}
    result = texts, journal.damage, journal.paid, len(journal.unsettled)
    journal.release()
    return result


@given(st.lists(VALUES, max_size=5), st.binary(max_size=30))
def test_frames_are_found_between_other_bytes(values, junk):
    frames = b"".join(map(pack_frame, values))
    found = [payload for _, _, payload in scan_frames(junk + frames + junk) if payload is not None]
    assert found == values
    assert sum(length for _, length, _ in scan_frames(junk + frames + junk)) == len(junk + frames + junk)


def test_payload_never_contains_the_magic():
    assert MAGIC[0] == 0xFF
    assert pack_frame({"x": MAGIC.decode("latin-1") * 3}).count(MAGIC) == 1


def test_answers_round_trip(tmp_path):
    write(tmp_path / "j", ["one", "दुई", "3" * 100_000])
    assert read(tmp_path / "j") == ({0: "one", 1: "दुई", 2: "3" * 100_000}, [], (9, 12), 0)


def test_truncation_at_every_byte_of_the_last_frame(tmp_path):
    path = tmp_path / "j"
    data = write(path, ["first", "second", "third"])
    *_, (last, length, _) = scan_frames(data)
    for end in range(last, len(data)):
        path.write_bytes(data[:end])
        texts, damage, paid, unsettled = read(path)
        assert texts == {0: "first", 1: "second"}
        assert [tuple(d) for d in damage] == ([(last, end - last)] if end > last else [])
        # The third attempt was sent but has no end: it may have been charged.
        assert (paid, unsettled) == ((6, 8), 1)
    assert length > 50


def test_frames_after_a_torn_frame_are_found(tmp_path):
    path = tmp_path / "j"
    data = write(path, ["first", "second"])
    path.write_bytes(data[:-7])
    write(path, ["again"])
    texts, damage, _, _ = read(path)
    assert texts == {0: "again"}
    assert len(damage) == 1


def test_bit_flip_loses_one_frame(tmp_path):
    path = tmp_path / "j"
    data = write(path, ["first", "second", "third"])
    frames = [(offset, length, payload) for offset, length, payload in scan_frames(data)]
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        texts, damage, _, _ = read(path)
        offset, length, payload = next(f for f in frames if f[0] <= position < f[0] + f[1])
        assert [tuple(d) for d in damage] == [(offset, length)], position
        kept = {0: "first", 1: "second", 2: "third"}
        if payload["t"] == "answer":
            del kept[payload["k"][0]]
        assert texts == kept, position


def test_later_answer_replaces_earlier_answer_and_refusal(tmp_path):
    async def go():
        journal = Journal(tmp_path / "j")
        key = b"k" * 16
        await journal.put_refusal(key, "no")
        assert journal.refusal(key) == "no" and journal.answer(key) is None
        await journal.put(key, reply("a"), await journal.begin_attempt(BOUND))
        await journal.put(key, reply("b"), await journal.begin_attempt(BOUND))
        assert journal.refusal(key) is None and journal.answer(key).text == "b"
        await journal.close()
        journal = Journal(tmp_path / "j")
        assert journal.refusal(key) is None and journal.answer(key).text == "b"
        assert journal.paid == (6, 8)
        await journal.close()

    asyncio.run(go())


def test_only_one_writer(tmp_path):
    first = Journal(tmp_path / "j")
    with pytest.raises(UserError, match="is being written by another run"):
        Journal(tmp_path / "j")
    first.release()
    Journal(tmp_path / "j").release()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("dear diary, " * 20)
    with pytest.raises(UserError, match="is not a journal of this program"):
        Journal(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "dear diary, " * 20
    with pytest.raises(UserError, match="cannot open the journal"):
        Journal(tmp_path)


def test_newer_version_is_refused(tmp_path):
    (tmp_path / "j").write_bytes(pack_frame({"t": "journal", "v": 99}))
    with pytest.raises(UserError, match="has version 99, this program reads 1"):
        Journal(tmp_path / "j")


def test_torn_first_frame_is_rewritten(tmp_path):
    (tmp_path / "j").write_bytes(pack_frame({"t": "journal", "v": 1})[:-2])
    write(tmp_path / "j", ["x"])
    assert read(tmp_path / "j")[0] == {0: "x"}


def test_cost_of_attempts(tmp_path):
    async def go():
        journal = Journal(tmp_path / "j")
        refused, malformed, lost = [await journal.begin_attempt(BOUND) for _ in range(3)]
        journal.end_attempt(refused)
        journal.end_attempt(malformed, Tokens(7, 8))
        assert journal.paid == (7, 8)
        assert journal.unsettled == {lost: BOUND}
        await journal.close()
        journal = Journal(tmp_path / "j")
        assert journal.paid == (7, 8)
        assert journal.unsettled == {lost: BOUND}
        assert await journal.begin_attempt(BOUND) == 3  # numbers are never reused
        await journal.close()

    asyncio.run(go())


@pytest.mark.parametrize("partial", [0, 5])
def test_answers_wait_in_memory_while_the_disk_is_full(tmp_path, monkeypatch, partial):
    """The disk accepts `partial` bytes of a frame, and then none until it has room again."""
    logged, full = [], True
    real_write = os.write

    def write_or_not(descriptor, data):
        if not full:
            return real_write(descriptor, data)
        if partial and len(data) > partial and not logged:
            return real_write(descriptor, data[:partial])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def go():
        nonlocal full
        journal = Journal(tmp_path / "j", on_full=logged.append, disk_retry_s=0.001)
        attempts = [await journal.begin_attempt(BOUND) for _ in range(3)]
        monkeypatch.setattr(journal_module.os, "write", write_or_not)
        puts = [asyncio.create_task(journal.put(bytes([n]) * 16, reply(f"t{n}"), a)) for n, a in enumerate(attempts)]
        await asyncio.sleep(0.02)
        assert not any(put.done() for put in puts)
        assert len(logged) == 1 and "is full" in logged[0]
        sending = asyncio.create_task(journal.begin_attempt(BOUND))
        await asyncio.sleep(0.01)
        assert not sending.done()  # no attempt starts if its answer could not be stored
        full = False
        await asyncio.gather(*puts)
        assert journal.answer(bytes([1]) * 16).text == "t1"
        await sending
        await journal.close()

    asyncio.run(go())
    monkeypatch.undo()
    texts, damage, paid, unsettled = read(tmp_path / "j")
    assert texts == {0: "t0", 1: "t1", 2: "t2"}
    assert (paid, unsettled, len(damage)) == ((9, 12), 1, int(partial > 0))


def test_disk_that_stays_full_is_a_user_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    async def go():
        journal = Journal(tmp_path / "j", disk_wait_s=0.01, disk_retry_s=0.001)
        attempt = await journal.begin_attempt(BOUND)
        monkeypatch.setattr(journal_module.os, "write", refuse)
        with pytest.raises(UserError, match="No space left on device: make room and run again"):
            await journal.put(b"k" * 16, reply("x"), attempt)
        await journal.close()

    asyncio.run(go())


def test_failed_fsync_is_retried_and_counted_once(tmp_path, monkeypatch):
    calls = []
    real = os.fdatasync

    def sometimes(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "full")
        real(descriptor)

    monkeypatch.setattr(journal_module.os, "fdatasync", sometimes)

    async def go():
        journal = Journal(tmp_path / "j", disk_retry_s=0.001)
        await journal.put(b"\0" * 16, reply("x"), await journal.begin_attempt(BOUND))
        await journal.close()

    asyncio.run(go())
    assert read(tmp_path / "j")[:3] == ({0: "x"}, [], (3, 4))


def test_answers_are_synced_and_share_fsyncs(tmp_path, monkeypatch):
    synced = []
    real = os.fdatasync
    monkeypatch.setattr(journal_module.os, "fdatasync", lambda d: (synced.append(os.fstat(d).st_size), real(d)))

    async def go():
        journal = Journal(tmp_path / "j")

        async def put(n):
            await journal.put(bytes([n]) * 16, reply(f"answer {n}"), await journal.begin_attempt(BOUND))
            offset, length = journal._where[bytes([n]) * 16]
            assert synced[-1] >= offset + length

        await asyncio.gather(*map(put, range(50)))
        await journal.close()

    asyncio.run(go())
    assert 1 <= len(synced) <= 10
    assert len(read(tmp_path / "j")[0]) == 50


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=4), st.data())
def test_damage_loses_only_the_frames_it_touches(tmp_path_factory, texts, data):
    path = tmp_path_factory.mktemp("journal") / "j"
    whole = write(path, texts)
    start = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(start + 1, min(len(whole), start + 60)))
    noise = data.draw(st.binary(max_size=60))
    left = whole[:start] + noise + whole[end:]
    path.write_bytes(left)
    if len(left) >= len(pack_frame({"t": "journal", "v": 1})) and all(p is None for _, _, p in scan_frames(left)):
        with pytest.raises(UserError, match="is not a journal"):  # no valid frame: it may be another program's file
            read(path)
        return
    untouched = {
        payload["k"][0]: payload["x"]
        for offset, length, payload in scan_frames(whole)
        if payload["t"] == "answer" and (offset + length <= start or offset >= end)
    }
    found = read(path)[0]
    assert found.items() >= untouched.items()
    assert found.items() <= dict(enumerate(texts)).items()


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"t": 1},
        {"t": "answer", "n": 1},
        {"t": "sent", "n": -1, "p": 1, "c": 1},
        {"t": "refused", "k": "k", "x": ""},
    ],
)
def test_valid_checksum_with_wrong_fields_is_refused(tmp_path, odd):
    whole = write(tmp_path / "j", ["a"])
    (tmp_path / "j").write_bytes(whole + pack_frame(odd))
    with pytest.raises(UserError, match=f"is not a journal of this program at byte {len(whole)}"):
        read(tmp_path / "j")
