"""launch/plan.py: plans from a name, a directory or a config.json; errors in one line."""

import json
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.models import save_model
from launch import plan
from launch.plan import BLOOM, job, most_within
from tests.engine.training.trainers import tiny_model


@pytest.fixture
def no_search(monkeypatch):
    """Leave out the search for what fits at most: it plans many microbatches, a second each."""
    monkeypatch.setattr(plan, "largest", lambda *_: 512)


def printed(capsys, *argv: str) -> dict:
    job([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_known_names_have_the_published_sizes(capsys, monkeypatch):
    """The header shows the published number of weights, to 0.01 billion. The tables below it take seconds to plan."""
    monkeypatch.setattr(plan, "show", lambda *_: {})
    for name, billions in {"bloom-560m": "0.56", "bloom-7b1": "7.07", "llama-7b": "6.74", "llama-65b": "65.29"}.items():
        job(["--model", name, "--gpu-memory", "1000"])
        assert f"{name}, {billions} B weights" in capsys.readouterr().out


def test_directory_and_its_config_give_equal_plans(capsys, tmp_path):
    save_model(tiny_model("bloom"), tmp_path / "m")
    plans = [
        printed(capsys, "--model", str(path), "--top-layers", "2", "--dtype", "float32", "--gpu-memory", "0.1")
        for path in (tmp_path / "m", tmp_path / "m" / "config.json")
    ]
    assert plans[0] == plans[1] and plans[0]["fits"]


def test_more_memory_holds_more_rollouts_and_offload_helps(capsys):
    small = printed(capsys, "--gpu-memory", "40")
    large = printed(capsys, "--gpu-memory", "80")
    offloaded = printed(capsys, "--gpu-memory", "40", "--offload")
    largest = printed(capsys, "--gpu-memory", "141")
    assert 0 < small["slots"] < offloaded["slots"] < large["slots"] < largest["slots"] == 128
    assert small["fits"] and large["fits"] and not printed(capsys, "--gpu-memory", "24")["fits"]


@given(st.lists(st.sampled_from([0, 1, 3, 50]), min_size=1, max_size=200), st.integers(0, 300))
def test_the_most_that_fits_is_found_in_any_growth(growth, limit):
    sizes = [0, *accumulate(growth)]
    fitting = [count for count in range(1, len(sizes)) if sizes[count] <= limit]
    assert most_within(sizes.__getitem__, limit, len(growth)) == max(fitting, default=0)


def test_even_growth_takes_few_sizes():
    tried = []
    assert most_within(lambda count: tried.append(count) or 10 + 3 * count, 3010, 1 << 22) == 1000
    assert len(tried) <= 5


def test_dpo_adds_one_forward_to_sft_and_no_second_model(capsys, no_search):
    """The reference's forward: a third of the layers' work, the head's product where SFT has it four times."""
    sft, dpo = (printed(capsys, "--stage", stage, "--gpu-memory", "141") for stage in ("sft", "dpo"))
    assert sft["parts"] == dpo["parts"] and sft["update_bytes"] == dpo["update_bytes"]
    whole = sft["forward and backward"]
    assert dpo["forward and backward"] == whole
    assert 0.25 * whole < dpo["the reference, once for these responses"] < 0.34 * whole


def test_a_second_reward_model_costs_as_much_as_the_first(capsys, no_search):
    none, one, two = (printed(capsys, "--rewards", count, "--gpu-memory", "141") for count in "012")
    assert two["rollout_bytes"] - one["rollout_bytes"] == one["rollout_bytes"] - none["rollout_bytes"] > 1e9
    assert two["scoring"] - one["scoring"] == pytest.approx(one["scoring"] - none["scoring"])
    assert two["update"] == one["update"] and two["decode"] == one["decode"]


def test_pretraining_text_costs_time_for_each_optimizer_step(capsys, no_search):
    """128 rollouts in minibatches of 32, 4 epochs: 16 steps. A token costs one forward, and the top a backward too."""
    usual, text = (printed(capsys, "--ptx-tokens", tokens, "--gpu-memory", "141") for tokens in ("0", "1024"))
    assert "pretraining text" not in usual and text["update_bytes"] > usual["update_bytes"]
    hidden = BLOOM["bloom-7b1"][1]
    layer, head = 12 * hidden**2, 250_880 * hidden
    flops = 2 * 16 * 1024 * (26 * layer + 3 * 4 * layer + 3 * head)
    assert text["pretraining text"] == pytest.approx(flops / 400e12, rel=0.03)  # attention's products come on top


def test_pretraining_of_bottom_and_top_layers(capsys, no_search):
    """Work on a token in products of a layer: 3 in the 6 trained layers, 2 in the 18 between. All tokens are predicted:
    4 products of the head."""
    argv = ["--stage", "pretrain", "--model", "bloom-560m", "--gpu-memory", "141"]
    every = printed(capsys, *argv)
    ends = printed(capsys, *argv, "--top-layers", "4", "--bottom-layers", "2")
    top = printed(capsys, *argv, "--top-layers", "6")
    assert top["update_bytes"] < ends["update_bytes"] < every["update_bytes"]
    hidden = BLOOM["bloom-560m"][1]
    layer, head = 12 * hidden**2, 250_880 * hidden
    attention = 4 * hidden * 256  # on average over half of 512 earlier positions
    flops = 128 * 512 * ((2 * 18 + 3 * 6) * (2 * layer + attention) + 4 * 2 * head)
    assert ends["forward and backward"] == pytest.approx(flops / 400e12, rel=0.01)
    job([*argv, "--top-layers", "4", "--bottom-layers", "2"])
    assert "embeddings, head, bottom 2 and top 4 of 24 layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "bloom-8b"], "neither a path nor a known name: give one of bloom-560m"),
        (["--top-layers", "99"], "--top-layers is 99, the model has 30 layers"),
        (["--top-layers", "x"], "--top-layers is 'x'"),
        (["--gpu-memory", "0"], "--gpu-memory is 0.0: give more than 0"),
        (["--minibatch-size", "0"], "--minibatch-size is 0: give more than 0"),
        (["--rewards", "-1"], "--rewards is -1: give 0 or more"),
        (["--ppo-epochs", "0"], "--ppo-epochs is 0: give more than 0"),
        (["--trunk-cache", "-1"], "--trunk-cache is -1.0: give 0 or more"),
        (["--bottom-layers", "1"], "--bottom-layers is 1, --stage is ppo: only pretrain has it"),
        (
            ["--stage", "pretrain", "--bottom-layers", "1"],
            "--bottom-layers is 1 and --top-layers all trains them anyway",
        ),
        (["--stage", "pretrain", "--top-layers", "28", "--bottom-layers", "2"], "are all of the model's 30 layers"),
        (
            ["--stage", "pretrain", "--top-layers", "4", "--trunk-dtype", "int8"],
            "--trunk-dtype is int8, --stage is pretrain, which has no codes",
        ),
        (
            ["--stage", "pretrain", "--top-layers", "4", "--embedding-dtype", "int4"],
            "--embedding-dtype is int4, --stage is pretrain, which has no codes",
        ),
        (["--tokens-per-microbatch", "100"], "a sequence has 512 tokens: raise the first"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(UserError, match=message):
        job(argv)


def test_codes_take_less_memory_and_less_traffic(capsys, no_search):
    whole, int8, int4 = (printed(capsys, "--gpu-memory", "141", "--trunk-dtype", d) for d in ("model", "int8", "int4"))
    trunks = [plan["parts"]["trunk"][0] for plan in (whole, int8, int4)]
    assert trunks[0] > 1.4 * trunks[1] and trunks[1] > 1.3 * trunks[2]  # the embeddings stay as they are
    assert whole["decode"] > int8["decode"] > int4["decode"] and whole["update"] == int4["update"]
    codes = printed(capsys, "--gpu-memory", "141", "--embedding-dtype", "int8")
    saved = trunks[0] - codes["parts"]["trunk"][0]
    assert saved == pytest.approx(250_880 * 4096 * (2 - 1.0625)) and codes["decode"] > whole["decode"]


def test_codes_of_a_trunk_that_is_trained_are_refused():
    with pytest.raises(UserError, match="--trunk-dtype is int4 and all layers of the model's 30 are trained"):
        job(["--stage", "sft", "--trunk-dtype", "int4"])
    with pytest.raises(UserError, match="--embedding-dtype is int4 and all weights are trained"):
        job(["--stage", "sft", "--embedding-dtype", "int4"])
