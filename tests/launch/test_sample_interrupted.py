"""Interrupted sampling: no finished response is lost or sampled twice, and the output is equal."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.generation.shards import Shards, shard_path, shard_paths
from launch import sample, sample_rank
from tests.launch import small
from tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
K, NEW, ALL = 8, 12, 40


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small.make_ending_model(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def expected(files):
    """Return the output of an uninterrupted run."""
    sample.job(flags(files, files / "expected.jsonl"))
    return (files / "expected.jsonl").read_bytes()


def flags(files, output, *more):
    return [
        *("--lang", "ne", "--model", str(files / "m"), "--data", str(files / "prompts.jsonl"), "--output", str(output)),
        *("--num-responses", str(K), "--max-new-tokens", str(NEW), "--template", "plain", "--slots", "3", *more),
    ]


def stop_after(num_responses, number):
    """Return a stream that signals its process after this many responses."""
    stream = sample_rank.stream

    def watched(*args, **kwargs):
        for count, pair in enumerate(stream(*args, **kwargs), 1):
            if count == num_responses:
                signal.raise_signal(number)
            yield pair

    return watched


def interrupted(files, output, num_responses, number=signal.SIGTERM, *more):
    """Run until a signal after num_responses, and return the exit status."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(sample_rank, "stream", stop_after(num_responses, number))
        sample.job(flags(files, output, *more))
    return stopped.value.code


def ranks_work(files, whole, stopped, continued):
    """Work of each of two ranks. At module level, for run_ranks imports it."""
    sample.job(flags(files, whole))
    status = interrupted(files, stopped, 5)
    sample.job(flags(files, continued))
    return status


KILLS = 3


@pytest.mark.slow
def test_repeated_kills_lose_and_repeat_nothing(files, expected, tmp_path):
    output, draw = tmp_path / "o.jsonl", random.Random(4)
    kills = [[signal.SIGKILL, draw.randrange(120), draw.random() * 0.003] for _ in range(KILLS)]
    signals = [[signal.SIGINT, 700, 0], *kills, [signal.SIGTERM, 60, 0], [0, 0, 0]]
    order = json.dumps({"argv": flags(files, output), "output": str(output), "signals": signals})
    environment = {name: value for name, value in os.environ.items() if name not in small.RANK_VARIABLES}
    command = [sys.executable, "-m", "tests.launch.victims", order]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)

    assert [r["status"] for r in results] == [130, *[-signal.SIGKILL] * KILLS, 143, 0], [r["err"] for r in results]
    assert output.read_bytes() == expected
    assert os.listdir(tmp_path) == ["o.jsonl"]
    for before, after in zip(results, results[1:-1]):
        assert after["keys"][: before["frames"]] == before["keys"], "a response was lost"
    for result in results[:-1]:
        assert len(set(map(tuple, result["keys"]))) == result["frames"], "a response was made twice"
    counts = [r["frames"] for r in results[:-1]]
    assert 0 < counts[0] < counts[-1] < ALL
    for result in (results[0], results[-2]):
        said = f"  stopped: {result['frames']} of 40 responses are kept, the same command samples the others\n"
        assert said in result["out"]
        assert "Traceback" not in result["err"]
        assert "sampling stops after this step" in result["err"]
    again = f"  resumed   {counts[-1]} of 40 responses already saved\n"
    assert again in results[-1]["out"]
    made, now = re.search(r"wrong language; ([\d,]+) tokens, ([\d,]+) of them in", results[-1]["out"]).groups()
    assert 0 < int(now) < int(made)


