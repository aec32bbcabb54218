"""Errors in data, models, rewards or outputs: status 2, one line with the next step, no file changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from engine.base.records import read_instructions, read_rankings
from tests.launch import small
from tests.launch.jobs import ALL, ON_RANKINGS, TRAINERS, assert_says, cases, run


@pytest.mark.parametrize(("job", "changes", "words"), cases(
    (ALL, {"data": "absent.jsonl"}, "cannot read absent.jsonl: there is no such file", "check the path"),
    (ALL, {"data": "m"}, "cannot read m: it is a directory; name a file in it"),
    (ALL, {"data": "prompts.txt"}, "cannot read prompts.txt", ".jsonl.gz or .json", "rename it"),
    (ALL, {"data": "loop.jsonl"}, "cannot read loop.jsonl: Too many levels of symbolic links", "permissions"),
    (ALL, {"data": "prompts.jsonl/x.jsonl"}, "cannot read prompts.jsonl/x.jsonl: Not a directory"),
    (TRAINERS, {"eval-data": "absent.jsonl"}, "cannot read absent.jsonl: there is no such file"),
    (ON_RANKINGS, {"data": "prompts.jsonl"}, "prompts.jsonl:1: no field holds responses", "'responses' and 'ranks'"),
    (("sft",), {"data": "rankings.jsonl"}, "rankings.jsonl:1: field 'output' is missing", "add it"),
    (ALL, {"data": "bad.jsonl.gz"}, "bad.jsonl.gz:1: the gzip file is damaged"),
))  # fmt: skip
def test_data_files(here, refused, job, changes, words):
    (here / "loop.jsonl").symlink_to(here / "loop.jsonl")
    (here / "bad.jsonl.gz").write_text("{}")
    assert_says(refused(job, changes), *words)


def test_unreadable_file(here, refused):
    if os.geteuid() == 0:
        pytest.skip("root may read every file: the same branch is taken by the loop of links above")
    shutil.copy(here / "prompts.jsonl", here / "locked.jsonl")
    (here / "locked.jsonl").chmod(0)
    assert_says(refused("sft", {"data": "locked.jsonl"}), "cannot read locked.jsonl: Permission denied")


GOOD_LINE = json.dumps({"instruction": "x", "input": "", "output": "y"}).encode() + b"\n"


@pytest.mark.parametrize(("jobs", "line", "words"), [
    (ALL, b'{"instruction": "\xff"}', ["d.jsonl:2: byte 0xff is not UTF-8", "save the file as UTF-8"]),
    (ALL, b'{"instruction": "x"', ["d.jsonl:2:", "bad JSON", "one whole record on each line"]),
    (ALL, b'["x"]', ["d.jsonl:2: the record is a list: it must be an object"]),
    (("sft", "ppo", "sample"), b'{"input": "", "output": "x"}', ["d.jsonl:2: field 'instruction' is missing"]),
    (("sft", "ppo", "sample"), b'{"instruction": "x", "output": "x"}', ["d.jsonl:2: field 'input' is missing"]),
    (("sft",), b'{"instruction": "x", "input": ""}', ["d.jsonl:2: field 'output' is missing", "add it"]),
    (("sft",), b'{"instruction": "x", "input": "", "output": ""}', ["d.jsonl:2: field 'output' is empty", "drop"]),
    (("sft", "ppo", "sample"), b'{"instruction": " ", "input": "", "output": "x"}',
     ["d.jsonl:2: field 'instruction' is empty", "fill it or drop the record"]),
    (("sft", "ppo", "sample"), b'{"instruction": 5, "input": "", "output": "x"}', ["'instruction' is 5", "string"]),
])  # fmt: skip
def test_records(here, refused, jobs, line, words):
    ranking = json.dumps({"instruction": "x", "input": "", "responses": ["a", "b"], "ranks": [1, 2]}).encode() + b"\n"
    for job in jobs:
        (here / "d.jsonl").write_bytes((ranking if job in ON_RANKINGS else GOOD_LINE) + line + b"\n")
        assert_says(refused(job, {"data": "d.jsonl"}), *words)
    (here / "d.jsonl").write_bytes(GOOD_LINE + line + b"\n")
    if "sft" in jobs:
        assert_says(refused("sft", {"eval-data": "d.jsonl"}), *words)


@pytest.mark.parametrize(("responses", "ranks", "words"), [
    ([], [], ["'responses' holds 0: give at least 2"]),
    (["a"], [1], ["'responses' holds 1: give at least 2", "drop the record"]),
    (["a", "b", "c"], [2, 2, 2], ["'ranks' is 2 for every response", "drop the record"]),
    (["a", "b", "c"], [1, 2], ["'ranks' holds 2 for 3 responses", "one for each"]),
    (["a", "b"], [0, 1], ["'ranks[0]' is 0", "from 1, the best"]),
    (["a", "a"], [1, 2], ["all responses are the same text", "drop the record"]),
    (["a", None], [1, 2], ["'responses[1]' is None", "string"]),
])  # fmt: skip
def test_rankings(here, refused, responses, ranks, words):
    row = {"instruction": "x", "input": "", "responses": responses, "ranks": ranks}
    small.write_rows(here / "k.jsonl", [*small.RANKINGS, row])
    for job in ON_RANKINGS:
        assert_says(refused(job, {"data": "k.jsonl"}), "k.jsonl:6:", *words)
        assert_says(refused(job, {"eval-data": "k.jsonl"}), "k.jsonl:6:", *words)


@pytest.mark.parametrize("job", ON_RANKINGS)
def test_rankings_without_a_pair(here, refused, job):
    small.write_rows(here / "ties.jsonl", [{**row, "ranks": [2, 2, 2]} for row in small.RANKINGS])
    line = refused(job, {"data": "ties.jsonl"})
    assert_says(line, "ties.jsonl:1:", "'ranks' is 2 for every response", "drop the record")
    line = refused(job, {"data": "ties.jsonl", "bad-records": "skip"})
    assert_says(line, "ties.jsonl has no valid record, the first mistake of 5: ties.jsonl:1:")


@pytest.mark.parametrize("job", ALL)
def test_too_long_prompts(here, refused, monkeypatch, job):
    # Record b has an input of about thirty tokens; the others are short.
    limit = {"max-length": "40"}
    what = ("prompt b has", "limit is 32") if job in ("ppo", "sample") else ("sequence b has", "--max-length is 40")
    assert_says(refused(job, limit), *what, "--max-length", "--truncate left, right or drop")
    for how in ("left", "drop"):
        output = f"{how}.jsonl" if job == "sample" else how
        run(monkeypatch, job, {**limit, "truncate": how, "output": output})
        assert (here / output).exists()
    if job in ("ppo", "sample"):
        run(monkeypatch, job, {**limit, "truncate": "right", "output": "right.jsonl"})
    else:
        assert_says(refused(job, {**limit, "truncate": "right"}), "the prompt of sequence b alone", "left or drop")
    nothing = {"max-length": "10", "max-new-tokens": "8"} if job in ("ppo", "sample") else {"max-length": "3"}
    assert_says(refused(job, {**nothing, "truncate": "drop"}), "no record is left", "raise --max-length")


def test_too_long_responses(here, refused, monkeypatch):
    rows = [{"id": "long", "instruction": "x", "input": "", "output": "abc " * 60}]
    small.write_rows(here / "d.jsonl", rows)
    assert_says(
        refused("sft", {"data": "d.jsonl"}), "sequence long has", "--max-length is 64", "--truncate left, right"
    )
    assert_says(refused("sft", {"data": "d.jsonl", "truncate": "left"}), "the response of sequence long alone", "right")
    run(monkeypatch, "sft", {"data": "d.jsonl", "truncate": "right"})
    small.write_rows(here / "k.jsonl", [{**small.RANKINGS[0], "responses": ["abc " * 10, "no " * 10, "good " * 10]}])
    for job in ON_RANKINGS:
        line = refused(job, {"data": "k.jsonl", "output": "rw", "max-length": "99", "tokens-per-microbatch": "99"})
        assert_says(line, "the 3 responses of ranking a have", "--tokens-per-microbatch is 99: raise it")


@pytest.mark.parametrize(("job", "changes", "words"), cases(
    (ALL, {"model": "nowhere"}, "nowhere is not a directory", "local directory of a model"),
    (ALL, {"model": "prompts.jsonl"}, "prompts.jsonl is not a directory", "local directory of a model"),
    (ALL, {"model": "empty"}, "empty has no config.json"),
    (ALL, {"model": "no_weights"}, "no_weights holds no weights", "model.safetensors"),
    (ALL, {"model": "cut"}, "cut/model.safetensors is cut short", "download it again"),
    (ALL, {"model": "bad_json"}, "bad_json/config.json cannot be read as JSON"),
    (ALL, {"model": "gpt2"}, "model_type 'gpt2'", "supported are bloom, llama"),
    (ALL, {"model": "mismatch"}, "mismatch", "shape"),
    (ALL, {"model": "no_eos"}, "no_eos has no eos token", "set 'eos_token'"),
    (ALL, {"model": "no_tokenizer"}, "no_tokenizer holds no tokenizer", "tokenizer.json"),
    (ALL, {"model": "large_vocabulary"}, "ids up to 329", "320 rows", "saved with the model"),
    (ALL, {"model": "rm"}, "--model rm is a reward model", "give a language model"),
    (ALL, {"model": "run"}, "--model run is a run's folder", "run/model"),
    (ALL, {"model": "short"}, "--max-length is 64, short serves 32 tokens (max_position_embeddings in", "lower it"),
    (("ppo",), {"reward": "nowhere"}, "nowhere is not a directory"),
    (("ppo",), {"reward": "cut"}, "cut/model.safetensors is cut short"),
    (("ppo",), {"reward": "m"}, "--reward m has no score head", "launch/reward.py", "module:function"),
    (("ppo",), {"reward": "rm_other"}, "--reward rm_other has another tokenizer than the policy", "same base model"),
    (("ppo",), {"reward": "rm_nan"}, "scores prompt a as nan", "train it again"),
    (("ppo",), {"reward": None}, "--model is given without --reward"),
    (("ppo",), {"reward": "absent_module:score"}, "--reward absent_module:score", "No module named", "module:function"),
    (("ppo",), {"reward": ":score"}, "--reward :score", "Empty module name"),
    (("ppo",), {"reward": "rewards_here:absent"}, "--reward rewards_here:absent", "no attribute 'absent'"),
    (("ppo",), {"reward": "rewards_here:CONSTANT"}, "--reward rewards_here:CONSTANT", "it is 5"),
    (("ppo",), {"reward": "rewards_here:of_one"}, "--reward rewards_here:of_one", "too many positional arguments"),
    (("ppo",), {"reward": "rewards_here:of_nan"}, "--reward rewards_here:of_nan gave nan for ''", "a finite number"),
    (("ppo",), {"reward": "rewards_here:of_none"}, "--reward rewards_here:of_none gave None", "a finite number"),
    (("ppo",), {"reward": "broken_here:score"}, "--reward broken_here:score", "broken_here.py, line 1"),
    (("ppo",), {"reward": "rewards_here:within"}, "rewards_here:within gave <function", "its settings in brackets"),
    (("ppo",), {"reward": "rewards_here:within(open, 1)"}, "within(open, 1) has an argument that is no number, text"),
    (("ppo",), {"reward": "rm:0"}, "--reward rm:0: the weight is 0, give a finite number other than 0"),
))  # fmt: skip
def test_models_and_rewards(here, refused, monkeypatch, job, changes, words):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (here / "broken_here.py").write_text("def score(:\n")
    (here / "rewards_here.py").write_text(
        "CONSTANT = 5\n"
        "def of_one(response): return 1.0\n"
        "def of_nan(prompt, response): return float('nan')\n"
        "def of_none(prompt, response): return None\n"
        "def within(shortest, longest): return lambda prompt, response: 1.0\n"
    )
    monkeypatch.delitem(sys.modules, "rewards_here", raising=False)
    assert_says(refused(job, changes), *words)


@pytest.mark.parametrize(("job", "changes", "words"), cases(
    (TRAINERS, {"data": "absent.jsonl"}, "cannot read absent.jsonl"),
    (TRAINERS, {"eval-data": "absent.jsonl"}, "cannot read absent.jsonl"),
    (TRAINERS, {"template": "absent.txt"}, "'absent.txt' is no template"),
    (TRAINERS, {"output": "prompts.jsonl"}, "--output prompts.jsonl is a file"),
    (TRAINERS, {"output": "prompts.jsonl/x"}, "prompts.jsonl is a file: choose another place"),
    (("ppo",), {"reward": "nowhere"}, "nowhere is not a directory"),
    (("ppo",), {"reward": "absent_module:score"}, "No module named 'absent_module'"),
    (("ppo",), {"max-new-tokens": "64"}, "--max-new-tokens is 64, --max-length is 64"),
    (("ppo",), {"batch-size": "1"}, "--batch-size is 1: PPO compares"),
    (("ppo",), {"kl-horizon": "9", "kl-controller": "adaptive"}, "--kl-horizon is 9.0", "raise --kl-horizon"),
))  # fmt: skip
def test_errors_show_before_earlier_stages_run(refused, monkeypatch, job, changes, words):
    # Without --model, earlier stages would make the model.
    def begun(*args):
        raise AssertionError("an earlier stage has begun")

    monkeypatch.setattr("launch.common.make_embedded", begun)
    assert_says(refused(job, {"model": None, **changes}), *words)


@pytest.mark.parametrize("job", ALL)
def test_unwritable_outputs(here, refused, monkeypatch, job):
    suffix = ".jsonl" if job == "sample" else ""
    line = refused(job, {"output": f"prompts.jsonl/deep/out{suffix}"})
    assert_says(line, f"prompts.jsonl/deep/out{suffix} cannot be made", "prompts.jsonl is a file")
    (here / "locked").mkdir(mode=0o500)
    access = os.access  # simulate another user, for root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    assert_says(refused(job, {"output": f"locked/out{suffix}"}), "you may not write to", "locked")


def test_sample_outputs(here, refused):
    (here / "mine.jsonl").write_text("mine")
    assert_says(refused("sample", {"output": "out"}), "--output out must end in .jsonl")
    assert_says(refused("sample", {"output": "mine.jsonl"}), "mine.jsonl exists", "--overwrite")
    assert_says(refused("sample", {"output": "prompts.jsonl"}, "--overwrite"), "prompts.jsonl is the --data file")
    (here / "folder.jsonl").mkdir()
    assert_says(refused("sample", {"output": "folder.jsonl"}, "--overwrite"), "is a folder", "responses.jsonl")


@pytest.mark.parametrize("job", TRAINERS)
def test_existing_outputs(here, refused, monkeypatch, job):
    shutil.copytree(here / "m", here / "a_model")
    (here / "notes").mkdir()
    (here / "notes" / "thesis.txt").write_text("mine")
    for more in ((), ("--overwrite",)):
        assert_says(refused(job, {"output": "notes"}, *more), "--output notes holds other files")
        assert_says(refused(job, {"output": "a_model"}, *more), "--output a_model holds other files")
        assert_says(refused(job, {"output": "prompts.jsonl"}, *more), "--output prompts.jsonl is a file")

    run(monkeypatch, job, {})
    line = refused(job, {"lr": "0.5"})
    assert_says(line, "out holds another run (lr ", "-> 0.5)", "another --output, or --overwrite")
    line = refused(job, {"model": "out/model"}, "--overwrite")
    assert_says(line, "--model out/model lies in out, which --overwrite would delete")
    (here / "out" / "result.json").unlink()
    assert_says(refused(job, {}), "out holds a run that did not finish", "--overwrite")
    run(monkeypatch, job, {}, "--overwrite")
    assert (here / "out" / "result.json").is_file()


def test_crlf_and_byte_order_marks(here, monkeypatch):
    for name in ("prompts", "rankings"):
        text = (here / f"{name}.jsonl").read_bytes()
        (here / f"{name}_windows.jsonl").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
        read = read_instructions if name == "prompts" else read_rankings
        assert list(read(here / f"{name}_windows.jsonl")) == list(read(here / f"{name}.jsonl"))
    run(monkeypatch, "sample", {})
    run(monkeypatch, "sample", {"data": "prompts_windows.jsonl", "output": "windows.jsonl"})
    assert (here / "windows.jsonl").read_bytes() == (here / "out.jsonl").read_bytes()
    (here / "lr.yaml").write_bytes(b"lr: 0.5\r\nlang: ne\r\n")
    run(monkeypatch, "sft", {"data": "prompts_windows.jsonl", "config": "lr.yaml", "lang": None})
    assert json.loads((here / "out" / "config.json").read_text())["settings"]["lr"] == 0.5


def test_reward_function_in_working_directory(here, monkeypatch):
    (here / "length_reward.py").write_text("def score(prompt, response):\n    return len(response)\n")
    run(monkeypatch, "ppo", {"reward": "length_reward:score"})
    assert json.loads((here / "out" / "result.json").read_text())["score_first"] > 0
