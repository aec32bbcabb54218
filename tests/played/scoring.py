"""Scores by a reward model and log-likelihoods of choices on the played GPU equal the CPU's."""

import pytest
import torch

from engine.batch import PackedBatch
from engine.training.scorers import load_scorer
from engine.training.trunk import Trunk
from evaluation.scoring import tree_forward
from evaluation.scoring.score import Scorer
from tests.engine.training.trainers import tiny_tokenizer, train
from tests.evaluation.scoring.documents import choice_of, document_of, model_of
from tests.played.counts import KINDS, counting
from tests.played.device import CUDA
from tests.played.models import rank_on, trained_model, trainer_on
from tests.played.records import check

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    """The directory of a reward model on the trunk of `trained_model("llama")`."""
    folder = tmp_path_factory.mktemp("reward")
    with rank_on(CPU) as world:
        train(trainer_on(world, "reward", folder / "run", "llama", torch.float32, trunk="shared"))
    return str(folder / "run" / "model")


@pytest.mark.parametrize("trunk", ["shared", "own", "own, in host memory"])
def test_scores_of_a_reward_model(trunk, reward):
    def score(device):
        policy = trained_model("llama", seed=0 if trunk == "shared" else 1).to(device)
        scorer = load_scorer(reward, policy, 1, tiny_tokenizer(), 12, offload=trunk.endswith("memory"))
        assert scorer.shares_trunk is (trunk == "shared")
        batch = PackedBatch.from_sequences([(4, 5, 6, 7), (8, 9), (10, 11, 12, 13, 14)], device, [2, 1, 2])
        with torch.no_grad():
            kept_TD = Trunk(policy, 1)(batch) if scorer.shares_trunk else scorer.own_trunk(batch)
            return scorer(batch, kept_TD, own_trunk_TD=kept_TD)

    with counting() as counts:
        found_S = score(CUDA)
    assert found_S.is_cuda
    torch.testing.assert_close(found_S.cpu(), score(CPU), atol=1e-5, rtol=1e-5)
    check(f"scores, trunk {trunk}", counts.totals(), "\n".join(counts.describe(kind) for kind in KINDS[1:]))


@pytest.mark.parametrize("family", ["bloom", *(pytest.param(f, marks=pytest.mark.slow) for f in ("llama", "gemma3"))])
def test_log_likelihoods_of_choices(family, monkeypatch):
    monkeypatch.setattr(tree_forward, "GPU_ROWS", 64)
    context = tuple(range(1, 40))
    choices = [choice_of(context, (50, 51)), choice_of(context, (50, 52, 53)), choice_of(context[:9], (60,))]
    documents = [document_of(0, choices), document_of(1, [choice_of((*context, 70), (i,)) for i in (3, 4)])]
    model = model_of(family)
    expected = dict(Scorer(model).score(documents))
    with counting() as counts:
        found = dict(Scorer(model.to(CUDA)).score(documents))
    for index, known in expected.items():
        assert found[index] == pytest.approx(known, abs=1e-4)
    check(f"evaluation: {family}", counts.totals(), "\n".join(counts.describe(kind) for kind in KINDS[1:]))
