"""All faults of the simulator: each record is written once, each answer is paid once, no key is shown."""

from __future__ import annotations

import asyncio
import json

import pytest

from datagen.api.answers import RETRIED_STATUSES
from datagen.api.pricing import estimate_prompt_tokens, estimate_tokens
from datagen.simulate import Simulator
from datagen.simulate.faults import FAULTS
from tests.datagen.api.api_helpers import ask_once, ask_twice, echo, numbers, quick_settings, read_lines, run_in

KEY = "sk-test-0123456789-do-not-show"
FATAL = {"401": "refuses the key", "403": "forbids", "404": "has no model", "insufficient_quota": "no credit left"}
FATAL["400_temperature"] = "refuses the parameter 'temperature'"
# Faults that reach the work function as an answer.
ANSWERED = {"cut_off", "chatty", "truncated_content", "duplicate_keys", "wrong_counts", "fenced", "no_usage"}
REFUSED = {"400", "content_filter"}
HARMLESS = {"limits_minus_one", "limits_zero", "limits_absent", "fenced", "no_usage"}
RETRIED = set(FAULTS) - set(FATAL) - ANSWERED - REFUSED - HARMLESS - {"reset_after"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "*")


def assert_key_is_hidden(folder, *texts):
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert not [text for text in texts if KEY in str(text)]


async def run_faulty(folder, faults, count=12, work=ask_twice, **changes):
    async with Simulator(faults=faults, answer=echo, seed=3) as server:
        summary = await run_in(folder, numbers(count), work, quick_settings(server.url, **changes))
    return summary, server.counts


def expected_rows(count=12):
    return [{"n": n, "replies": [f"say {n}", f"and 0 {n}"]} for n in range(count)]


def test_fault_matrix_is_complete():
    statuses = {fault for fault in RETRIED if fault.isdigit()}
    assert {int(status) for status in statuses} <= RETRIED_STATUSES
    assert RETRIED - statuses == {
        *("hang", "drip", "reset_before", "reset_headers", "reset_half", "short_close"),
        *("429_seconds", "429_ms", "429_date", "429_bad_header", "html", "empty_body"),
        *("truncated_json", "empty_choices", "null_content", "error_in_200"),
    }


@pytest.mark.parametrize("fault", sorted(RETRIED - {"429_seconds", "429_date"}))
def test_temporary_fault_is_retried(tmp_path, fault):
    """Half of the requests fail once or more. All records succeed, and no answered request is sent again."""
    is_slow = fault in ("hang", "drip")
    changes = {"first_byte_timeout_s": 0.05, "total_timeout_s": 0.1} if is_slow else {}
    share = 0.2 if is_slow else 0.5
    summary, counts = asyncio.run(run_faulty(tmp_path, {fault: share}, max_attempts=20, **changes))
    assert counts.faults[fault] > 0
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()
    assert (summary.rejected, summary.stopped) == (0, None)
    assert summary.retries == counts.faults[fault]
    assert summary.asked == 24
    if fault not in ("empty_body", "truncated_json", "empty_choices", "null_content", "error_in_200"):
        assert set(counts.answers.values()) == {1} and len(counts.answers) == 24
    assert_key_is_hidden(tmp_path, summary)


