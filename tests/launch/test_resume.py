"""--resume: a run stopped by a signal continues to equal files, and so does the embedded chain."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from engine.training import exact_match, heldout
from engine.training.zero import ZeroStep
from launch import common, dpo, ppo, reward, sft
from launch.common import make_whole, parse_stage, stage_model
from tests.launch import small
from tests.launch.jobs import TRAINERS, assert_says, run
from tests.reliability.remains import assert_same


@pytest.fixture(autouse=True)
def alone():
    with small.alone():
        yield


def stop_at(monkeypatch, number, start):
    """Call start() and send SIGTERM during optimizer step `number`."""
    step, calls = ZeroStep.step, []

    def stepping(self, lr):
        calls.append(lr)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return step(self, lr)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(ZeroStep, "step", stepping)
        start()
    assert stopped.value.code == 143


@pytest.mark.parametrize("job", TRAINERS)
def test_stopped_job_resumes(here, refused, monkeypatch, capfd, job):
    changes = {"max-steps": "3", "epochs": "3", "batch-size": "2", "save-every": "100"}
    if job == "ppo":
        changes |= {"eval-data": "prompts.jsonl", "minibatch-size": "1"}
    run(monkeypatch, job, {**changes, "output": "whole"})
    stop_at(monkeypatch, 1, lambda: run(monkeypatch, job, changes))
    assert "SIGTERM: saved out/checkpoints/step-000001, --resume continues there" in capfd.readouterr().out
    assert_says(refused(job, changes), "out holds a run that did not finish", "--resume continues it", "--overwrite")
    line = refused(job, {**changes, "lr": "0.5", "seed": "4"}, "--resume")
    assert_says(line, "out was started with other settings (seed 0 -> 4; lr ", "-> 0.5)", "--override")
    run(monkeypatch, job, {**changes, "keep": "5"}, "--resume")
    assert "continuing after optimizer step 1," in capfd.readouterr().out
    assert_same(here / "out", here / "whole")
    run(monkeypatch, job, changes, "--resume")
    assert "complete" in capfd.readouterr().out
    assert_says(refused(job, {**changes, "lr": "0.5"}, "--resume", "--override"), "out holds another run")


@pytest.mark.parametrize("after", ["export", "answers"])
@pytest.mark.parametrize("job", TRAINERS)
def test_job_stopped_after_its_last_step_resumes_there(here, monkeypatch, capfd, job, after):
    """Also without --save-every: the signal saves the last step, and --resume repeats no step."""
    changes = {"max-steps": "2", "batch-size": "2", "save-every": "100"}
    if job == "ppo":
        changes |= {"minibatch-size": "1"}
    if job in ("sft", "ppo"):
        changes |= {"eval-data": "prompts.jsonl"}
    if job == "sft":
        changes |= {"exact-match": "true"}
    run(monkeypatch, job, {**changes, "output": "whole"})
    where, name = {
        ("export", "ppo"): (ppo, "save_model"), ("export", "sft"): (sft, "save_trained"),
        ("export", "reward"): (reward, "save_trained"), ("answers", "reward"): (reward, "write_card"),
        ("export", "dpo"): (dpo, "save_trained"), ("answers", "dpo"): (dpo, "write_card"),
        ("answers", "ppo"): (heldout, "generate"),
    }.get((after, job), (exact_match, "generate"))  # fmt: skip
    own, times = getattr(where, name), []
    rounds = -(-len(small.INSTRUCTIONS) // 2)  # batches of held-out prompts

    def signalling(*args, **options):
        times.append(name)
        if len(times) == (
            1 + rounds if (job, after) == ("ppo", "answers") else 1
        ):  # the first rounds are those before PPO
            signal.raise_signal(signal.SIGTERM)
        return own(*args, **options)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stopped:
        patched.setattr(where, name, signalling)
        run(monkeypatch, job, {**changes, "save-every": "0"})
    assert stopped.value.code == 143
    steps = {"ppo": 20}.get(job, 2)  # PPO: 3 and 2 of 5 prompts, minibatches of 1, 4 epochs
    assert f"SIGTERM: saved out/checkpoints/step-{steps:06d}, --resume continues there" in capfd.readouterr().out
    run(monkeypatch, job, changes, "--resume")
    assert_same(here / "out", here / "whole")


def test_resume_of_a_run_stopped_at_its_start(here, monkeypatch, capfd):
    (here / "out").mkdir()
    (here / "out" / ".config.json.7.tmp").write_text("{")
    run(monkeypatch, "sft", {}, "--resume")
    assert "holds no checkpoint: the run starts from the beginning" in capfd.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [
    ((("--resume", "--overwrite")), "--resume and --overwrite are both given"),
    ((("--override",)), "--override is given without --resume"),
    (("--keep=0",), "--keep is 0: give 1 or more"),
    (("--save-every=-1",), "--save-every is -1: give 0 or more"),
])  # fmt: skip
def test_inconsistent_flags(refused, flags, words):
    assert_says(refused("sft", {}, *flags), words)


@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("template", [None, "mine.txt"])
@pytest.mark.parametrize("more", [(), ("--resume", "--deepspeed-config", "ds_configs/zero1.json")])
def test_earlier_stages_share_settings(tmp_path, stage, template, more):
    """An earlier stage gets the settings that its own command would parse from the shared flags."""
    flags = ["--lang", "ne", "--runs", str(tmp_path), "--save-every", "7", "--keep", "3", "--seed", "5"]
    flags += ["--dtype", "float32", "--monitor", "none", "--hang-timeout", "60.5", *more]
    settings = parse_stage("ppo", [*flags, "--max-steps", "9", "--preset", "okapi", "--batch-size", "8"], "PPO")[0]
    ran = []
    assert stage_model(settings, stage, ran.append, None, template) == tmp_path / "ne" / stage / "model"
    assert ran == [parse_stage(stage, [*flags, *(["--template", template] if template else [])], stage)]


def test_make_whole_leaves_no_partial_folder(tmp_path):
    def stop(part: Path):
        part.mkdir()
        (part / "half").write_text("")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_whole(tmp_path / "data", stop)
    assert not (tmp_path / "data").exists()

    def make(part: Path):
        part.mkdir()
        (part / "whole").write_text("")

    make_whole(tmp_path / "data", make)
    assert [p.name for p in tmp_path.rglob("*")] == ["data", "whole"]


@pytest.mark.slow
def test_embedded_chain_resumes(tmp_path, monkeypatch, capfd):
    """Stop in SFT and again in reward training; the same command with --resume ends with equal files."""
    monkeypatch.setattr(common, "DEMO_RECORDS", 600)
    flags = ["--lang", "ne", "--max-steps", "3", "--batch-size", "16", "--save-every", "100"]
    reward.job([*flags, "--runs", str(tmp_path / "whole")])
    stopped = [*flags, "--runs", str(tmp_path / "stopped")]
    stop_at(monkeypatch, 2, lambda: reward.job(stopped))  # in SFT
    assert not (tmp_path / "stopped" / "ne" / "reward").exists()
    rest = len((tmp_path / "whole" / "ne" / "sft" / "metrics.jsonl").read_text().splitlines()) - 2
    stop_at(monkeypatch, rest + 1, lambda: reward.job([*stopped, "--resume"]))  # in the first step after it
    assert (tmp_path / "stopped" / "ne" / "sft" / "result.json").is_file()
    reward.job([*stopped, "--resume"])
    for stage in ("sft", "reward"):
        assert_same(tmp_path / "stopped" / "ne" / stage, tmp_path / "whole" / "ne" / stage)
