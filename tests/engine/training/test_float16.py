"""Training in float16: overflows cost no batch, numbers are those of float32, and the loss scale is in checkpoints."""

import pytest
import torch

from engine.base.errors import UserError
from engine.training import loss_scale
from tests.engine.training.stopping import make, stopped
from tests.engine.training.trainers import OF_STAGE, one_rank, tiny_model, train

STAGES = {"sft": "loss/sft", "reward": "loss/reward", "dpo": "loss/dpo", "ppo": "loss/value_avg"}


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


@pytest.fixture
def first_overflows(monkeypatch):
    """Start with a scale at which every gradient overflows."""
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**40)


def half(family):
    return tiny_model(family).half()


@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("stage", STAGES)
def test_numbers_are_those_of_float32_and_no_step_is_left_out(world, tmp_path, first_overflows, stage, family):
    whole = train(make(stage, world, tmp_path / "float32", family=family))
    trained = train(make(stage, world, tmp_path / "float16", family=family, model=half(family)))
    assert len(trained["rows"]) == len(whole["rows"]) == OF_STAGE[stage][1]["max_steps"]
    assert all(1.0 < row.pop("loss_scale") < 2.0**40 for row in trained["rows"])
    first, expected = trained["rows"][0], whole["rows"][0]
    assert first.keys() == expected.keys()
    assert first[STAGES[stage]] == pytest.approx(expected[STAGES[stage]], rel=1e-2, abs=1e-2)
    assert first["grad_norm"] == pytest.approx(expected["grad_norm"], rel=5e-2)
    if stage != "ppo":  # its later rollouts may be others: a draw near the border of two tokens
        for name, weight in whole["weights"].items():
            torch.testing.assert_close(trained["weights"][name].float(), weight, atol=4e-3, rtol=1e-2)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_resume_equals_never_stopping(world, tmp_path, monkeypatch, stage):
    monkeypatch.setattr(loss_scale, "FIRST", 16.0)
    monkeypatch.setattr(loss_scale, "GROWTH", 1)  # another scale at each step
    whole = train(make(stage, world, tmp_path / "whole", model=half("bloom")))
    stopped(stage, world, tmp_path / "stopped", 2, model=half("bloom"))
    resumed = train(make(stage, world, tmp_path / "stopped", model=half("bloom"), resume=True))
    assert resumed["rows"] == whole["rows"][-len(resumed["rows"]) :]
    assert resumed["rows"][-1]["loss_scale"] > 64.0
    assert all(torch.equal(w, resumed["weights"][n]) for n, w in whole["weights"].items())


def test_an_activation_beyond_the_range_stops_the_run_and_names_float32(world, tmp_path):
    model = half("bloom")
    with torch.no_grad():
        model.layers[2].mlp_norm.weight.fill_(60_000.0)
    with pytest.raises(UserError, match=r"the loss is not finite.*give --dtype float32 \(float16 ends at 65,504\)"):
        train(make("sft", world, tmp_path / "run", model=model))