@pytest.mark.parametrize("fault", ["429_seconds", "429_date"])
def test_retry_after_is_respected(tmp_path, fault):
    """Both faults ask for one second. No request uses that key earlier."""
    summary, counts = asyncio.run(run_faulty(tmp_path, {fault: 0.4}, count=2, work=ask_once))
    assert counts.faults[fault] > 0
    assert summary.seconds > (1.0 if fault == "429_seconds" else 0.5)  # a date has whole seconds
    assert len(read_lines(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("fault", sorted(HARMLESS))
def test_harmless_fault_has_no_effect(tmp_path, fault):
    summary, counts = asyncio.run(run_faulty(tmp_path, {fault: 1.0}))
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()
    assert (summary.asked, summary.retries) == (24, 0)
    assert set(counts.answers.values()) == {1}


def test_reset_after_an_answer_loses_only_the_connection(tmp_path):
    """If the next request was on that connection, it is sent again. The server has not seen it before."""
    summary, counts = asyncio.run(run_faulty(tmp_path, {"reset_after": 1.0}, max_attempts=30))
    assert read_lines(tmp_path / "out.jsonl") == expected_rows()
    assert counts.requests == summary.asked == 24
    assert set(counts.answers.values()) == {1}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("cut_off", "finish_reason is length"),
        ("chatty", "no JSON object: "),
        ("truncated_content", "no JSON object: "),
        ("duplicate_keys", "no JSON object: field 'answer' is given twice"),
        ("wrong_counts", "keys ['turns']"),
        ("400", "the API refused the request: 400 invalid_request_error"),
        ("content_filter", "no text: finish_reason is content_filter"),
    ],
)
def test_bad_answer_is_quarantined_and_retried_on_request(tmp_path, fault, reason):
    async def go():
        async with Simulator(faults={fault: 0.3}, answer=echo) as server:
            first = await run_in(tmp_path, numbers(12), ask_twice, quick_settings(server.url))
            rejected = read_lines(tmp_path / "quarantine.jsonl")
            assert first.rejected == len(rejected) > 0
            assert all(line["reason"].startswith(reason) for line in rejected)
            assert [line["record"] for line in rejected] == [{"n": line["index"]} for line in rejected]
            kept = [row["n"] for row in read_lines(tmp_path / "out.jsonl")]
            assert sorted([*kept, *(line["index"] for line in rejected)]) == list(range(12))

            asked = server.counts.requests
            again = await run_in(tmp_path, numbers(12), ask_twice, quick_settings(server.url))
            assert (again.rejected, again.asked, server.counts.requests) == (first.rejected, 0, asked)

            runs = 0
            while (tmp_path / "quarantine.jsonl").exists():
                settings = quick_settings(server.url, retry_quarantined=True)
                last = await run_in(tmp_path, numbers(12), ask_twice, settings)
                runs += 1
                assert runs < 30
            assert last.rejected == 0
        assert read_lines(tmp_path / "out.jsonl") == expected_rows()
        # Good answers were never requested again.
        assert server.counts.requests == 24 + server.counts.faults[fault]

    asyncio.run(go())


@pytest.mark.parametrize(("fault", "says"), FATAL.items())
def test_fatal_fault_stops_the_run_at_once(tmp_path, fault, says):
    summary, counts = asyncio.run(run_faulty(tmp_path, {fault: 1.0}, count=50))
    assert says in summary.stopped and "\n" not in summary.stopped
    assert "TEST_API_KEY" in summary.stopped or fault == "400_temperature"
    assert counts.requests <= 8
    assert (summary.records, summary.asked) == (0, 0)
    assert_key_is_hidden(tmp_path, summary)


def test_many_faults_at_once(tmp_path):
    """Almost all temporary faults at once, with a total share of about 0.3."""
    faults = {fault: 0.3 / len(RETRIED) for fault in RETRIED - {"429_seconds", "429_date", "hang", "drip"}}
    summary, counts = asyncio.run(run_faulty(tmp_path, faults, count=100, max_attempts=30))
    assert read_lines(tmp_path / "out.jsonl") == expected_rows(100)
    assert sum(counts.faults.values()) == summary.retries > 20
    assert_key_is_hidden(tmp_path, summary)


