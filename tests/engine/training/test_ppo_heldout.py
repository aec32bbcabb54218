"""PPO beside held-out prompts and KL limits: measured by hand, training untouched, and the limits as the logs say."""

from __future__ import annotations

import json
import math
import signal
import statistics

import pytest
import torch
from safetensors.torch import load_file

from engine.base.errors import UserError
from engine.text.tokenizer import decode
from tests.engine.training.stopping import Said, make, stop_during
from tests.engine.training.trainers import (
    check_two_ranks,
    logits_of,
    make_trainer,
    one_rank,
    prompts,
    settings,
    share_of_even_words,
    tiny_model,
    train,
)
from tests.reliability.remains import assert_same

HELDOUT = {"heldout": prompts(5, 8), "eval_every": 2, "max_steps": 5, "epochs": 9, "lr": 3e-2, "eval_samples": 2}
UPDATES = 4  # an iteration


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


@pytest.mark.parametrize("changes", [{}, {"family": "llama", "top_layers": "all", "critic": "separate"}])
def test_training_is_the_same_bits_with_and_without_measuring(world, tmp_path, changes):
    with_it = train(make_trainer("ppo", world, tmp_path / "with", **HELDOUT, **changes))
    without = train(make_trainer("ppo", world, tmp_path / "without", **{**HELDOUT, "heldout": ()}, **changes))
    assert with_it["rows"] == without["rows"] and without["measured"] == []
    assert [step for step, _ in with_it["measured"]] == [0, 2, 4, 5]
    for name, weight in without["weights"].items():
        assert torch.equal(with_it["weights"][name], weight), name
    for file in ("samples.jsonl", "scores.jsonl"):
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


@pytest.mark.parametrize("family", ["bloom", "llama"])
def test_measures_by_hand(world, tmp_path, family):
    """Score, KL, length and share that ended, of the answers of the last measurement, one prompt after the other."""
    trainer = make_trainer("ppo", world, tmp_path / "run", family=family, **HELDOUT)
    kept, sampled = [], trainer.heldout.kl
    trainer.heldout.kl = lambda asked, responses: kept.append((asked, responses)) or sampled(asked, responses)
    measured = train(trainer)["measured"]
    assert len({json.dumps(row) for _, row in measured}) == 4
    before, after = tiny_model(family), trainer.model
    values = {"score": {}, "kl": {}, "length": {}, "ended": {}}
    rounds = -(-5 // (5 // 2))  # prompts in rounds of two: five rollouts at once, two samples a prompt
    for asked, responses in kept[-rounds:]:
        for prompt, r in zip(asked, responses):
            with torch.no_grad():
                tokens = (*prompt.tokens, *r.tokens)
                policy, reference = (logits_of(m, tokens).double().log_softmax(-1) for m in (after, before))
            at = [(len(prompt.tokens) - 1 + i, token) for i, token in enumerate(r.tokens)]
            kl = sum(float(policy[i, token] - reference[i, token]) for i, token in at)
            text = decode(trainer.tokenizer, r.text_tokens)
            numbers = {"score": share_of_even_words("", text), "kl": kl, "length": len(r.tokens), "ended": r.ended}
            for name, value in numbers.items():
                values[name].setdefault(prompt.id, []).append(float(value))
    for name, by_prompt in values.items():
        assert len(by_prompt) == 5 and all(len(v) == 2 for v in by_prompt.values())
        means = [statistics.fmean(v) for v in by_prompt.values()]
        half = 1.96 * statistics.stdev(means) / math.sqrt(5)
        row = measured[-1][1]
        assert (row[f"heldout/{name}"], row[f"heldout/{name}_half"]) == pytest.approx(
            (statistics.fmean(means), half), abs=2e-4
        )
    assert measured[-1][1]["heldout/kl"] > 0.05 and measured[0][1]["heldout/kl"] == pytest.approx(0.0, abs=1e-5)


def test_the_same_random_numbers_each_time(world, tmp_path):
    """With a rate of 0 the policy stays, so every measurement is the first one."""
    measured = train(make_trainer("ppo", world, tmp_path / "run", **{**HELDOUT, "lr": 0.0}))["measured"]
    assert all(row == measured[0][1] for _, row in measured)


def test_two_ranks_measure_what_one_does(tmp_path):
    check_two_ranks("ppo", tmp_path, {"zero3": {"zero": "zero3", **HELDOUT, "lr": 3e-3, "max_steps": 2}})


def test_stopped_while_measuring_and_resumed(world, tmp_path):
    """The signal ends the measurement early; the resumed run measures that iteration, and ends with equal files."""
    case = {**HELDOUT, "keep_best": "score"}
    train(make("ppo", world, tmp_path / "whole", **case))
    trainer = make("ppo", world, tmp_path / "stopped", **case)
    own, calls = trainer.heldout.sample, []

    def sample(*args, **options):
        calls.append(args)
        if len(calls) == 3:  # before, after iteration 2, after iteration 4
            signal.raise_signal(signal.SIGTERM)
        return own(*args, **options)

    trainer.heldout.sample = sample
    with pytest.raises(SystemExit) as stop:
        train(trainer)
    assert stop.value.code == 143
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 2, 3, 4]
    train(make("ppo", world, tmp_path / "stopped", resume=True, **case))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_one_prompt_has_no_interval(world, tmp_path):
    measured = train(make_trainer("ppo", world, tmp_path / "run", **{**HELDOUT, "heldout": prompts(1)}))["measured"]
    assert "heldout/score" in measured[0][1] and not any(name.endswith("_half") for name in measured[0][1])


