"""Rollouts on the played GPU: tokens as on the CPU; launches of a captured step and of a step outside the graph."""

import pytest
import torch

from engine.batch import PackedBatch
from engine.generation.sampling import Sampling
from engine.models.quantised import quantise_trunk
from kernels.linear_logprob import linear_logits
from tests.played import graphs
from tests.played.counts import KINDS, counting
from tests.played.device import CUDA
from tests.played.models import FAMILIES, rollout, short_prompt, small_model, two_prompts
from tests.played.records import check

RULES = {
    "plain": Sampling(),
    "greedy": Sampling(0.0),
    "top_p": Sampling(0.8, top_p=0.9),
    "top_k": Sampling(top_k=5, top_p=0.9),
    "min_p": Sampling(min_p=0.05),
    "penalty": Sampling(repetition_penalty=1.2),
}


def played(model, requests, sampling, **options):
    """(samples, what the captures counted, totals after each step, counts of all)."""
    graphs.captured.clear()
    after = []
    with counting() as counts:
        samples = rollout(
            model.to(CUDA), requests, sampling, on_progress=lambda *_: after.append(counts.totals()), **options
        )
    assert graphs.captured and any(what.startswith("a graph") for what in counts.launches)
    return samples, graphs.captured[:], after, counts


def difference(before, after):
    return {kind: after[kind] - before[kind] for kind in KINDS}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rollout_equals_the_cpus(family):
    model, sampling = small_model(family), Sampling(0.9)
    expected = rollout(model, two_prompts(), sampling)
    samples, captured, after, counts = played(model, two_prompts(), sampling)
    assert [s.tokens for s in samples] == [s.tokens for s in expected]
    for found, known in zip(samples, expected):
        assert found.trunk_ND.is_cuda
        torch.testing.assert_close(found.trunk_ND.cpu(), known.trunk_ND, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(known.logprobs), atol=1e-4, rtol=1e-4)
    assert captured[0].totals()["copies"] == captured[0].totals()["waits"] == 0
    check(f"{family}: captured step of 2 layers", captured[0].totals(), captured[0].describe("launches"))
    check(f"{family}: a step with the graph", difference(after[1], after[2]), counts.describe("launches"))
    check(f"{family}: rollout", counts.totals(), counts.describe("waits"))


@pytest.mark.slow
def test_bfloat16_gives_the_log_probabilities_of_a_whole_forward():
    model = small_model("llama", torch.bfloat16)
    samples, captured, *_ = played(model, two_prompts(4), Sampling())
    model.float().cpu()
    for sample, request in zip(samples, two_prompts()):
        batch = PackedBatch.from_sequences([request.prompt + sample.tokens])
        h_TD = model.run(model.embed(batch), batch, 0, model.num_layers)
        logprob_TV = linear_logits(model.norm(h_TD), model.head_weight).log_softmax(-1)
        chosen = logprob_TV[len(request.prompt) - 1 : -1].gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), chosen, atol=0.03, rtol=0)
    check("llama in bfloat16: captured step of 2 layers", captured[0].totals(), captured[0].describe("launches"))


@pytest.mark.parametrize("rule", RULES)
def test_sampling_rules_equal_the_cpus(rule):
    model, requests = small_model("llama", layers=1), short_prompt(4)
    expected = rollout(model, requests, RULES[rule])
    samples, _, after, counts = played(model, requests, RULES[rule])
    assert [s.tokens for s in samples] == [s.tokens for s in expected]
    check(f"sampling {rule}: a step with the graph", difference(after[1], after[2]), counts.describe("launches"))


def test_least_new_tokens():
    """With every token an EOS but for the least number of new ones."""
    model, requests = small_model("llama", layers=1), short_prompt(5, least=3)
    expected = rollout(model, requests, Sampling(), eos_id=range(50))
    samples, _, after, counts = played(model, requests, Sampling(), eos_id=range(50))
    assert [s.tokens for s in samples] == [s.tokens for s in expected] and min(len(s.tokens) for s in samples) >= 3
    check("least new tokens: a step with the graph", difference(after[0], after[1]), counts.describe("launches"))


def test_a_quantised_trunk():
    model = small_model("llama")
    quantise_trunk(model, 1, "int8")
    expected = rollout(model, short_prompt(3), Sampling())
    samples, captured, *_ = played(model, short_prompt(3), Sampling())
    assert [s.tokens for s in samples] == [s.tokens for s in expected]
    assert any("triton _" in what and "coded_linear" in what for what in captured[0].launches)
    check("int8 trunk: captured step of 2 layers", captured[0].totals(), captured[0].describe("launches"))
