"""launch/gpu_proof.py without a GPU: all stages on tiny shapes, failures, resuming, time, and the table."""

import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest
import torch

from engine.base.errors import UserError
from launch import gpu_proof
from launch.gpu import kernels, processes, runner, trainer_checks
from launch.gpu.kernel_checks import ratio_of
from launch.gpu.lab import COPY, GEMM, Lab
from launch.gpu.lines import Case, Expected, Measured, Spread, at_most, right, share_of_floor, within
from launch.gpu.record import Record
from launch.gpu.runner import AGAIN, run_stage
from launch.gpu.stages import STAGES
from launch.gpu.table import BEGIN, END, FAKE, replaced, table

CHECKS, FAILS = 1, 3  # the stage whose checks count on any machine, and the one whose first case is made to fail


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    """The folder of a rehearsal in which a case of stage 3 fails.

    Stage 1 runs in a process of its own, as all do outside of this test: there Triton interprets its kernels.
    """
    folder = tmp_path_factory.mktemp("proof")
    own = processes._process

    def process(stage, folder, fake, seconds, fails):
        if stage.number == CHECKS:
            return own(stage, folder, fake, seconds, fails)
        told = {"stage": stage.number, "folder": str(folder), "fake": fake, "seconds": seconds, "fails": fails}
        return runner.main(json.dumps(told))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes, "_process", process)
        gpu_proof.job(["--out", str(folder), "--fake", "--rehearse-failure", str(FAILS)])
    return folder


def of_stage(folder, number):
    return json.loads((folder / STAGES[number].file).read_text())


def test_every_stage_ends_with_predictions_and_measures(proof):
    for stage in STAGES:
        content = of_stage(proof, stage.number)
        failed = [case["name"] for case in content["cases"] if case["state"] == "failed"]
        assert len(failed) == (stage.number == FAILS), failed
        done = [case for case in content["cases"] if case["state"] == "done"]
        lines = [line for case in done for line in case["lines"]]
        assert content["fake"] and lines and all(line["measured"]["count"] >= 1 for line in lines)
        assert {case["state"] for case in content["cases"]} <= {"done", "failed", "left out"}
    timed = [line for number in (2, 3, 4, 5) for case in of_stage(proof, number)["cases"] for line in case["lines"]]
    floors = [line for line in timed if line["unit"] in ("ms", "s") and line["predicted"]]
    assert len(floors) > 12 and all(line["predicted"] > 0 for line in floors)


def test_checks_of_correctness_count_without_a_gpu(proof):
    cases = of_stage(proof, CHECKS)["cases"]
    verdicts = {f"{case['name']}: {line['what']}": line["verdict"] for case in cases for line in case["lines"]}
    assert set(verdicts.values()) == {"met"}, verdicts
    names = " ".join(case["name"] for case in cases)
    for part in ("linear_logprob", "attention with ALiBi", "attention_decode", "coded_linear", "segment_scan", "bloom",
                 "gemma3", "sft", "reward", "dpo", "ppo", "zero2", "stopped twice"):  # fmt: skip
        assert part in names


def test_failure_stops_nothing_and_comes_first(proof):
    text = (proof / "table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| stage")]
    assert runner.REHEARSED in rows[0] and rows[0].endswith("| FAILED |") and text.count("FAILED") == 1
    assert of_stage(proof, FAILS)["cases"][1]["state"] == "done" and of_stage(proof, 5)["complete"]


def test_table_of_a_rehearsal_shows_no_number_of_a_machine(proof):
    text = (proof / "table.md").read_text()
    assert text.startswith(BEGIN) and text.rstrip().endswith(END) and FAKE in text
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert len(cells) > 20 and len({len(row) for row in cells}) == 1
    assert {row[4] for row in cells[1:]} <= {"fake", ""}, "a measured number is shown"
    assert not any("7B" in row[1] for row in cells)


def test_second_run_skips_what_is_complete(proof, capsys, monkeypatch):
    monkeypatch.setattr(processes, "_process", lambda *_: pytest.fail("a stage ran again"))
    before = [(proof / stage.file).read_text() for stage in STAGES]
    gpu_proof.job(["--out", str(proof), "--fake"])
    assert capsys.readouterr().out.count("complete, its results are kept") == len(STAGES)
    assert [(proof / stage.file).read_text() for stage in STAGES] == before


