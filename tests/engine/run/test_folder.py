"""Which settings a resumed run may change."""

from engine.run.folder import differences


def test_a_setting_that_the_earlier_version_did_not_have_counts_as_off():
    before, now = {"lr": 0.1}, {"lr": 0.1, "keep_best": None, "eval_every": 0, "exact": False}
    assert differences(before, now) == []
    assert differences(before, {**now, "eval_every": 5}) == ["eval_every None -> 5"]
    assert differences(before, {**now, "lr": 0.2}) == ["lr 0.1 -> 0.2"]
    assert differences(before, {**now, "trunk_dtype": "model"}) == []
    assert differences(before, {**now, "trunk_dtype": "int8"}) == ["trunk_dtype None -> 'int8'"]


def test_recomputation_may_change():
    assert differences({"recompute": False}, {"recompute": True}) == []