@pytest.mark.parametrize(
    "changes",
    [{}, {"zero": "zero2"}, {"zero": "zero3"}, {"advantage": "rloo", "samples_per_prompt": 2, "batch_size": 6}],
)
def test_target_kl_leaves_out_the_rest_of_the_updates(world, tmp_path, changes):
    """Both runs are equal up to the first update whose minibatch is too far: it and the rest are not taken."""
    case = {"max_steps": 1, "lr": 3e-2, "warmup_steps": 0, "ppo_epochs": 3, "save_every": 1, "keep": 99, **changes}
    without = train(make("ppo", world, tmp_path / "without", **case))["rows"][0]
    trainer = make("ppo", world, tmp_path / "free", target_kl=1e9, **case)
    own, kls = trainer.update, []
    trainer.update = lambda *args: (own(*args), kls.append(float(trainer.moved)))[0]
    row = train(trainer)["rows"][0]
    assert (row.pop("policy/updates"), row.pop("policy/last_kl")) == (len(kls), kls[-1])
    assert row == without and kls[0] == pytest.approx(0.0, abs=1e-9) and len(kls) == 6
    limit = (kls[1] + max(kls)) / 2
    taken = next(i for i, kl in enumerate(kls) if kl > limit)
    assert 1 < taken < 6, kls
    limited = make("ppo", world, tmp_path / "limited", target_kl=limit, **case)
    row = train(limited)["rows"][0]
    assert (row["policy/updates"], row["policy/last_kl"]) == (taken, kls[taken])
    assert limited.progress.step == taken
    file = f"checkpoints/step-{taken:06d}/trained.safetensors"
    assert (tmp_path / "limited" / file).read_bytes() == (tmp_path / "free" / file).read_bytes()
    weights = limited.zero.keep()
    assert all(torch.equal(weights[name], x) for name, x in load_file(tmp_path / "limited" / file).items())


