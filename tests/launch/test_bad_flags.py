"""Errors in flags, --config or ds_config: status 2, one line with the next step, no file changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import small
from tests.launch.jobs import ALL, GOOD, ON_RANKINGS, TRAINERS, argv_of, assert_says, cases, everything, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("job", ALL)
def test_good_flags_run(here, monkeypatch, job):
    run(monkeypatch, job, {})
    assert (here / GOOD[job]["output"]).exists()


@pytest.mark.parametrize(("job", "changes", "words"), cases(
    (ALL, {"lang": "nepal"}, "unknown language 'nepal'", "did you mean 'ne'?", "valid codes are ar, bn"),
    (ALL, {"lang": None}, "--lang", "required"),
    (("sample",), {"model": None}, "--model", "required"),
    (("sft",), {"max-lenght": "9"}, "unknown flag --max-lenght", "did you mean --max-length?"),
    (("sample",), {"temprature": "1", "lang": None}, "unknown flag --temprature", "did you mean --temperature?"),
    (("sample",), {"preset": "demo"}, "unknown flag --preset"),
    (TRAINERS, {"preset": "okapy"}, "--preset okapy is unknown", "did you mean okapi?", "default, okapi, demo"),
    (TRAINERS, {"lr": "fast"}, "--lr", "'fast'", "invalid float"),
    (("ppo", "sample"), {"max-new-tokens": "2.5"}, "--max-new-tokens", "'2.5'", "invalid int"),
    (("ppo",), {"kl-estimator": "k4"}, "--kl-estimator", "'k4'", "k1", "k3"),
    (ALL, {"dtype": "float64"}, "--dtype", "'float64'", "bfloat16"),
    (ALL, {"truncate": "middle"}, "--truncate", "'middle'", "left"),
    (ALL, {"template": "alpaka"}, "'alpaka'", "did you mean 'alpaca'?"),
    (TRAINERS, {"batch-size": "0"}, "--batch-size is 0: give 1 or more"),
    (TRAINERS, {"max-steps": "0"}, "--max-steps is 0: give 1 or more"),
    (TRAINERS, {"lr": "-1"}, "--lr is -1.0: give 0 or more"),
    (TRAINERS, {"lr": "nan"}, "--lr is nan"),
    (TRAINERS, {"lr": "inf"}, "--lr is inf"),
    (TRAINERS, {"weight-decay": "-0.1"}, "--weight-decay is -0.1: give 0 or more"),
    (TRAINERS, {"eps": "0"}, "--eps is 0.0: give more than 0"),
    (TRAINERS, {"trunk-cache": "inf"}, "--trunk-cache is inf: give 0 or more"),
    (TRAINERS, {"beta2": "1"}, "--beta2 is 1.0", "below 1"),
    (TRAINERS, {"max-grad-norm": "0"}, "--max-grad-norm is 0.0", "more than 0"),
    (TRAINERS, {"tokens-per-microbatch": "63"}, "--tokens-per-microbatch is 63, --max-length is 64", "raise the first"),
    (("ppo", "sample"), {"max-new-tokens": "64"}, "--max-new-tokens is 64, --max-length is 64", "lower the first"),
    (("ppo",), {"top-layers": "0"}, "--top-layers is '0'", "1 or more, or all"),
    (("ppo",), {"top-layers": "-1"}, "--top-layers is '-1'", "1 or more, or all"),
    (("ppo",), {"top-layers": "x"}, "--top-layers is 'x'", "1 or more, or all"),
    (("ppo",), {"top-layers": "²"}, "--top-layers is '²'", "1 or more, or all"),
    (("dpo",), {"beta": "0"}, "--beta is 0.0: give more than 0"),
    (("dpo",), {"beta": "inf"}, "--beta is inf: give 0 or more"),
    (("dpo",), {"dpo-loss": "listwise"}, "--dpo-loss", "'listwise'", "plackett-luce"),
    (("dpo",), {"label-smoothing": "0.5"}, "--label-smoothing is 0.5: give 0 or more, below 0.5"),
    (("dpo",), {"label-smoothing": "0.1", "dpo-loss": "plackett-luce"}, "--label-smoothing is for pairs", "pairs"),
    (("dpo",), {"sft-coef": "-1"}, "--sft-coef is -1.0: give 0 or more"),
    (ALL, {"trunk-dtype": "int3"}, "--trunk-dtype", "'int3'", "int8"),
    (("sft", "dpo", "ppo"), {"trunk-dtype": "int8", "top-layers": "all"}, "--trunk-dtype is int8 and all layers are"),
    (TRAINERS, {"trunk-dtype": "int4", "top-layers": "2"}, "all layers of the model's 2 are trained", "smaller number"),
    (ALL, {"embedding-dtype": "int2"}, "--embedding-dtype", "'int2'", "int8"),
    (("sft", "dpo", "ppo"), {"embedding-dtype": "int8", "top-layers": "all"}, "--embedding-dtype is int8 and all"),
    (("dpo", "ppo"), {"top-layers": "3"}, "--top-layers is 3, the model has 2 layers", "give fewer, or all"),
    (("ppo",), {"temperature": "0"}, "--temperature is 0.0", "give more than 0"),
    (("sample",), {"temperature": "0"}, "--temperature is 0", "4 responses", "--num-responses 1"),
    (("ppo", "sample"), {"temperature": "-1"}, "--temperature is -1.0"),
    (("ppo", "sample"), {"top-p": "0"}, "--top-p is 0.0", "above 0, up to 1"),
    (("ppo", "sample"), {"top-k": "-2"}, "--top-k is -2", "give 0 (all tokens) or more"),
    (("ppo",), {"kl-horizon": "0"}, "--kl-horizon is 0.0: give more than 0"),
    (("ppo",), {"kl-horizon": "127"}, "--kl-horizon is 127.0, --batch-size is 128", "a fifth", "raise --kl-horizon"),
    (("ppo",), {"kl-coef": "-0.1"}, "--kl-coef is -0.1: give 0 or more"),
    (("ppo",), {"kl-coef": "nan"}, "--kl-coef is nan: give 0 or more"),
    (("ppo",), {"vf-coef": "-1"}, "--vf-coef is -1.0: give 0 or more"),
    (("ppo",), {"missing-eos-penalty": "-1"}, "--missing-eos-penalty is -1.0: give 0 or more"),
    (("ppo",), {"missing-eos-penalty": "inf"}, "--missing-eos-penalty is inf: give 0 or more"),
    (("ppo",), {"score-clip": "0"}, "--score-clip is 0.0: give more than 0"),
    (("ppo",), {"batch-size": "1"}, "--batch-size is 1: PPO compares", "give 2 or more"),
    (("ppo",), {"gamma": "1.5"}, "--gamma is 1.5: give 0 to 1"),
    (("ppo",), {"gamma": "0.9", "advantage": "rloo", "samples-per-prompt": "2"}, "--gamma is 0.9", "no critic"),
    (("ppo",), {"advantage": "rlo"}, "--advantage is 'rlo': give gae, rloo, grpo or module:function"),
    (("ppo",), {"advantage": "nowhere:f"}, "--advantage nowhere:f is not an importable"),
    (("ppo",), {"advantage": "rloo"}, "--samples-per-prompt is 1: --advantage rloo compares", "give 2 or more"),
    (("ppo",), {"samples-per-prompt": "3"}, "--batch-size is 128, --samples-per-prompt is 3", "such as 129"),
    (("ppo",), {"advantage": "grpo", "samples-per-prompt": "2", "critic": "separate"}, "--critic is separate: --adv"),
    (("ppo",), {"advantage": "grpo", "samples-per-prompt": "2", "critic-warmup": "1"}, "--critic-warmup is 1: --advan"),
    (("ppo",), {"advantage": "grpo", "samples-per-prompt": "2", "critic-lr": "0.1"}, "--critic-lr is 0.1: --advantage"),
    (("ppo",), {"advantage": "rloo", "samples-per-prompt": "2", "advantage-scale": "none"}, "for --advantage grpo"),
    (("ppo",), {"credit": "token"}, "--credit is token: it is for --advantage rloo, not gae, leave it out"),
    (("ppo",), {"park-trunk": "true", "top-layers": "all"}, "--park-trunk is given with --top-layers all"),
    (("ppo",), {"kl-in": "loss", "kl-estimator": "k1"}, "--kl-estimator is k1 with --kl-in loss", "give k2 or k3"),
    (("ppo",), {"critic-warmup": "1"}, "--critic-warmup is 1, the run has 1 iterations", "lower the first"),
    (("sample",), {"num-responses": "0"}, "--num-responses is 0: give 1 or more"),
    (("sample",), {"slots": "0"}, "--slots is 0: give 1 or more"),
    (("sample",), {"min-new-tokens": "-1"}, "--min-new-tokens is -1: give 0 or more"),
    (("sample",), {"min-new-tokens": "9"}, "--min-new-tokens is 9, --max-new-tokens is 8", "lower the first"),
    (("sample",), {"min-p": "1.5"}, "--min-p is 1.5", "0 to 1"),
    (("sample",), {"repetition-penalty": "0"}, "--repetition-penalty is 0.0", "more than 0"),
    (("sample",), {"stop": ""}, "--stop contains an empty text", "leave it out"),
    (("sample",), {"cache-tokens": "63"}, "--cache-tokens is 63: give 64, one page, or more"),
    (("sample",), {"cache-tokens": "64"}, "needs 2 pages of 64 tokens", "raise --cache-tokens to 128"),
    (ON_RANKINGS, {"heldout": "1"}, "--heldout is 1.0", "below 1"),
    (ON_RANKINGS, {"heldout": "0.01"}, "5 prompts, too few to hold out 1%", "--eval-data", "--heldout 0"),
    (("sft", "reward", "dpo"), {"eval-every": "-1"}, "--eval-every is -1: give 0 or more"),
))  # fmt: skip
def test_flags(refused, job, changes, words):
    assert_says(refused(job, changes), *words)


def test_unknown_words(refused):
    assert_says(refused("sft", {}, "prompts.jsonl"), "unexpected argument prompts.jsonl")
    assert_says(refused("sft", {}, "--config"), "--config", "expected one argument")
    assert_says(refused("sft", {}, "--preset"), "--preset", "expected one argument")
    assert_says(refused("sft", {}, "--lr"), "--lr", "expected one argument")


@pytest.mark.parametrize(("content", "words"), [
    (None, ["c.yaml cannot be read (No such file", "check the path"]),
    ("lr: [1", ["c.yaml is not valid YAML", "fix it"]),
    ("- lr", ["must contain one mapping of setting to value, not list"]),
    ("max_lenght: 9", ["unknown setting 'max_lenght'", "did you mean max_length?"]),
    ("lr: {peak: 1}", ["setting 'lr' must be a plain value"]),
    ("lr: high", ["--lr", "invalid float"]),
    ("max-length: 1", ["--max-length is 1: give 2 or more"]),
    (b"lang: \xff", ["c.yaml is not UTF-8 (byte 6)"]),
])  # fmt: skip
def test_config_files(here, refused, content, words):
    if content is not None:
        (here / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_says(refused("sft", {"config": "c.yaml", "lr": None, "max-length": None}), *words)


def test_config_file_that_is_json_or_a_folder(here, refused):
    (here / "c.json").write_text("{'lr': 1}")
    assert_says(refused("ppo", {"config": "c.json"}), "c.json is not valid JSON", "fix it")
    assert_says(refused("ppo", {"config": "m"}), "--config m cannot be read (Is a directory)")


@pytest.mark.parametrize(("content", "words"), [
    ('{"gradient_clipping": 1}', ["d.json sets 'gradient_clipping', which --max-grad-norm decides", "remove it"]),
    ('{"train_batch_size": 8}', ["'train_batch_size', which --batch-size decides"]),
    ('{"bf16": {"enabled": true}}', ["'bf16', which --dtype decides"]),
    (None, ["--deepspeed_config d.json cannot be read (No such file"]),
    ("{", ["d.json cannot be read as JSON"]),
    ("[]", ["must hold one JSON object, not list"]),
    ('{"zero_optimization": 3}', ["'zero_optimization' is 3, it must be an object"]),
    ('{"zero_optimization": {"stage": 4}}', ["'zero_optimization.stage' is 4", "0, 1, 2, 3"]),
    ('{"zero_optimization": {"ofload": 1}}', ["'zero_optimization.ofload' is 1", "remove it"]),
])  # fmt: skip
def test_deepspeed_configs(here, refused, content, words):
    if content is not None:
        (here / "d.json").write_text(content)
    for job in TRAINERS:
        assert_says(refused(job, {"deepspeed_config": "d.json"}), *words)


@pytest.mark.parametrize(("job", "changes", "word"), [
    pytest.param("sft", {"lang": "xx"}, "unknown language 'xx'", marks=pytest.mark.slow),
    pytest.param("ppo", {"reward": "m"}, "--reward m has no score head", marks=pytest.mark.slow),
    ("sample", {"data": "m"}, "it is a directory"),
])  # fmt: skip
def test_command_as_subprocess(here, job, changes, word):
    environment = {k: v for k, v in os.environ.items() if k not in small.RANK_VARIABLES} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "launch" / f"{job}.py"), *argv_of(job, changes)]
    before = everything(here)
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert_says(done.stderr, "error: ", word)
    assert everything(here) == before
