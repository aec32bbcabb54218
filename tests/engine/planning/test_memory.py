"""The planner against what tiny runs take, allocation by allocation, and against PyTorch's own count of operations."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engine.batch import PackedBatch
from engine.generation import cache_budget
from engine.generation.cache_budget import budget_pages
from engine.generation.kv_cache import PAGE_SIZE
from engine.models import Bloom, Llama, build_model, fused
from engine.models.quantised import quantise_trunk, stored_weights, tensors_of
from engine.planning import activations
from engine.planning.activations import activation_bytes, forward_bytes
from engine.planning.memory import CACHE, STEP, TRUNK_OUTPUTS, Workload, memory, peaks, phases, within_budget
from engine.planning.memory_tracker import MemoryTracker
from engine.planning.sizes import Sizes
from engine.text.encoding import Example, Prompt
from engine.training.lora import num_factors
from engine.training.metrics import Metrics
from engine.training.modules import Policy
from kernels import coded_linear
from tests.engine.training.test_corpus import text_of, write
from tests.engine.training.trainers import CONFIGS, FAMILIES, VOCABULARY, make_trainer, one_rank


@pytest.fixture
def world():
    with one_rank() as world:
        yield world


def test_a_microbatch_may_hold_more_tokens_than_a_sequence():
    """A microbatch is many sequences, none of them longer than the model's positions allow."""
    with torch.device("meta"):
        short, long = (Llama(CONFIGS["llama"](max_position_embeddings=n, num_hidden_layers=2)) for n in (64, 2048))
    assert activation_bytes(short, 0, 500, 500) == pytest.approx(activation_bytes(long, 0, 500, 500), rel=1e-4)
    assert forward_bytes(short, 500) == pytest.approx(forward_bytes(long, 500), rel=1e-4)


@pytest.mark.parametrize("middle", [range(0), range(2, 12)])
@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
def test_layers_that_are_alike_are_run_a_few_times_only(monkeypatch, family, middle):
    model, counted = on_meta(model_of(family, 64, 14)), []
    whole = activations._peak(model, range(14), 300, 150, middle)
    own = activations._peak
    monkeypatch.setattr(
        activations, "_peak", lambda m, layers, *more: (counted.extend(layers), own(m, layers, *more))[1]
    )
    assert activation_bytes(model, 0, 300, 150, False, middle) == whole
    assert len(counted) < 14


def test_the_tracker_counts_storages_once_until_they_are_freed():
    with MemoryTracker() as tracker:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]
        assert tracker.live == 4000
        c = a + 1
        assert tracker.live == 8000
        del a
        assert tracker.live == 8000, "a view keeps its storage"
        del b
        assert tracker.live == 4000 and tracker.peak == 8000
        c.add_(1)
        assert tracker.live == 4000


def prompts_of_equal_length(count: int, length: int) -> list[Prompt]:
    return [Prompt(f"p{i}", tuple(10 + (i + j) % 40 for j in range(length)), "", "") for i in range(count)]


def model_of(family: str, hidden: int, layers: int, **more) -> Bloom | Llama:
    changes = {**more, "hidden_size": hidden, {"bloom": "n_layer", "llama": "num_hidden_layers"}[family]: layers}
    if family == "llama":
        changes["intermediate_size"] = 3 * hidden
    return build_model(CONFIGS[family](**changes), 0)


def on_meta(model: Bloom | Llama) -> Bloom | Llama:
    with torch.device("meta"):
        return type(model)(model.config)


