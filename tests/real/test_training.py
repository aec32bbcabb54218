"""One step of each trainer (SFT, reward, DPO, PPO) on real models, against transformers, autograd and torch's AdamW."""

from __future__ import annotations

import gc
import math
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid

from engine.cli.console import Console
from engine.models import load_model
from engine.models.names import TABLES, written_name
from engine.settings import split_of
from engine.text.encoding import Example, Prompt, RankedExamples
from engine.training.context import Context
from engine.training.modules import RewardModule
from engine.training.ppo import PPOTrainer
from engine.training.scorers import load_scorer
from tests.engine.training.trainers import RecordedRun, make_trainer, one_rank, settings
from tests.real.models import SCRIPTS, peer_of, phrases, tokenizer_of

pytestmark = pytest.mark.real
LR, EPS, BETAS, DECAY, NORM = 1e-3, 1e-3, (0.9, 0.95), 0.1, 1.0
# A gradient far below epsilon is rounding noise; epsilon keeps Adam from making a whole step of it.
STEP = {
    "lr": LR, "eps": EPS, "beta1": BETAS[0], "beta2": BETAS[1], "weight_decay": DECAY, "max_grad_norm": NORM,
    "schedule": "constant", "warmup_steps": 0, "max_steps": 1, "epochs": 1, "max_length": 128,
    "tokens_per_microbatch": 200,
}  # fmt: skip
# Differences of two steps: all elements of a weight together, relative to its step; one element, to the learning rate.
# The second is rounding of a gradient (up to 1e-5) over epsilon.
TOGETHER, ALONE = 2e-3 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 5e-3, 2e-2


@pytest.fixture
def world():
    with one_rank() as world:
        yield world
    gc.collect()


def weights_of(model) -> dict[str, torch.Tensor]:
    """{transformers' name: the weight, not a copy}."""
    table = TABLES[model.config.model_type]
    return {written_name(table, name): weight.detach() for name, weight in model.named_parameters()}


