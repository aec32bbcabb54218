"""The plan of a PPO run on several files: shares of the prompts, and no sample's address twice."""

from collections import Counter

import pytest

from engine.base.mixture import Mixture, Source
from engine.training.ppo_plan import Plan
from tests.engine.training.trainers import make_trainer, one_rank, prompts, settings, train, without_clock

MIXED = Mixture((Source("a", 3.0), Source("b", 1.0)), (2, 7))


@pytest.mark.parametrize("samples", [1, 3])
def test_every_sample_has_its_own_address(samples):
    """Two prompts of nine are drawn three quarters of the time, so often twice in an iteration."""
    _, _, batch, ppo = settings("ppo", batch_size=6 * samples, epochs=3, samples_per_prompt=samples)
    plan = Plan.of(prompts(9), batch, ppo, 0, 1, None, MIXED)
    requests = [r for i, step in enumerate(plan.steps) for r in plan.requests(i, range(len(step)))]
    addresses = Counter((r.prompt_id, r.sample_id) for r in requests)
    assert len(requests) == 27 * samples and max(addresses.values()) == 1
    drawn = Counter(r.prompt_id for r in requests)
    assert abs(drawn[0] + drawn[1] - 20 * samples) <= samples and max(r.sample_id for r in requests) >= 9 * samples
    for i, step in enumerate(plan.steps):
        shares = [plan.share(i, rank, 2) for rank in range(2)]
        assert sorted(shares[0] + shares[1]) == list(range(len(step)))
        for k in range(0, len(step), samples):
            assert len(set(step[k : k + samples])) == 1


@pytest.mark.parametrize("samples", [1, 2])
def test_one_file_is_addressed_by_its_epoch(samples):
    _, _, batch, ppo = settings("ppo", batch_size=4 * samples, epochs=3, samples_per_prompt=samples)
    plan = Plan.of(prompts(9), batch, ppo, 0, 1, None)
    assert len(plan.steps) == 9
    for i, step in enumerate(plan.steps):
        got = [(r.prompt_id, r.sample_id) for r in plan.requests(i, range(len(step)))]
        assert got == [(p, i // 3 * samples + k % samples) for k, p in enumerate(step)]


def test_number_of_updates(tmp_path):
    with one_rank() as world:
        trainer = make_trainer("ppo", world, tmp_path / "run", critic_warmup=1, data=prompts(9), batch_size=5)
        assert trainer.plan.updates() == 2 * (2 + 2) and trainer.plan.updates(1) == 4
        assert len([without_clock(row) for row in train(trainer)["rows"]]) == 2
        assert trainer.progress.step == trainer.plan.updates()
