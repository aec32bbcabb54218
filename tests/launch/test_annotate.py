"""launch/annotate.py: start, judge over HTTP, end by a signal; --report; and one line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from engine.base.errors import UserError
from engine.base.records import read_rankings
from launch.annotate import job
from tests.datagen.annotation.pages import judge, prompt, with_client, write_answers

ROOT = Path(__file__).resolve().parents[2]


def test_a_killed_server_loses_nothing_and_an_ended_one_writes_the_rankings(tmp_path):
    data, output = write_answers(tmp_path), tmp_path / "out.jsonl"
    for end in (signal.SIGKILL, signal.SIGTERM):
        command = [sys.executable, "launch/annotate.py", "--data", data, "--output", output, "--port", "0"]
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ})
        try:
            address = next(line.split()[-1] for line in server.stdout if " open " in line)
            with urllib.request.urlopen(f"{address}api/prompt?annotator=Ada") as reply:
                seen = json.load(reply)
            body = {name: seen[name] for name in ("annotator", "key", "shown")} | {"kind": "rank", "revision": 1}
            body["ranks"] = list(range(1, len(seen["shown"]) + 1))
            request = urllib.request.Request(f"{address}api/judge", json.dumps(body).encode())
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request) as reply:
                assert reply.status == 200
        finally:
            server.send_signal(end)
            said, _ = server.communicate(timeout=60)
        assert output.exists() == (end == signal.SIGTERM)
    assert server.returncode == 0
    assert "agreement: no prompt was ranked by two" in said
    assert [record.id for record in read_rankings(output)] == ["ar/Ada", "ne/Ada"]


def test_report_prints_counts_flags_and_agreement(tmp_path, capsys):
    data = write_answers(tmp_path)

    async def two(client):
        for name in ("Ada", "Ben"):
            ranks = {"الرباط": 1, "الدار البيضاء": 2, "فاس": 2 if name == "Ada" else 3}
            assert (await judge(client, await prompt(client, name), by_text=ranks))[0] == 200
        assert (await judge(client, await prompt(client, "Ben"), "flag", note="two\nlines"))[0] == 200

    with_client(tmp_path, two)
    job(["--data", str(data), "--output", str(tmp_path / "out.jsonl"), "--report"])
    said = capsys.readouterr().out
    # By hand: values 1 1 | 2 2 | 2 3, so n = 2, 3, 1; o_23 = 1; apart: 12 -> 2.5, 13 -> 4.5, 23 -> 2.
    expected = 2 * 3 * 2.5**2 + 2 * 1 * 4.5**2 + 3 * 1 * 2**2
    assert f"alpha (ordinal) {1 - 5 * 1 * 2**2 / expected:.3f} over 1 prompt that" in said
    assert "flagged: ne by Ben: two lines" in said
    assert "out.jsonl: 2 rankings" in said
    assert [record.ranks for record in read_rankings(tmp_path / "out.jsonl")] == [(1, 2, 2), (1, 2, 3)]


def test_mistakes_are_one_line_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("ANNOTATE_KEY", raising=False)
    data, output = str(write_answers(tmp_path)), str(tmp_path / "out.jsonl")
    for flags, words in (
        (["--data", data, "--output", output, "--report"], "rank some prompts on the page first"),
        (["--data", data, "--output", output, "--host", "0.0.0.0"], "ANNOTATE_KEY is not set"),
        (["--data", data, "--output", output, "--port", "70000"], "give 0 to 65535"),
        (["--data", data, "--output", data], "is also another file"),
        (["--data", data, "--output", str(tmp_path / "out.txt")], "must end in .jsonl"),
        (["--data", data, "--output", output, "--reprot"], "did you mean --report?"),
    ):
        with pytest.raises(UserError, match=words):
            job(flags)
    (tmp_path / "out.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="but not its judgements"):
        job(["--data", data, "--output", output])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "responses.jsonl"]