def test_target_kl_is_the_logged_estimate(world, tmp_path):
    """With one minibatch a pass, the means of what each update found are policy/approxkl_avg."""
    case = {"max_steps": 1, "lr": 3e-2, "warmup_steps": 0, "minibatch_size": 5, "ppo_epochs": 3, "target_kl": 1e9}
    row = train(make_trainer("ppo", world, tmp_path / "all", **case))["rows"][0]
    first_two = train(make_trainer("ppo", world, tmp_path / "two", **{**case, "ppo_epochs": 2}))["rows"][0]
    found = [0.0, first_two["policy/last_kl"], row["policy/last_kl"]]
    assert row["policy/approxkl_avg"] == pytest.approx(statistics.fmean(found), rel=1e-5)


def test_training_goes_on_after_a_veto_and_resumes(world, tmp_path):
    """Vetoed updates in every iteration, under ZeRO-2; a run stopped between two updates continues to the same bits."""
    case = {"max_steps": 4, "epochs": 9, "lr": 3e-2, "target_kl": 1e-5, "ppo_epochs": 3, "zero": "zero2"}
    whole = train(make("ppo", world, tmp_path / "whole", **case))
    counts = [row["policy/updates"] for row in whole["rows"]]
    assert all(0 < count < 6 for count in counts), counts
    assert all(math.isfinite(row["grad_norm"]) for row in whole["rows"])
    trainer = make("ppo", world, tmp_path / "stopped", **case)
    stop_during(trainer, 2)
    with pytest.raises(SystemExit):
        train(trainer)
    train(make("ppo", world, tmp_path / "stopped", resume=True, **case))
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_two_ranks_agree_on_a_veto(tmp_path):
    case = {"max_steps": 2, "epochs": 9, "lr": 3e-2, "target_kl": 1e-5, "ppo_epochs": 3, "warmup_steps": 0}
    check_two_ranks("ppo", tmp_path, {"zero0": {"zero": "zero0", **case}})


def test_stop_kl_ends_the_run_as_max_steps_does(world, tmp_path):
    case = {
        "max_steps": 6,
        "epochs": 9,
        "lr": 3e-2,
        "schedule": "constant",
        "warmup_steps": 0,
        **{k: HELDOUT[k] for k in ("heldout", "eval_every")},
    }
    free = train(make("ppo", world, tmp_path / "free", **case))
    kls = [row["objective/kl"] for row in free["rows"]]
    limit = (kls[0] + max(kls)) / 2
    last = 1 + next(i for i, kl in enumerate(kls) if kl > limit)
    assert 1 < last < 6, kls
    trainer = make("ppo", world, tmp_path / "stopped", stop_kl=limit, **case)
    trainer.console = said = Said()
    said.row, said.bar = lambda row: None, trainer.checkpoints.console.bar
    stopped = train(trainer)
    assert stopped["rows"] == free["rows"][:last]
    assert stopped["measured"][-1][0] == last
    reason = stopped["result"]["stopped"]
    assert reason in said.lines
    assert reason.startswith(
        f"stopped after iteration {last} of 6: the KL to the reference is {kls[last - 1]:.4g} nats"
    )
    ended = train(make("ppo", world, tmp_path / "ended", **{**case, "max_steps": last}))
    assert all(torch.equal(stopped["weights"][name], weight) for name, weight in ended["weights"].items())
    resumed = train(make("ppo", world, tmp_path / "stopped", resume=True, stop_kl=limit, **case))
    assert resumed["rows"] == [] and resumed["result"]["stopped"] == reason


@pytest.mark.parametrize(("changes", "words"), [
    ({"target_kl": 0.0}, "--target-kl is 0.0: give more than 0 nats, or leave it out"),
    ({"stop_kl": -1.0}, "--stop-kl is -1.0: give more than 0"),
    ({"target_kl": math.nan}, "--target-kl is nan"),
    ({"eval_every": -1}, "--eval-every is -1: give 0 or more"),
    ({"keep_best": "score"}, "--keep-best score is given without --eval-every"),
    ({"keep_best": "acuracy", "eval_every": 1}, "--keep-best is 'acuracy': this stage measures score, exact_match"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(UserError) as error:
        settings("ppo", **changes)
    assert words in str(error.value)
