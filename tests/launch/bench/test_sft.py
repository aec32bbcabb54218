"""The SFT bench: both dtypes step, times and operations are printed, errors are one line."""

from __future__ import annotations

import json

import pytest

from engine.base.errors import UserError
from launch.bench.sft import BenchSettings, examples_of, job
from tests.engine.training.trainers import one_rank

TINY = [
    "--layers", "2", "--hidden", "32", "--intermediate", "48", "--heads", "4", "--kv-heads", "2", "--vocab-size", "60",
    "--sequences", "3", "--shortest", "4", "--longest", "20", "--tokens-per-microbatch", "24", "--repeats", "2",
]  # fmt: skip


def test_dtypes_alternate(capfd):
    with one_rank():
        job([*TINY, "--operations", "3"])
    out = capfd.readouterr().out
    numbers = json.loads(out.splitlines()[-1])
    assert [len(numbers["seconds"][name]) for name in ("float32", "bfloat16")] == [2, 2]
    assert numbers["ratio"] == numbers["medians"]["float32"] / numbers["medians"]["bfloat16"] > 0
    assert [len(rows) for rows in numbers["operations"].values()] == [3, 3]
    assert f"float32 / bfloat16: {numbers['ratio']:.2f}" in out
    assert numbers["operations"]["bfloat16"][0]["operation"] in out


def test_defaults_fill_one_microbatch():
    s = BenchSettings()
    assert sum(len(e.tokens) for e in examples_of(s)) == s.tokens_per_microbatch == 2048


@pytest.mark.parametrize(("flags", "said"), [
    (["--repeats", "0"], "--repeats is 0: give 1 or more"),
    (["--longest", "3000"], "--longest 3000, --tokens-per-microbatch 2048"),
])  # fmt: skip
def test_mistakes_are_one_line(flags, said):
    with pytest.raises(UserError, match=said):
        job(flags)
