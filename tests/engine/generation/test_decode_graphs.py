"""Decode steps as graphs of fixed batch sizes against the same steps call by call, to the bit.

On a CPU a graph is played: what is captured is run again into the outputs of the first time. So blank rows, batch sizes
and fixed places are as on a GPU; what CUDA itself captures is tested where there is one.
"""

from __future__ import annotations

import pytest
import torch

from engine.base.errors import UserError
from engine.generation import decode_graphs, kv_cache
from engine.generation.decode_graphs import DecodeGraphs, batch_sizes
from engine.generation.decode_inputs import DecodeInputs
from engine.generation.decode_tape import DecodeTape
from engine.generation.generate import Request, generate
from engine.generation.kv_cache import KVCache
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from engine.models.fused import FAST_PATHS
from tests.engine.generation.recorded_steps import CASES, assert_same, model_of

# Without a fast path the bits of a row depend on the number of rows, and a graph has blank ones.
WITH_FAST_PATH = [name for name, (_, config) in CASES.items() if config.model_type in FAST_PATHS]


def requests():
    """Prompts of less than a page and more, alone and shared; responses of many lengths, so that rows come and go."""
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 70, 130, 5, 64, 1]
    prompts = [tuple(torch.randint(0, 97, (n,), generator=generator).tolist()) for n in lengths]
    new = torch.randint(1, 90, (40,), generator=generator).tolist()
    return [Request(prompts[i // 7], i // 7, i % 7, n) for i, n in enumerate(new)]


def run(model, num_slots, **options):
    few = 3 if num_slots < 14 else 1  # every third request still has each prompt, and more requests than slots
    options["num_slots"] = num_slots
    return generate(model, requests()[::few], Sampling(temperature=0.9), 7, 5, capture_layer=2, **options)


@pytest.fixture
def call_by_call(monkeypatch):
    monkeypatch.setattr(DecodeTape, "of", classmethod(lambda *_: None))


@pytest.fixture
def played(monkeypatch, call_by_call):
    """Graphs on a CPU. Returns (rows, whether any share pages) of the captures and of the replays."""
    counts = {"captured": [], "replayed": []}
    run_layers, ran = DecodeInputs.run, []

    def run_and_tell(inputs, rows, split):
        ran[:] = [(rows, inputs.sharing)]
        return run_layers(inputs, rows, split)

    def capture_here():
        def capture(step):
            outputs = step()
            (captured,) = ran
            counts["captured"].append(captured)

            def replay():
                for kept, new in zip(outputs, step()):
                    kept.copy_(new)
                assert ran == [captured], "a graph cannot run what it has not captured"
                counts["replayed"].append(captured)

            return replay, outputs

        return capture

    monkeypatch.setattr(DecodeInputs, "run", run_and_tell)
    monkeypatch.setattr(decode_graphs, "capture_on_cuda", capture_here)
    monkeypatch.setattr(kv_cache, "spare_pages", lambda device: 1)
    return counts


@pytest.mark.parametrize("most", [1, 2, 3, 7, 16, 23, 24, 64, 100, 512])
def test_batch_sizes_leave_less_than_half_of_the_rows_blank(most):
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes)) and sizes[-1] == most
    assert all(2 * rows > min(n for n in sizes if n >= rows) for rows in range(1, most + 1))
    assert len(sizes) <= 2 * most.bit_length()


@pytest.mark.parametrize("name", WITH_FAST_PATH)
@pytest.mark.parametrize("num_slots", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3)), 29])
def test_rollout_with_graphs_equals_rollout_without(name, num_slots, call_by_call, request):
    model = model_of(name)
    expected = run(model, num_slots=num_slots)
    counts = request.getfixturevalue("played")
    assert_same(run(model, num_slots=num_slots), expected)
    first, *later = counts["captured"]
    assert first == (num_slots, False) and {size for size, _ in later} <= set(batch_sizes(num_slots))
    assert len({first, *later}) == 1 + len(later), "each size once without shared pages, once with"
    assert set(later) <= set(counts["replayed"]) <= {first, *later} and len(counts["replayed"]) > 50
    assert {sharing for _, sharing in counts["replayed"]} == ({False} if num_slots == 1 else {False, True})