def test_unanswered_request_is_given_up(tmp_path):
    async def go():
        async with Simulator(faults={"503": 1.0}, answer=echo) as server:
            settings = quick_settings(server.url, max_attempts=3)
            summary = await run_in(tmp_path, numbers(2), ask_once, settings)
            assert summary.rejected == 2 and server.counts.requests == 6
            again = await run_in(tmp_path, numbers(2), ask_once, settings)
            assert again.rejected == 2 and server.counts.requests == 6
            await run_in(
                tmp_path, numbers(2), ask_once, quick_settings(server.url, max_attempts=3, retry_quarantined=True)
            )
            assert server.counts.requests == 12
        reasons = {line["reason"] for line in read_lines(tmp_path / "quarantine.jsonl")}
        assert reasons == {"gave up after 3 attempts: 503 server_error: simulated 503"}

    asyncio.run(go())


def test_run_stops_early_if_no_request_is_answered(tmp_path):
    summary, counts = asyncio.run(run_faulty(tmp_path, {"400": 1.0}, count=500))
    assert "none of 20 requests was answered" in summary.stopped
    assert counts.requests < 40


def test_no_server_listens(tmp_path):
    async def go():
        async with Simulator() as server:
            url = server.url
        return await run_in(tmp_path, numbers(1), ask_once, quick_settings(url, max_attempts=2))

    assert asyncio.run(go()).rejected == 1
    assert "gave up after 2 attempts: cannot connect" in read_lines(tmp_path / "quarantine.jsonl")[0]["reason"]


def test_key_is_hidden_wherever_the_server_repeats_it(tmp_path):
    """In an error message, a header and an invalid body. An answer that contains the key is kept unchanged."""

    async def serve(reader, writer):
        shown = 0
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except asyncio.IncompleteReadError:
                return writer.close()
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            await reader.readexactly(length)
            assert f"Bearer {KEY}" in head
            answers = [
                (500, json.dumps({"error": {"code": KEY, "message": f"bad key {KEY}"}})),
                (502, f"<html>{KEY}</html>"),
                (200, f'{{"{KEY}": 1, "{KEY}": 2}}'),
                (200, json.dumps({"choices": [{"message": {"content": f"your key is {KEY}"}, "finish_reason": KEY}]})),
            ]
            status, body = answers[shown % 4]
            shown += 1
            head = f"HTTP/1.1 {status} {KEY}\r\nx-key: {KEY}\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())

    logged = []

    async def go():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        settings = quick_settings(url, concurrency=1, max_attempts=3)
        summary = await run_in(tmp_path, numbers(3), ask_once, settings, log=logged.append)
        server.close()
        return summary

    summary = asyncio.run(go())
    assert summary.rejected == 2 and read_lines(tmp_path / "out.jsonl")[0]["text"] == f"your key is {KEY}"
    for path in (tmp_path / "out.jsonl", tmp_path / "journal"):
        path.write_bytes(path.read_bytes().replace(f"your key is {KEY}".encode(), b"").replace(KEY.encode(), b"", 1))
    assert_key_is_hidden(tmp_path, summary, *logged)


@pytest.mark.parametrize("key", ["test", "null", "e", "5"])
def test_short_key_does_not_damage_answers(tmp_path, monkeypatch, key):
    """Local servers accept any key. A short one can occur in texts, in JSON keywords and in token counts."""
    monkeypatch.setenv("TEST_API_KEY", key)

    async def go():
        async with Simulator(answer=lambda messages, seed: "getestet: null, 5") as server:
            return await run_in(tmp_path, numbers(1), ask_once, quick_settings(server.url, max_attempts=2))

    summary = asyncio.run(go())
    assert read_lines(tmp_path / "out.jsonl") == [{"n": 0, "text": "getestet: null, 5"}]
    assert sum(summary.tokens) == estimate_prompt_tokens([{"content": "say 0"}]) + estimate_tokens("getestet: null, 5")


def test_endless_body_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr("datagen.api.client.MAX_BODY_BYTES", 10_000)

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"400\r\n" + b" " * 0x400 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            writer.close()

    async def go():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        await run_in(tmp_path, numbers(1), ask_once, quick_settings(url, max_attempts=2))
        server.close()

    asyncio.run(go())
    assert "malformed answer: above" in read_lines(tmp_path / "quarantine.jsonl")[0]["reason"]
