"""The bench of quantised decoding: it compares before it times, and stops where a product is wrong."""

from __future__ import annotations

import json

import pytest

from engine.models.quantised import QuantisedLinear
from launch.bench.quantised import job
from tests.launch.small import make_model


def arguments(model, *more):
    return [
        "--model",
        str(model),
        "--batches",
        "2",
        "--prompt-tokens",
        "3",
        "--new-tokens",
        "2",
        "--repeats",
        "1",
        *more,
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_table_and_json(family, dtype, tmp_path, capsys):
    job(arguments(make_model(tmp_path / "m", family), "--dtype", dtype))
    out = capsys.readouterr().out
    found = json.loads(out.splitlines()[-1])
    assert found["difference"].keys() == {"int8", "int4"} and max(found["difference"].values()) < 1e-3
    assert found["step_s"]["2"].keys() == {"model", "int8", "int4"}
    assert found["gb"]["model"] > found["gb"]["int8"] > found["gb"]["int4"]
    assert f"computing in {dtype}" in out


def test_a_wrong_product_stops_it(tmp_path, monkeypatch):
    """Scales of the neighbouring row."""
    model = make_model(tmp_path / "m")
    forward = QuantisedLinear.forward

    def wrong(self, x_TI):
        right, self.scales = self.scales, 8 * self.scales.roll(1, 0)
        y_TN, self.scales = forward(self, x_TI), right
        return y_TN

    monkeypatch.setattr(QuantisedLinear, "forward", wrong)
    with pytest.raises(RuntimeError, match="int8: log-probabilities differ by .* nats .*: the kernel"):
        job(arguments(model))
