"""The rollout bench: all sides generate the same tokens; lengths, floors by hand, errors in one line."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from engine.base.errors import UserError
from engine.generation.generate import Step
from engine.models import build_model, load_model
from launch.bench import rollout_floor
from launch.bench.rollout import job
from launch.bench.rollout_floor import Machine, ModelCost, decode_share
from launch.bench.rollout_workload import Workload, check_same_lengths, draw_lengths, make_workload
from tests.engine.models.tiny import llama
from tests.launch.small import INSTRUCTIONS, make_model, write_rows


@pytest.fixture(autouse=True)
def measured_in_a_moment(monkeypatch):
    """Read 64 MiB and multiply small matrices to measure the machine: rough numbers will do."""
    monkeypatch.setattr(rollout_floor, "READ_BYTES", 64 << 20)
    monkeypatch.setitem(rollout_floor.GEMM_SIDES, "cpu", 512)


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_all_sides_generate_the_same_tokens(family, tmp_path, capsys):
    model = make_model(tmp_path / "m", family)
    peers = (
        ["unshared", "transformers"] if family == "llama" else ["generate"]
    )  # transformers' continuous batching lacks ALiBi
    job([
        "--model", str(model), "--num-prompts", "3", "--responses", "2", "--prompt-tokens", "9", "--slots", "4",
        "--max-new-tokens", "12", "--mean-new-tokens", "5", "--vs", *peers, "--peer-batch", "2", "4", "--json",
    ])  # fmt: skip
    out = capsys.readouterr().out
    sides = json.loads(out.splitlines()[-1])["sides"]
    both = ["ours", "ours, unshared", "transformers generate", "transformers continuous"]
    assert list(sides) == (both if family == "llama" else ["ours", "transformers generate"])
    for name, numbers in sides.items():
        assert name in out
        assert numbers["useful_tokens_per_s"] > 0
        assert numbers["same_tokens"] == 1, name
    assert 0 < sides["ours"]["slot_occupancy"] <= 1
    assert 0 < sides["ours"]["decode_share_of_floor"] < 1.5


def test_prompts_from_a_file_are_sampled_and_cut(tmp_path):
    model = make_model(tmp_path / "m")
    data = write_rows(tmp_path / "d.jsonl", INSTRUCTIONS)
    workload = make_workload(str(model), 320, 4, 7, 2, "fixed", 5, 1.0, str(data), 0)
    assert [len(p) for p in workload.prompts] == [7] * 4
    assert len(workload.requests()) == 8
    assert [(r.prompt_id, r.sample_id) for r in workload.requests()][:3] == [(0, 0), (0, 1), (1, 0)]
    assert {(r.min_new_tokens, r.max_new_tokens) for r in workload.requests(most=3)} == {(3, 3)}
    assert max(t for p in workload.prompts for t in p) < load_model(model).vocab_size
    with pytest.raises(UserError, match="contains 5 prompts, --num-prompts is 6"):
        make_workload(str(model), 320, 6, 7, 2, "fixed", 5, 1.0, str(data), 0)


def test_length_distributions(tmp_path):
    rng = random.Random(0)
    assert draw_lengths("fixed", 3, 9, 1.0, rng) == [9] * 3
    uniform = draw_lengths("uniform", 4000, 50, 1.0, rng)
    assert (min(uniform), max(uniform)) == (1, 50)
    assert abs(statistics.fmean(uniform) - 25.5) < 1
    free = draw_lengths("lognormal", 20_000, 10**9, 128, rng)
    assert abs(statistics.fmean(free) - 128) < 6
    assert abs(statistics.median(free) - 128 / 2.718281828**0.5) < 3
    assert max(draw_lengths("lognormal", 2000, 512, 128, rng)) == 512
    recorded = tmp_path / "lengths.jsonl"
    recorded.write_text('3\n{"length": 40}\n\n7\n')
    assert set(draw_lengths(str(recorded), 200, 30, 1.0, rng)) == {3, 7, 30}


@pytest.mark.parametrize("line", ["x", "0", "true", "{}", "1.5", '"4"'])
def test_bad_recorded_length(line, tmp_path):
    file = tmp_path / "lengths.jsonl"
    file.write_text(f"3\n{line}\n")
    with pytest.raises(UserError, match=r"lengths.jsonl:2: no length in"):
        draw_lengths(str(file), 1, 9, 1.0, random.Random(0))


def test_step_floor_by_hand():
    model = build_model(llama(), seed=0)  # 5 layers, 48 wide, 80 inside, 6 heads of 8, 2 of them for keys, 61 tokens
    cost = ModelCost.of(model)
    matrices = 5 * (48 * 48 + 2 * 48 * 16 + 48 * 48 + 3 * 48 * 80)
    assert cost == ModelCost(
        4 * (matrices + 5 * 2 * 48), 4 * 61 * 48, 2 * 5 * 16 * 4, 2 * matrices, 2 * 61 * 48, 4 * 5 * 48
    )
    step = Step(1.0, rows=3, prompt_tokens=0, positions_read=10, new_tokens=3, pages=1)
    nbytes = cost.layer_bytes + cost.head_bytes + 10 * cost.position_bytes
    flops = 3 * (cost.layer_flops + cost.head_flops) + 10 * cost.position_flops
    assert cost.floor_s(step, Machine(nbytes, 1e30)) == pytest.approx(1)
    assert cost.floor_s(step, Machine(1e30, flops)) == pytest.approx(1)
    busy = Step(9.0, rows=3, prompt_tokens=5, positions_read=10, new_tokens=3, pages=1)
    assert decode_share([step, busy], cost, Machine(2 * nbytes, 1e30)) == pytest.approx(0.5)


def test_early_stop_is_caught():
    workload = Workload([(1,)], 2, [3, 4])
    check_same_lengths("x", [[1] * 3, [1] * 4], workload)
    with pytest.raises(AssertionError, match="x: response 1 has 3 tokens"):
        check_same_lengths("x", [[1] * 3, [1] * 3], workload)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-prompts", "0"], "--num-prompts is 0: give 1 or more"),
        (["--mean-new-tokens", "0"], "--mean-new-tokens is 0"),
        (["--vs", "vllm"], "--vs vllm is unknown: one of unshared, generate, continuous, transformers"),
        (["--lengths", "gamma"], "--lengths gamma is neither a file nor one of fixed, uniform, lognormal"),
        (["--cache-tokens", "64", "--max-new-tokens", "90", "--lengths", "fixed"], "raise --cache-tokens to 128"),
    ],
)
def test_mistakes_are_one_line(flags, message, tmp_path):
    model = make_model(tmp_path / "m")
    with pytest.raises(UserError, match=message):
        job(["--model", str(model), "--num-prompts", "2", "--prompt-tokens", "4", *flags])


def test_plot_steps(tmp_path):
    from launch.bench.rollout_plot import plot_steps

    plot_steps(str(tmp_path / "steps.png"), [Step(0.1, 3, 0, 5, 3, 1), Step(0.2, 2, 4, 5, 2, 1)])
    assert (tmp_path / "steps.png").stat().st_size > 1000