def test_again_repeats_the_chosen_stage_alone(proof, capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(processes, "_process", lambda stage, *_: ran.append(stage.number))
    kept = (proof / STAGES[FAILS].file).read_text()
    gpu_proof.job(["--out", str(proof), "--fake", "--again", "--stage", str(FAILS)])
    (proof / STAGES[FAILS].file).write_text(kept)
    assert ran == [FAILS] and f"{FAILS} decode | all | not run" in capsys.readouterr().out


def test_results_of_a_rehearsal_enter_no_page(proof, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"a\n{BEGIN}\n{END}\n")
    with pytest.raises(UserError, match="--fake"):
        gpu_proof.job(["--out", str(proof), "--fake", "--stage", "6", "--readme", str(page)])
    assert page.read_text() == f"a\n{BEGIN}\n{END}\n"


def test_real_and_rehearsed_results_do_not_mix(proof, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="was made with --fake"):
        gpu_proof.job(["--out", str(proof)])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stage", "9"], "--stage 9 is unknown: give 0 to 6"),
        (["--budget-minutes", "0"], "--budget-minutes is 0"),
        (["--rehearse-failure", "1"], "without --fake"),
        pytest.param([], "no GPU is visible", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU")),
    ],
)
def test_mistakes_are_one_line(flags, says, tmp_path):
    with pytest.raises(UserError, match=says):
        gpu_proof.job(["--out", str(tmp_path / "x"), *flags])
    assert not (tmp_path / "x").exists()


@dataclass(frozen=True)
class Made:
    """A stage with given cases."""

    given: list
    number: int = 0
    name: str = "made"
    file: str = "0-machine.json"

    def cases(self, lab):
        return self.given


def case(name, numbers=None, error=None, predicted=2.0, goal=None, **more):
    def measure():
        if error:
            raise error
        return Measured({"time": 3.0} if numbers is None else numbers)

    return Case(name, [Expected("time", "ms", predicted, goal)], measure, **more)


def lab_of(folder, fake=True, seconds=100.0):
    return Lab(folder, fake, time.monotonic() + seconds)


def states(folder):
    return {one["name"]: one["state"] for one in of_stage(folder, 0)["cases"]}


def test_case_is_written_with_its_prediction_before_it_is_measured(tmp_path):
    seen = []
    looks = Case("looks", [Expected("time", "ms", 2.0)], lambda: seen.append(of_stage(tmp_path, 0)) or Measured({}))
    run_stage(Made([case("first"), looks]), lab_of(tmp_path))
    (first, during), line = seen[0]["cases"], seen[0]["cases"][1]["lines"][0]
    assert first["state"] == "done" and during["state"] == "running"
    assert line["predicted"] == 2.0 and line["measured"] is None


def test_killed_stage_goes_on_and_repeats_no_case(tmp_path):
    """The process dies in the second of three cases."""
    program = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from launch.gpu.lab import Lab
from launch.gpu.lines import Case, Measured
from launch.gpu.runner import run_stage
measures = {"a": lambda: Measured({}), "b": lambda: os.kill(os.getpid(), 9), "c": lambda: Measured({})}
cases = [Case(name, [], measure) for name, measure in measures.items()]
stage = SimpleNamespace(number=0, name="made", file="0-machine.json", cases=lambda lab: cases)
run_stage(stage, Lab(Path(sys.argv[1]), True, time.monotonic() + 100))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=processes.ROOT)
    assert done.returncode == -9 and states(tmp_path) == {"a": "done", "b": "running"}
    repeated = case("a", error=AssertionError("measured twice"))
    assert run_stage(Made([repeated, case("b"), case("c")]), lab_of(tmp_path)) == 0
    assert states(tmp_path) == {"a": "done", "b": "done", "c": "done"} and of_stage(tmp_path, 0)["complete"]