def workload(stage: str, **changes) -> Workload:
    usual = Workload(
        stage, torch.float32, 1, 0, False, 2, 16, 16, 24, 24, 384, True, False, False, 16.0, 2,
    )  # fmt: skip
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize(("hidden", "layers"), [(64, 6), (160, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_of_a_microbatch(family, hidden, layers):
    """The peak of a real forward and backward through the policy's top, from a token count up."""
    model = model_of(family, hidden, layers)
    policy = Policy(model, layers - 2)
    lengths = [40, 56, 64, 96]
    batch = PackedBatch.from_sequences([[5] * n for n in lengths])
    columns_A = torch.arange(0, 256, 2)
    trunk_TD = torch.randn(256, hidden)

    def step() -> None:
        logprob_A, entropy_A, value_A = policy(batch, trunk_TD.clone(), columns_A, 1.0)
        (logprob_A + entropy_A + value_A).sum().backward()

    step()  # weights get their gradients, and cached slopes and tables are made
    with MemoryTracker() as tracker:
        step()
    measured = tracker.peak - tracker.live
    predicted = activation_bytes(on_meta(model), layers - 2, 256, 128)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("hidden", "layers"), [pytest.param(64, 6, marks=pytest.mark.slow), (160, 4)])
@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("way", ["modules", "native"])
def test_memory_of_ppo(world, tmp_path, monkeypatch, family, hidden, layers, way):
    """Rollout and update of a real trainer, every tensor counted from the model's weights on: as predicted where the
    model's modules compute (as on a GPU), and a bit more where a CPU's kernels do, which keep less between."""
    if way == "modules":
        monkeypatch.setattr(fused, "FAST_PATHS", {})
    model = model_of(family, hidden, layers)
    with MemoryTracker() as tracker:
        tracker.know(model.parameters())
        trainer = make_trainer(
            "ppo", world, tmp_path / "run", model=model, data=prompts_of_equal_length(16, 24), batch_size=16,
            max_new_tokens=24, max_length=48, minibatch_size=16, tokens_per_microbatch=384, slots=16, max_steps=3,
            epochs=3, reward="tests.engine.training.trainers:share_of_even_words",
        )  # fmt: skip
        trainer.iterate(0)  # optimizer state is there
        tracker.peak = tracker.live
        metrics = Metrics()
        experience = trainer.collect(1, metrics)
        rollout = tracker.peak
        tracker.peak = tracker.live
        trainer.update(experience, range(16), 1e-3, metrics)
        update = tracker.peak
    parts = memory(on_meta(model), workload("ppo", tokens_per_microbatch=384))
    without_reward = [p for p in parts if "reward" not in p.name]
    predicted = peaks(without_reward)
    assert 0.9 * rollout <= predicted[0] <= (1.1 if way == "modules" else 1.2) * rollout
    assert predicted[1] == pytest.approx(update, rel=0.1)


@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
def test_memory_without_a_critic(world, tmp_path, monkeypatch, family):
    """Four responses to each prompt share its prefill, and no value head is there."""
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    model = model_of(family, 64, 6)
    with MemoryTracker() as tracker:
        tracker.know(model.parameters())
        trainer = make_trainer(
            "ppo", world, tmp_path / "run", model=model, data=prompts_of_equal_length(4, 140), batch_size=16,
            max_new_tokens=24, max_length=164, minibatch_size=16, tokens_per_microbatch=820, slots=16, max_steps=3,
            epochs=3, advantage="rloo", samples_per_prompt=4,
        )  # fmt: skip
        trainer.iterate(0)
        tracker.peak = tracker.live
        trainer.collect(1, Metrics())
        rollout = tracker.peak
    w = workload("ppo", prompt_tokens=140, tokens_per_microbatch=820, samples=4, value_head=False)
    parts, critic = (memory(on_meta(model), case) for case in (w, dataclasses.replace(w, value_head=True)))
    assert peaks([p for p in parts if "reward" not in p.name])[0] == pytest.approx(rollout, rel=0.1)
    assert sum(p.update for p in critic) - sum(p.update for p in parts) == 64 * 4 * 4  # weight, gradient, two moments
    prefill, alone = (phases(on_meta(model), case)[0] for case in (w, dataclasses.replace(w, samples=1)))
    assert 4 * prefill.flops == alone.flops


def test_operations_of_several_responses_to_a_prompt():
    """8 prompts of 24 tokens, 4 responses of 4 tokens each: layers run 8 x 24 + 32 x 4 rows, not 32 x 28."""
    w = workload("ppo", rollouts=32, slots=32, new_tokens=4, samples=4, value_head=False)
    model = on_meta(model_of("llama", 64, 6))
    found, alone = ({p.name: p.flops for p in phases(model, case)} for case in (w, dataclasses.replace(w, samples=1)))
    attention = 4 * model.num_heads * model.head_size * 14 * 32 * 28
    matrices = 2 * Sizes.of(model).layer_matrices
    head = 2 * VOCABULARY * 64 * 32 * 4
    assert alone["scoring"] == 6 * (matrices * 32 * 28 + attention) + 2 * head
    assert found["scoring"] == 6 * (matrices * (8 * 24 + 32 * 4) + attention) + 2 * head
    # An update of half the rollouts meets 8 (1 - 1/16) prompts on average, since they are shuffled.
    halves = {p.name: p.flops for p in phases(model, dataclasses.replace(w, minibatch=16))}
    rows = 2 * 8 * (1 - 0.5**4) * 24 + 32 * 4
    assert halves["update"] == pytest.approx(2 * 3 * (2 * (matrices * rows + attention) + head), rel=1e-3)


def odd_model(family: str) -> Bloom | Llama:
    """Rows that do not fill their groups of 32, so that padding counts."""
    changes = {"hidden_size": 72, **({"intermediate_size": 50} if family == "llama" else {})}
    return build_model(CONFIGS[family](**changes, **{LAYERS[family]: 5}), 0)


BITS = [("int8", "model"), ("int4", "model"), ("int4", "int8"), ("model", "int4")]
LAYERS = {"bloom": "n_layer", "llama": "num_hidden_layers"}


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_planned_weights_are_those_of_a_quantised_model(family, trunk_dtype, embedding_dtype, dtype):
    """To the byte: every tensor of a model as it is loaded, with the trained part and the factors."""
    top = odd_model(family).to(dtype)
    quantise_trunk(top, 3, trunk_dtype, embedding_dtype)
    loaded = sum(w.nbytes for _, w in stored_weights(top))
    meta, head = on_meta(odd_model(family)).to(dtype), 73 * dtype.itemsize  # a value or score head

    def planned(stage, **changes):
        w = workload(stage, dtype=dtype, trunk_dtype=trunk_dtype, embedding_dtype=embedding_dtype, **changes)
        return {p.name: p.update for p in memory(meta, w)}

    sft, reward, ppo = (planned(stage) for stage in ("sft", "reward", "ppo"))
    assert sft["frozen layers"] + sft["trained weights"] == loaded
    assert sft["frozen layers"] < sum(w.nbytes for w in meta.parameters())
    separate_head = 0 if top.head is None else sum(w.nbytes for w in tensors_of(top.head_weight))
    assert reward["frozen layers"] + reward["trained weights"] - (head - dtype.itemsize) == loaded - separate_head
    parts = ppo["trunk"] + ppo["policy top"] + ppo.get("LM head", 0)
    assert parts - (head - dtype.itemsize) == loaded
    own = planned("ppo", shared_trunk=False)["reward model"]
    assert own - (head - dtype.itemsize) == loaded - separate_head

    top = odd_model(family).to(dtype)
    quantise_trunk(top, 5, trunk_dtype, embedding_dtype)
    adapted = planned("sft", top_layers=None, lora_rank=4)
    assert adapted["frozen layers"] == sum(w.nbytes for _, w in stored_weights(top))
    assert adapted["trained weights"] == num_factors(top, None, 4) * dtype.itemsize
    assert "a gradient of the head" not in adapted, "it is frozen"


@pytest.mark.parametrize(("trunk_dtype", "embedding_dtype"), BITS[:3])
@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
def test_memory_of_factors_on_a_quantised_model(world, tmp_path, monkeypatch, family, trunk_dtype, embedding_dtype):
    """A step's peak, with products that allocate as on a GPU: nothing of the frozen layers in full precision."""
    monkeypatch.setattr(coded_linear, "fits", lambda x_TI: True)
    monkeypatch.setattr(coded_linear, "coded_linear", lambda x, weight, bias: x.new_zeros(len(x), weight.shape[0]))
    monkeypatch.setattr(coded_linear, "coded_linear_gradient", lambda x, weight: x.new_zeros(len(x), weight.shape[1]))
    model = model_of(family, 160, 8)
    meta = on_meta(model)
    quantise_trunk(model, 8, trunk_dtype, embedding_dtype)
    examples = [Example(str(i), tuple(range(10, 50)), 8) for i in range(2)]
    with MemoryTracker() as tracker:
        tracker.know(w for _, w in stored_weights(model))
        trainer = make_trainer(
            "sft", world, tmp_path / "run", model=model, data=examples, batch_size=2, tokens_per_microbatch=80,
            epochs=3, lora_rank=4,
        )  # fmt: skip
        trainer.step(0)
        tracker.peak = tracker.live
        trainer.step(1)
        measured = tracker.peak
    w = workload("sft", top_layers=None, tokens_per_microbatch=80, lora_rank=4)
    stored = [(trunk_dtype, embedding_dtype), ("model", "model")]
    cases = [dataclasses.replace(w, trunk_dtype=t, embedding_dtype=e) for t, e in stored]
    planned, usual = (peaks(memory(meta, case))[1] for case in cases)
    assert 0.9 * measured <= planned <= 1.25 * measured
    assert measured < 0.75 * usual


@pytest.mark.parametrize(("trunk_dtype", "code_bytes"), [("int8", 32), ("int4", 16)])
def test_a_decode_step_reads_codes_and_scales_once(trunk_dtype, code_bytes):
    """A block of BLOOM of width 64 has 64 x 64 x 12 weights in groups of 32; four blocks are frozen. Two rounds."""
    model = on_meta(model_of("bloom", 64, 6))
    moved = []
    for dtype in ("model", trunk_dtype):
        w = workload("ppo", slots=8, trunk_dtype=dtype)
        moved.append({p.name: p.bytes for p in phases(model, w)})
    saved = 4 * 64 * 64 * 12 * (4 - (code_bytes + 2) / 32)
    assert moved[0]["decode"] - moved[1]["decode"] == 24 * 2 * saved
    assert moved[0]["prefill"] - moved[1]["prefill"] == saved and moved[0]["update"] == moved[1]["update"]


def test_sums_of_products_with_large_quantised_weights():
    """Width 1,024, up to 512 rows of a prompt: 4,096 inputs are cut into 8 parts of 512 for 1,024 outputs."""
    with torch.device("meta"):
        model = Bloom(CONFIGS["bloom"](hidden_size=1024, n_layer=2))
    w = workload("ppo", top_layers=1, trunk_dtype="int8", slots=0)
    (sums,) = (p for p in memory(model, w) if p.name == "sums of quantised layers")
    assert sums.rollout == sums.update == 4 * 512 * 1024 * 8
    assert "sums of quantised layers" not in {
        p.name for p in memory(model, dataclasses.replace(w, trunk_dtype="model"))
    }


PRETRAINED = {
    "all": {},
    "top": {"top_layers": "2"},
    "embeddings": {"top_layers": "2", "bottom_layers": 0},
    "ends": {"top_layers": "2", "bottom_layers": 1},
    "recompute": {"top_layers": "2", "bottom_layers": 1, "recompute": True},
}


def measure_pretraining(world, folder, model, rows: int, **case) -> tuple[int, float]:
    """Peak bytes of a step of continued pretraining in several microbatches of so many rows of 49 tokens, and the plan
    for it."""
    meta, text = on_meta(model), write(folder / "a.txt", text_of([47] * 62))  # 64 rows
    with MemoryTracker() as tracker:
        tracker.know(model.parameters())
        trainer = make_trainer(
            "pretrain", world, folder / "run", model=model, data=[str(text)], batch_size=2 * rows, max_length=49,
            tokens_per_microbatch=49 * rows, max_steps=2, **case,
        )  # fmt: skip
        trainer.prepare(None)
        trainer.step(0)
        tracker.peak = tracker.live
        trainer.step(1)
    top = int(case["top_layers"]) if "top_layers" in case else None
    w = workload(
        "pretrain", tokens_per_microbatch=49 * rows, top_layers=top, bottom_layers=case.get("bottom_layers"),
        recompute=case.get("recompute", False),
    )  # fmt: skip
    return tracker.peak, peaks(memory(meta, w))[1]


@pytest.mark.parametrize(("hidden", "layers"), [(64, 6), pytest.param(160, 8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", [pytest.param("bloom", marks=pytest.mark.slow), "llama"])
@pytest.mark.parametrize("case", PRETRAINED)
def test_memory_of_pretraining(world, tmp_path, monkeypatch, family, hidden, layers, case):
    """Layers between trained ones keep for their backward what the gradients of their inputs need."""
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    measured, planned = measure_pretraining(world, tmp_path, model_of(family, hidden, layers), 8, **PRETRAINED[case])
    assert planned == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_of_a_large_vocabulary_in_pretraining(world, tmp_path, monkeypatch, family):
    """A trained head has a second gradient while that of a microbatch waits to be summed."""
    monkeypatch.setattr(fused, "FAST_PATHS", {})
    model = model_of(family, 64, 6, vocab_size=20_000)
    measured, planned = measure_pretraining(world, tmp_path, model, 1, **PRETRAINED["ends"])
    assert planned == pytest.approx(measured, rel=0.1)


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", FAMILIES)
def test_operations(family):
    """PyTorch's own count of the trunk's forward, of the policy's update and of both reward models; one sequence, so
    that its attention is the planner's mean of half the length twice over."""
    hidden, layers, top, length, new = 64, 6, 2, 48, 24
    model = model_of(family, hidden, layers)
    batch = PackedBatch.from_sequences([[5] * length])
    w = workload("ppo", rollouts=1, ppo_epochs=1, top_layers=top)
    found = {p.name: p.flops for p in phases(on_meta(model), w)}

    def attend(_, q, k, v, options):
        groups = q.shape[1] // k.shape[1]
        return _dense(q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))

    # Scores over all positions, not half of them: twice the attention of a causal kernel.
    attention = 4 * model.num_heads * model.head_size * length * length / 2
    h_TD = torch.randn(length, hidden)
    body = counted(lambda: model.run(h_TD, batch, layers - top, layers, attend)) - top * attention
    whole = counted(lambda: model.run(h_TD, batch, 0, layers, attend)) - layers * attention
    head = 2 * VOCABULARY * hidden * new
    assert found["update"] == pytest.approx(3 * body + 3 * head, rel=0.02)
    assert found["scoring"] == pytest.approx(3 * body + 2 * head, rel=0.02)
    own = {p.name: p.flops for p in phases(on_meta(model), dataclasses.replace(w, shared_trunk=False))}
    assert own["scoring"] == pytest.approx(2 * body + whole + 2 * head, rel=0.02)
    decoded = found["prefill"] + found["decode"] - head
    assert decoded == pytest.approx(whole, rel=0.02)
    sft = phases(on_meta(model), dataclasses.replace(w, stage="sft", top_layers=None))
    assert sft[0].flops == pytest.approx(3 * whole + 4 * 2 * VOCABULARY * hidden * new, rel=0.02)


def _dense(q_THK, k_THK, v_THK):
    weight_HTT = torch.einsum("thk,shk->hts", q_THK, k_THK).softmax(-1)
    return torch.einsum("hts,shk->thk", weight_HTT, v_THK)


def test_a_parked_trunk_takes_memory_only_while_it_generates():
    for family in FAMILIES:
        model = on_meta(model_of(family, 64, 6))
        usual, parked = (
            {p.name: p for p in memory(model, workload("ppo", park_trunk=parks))} for parks in (False, True)
        )
        tied = 4 * (VOCABULARY + 2) * 64 if family == "bloom" else 0  # the head, which every update reads, and a norm
        assert parked["trunk"].update == tied < usual["trunk"].update == usual["trunk"].rollout
        assert parked["trunk"].rollout == usual["trunk"].rollout
        assert parked[CACHE].update == 0 < usual[CACHE].update == usual[CACHE].rollout == parked[CACHE].rollout
        paged = usual[TRUNK_OUTPUTS].update - parked[TRUNK_OUTPUTS].update
        assert 0 < paged < usual[TRUNK_OUTPUTS].rollout == parked[TRUNK_OUTPUTS].rollout
        assert all(parked[name] == usual[name] for name in usual if name not in ("trunk", CACHE, TRUNK_OUTPUTS))


def test_the_cache_is_limited_as_in_a_run(monkeypatch):
    """Half of what is free before the first rollout, as the engine's own rule finds it."""
    model, w = on_meta(model_of("llama", 64, 6)), workload("ppo")
    parts = memory(model, dataclasses.replace(w, cache_tokens=2 * PAGE_SIZE))
    resident = sum(p.rollout for p in parts if p.name not in (CACHE, TRUNK_OUTPUTS, STEP))
    free = 2.5 * sum(p.rollout for p in parts if p.name == CACHE)
    monkeypatch.setattr(cache_budget, "free_bytes", lambda device: free)
    limited = within_budget(model, w, resident + free)
    assert limited.cache_tokens == budget_pages(model, None, keeps_trunk=True) * PAGE_SIZE
    assert limited.pages < w.pages == within_budget(model, w, resident + 100 * free).pages


def test_what_zero_divides():
    """Optimizer state by ranks from stage 1, gradients from 2, weights from 3; offload takes the state away."""
    model = on_meta(model_of("bloom", 64, 6))

    def part(name, ranks=4, **changes):
        return {p.name: p.update for p in memory(model, workload("sft", top_layers=None, ranks=ranks, **changes))}[name]

    state, gradients, weights = (part(n, zero=0) for n in ("optimizer", "gradients", "trained weights"))
    assert part("optimizer", zero=1) == state / 4 and part("gradients", zero=1) == gradients
    assert part("gradients", zero=2) == gradients / 4 and part("trained weights", zero=2) == weights
    assert part("trained weights", zero=3) == weights / 4
    assert part("optimizer", zero=2, offload=True) == 0
    total = sum(p.numel() for p in model.parameters())
    assert weights == 4 * total and gradients == 4 * total and state == 8 * total
    half = {"dtype": torch.bfloat16}
    assert part("gradients", 1, **half) == 4 * total, "a bfloat16 one goes as soon as its master has it"
    assert part("gradients", zero=1, **half) == 6 * total