def test_one_and_two_ranks_continue_each_others_responses(files, expected, tmp_path):
    whole, stopped, continued = (tmp_path / f"{name}.jsonl" for name in ("whole", "stopped", "continued"))
    assert interrupted(files, continued, 7) == 143
    assert run_ranks(ranks_work, 2, files, whole, stopped, continued) == [143, 143]
    assert whole.read_bytes() == continued.read_bytes() == expected
    assert not stopped.exists()
    assert [path.name for path in shard_paths(stopped)] == ["stopped.jsonl.rank0.part", "stopped.jsonl.rank1.part"]
    kept = Shards(stopped).keys()
    assert 10 <= len(kept) < ALL
    with shard_path(stopped, 1).open("ab") as file:
        file.write(b"\xffOKJ torn")

    made = []
    with pytest.MonkeyPatch.context() as patch:
        finish = sample_rank.finish
        patch.setattr(sample_rank, "finish", lambda request, *args: made.append(request) or finish(request, *args))
        sample.job(flags(files, stopped))
    assert {(r.prompt_id, r.sample_id) for r in made}.isdisjoint(kept)
    assert len(made) == ALL - len(kept)
    assert stopped.read_bytes() == expected
    assert sorted(os.listdir(tmp_path)) == ["continued.jsonl", "stopped.jsonl", "whole.jsonl"]


def test_responses_of_another_run_are_refused_without_overwrite(files, expected, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    assert interrupted(files, output, 7, signal.SIGINT, "--seed", "1", "--stop", "zzz") == 130
    before = shard_path(output, 0).read_bytes()
    with pytest.raises(ValueError, match="contains responses of another run") as said:
        sample.job(flags(files, output))
    assert "(stop ['zzz'] -> None; seed 1 -> 0): give equal" in str(said.value)
    other = tmp_path / "other.jsonl"
    small.write_rows(other, small.INSTRUCTIONS[1:])
    with pytest.raises(ValueError, match=r"\(prompts '\w+' -> '\w+'\)"):
        sample.job(flags(files, output, "--seed", "1", "--stop", "zzz", "--data", str(other)))
    with pytest.raises(ValueError, match=r"\(weights '\w+' -> '\w+'\)"):
        sample.job(flags(files, output, "--seed", "1", "--stop", "zzz", "--model", str(files / "base")))
    assert shard_path(output, 0).read_bytes() == before
    sample.job(flags(files, output, "--overwrite"))
    assert output.read_bytes() == expected
    assert "resumed" not in capsys.readouterr().out


def test_existing_output_is_replaced_only_if_allowed(files, expected, tmp_path, capsys):
    output = tmp_path / "o.jsonl"
    assert interrupted(files, output, 7) == 143
    output.write_text("mine")
    with pytest.raises(ValueError, match="exists: --overwrite"):
        sample.job(flags(files, output))
    assert output.read_text() == "mine"
    assert interrupted(files, output, 7, signal.SIGTERM, "--overwrite") == 143
    assert "the same command without --overwrite samples the others" in capsys.readouterr().out
    assert output.read_text() == "mine"
    sample.job(flags(files, output))
    assert output.read_bytes() == expected


def test_kill_between_last_rename_and_removal_of_shards(files, expected, tmp_path, monkeypatch):
    output = tmp_path / "o.jsonl"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "remove_shards", lambda output: signal.raise_signal(signal.SIGINT) or interrupt())
        sample.job(flags(files, output))
    assert output.read_bytes() == expected
    sample.job(flags(files, output))
    assert output.read_bytes() == expected
    assert os.listdir(tmp_path) == ["o.jsonl"]


def interrupt():
    raise KeyboardInterrupt


def test_full_disk_is_one_line_and_loses_no_response(files, expected, tmp_path):
    output = tmp_path / "o.jsonl"
    for room, what, kept in ((1000, "make room", range(5, ALL)), (len(expected) - 10, "free the space", [ALL])):
        if kept == [ALL]:
            assert interrupted(files, output, ALL - len(Shards(output))) == 143
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            with pytest.raises(ValueError, match=what) as said:
                sample.job(flags(files, output))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(said.value)
        assert len(Shards(output)) in kept
        assert os.listdir(tmp_path) == ["o.jsonl.rank0.part"]
    sample.job(flags(files, output))
    assert output.read_bytes() == expected