def test_parent_names_the_case_in_which_a_process_died_and_goes_on(tmp_path, monkeypatch):
    stage, cases, turns = Made([]), [case("a"), case("b"), case("c")], []

    def process(stage, folder, fake, seconds, fails):
        turns.append(seconds)
        if len(turns) == 1:
            record = Record(folder / stage.file, {"stage": 0, "name": "made", "fake": True})
            record.begin(cases[0])
            record.end(cases[0], Measured({"time": 1.0}), 0.1)
            record.begin(cases[1])
            return -11
        return run_stage(Made(cases), lab_of(folder))

    monkeypatch.setattr(processes, "_process", process)
    processes.run(stage, tmp_path, True, 100)
    assert len(turns) == 2 and states(tmp_path) == {"a": "done", "b": "failed", "c": "done"}
    assert of_stage(tmp_path, 0)["cases"][1]["error"] == "its process ended: -11"


def test_process_that_cannot_start_is_not_started_for_ever(tmp_path, monkeypatch):
    turns = []
    monkeypatch.setattr(processes, "_process", lambda *_: turns.append(1) or 1)
    processes.run(Made([]), tmp_path, True, 100)
    assert len(turns) <= 2 and states(tmp_path) == {"the stage itself": "failed"}


def test_stage_past_its_time_is_ended_and_says_so(tmp_path, monkeypatch):
    def process(stage, folder, *_):
        Record(folder / stage.file, {"stage": 0, "name": "made", "fake": True}).begin(case("hangs"))

    monkeypatch.setattr(processes, "_process", process)
    processes.run(Made([]), tmp_path, True, 5)
    assert states(tmp_path) == {"hangs": "failed"} and not of_stage(tmp_path, 0)["complete"]


def test_error_that_spoils_the_device_asks_for_a_new_process(tmp_path, monkeypatch):
    def spoiled(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Lab, "wait", spoiled)
    assert run_stage(Made([case("a"), case("b")]), lab_of(tmp_path)) == AGAIN
    assert states(tmp_path) == {"a": "failed"}


def test_dear_cases_are_left_out_and_tried_again_later(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 24e9))
    monkeypatch.setattr(Lab, "device", torch.device("cpu"))
    cases = [case("cheap", seconds=1), case("dear", seconds=90), case("large", seconds=1, memory_gb=80)]
    cases.append(case("peer", seconds=1, needs="no_such_package"))
    run_stage(Made(cases), lab_of(tmp_path, fake=False, seconds=50))
    assert states(tmp_path) == {"cheap": "done", "dear": "left out", "large": "left out", "peer": "left out"}
    reasons = [one.get("reason") for one in of_stage(tmp_path, 0)["cases"]]
    assert reasons[1].startswith("it takes about 90 s") and reasons[2] == "it takes about 80 GB, this GPU has 24"
    assert reasons[3] == "no_such_package is not installed" and not of_stage(tmp_path, 0)["complete"]
    run_stage(Made(cases), lab_of(tmp_path, fake=False, seconds=500))
    assert states(tmp_path)["dear"] == "done" and of_stage(tmp_path, 0)["complete"], "nothing more can run here"


def test_case_alone_gets_a_new_process(tmp_path, monkeypatch):
    monkeypatch.setattr(Lab, "device", torch.device("cpu"))
    cases = [case("a", alone=True), case("b", alone=True)]
    assert run_stage(Made(cases), lab_of(tmp_path, fake=False)) == AGAIN
    assert states(tmp_path) == {"a": "done"}
    assert run_stage(Made(cases), lab_of(tmp_path, fake=False)) == 0


def test_verdicts():
    assert share_of_floor(0.8).verdict(10.0, 8.0) == "met" and share_of_floor(0.8).verdict(10.1, 8.0) == "missed"
    assert share_of_floor(0.8).verdict(10.0, None) == "no prediction"
    assert within(0.1).verdict(11.0, 10.0) == "met" and within(0.1).verdict(8.9, 10.0) == "missed"
    assert at_most(1).verdict(1.0, None) == "met" and at_most(1).verdict(math.nan, None) == "missed"


