"""Commands: flags, files, --dry-run, the progress line and the summary."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datagen.api.chat import Rejected
from datagen.api.client import _raise_file_limit
from datagen.api.known_models import MODELS, Price
from datagen.api.pricing import estimate_tokens, price_of
from datagen.api.settings import add_api_arguments, api_settings
from datagen.run.command import run_command, run_files
from datagen.run.dry_run import make_plans
from datagen.run.progress import Progress, clock
from datagen.run.session import Session
from datagen.simulate import Simulator
from datagen.sources import check_outputs
from engine.base.errors import UserError
from tests.datagen.api.api_helpers import ask_once, ask_twice, echo, numbers, quick_settings, read_lines, run_in


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")


def arguments(output, *flags):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=type(output))
    add_api_arguments(parser)
    return parser.parse_args(["--output", str(output), *flags])


def test_flags_become_settings(tmp_path):
    flags = "--model m --base-url http://a/v1 --base-url http://b/v1 --key-env A --rpm 5 --budget 2.5 --timeout 9"
    settings = api_settings(arguments(tmp_path / "o", *flags.split(), "--retry-quarantined"))
    assert settings.base_urls == ("http://a/v1", "http://b/v1")
    assert (settings.model, settings.key_variables, settings.requests_per_min) == ("m", ("A",), 5)
    assert (settings.budget_usd, settings.total_timeout_s, settings.first_byte_timeout_s) == (2.5, 9, 9)
    assert settings.retry_quarantined and settings.tokens_per_min is None


def sent_by(tmp_path, *flags):
    """Return the request parameters, without model and messages, of a command with temperature 0.3."""
    settings = api_settings(arguments(tmp_path / "o", *flags))
    body = json.loads(settings.request([{"role": "user", "content": "x"}], temperature=0.3).body())
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


def test_temperature_is_sent_if_the_model_accepts_it(tmp_path):
    assert sent_by(tmp_path, "--max-tokens", "9") == {"temperature": 0.3, "max_tokens": 9}
    assert sent_by(tmp_path, "--temperature", "1", "--max-tokens", "9") == {"temperature": 1.0, "max_tokens": 9}
    assert sent_by(tmp_path, "--temperature", "none", "--max-tokens", "9") == {"max_tokens": 9}
    for model in ("gpt-5-mini", "gpt-5-mini-2025-08-07"):
        assert sent_by(tmp_path, "--model", model, "--max-tokens", "9") == {"max_completion_tokens": 9}
    flags = ("--model", "gpt-5", "--temperature", "1", "--max-tokens-field", "max_tokens", "--max-tokens", "9")
    assert sent_by(tmp_path, *flags) == {"temperature": 1.0, "max_tokens": 9}


@pytest.mark.parametrize("text", ["-1", "2.5", "nan", "warm", ""])
def test_invalid_temperature_is_refused(tmp_path, text):
    with pytest.raises(UserError, match="--temperature .*: pass a number from 0 to 2, or none"):
        api_settings(arguments(tmp_path / "o", f"--temperature={text}"))


@pytest.mark.parametrize("flag", ["--rpm", "--tpm", "--concurrency", "--budget", "--max-tokens", "--timeout"])
def test_numbers_must_be_positive(tmp_path, flag):
    with pytest.raises(UserError, match=f"{flag} 0.* must be above 0"):
        api_settings(arguments(tmp_path / "o", flag, "0"))


def test_run_files(tmp_path):
    files = run_files(arguments(tmp_path / "o.jsonl"))
    assert (files.journal.name, files.quarantine.name) == ("o.jsonl.journal", "o.jsonl.quarantine.jsonl")
    with pytest.raises(UserError, match="must be three files"):
        run_files(arguments(tmp_path / "o.jsonl", "--journal", str(tmp_path / "o.jsonl")))
    (tmp_path / "o.jsonl").write_text("precious\n")
    with pytest.raises(UserError, match="exists, but not the journal"):
        run_files(arguments(tmp_path / "o.jsonl"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--journal", "file/j"], r"--journal .*file/j: cannot write to .*file: choose another path"),
        (["--quarantine", "file/a/q"], r"--quarantine .*file/a/q: cannot write to .*file: choose"),
        (["--journal", "folder"], r"--journal .*folder is a folder: pass a file path"),
    ],
)
def test_unwritable_paths_fail_before_any_request(tmp_path, flags, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=message):
        run_files(arguments(tmp_path / "o.jsonl", flags[0], str(tmp_path / flags[1])))
    with pytest.raises(UserError, match=message.replace(flags[0], "--report")):
        check_outputs([], {"--report": str(tmp_path / flags[1])})


async def served(task, **options):
    async with Simulator(answer=echo, **options) as server:
        return await asyncio.to_thread(task, server)


def test_command_prints_a_summary(tmp_path, capsys, monkeypatch):
    """Without signal handlers: they need the main thread, where the server runs here (see test_runs)."""
    monkeypatch.setattr("datagen.run.command._SIGNALS", ())

    def task(server):
        return run_command(numbers(3), ask_twice, arguments(tmp_path / "o.jsonl", "--base-url", server.url))

    summary = asyncio.run(served(task))
    assert (summary.records, summary.asked, summary.stopped) == (3, 6, None)
    said = capsys.readouterr().err
    assert "3 of 3 records: 3 rows in" in said and "6 answers in 0:0" in said
    assert len(read_lines(tmp_path / "o.jsonl")) == 3


def test_stopped_run_writes_its_rows_and_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datagen.run.command._SIGNALS", ())

    def task(server):
        flags = ("--base-url", server.url, "--budget", "0.00033", "--max-tokens", "500")
        run_command(numbers(9), ask_once, arguments(tmp_path / "o.jsonl", *flags, "--concurrency", "1"))

    with pytest.raises(UserError, match=r"--budget \$0.0003 reached"):
        asyncio.run(served(task))
    assert "not complete: run the same command again" in capsys.readouterr().err
    assert 0 < len(read_lines(tmp_path / "o.jsonl")) < 9


def test_dry_run_counts_every_turn_without_requests(tmp_path, capsys):
    args = arguments(tmp_path / "o.jsonl", "--dry-run", "--base-url", "http://127.0.0.1:9/v1", "--rpm", "60")

    async def two_turns(record, ask):
        first = await ask([{"role": "user", "content": f'Translate into Nepali: {{"x": "{record["n"]}"}}'}])
        await ask([{"role": "user", "content": first.text}])
        if record["n"] == 1:
            raise Rejected("its requests still count")
        return []

    assert run_command(numbers(120), two_turns, args, lambda record: "ne" if record["n"] < 20 else "vi") is None
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in table[1:]] == [
        ["ne", "20", "0", "40"],
        ["vi", "100", "0", "200"],
        ["total", "120", "0", "240"],
    ]
    assert table[-1][-1] == "0.07"  # 240 requests at 60 per minute: 4 minutes
    assert float(table[-1][-2]) > float(table[-1][-3]) > 0
    assert list(tmp_path.iterdir()) == []


def test_dry_run_excludes_journaled_answers(tmp_path, monkeypatch):
    settings = quick_settings("http://127.0.0.1:9/v1")
    monkeypatch.setenv("TEST_API_KEY", "k")

    async def go():
        async with Simulator(answer=echo) as server:
            await run_in(tmp_path, numbers(4), ask_once, quick_settings(server.url))
        return await make_plans(numbers(10), ask_once, settings, tmp_path / "journal", lambda _: "all")

    plan = asyncio.run(go())["all"]
    assert (plan.records, plan.journaled, plan.requests) == (10, 4, 6)


def test_prices():
    assert price_of(quick_settings(model="gpt-4o")) == MODELS["gpt-4o"].price == Price(2.5, 10.0)
    assert price_of(quick_settings(model="own")) is None
    own = quick_settings(model="own", usd_per_m_prompt=0.0, usd_per_m_completion=4.0)
    assert price_of(own).usd((10**6, 500_000)) == 2.0
    assert price_of(quick_settings(model="gpt-4o", usd_per_m_prompt=0.0)) == Price(0.0, 10.0)


def test_estimate_tokens():
    assert estimate_tokens("") == 0
    assert estimate_tokens("four") == 1 and estimate_tokens("five!") == 2
    assert estimate_tokens("नेपाल") == 5
    assert estimate_tokens("\ud800") == 1


@given(st.text(st.characters()))
def test_estimate_tokens_formula(text):
    ascii_characters = sum(character < "\x80" for character in text)
    others = len("".join(c for c in text if c >= "\x80").encode("utf-8", "replace"))
    assert estimate_tokens(text) == math.ceil(ascii_characters / 4) + math.ceil(others / 3)


def test_progress_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "k")
    stream = io.StringIO()

    async def go():
        async with (
            Simulator(answer=echo, faults={"500": 0.3}) as server,
            Session(quick_settings(server.url, max_attempts=20), tmp_path / "j") as session,
        ):
            progress = Progress(session, 8, stream)
            async for outcome in session.outcomes(numbers(6), ask_once):
                progress.add(outcome)
            progress.log("a line of its own")
            line = progress.line()
            progress.stop()
            return line

    line = asyncio.run(go())
    assert line.startswith("[###############.....] 6/8, ")
    for part in (" answers/min", "0 in flight", " tokens", "$0.000", " retries (500 server_error)", " left"):
        assert part in line, part
    assert stream.getvalue() == "a line of its own\n"
    assert [clock(seconds) for seconds in (0, 59.6, 3599, 3600)] == ["0:00", "1:00", "59:59", "1:00:00"]


def test_open_file_limit_is_raised(monkeypatch):
    limits, given = (1024, 4096), []
    monkeypatch.setattr("datagen.api.client.resource.getrlimit", lambda _: limits)
    monkeypatch.setattr("datagen.api.client.resource.setrlimit", lambda _, new: given.append(new))
    _raise_file_limit(900)
    assert given == []
    _raise_file_limit(2000)
    assert given == [(2064, 4096)]
    with pytest.raises(UserError, match="5000 concurrent requests need 5064 open files, the limit is 4096"):
        _raise_file_limit(5000)
    assert given == [(2064, 4096)]
