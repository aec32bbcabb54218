"""--reward: weights, names, and the mistakes that are one line each."""

import pytest

from engine.base.errors import UserError
from engine.settings import PPOSettings, Reward, parse_rewards

EVEN = "tests.engine.training.trainers:share_of_even_words"


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name in ("reward_a/model", "reward_b/model", "other/reward_a/model", "odd:1"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "reward_a")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("item", "spec", "weight", "name"),
    [
        ("reward_a/model", "reward_a/model", 1.0, "reward_a"),
        ("reward_a/model/:-0.25", "reward_a/model/", -0.25, "reward_a"),
        ("reward_b", "reward_b", 1.0, "reward_b"),
        ("odd:1", "odd:1", 1.0, "odd:1"),  # a folder of that name
        ("odd:1:2e-1", "odd:1", 0.2, "odd:1"),
        ("link/model:3", "link/model", 3.0, "link"),
        (EVEN, EVEN, 1.0, "share_of_even_words"),
        (f"{EVEN}:.5", EVEN, 0.5, "share_of_even_words"),
        ("m:length(5, 50)", "m:length(5, 50)", 1.0, "length"),
        ("m:starts('a:1'):2", "m:starts('a:1')", 2.0, "starts"),
        ("m:nan", "m:nan", 1.0, "nan"),  # a function
        ("absent:0.5x", "absent:0.5x", 1.0, "0.5x"),
    ],
)
def test_a_weight_is_a_number_after_the_last_colon(here, item, spec, weight, name):
    (reward,) = parse_rewards([item])
    assert (reward.spec, reward.weight, reward.name) == (spec, weight, name)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["reward_a/model:0"], "--reward reward_a/model:0: the weight is 0, give a finite number other than 0"),
        ([f"{EVEN}:inf"], "the weight is inf, give a finite number"),
        (["reward_a:nan"], "the weight is nan, give a finite number"),
        (["m:f(1):-inf"], "the weight is -inf, give a finite number"),
        ([EVEN, f"{EVEN}:2"], f"--reward {EVEN} is given twice: give it once, with the sum of the weights"),
        (["reward_a/model", "reward_a/model/:0.5"], "--reward reward_a/model/ is given twice"),
        (["reward_a/model", "link/model"], "--reward link/model is given twice"),
        (["reward_a/model", "other/reward_a/model"],
         "--reward reward_a/model and other/reward_a/model are both called reward_a in the metrics: rename one"),
        (["m:f(1)", "n:f"], r"--reward m:f\(1\) and n:f are both called f"),
        ([""], "--reward is empty: give a reward model's directory"),
    ],
)  # fmt: skip
def test_mistakes(here, items, message):
    with pytest.raises(UserError, match=message):
        PPOSettings(reward=items)


def test_all_weights_may_be_negative():
    assert [r.weight for r in parse_rewards(["m:f:-1", "m:g:-0.5"])] == [-1.0, -0.5]


def test_one_reward_may_be_a_text_as_a_run_records_it():
    assert PPOSettings(reward=EVEN).reward == [EVEN] and PPOSettings(reward=EVEN).rewards == [Reward(EVEN)]
    assert PPOSettings().reward is None and PPOSettings().rewards == []


def test_a_function_with_long_settings_is_no_file_name():
    spec = f"m:rules({[{'rule': 'keyword', 'value': 'tea'}] * 20})"
    assert len(spec) > 255
    (found,) = parse_rewards([f"{spec}:0.5"])
    assert (found.spec, found.weight, found.name, found.is_function) == (spec, 0.5, "rules", True)