def test_missed_target_stands_before_a_met_one_and_numbers_have_units(tmp_path):
    spread = {"time": Spread.of([3.0, 2.5, 4.0])}
    cases = [
        case("good", spread, goal=share_of_floor(0.5)), case("bad", spread, goal=share_of_floor(0.9)),
        case("forgotten", {}, goal=at_most(1)),
        Case("check", [right("wrong ones", "", 0)], lambda: Measured({"wrong ones": 1})),
    ]  # fmt: skip
    run_stage(Made(cases), lab_of(tmp_path))
    text = table([{**of_stage(tmp_path, 0), "fake": False}])
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| 0 made" in line]
    assert [row[1] for row in rows] == ["bad", "check", "forgotten", "good"]
    assert rows[0][3:] == ["2 ms", "3 ms (2.5 to 4)", ">= 90 % of the floor's speed", "missed"]
    assert rows[1][6] == "missed" and rows[2][6] == "not measured" and rows[3][6] == "met"


def test_table_replaces_what_the_markers_enclose(tmp_path):
    page = f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    assert replaced(page, f"{BEGIN}\nnew\n{END}\n", tmp_path) == f"before\n\n{BEGIN}\nnew\n{END}\n\nafter\n"
    for wrong in ("no markers", f"{END} {BEGIN}", page + page):
        with pytest.raises(UserError, match="needs one line"):
            replaced(wrong, "new", tmp_path)


def test_predictions_start_from_the_measured_rates(tmp_path):
    lines = [Expected(COPY, "GB/s"), Expected(GEMM, "TFLOP/s")]
    assert lab_of(tmp_path).floor_s(1.0) is None
    rates = Case("rates", lines, lambda: Measured({COPY: 2000.0, GEMM: 500.0}))
    run_stage(Made([rates]), lab_of(tmp_path))
    lab = lab_of(tmp_path)
    assert lab.floor_s(num_bytes=4e12) == pytest.approx(2.0) and lab.floor_s(flops=1e15) == pytest.approx(2.0)
    assert lab.floor_s(4e12, 3e15) == pytest.approx(6.0)


def test_error_ratio_sees_one_wrong_number_and_nan():
    truth = torch.randn(4096, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = truth.to(torch.bfloat16)
    assert ratio_of(plain, plain, truth, torch.bfloat16) == pytest.approx(1.0)
    one_wrong = plain.clone()
    one_wrong[7] += 0.1
    assert ratio_of(one_wrong, plain, truth, torch.bfloat16) > 2
    one_wrong[7] = torch.nan
    assert ratio_of(one_wrong, plain, truth, torch.bfloat16) == math.inf
    assert ratio_of(truth, plain, truth, torch.bfloat16) == 0


def test_process_for_the_cpu_sees_no_gpu_and_no_ranks_of_this_one(tmp_path, monkeypatch):
    """With this process's port it would wait for ranks there, or find the port taken."""
    seen = {}

    def run(command, env, **_):
        seen.update(env)
        (tmp_path / "cpu.json").write_text("{}")

    for name in trainer_checks.OF_THIS_RANK:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(trainer_checks.subprocess, "run", run)
    assert trainer_checks._cpu_rows(tmp_path, fake=False) == {}
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and not set(trainer_checks.OF_THIS_RANK) & set(seen)


@pytest.mark.parametrize(("known", "causal"), [("window_size", (-1, 0)), ("is_causal", True)])
def test_both_signatures_of_varlen_attn_are_causal(known, causal, monkeypatch):
    from torch.nn.attention import varlen

    def of_one_version(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
        return {"window_size": window_size}

    def of_another(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        return {"is_causal": is_causal}

    version = {"window_size": of_one_version, "is_causal": of_another}[known]
    monkeypatch.setattr(varlen, "varlen_attn", version)
    x = torch.zeros(3, 1, 8)
    assert kernels.varlen(x, x, x, torch.tensor([0, 3]), 3) == {known: causal}


def test_planned_choices_fit_their_limits():
    """At real shapes, on the meta device: nothing is allocated."""
    from launch.gpu import ppo
    from launch.gpu.models import on_meta

    lab = lab_of(processes.ROOT, fake=False)
    for limit, total in ((None, 141.0), (40, 80.0), (24, 80.0)):
        made = ppo._case(lab, limit, total)
        assert made.memory_gb < 0.92 * (limit or total), made.name
        assert ("int8" in made.name) == (limit is not None) and made.alone
    assert sum(p.numel() for p in on_meta(lab, "llama").parameters()) == pytest.approx(6.74e9, rel=0.01)