def by_hand(peer, loss, heads=()) -> tuple[float, float]:
    """One step of torch's AdamW on all weights with requires_grad. Returns (loss, gradient norm before clipping)."""
    loss.backward()
    trained = [p for p in (*peer.parameters(), *heads) if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, NORM)
    for weight in trained:  # one at a time: the moments of all would take twice the model's memory
        decay = DECAY if weight.ndim > 1 else 0.0
        torch.optim.AdamW([weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=decay).step()
        weight.grad = None
    return float(loss), float(norm)


def train_only_top(peer, count: int | None) -> list[str]:
    """Freeze all but the last `count` layers and the final norm; None trains all. Returns the trained names."""
    layers = peer.config.num_hidden_layers
    top = tuple(f"model.layers.{i}." for i in range(layers - (layers if count is None else count), layers))
    for name, weight in peer.named_parameters():
        weight.requires_grad_(count is None or name.startswith((*top, "model.norm.")))
    return [name for name, weight in peer.named_parameters() if weight.requires_grad]


def check_step(ours, peer, trained, before) -> None:
    """Each trained weight moved as in transformers, each other one not at all."""
    theirs = dict(peer.named_parameters())
    for name, weight in ours.items():
        if name not in trained:
            assert torch.equal(weight, before[name]), f"{name} is frozen and changed"
            continue
        step = weight - before[name]
        difference = (weight - theirs[name].detach()).abs() - 2**-23 * weight.abs()  # which float32 cannot hold
        difference = difference.clamp(min=0)
        assert float(step.abs().max()) > 1e-3 * LR, f"{name} did not move"
        share, alone = float(difference.norm() / step.norm()), float(difference.abs().max()) / LR
        assert share <= TOGETHER, f"{name}: steps differ by {share:.1e}"
        assert alone <= ALONE, f"{name}: a step differs by {alone:.1e} of the learning rate"


def make_examples(tokenizer, count=4) -> list[Example]:
    """Two phrases of a language each: a prompt and its response."""
    made = []
    for lang in SCRIPTS[:count]:
        first, second = phrases(lang)[1:3]
        prompt, response = tokenizer(first).input_ids, tokenizer(second, add_special_tokens=False).input_ids
        made.append(Example(lang, (*prompt, *response[:20], tokenizer.eos_token_id), len(prompt)))
    return made


@pytest.mark.slow
def test_sft_step(real, world, tmp_path):
    """All layers of SmolLM2; the top 12 of Gemma, of which all would take over 6 GB."""
    name, path = real
    top_layers = "12" if name == "gemma3" else "all"
    model, tokenizer = load_model(path), tokenizer_of(path)
    examples, before = make_examples(tokenizer), load_file(path / "model.safetensors")
    trainer = make_trainer(
        "sft", world, tmp_path / "run", model=model, data=examples, batch_size=4, top_layers=top_layers, **STEP
    )
    trainer.train()
    (row,) = trainer.run.rows
    ours = weights_of(model)
    del trainer, model
    gc.collect()

    peer = peer_of(path)
    trained, total, count = train_only_top(peer, None if top_layers == "all" else int(top_layers)), 0.0, 0
    for example in examples:
        tokens = torch.tensor(example.tokens)
        logprob_LV = peer(tokens[None]).logits[0].log_softmax(-1)
        learned = torch.arange(example.prompt_len, len(tokens))
        total = total - logprob_LV[learned - 1, tokens[learned]].sum()
        count += len(learned)
    loss, norm = by_hand(peer, total / count)
    assert row["loss/sft"] == pytest.approx(loss, rel=1e-5)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    check_step(ours, peer, trained, before)


def make_rankings(tokenizer) -> list[RankedExamples]:
    """Two prompts with two and three responses, a tie among them."""
    rankings = []
    for lang, ranks in (("ne", (2, 1)), ("en", (1, 2, 2))):
        texts = [tokenizer(text, add_special_tokens=False).input_ids[:15] for text in phrases(lang)[2:]]
        prompt = tokenizer(phrases(lang)[1]).input_ids
        responses = [Example(lang, (*prompt, *text, tokenizer.eos_token_id), len(prompt)) for text in texts]
        rankings.append(RankedExamples(lang, tuple(responses[: len(ranks)]), ranks))
    return rankings


def mean_of_pairs(ranking: RankedExamples, rewards: list[torch.Tensor]) -> torch.Tensor:
    pairs = permutations(zip(ranking.ranks, rewards), 2)
    return torch.stack([-logsigmoid(better - worse) for (rank, better), (other, worse) in pairs if rank < other]).mean()


@pytest.mark.slow
def test_reward_step(real, world, tmp_path):
    """The default of 12 layers."""
    _, path = real
    model, tokenizer = load_model(path), tokenizer_of(path)
    rankings, before = make_rankings(tokenizer), load_file(path / "model.safetensors")
    score_D = RewardModule.new_score_weight(model, 7)
    trainer = make_trainer(
        "reward", world, tmp_path / "run", model=model, data=rankings, heldout=[], score_weight_D=score_D,
        batch_size=2, **{**STEP, "top_layers": 12},
    )  # fmt: skip
    trainer.train()
    (row,) = trainer.run.rows
    ours, our_score = weights_of(model), trainer.zero.module.score.weight.detach().clone()
    del trainer, model
    gc.collect()

    peer, head = peer_of(path), score_D[None].clone().requires_grad_(True)
    trained, losses, largest = train_only_top(peer, 12), [], 0.0
    for ranking in rankings:
        scores = [peer.model(torch.tensor([e.tokens])).last_hidden_state[0, -1] @ head[0] for e in ranking.examples]
        losses.append(mean_of_pairs(ranking, scores))
        largest = max(largest, *(abs(float(score)) for score in scores))
    loss, norm = by_hand(peer, torch.stack(losses).mean(), [head])
    assert row["loss/reward"] == pytest.approx(loss, rel=1e-5, abs=1e-5 * largest)
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    peer_heads, before["score"] = WithHeads(peer, score=head), score_D[None]
    check_step({**ours, "score": our_score}, peer_heads, [*trained, "score"], before)


@pytest.mark.slow
def test_dpo_step(real, world, tmp_path):
    """The top 12 layers; the policy is its reference, so a pair costs log 2 and has a gradient."""
    _, path = real
    model, tokenizer = load_model(path), tokenizer_of(path)
    rankings, before = make_rankings(tokenizer), load_file(path / "model.safetensors")
    trainer = make_trainer(
        "dpo", world, tmp_path / "run", model=model, data=rankings, heldout=[], batch_size=2, beta=0.5,
        **{**STEP, "top_layers": "12"},
    )  # fmt: skip
    trainer.train()
    (row,) = trainer.run.rows
    ours, reference_S = weights_of(model), trainer.reference_S.tolist()
    del trainer, model
    gc.collect()

    peer = peer_of(path)
    trained, losses, logprobs = train_only_top(peer, 12), [], []
    for ranking in rankings:
        rewards = []
        for example in ranking.examples:
            tokens = torch.tensor(example.tokens)
            logprob_TV = peer(tokens[None]).logits[0].log_softmax(-1)
            actions = torch.arange(example.prompt_len, len(tokens))
            logprobs.append(logprob_TV[actions - 1, tokens[actions]].sum())
            rewards.append(0.5 * (logprobs[-1] - logprobs[-1].detach()))
        losses.append(mean_of_pairs(ranking, rewards))
    assert reference_S == pytest.approx([float(x) for x in logprobs], rel=1e-5)
    loss, norm = by_hand(peer, torch.stack(losses).mean())
    assert row["loss/dpo"] == pytest.approx(loss, rel=1e-6) == pytest.approx(math.log(2), rel=1e-6)
    assert row["rewards/margins"] == 0
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    check_step(ours, peer, trained, before)


class WithHeads:
    """A transformers model whose parameters include heads of ours."""

    def __init__(self, peer, **heads):
        self.parameters = {**dict(peer.named_parameters()), **heads}

    def named_parameters(self):
        return self.parameters.items()


def variety(prompt: str, response: str) -> float:
    """A reward for the test: how many characters of the response differ."""
    return len(set(response)) / 10


def test_ppo_step(real, world, tmp_path, monkeypatch):
    """The default top four layers; rollouts are ours, everything after them is computed again."""
    _, path = real
    model, tokenizer = load_model(path), tokenizer_of(path)
    before = load_file(path / "model.safetensors")
    prompts = [Prompt(lang, tuple(tokenizer(phrases(lang)[1]).input_ids[:12]), lang, "") for lang in SCRIPTS[:4]]
    groups = settings(
        "ppo", **{**STEP, "batch_size": 4, "minibatch_size": 4, "ppo_epochs": 1, "top_layers": "4", "slots": 3,
                  "max_new_tokens": 8, "reward": "tests.real.test_training:variety"},
    )  # fmt: skip
    run = RecordedRun(tmp_path / "run", "ppo", groups, world)
    run.start()
    split = split_of("4", model.num_layers)
    scorer = load_scorer("tests.real.test_training:variety", model, split, tokenizer, 200)
    context = Context(*groups, world, run, Console(enabled=False), {})
    trainer, collected = PPOTrainer(model, tokenizer, (tokenizer.eos_token_id,), prompts, scorer, context), []
    collect = PPOTrainer.collect
    monkeypatch.setattr(PPOTrainer, "collect", lambda *args: collected.append(collect(*args)) or collected[-1])
    trainer.train()
    (row,), (x,) = run.rows, collected
    sequences = [tokens.tolist() for tokens in x.batch.tokens_T.split(x.batch.lengths)]
    starts = [len(prompts[trainer.steps[0][i]].tokens) for i in x.rollout_S.tolist()]
    ours = weights_of(model)
    value = trainer.policy.value
    our_score, our_bias = value.weight.detach(), value.bias.detach()
    del trainer, model, value, context, scorer
    gc.collect()

    peer = peer_of(path)
    head = torch.zeros(1, peer.config.hidden_size, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    trained = train_only_top(peer, 4)
    scores = []
    for tokens, start in zip(sequences, starts):
        text = tokenizer.decode(tokens[start:], skip_special_tokens=True)
        scores.append(variety("", text))
    assert row["objective/scores"] == pytest.approx(sum(scores) / 4, rel=1e-6)
    # The critic starts at the mean score; policy and reference are equal, so the KL penalty is 0.
    offset, ppo = sum(scores) / 4, groups[-1]
    advantages, returns = [], []
    for tokens, start, score in zip(sequences, starts, scores):
        later, per_action = 0.0, []
        for t in reversed(range(len(tokens) - start)):
            last = t == len(tokens) - start - 1
            delta = (score if last else 0.0) + (0.0 if last else ppo.gamma * offset) - offset
            later = delta + ppo.gamma * ppo.lam * later
            per_action.insert(0, later)
        advantages.append(torch.tensor(per_action))
        returns.append(torch.tensor(per_action) + offset)
    flat = torch.cat(advantages)
    mean, std = float(flat.mean()), math.sqrt(float(flat.var(correction=0)) + 1e-8)
    total = 0.0
    for tokens, start, advantage_A, return_A in zip(sequences, starts, advantages, returns):
        columns = torch.arange(start - 1, len(tokens) - 1)
        h_AD = peer.model(torch.tensor([tokens])).last_hidden_state[0, columns]
        logprob_AV = peer.lm_head(h_AD).log_softmax(-1)
        logprob_A = logprob_AV[range(len(columns)), tokens[start:]]
        ratio_A = (logprob_A - logprob_A.detach()).exp()  # the first update: the old policy is this one
        value_A = h_AD @ head[0] + bias + offset
        total = total - (ratio_A * (advantage_A - mean) / std).sum() + 0.5 * (value_A - return_A).square().sum()
        mine = x.logprob_T.split(x.batch.lengths)[sequences.index(tokens)][columns]
        torch.testing.assert_close(mine, logprob_A.detach(), rtol=0, atol=1e-4)
    _, norm = by_hand(peer, total / len(flat), [head, bias])
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-3)
    before["score"] = torch.zeros_like(head)
    check_step({**ours, "score": our_score}, WithHeads(peer, score=head), [*trained, "score"], before)
    torch.testing.assert_close(our_bias, bias.detach(), rtol=0, atol=ALONE * LR)
