"""launch/bench/objectives.py: the same budget for each method, and the table, on a tiny model."""

import pytest

from engine.base.errors import UserError
from launch.bench import objectives
from launch.real.step import flag_of
from tests.launch import small

RANKINGS = [{**row, "responses": [row["output"], "no", "yes"], "ranks": [1, 2, 2]} for row in small.INSTRUCTIONS]
NAMES = ("model", "reward", "second", "data", "rankings", "eval_data", "output")


def settings(**changes):
    return objectives.ObjectivesSettings(**{name: name for name in NAMES} | changes)


def test_every_method_with_rollouts_gets_as_many():
    todo = [s for s in objectives.steps(settings(iterations=7, rollouts=64)) if s.argv[0] == "launch/ppo.py"]
    assert {(flag_of(s, "--max-steps"), flag_of(s, "--batch-size"), flag_of(s, "--lr")) for s in todo} == {
        ("7", "64", "3e-05")
    }
    trained = [f"{name}_{seed}" for name in ("ppo", "rloo", "grpo") for seed in range(3)]
    assert [s.name for s in todo] == [*trained, "noise_0"]


@pytest.mark.parametrize(("changes", "words"), [({"methods": "ppo,sarsa"}, "'sarsa'"), ({"seeds": "0,x"}, "'0,x'")])
def test_mistakes_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        settings(**changes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_has_a_row_for_each_method(tmp_path, capfd):
    model = small.make_model(tmp_path / "model")
    for name in ("reward", "second"):
        small.make_reward_model(tmp_path / name, model, score=0.3)
    for name, rows in (("data", small.INSTRUCTIONS), ("rankings", RANKINGS), ("eval_data", small.INSTRUCTIONS)):
        small.write_rows(tmp_path / f"{name}.jsonl", rows)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("data", "rankings", "eval_data")}
    paths = {"model": model, "reward": tmp_path / "reward", "second": tmp_path / "second", "output": tmp_path / "runs"}
    flags = [str(x) for name, path in (paths | files).items() for x in (f"--{name.replace('_', '-')}", path)]
    few = "--seeds 0 --methods rloo,dpo --iterations 2 --rollouts 8 --samples 2 --top-layers 1 --max-new-tokens 4"
    objectives.job([*flags, *few.split(), "--max-length", "128", "--dtype", "float32"])
    lines = (tmp_path / "runs" / "objectives.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[6:]] == ["| sft", "| rloo", "| dpo", "| best of 2"]
    sft, rloo = (line.split(" | ") for line in lines[6:8])
    assert sft[4] == "0.00 ± 0.00" and rloo[7].isdecimal() and float(rloo[8].rstrip(" |")) > 0.1