def test_full_cache_with_reused_pages(played, request):
    """With so small a budget every page that a row leaves is another's at once: a row left behind would write there."""
    model = model_of("llama")
    by_graphs = run(model, num_slots=8, workspace=Workspace(64 * 9))
    request.getfixturevalue("monkeypatch").setattr(DecodeGraphs, "of", classmethod(lambda *_: None))
    assert_same(by_graphs, run(model, num_slots=8, workspace=Workspace(64 * 9)))
    assert len(set(played["replayed"])) > 2


def test_removed_rows_are_blank(played):
    """Two groups of two rows, then one: the other rows stand at the spare page's first position, and share nothing."""
    model = model_of("llama")
    cache = KVCache(model, 9)
    inputs = DecodeInputs(model, cache, 6, 3)

    assert not inputs.sharing

    def fill(rows, bounds, shared):
        table = torch.arange(rows * 2, dtype=torch.int32).reshape(rows, 2)
        position = torch.full((rows,), 70)
        inputs.fill(
            torch.ones(rows, 64), position, table, *(torch.tensor(x, dtype=torch.int32) for x in (bounds, shared)), True
        )
        assert inputs.sharing

    fill(4, [0, 2, 4], [64, 64])
    fill(2, [0, 2], [64])
    page_S, slot_S, length_S = inputs.places
    assert cache.spare_page == 9 and cache.k_LPGNK.shape[1] == 10
    assert inputs.table_SB[:2].tolist() == [[0, 1, 9], [2, 3, 9]] and (inputs.table_SB[2:] == 9).all()
    assert page_S.tolist() == [1, 3, 9, 9, 9, 9] and slot_S.tolist() == [6, 6, 0, 0, 0, 0]
    assert length_S.tolist() == [71, 71, 1, 1, 1, 1]
    assert inputs.cu_groups.tolist() == [0, 2, 6, 6, 6, 6, 6] and inputs.shared_R.tolist() == [64, 0, 0, 0, 0, 0]


def test_spare_page_is_part_of_the_budget(monkeypatch):
    model, one = model_of("llama"), [Request(tuple(range(60)), 0, 0, 60)]
    assert generate(model, one, Sampling(), 7, 5, workspace=Workspace(128))
    monkeypatch.setattr("engine.generation.cache_budget.spare_pages", lambda device: 1)
    with pytest.raises(UserError, match="needs 2 pages.*the budget holds 1"):
        generate(model, one, Sampling(), 7, 5, workspace=Workspace(128))


def test_failed_capture_falls_back_with_a_note(monkeypatch, played, capsys):
    def refuses():
        def capture(step):
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

        return capture

    model = model_of("llama")
    expected = run(model, num_slots=4)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(decode_graphs, "capture_on_cuda", refuses)
    assert_same(run(model, num_slots=4), expected)
    assert capsys.readouterr().err == (
        "no CUDA graphs, decode steps run call by call: CUDA error: operation not permitted when stream is capturing\n"
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", WITH_FAST_PATH)
def test_graphs_on_a_gpu_give_equal_tokens(name, monkeypatch):
    model = model_of(name).cuda()
    by_graphs = generate(model, requests(), Sampling(0.0), 7, 5, num_slots=29, capture_layer=2)
    monkeypatch.setattr(DecodeGraphs, "of", classmethod(lambda *_: None))
    expected = generate(model, requests(), Sampling(0.0), 7, 5, num_slots=29, capture_layer=2)
    for a, b in zip(by_graphs, expected):
        torch.testing.assert_close(a.trunk_ND[: len(b.trunk_ND)], b.trunk_ND, atol=1e-3, rtol=1e-3)
        assert a.tokens == b.tokens
