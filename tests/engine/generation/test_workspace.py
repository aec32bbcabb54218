"""The cache and the graphs that stay from one rollout to the next."""

import pytest
import torch

from engine.generation import cache_budget, decode_graphs, kv_cache
from engine.generation.cache_budget import bytes_of_page, free_bytes
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.generation.workspace import Workspace
from tests.engine.generation.recorded_steps import assert_same, model_of

MODEL = "llama"


def requests(count, new=8, prompt=60):
    return [Request(tuple(range(prompt)), i, 0, new + i) for i in range(count)]


def rollout(model, wanted, workspace, split=2):
    return generate(model, wanted, Sampling(0.9), 7, 5, num_slots=4, capture_layer=split, workspace=workspace)


@pytest.fixture
def gpu_memory(monkeypatch):
    """A device whose free memory is 20 pages less what the allocator has reserved; freed blocks stay reserved."""
    model = model_of(MODEL)
    total, reserved = 20 * bytes_of_page(model, torch.float32, True), [0]

    def free(_):
        return total - reserved[0]

    real = kv_cache.empty_pages

    def empty_pages(num_pages, *sizes):
        reserved[0] = max(reserved[0], num_pages * bytes_of_page(model, torch.float32, True))
        return real(num_pages, *sizes)

    monkeypatch.setattr(kv_cache, "empty_pages", empty_pages)
    monkeypatch.setattr(cache_budget, "free_bytes", free)


@pytest.fixture
def captures(monkeypatch):
    """Graphs played on a CPU: captured calls run again. Returns the number of rows of each capture."""
    rows = []

    def capture_here():
        def capture(step):
            outputs = step()
            rows.append(len(outputs[0]))

            def replay():
                for kept, new in zip(outputs, step()):
                    kept.copy_(new)

            return replay, outputs

        return capture

    monkeypatch.setattr(decode_graphs, "capture_on_cuda", capture_here)
    monkeypatch.setattr(kv_cache, "spare_pages", lambda device: 1)
    return rows


def test_freed_blocks_of_the_allocator_count_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 25)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: share[0])
    share = [1.0]
    assert free_bytes(torch.device("cuda", 0)) == 10 + 45
    share[0] = 0.5
    assert free_bytes(torch.device("cuda", 0)) == 40 - 25


def test_every_rollout_has_the_cache_of_the_first(gpu_memory):
    model, workspace, pages = model_of(MODEL), Workspace(), []
    wanted = [Request((1, 2, 3), i, 0, 140) for i in range(4)]  # 3 pages each, and there is room for 10
    for _ in range(3):
        rollout(model, wanted, workspace)
        pages.append(workspace.cache.num_pages)
    assert pages == [10, 10, 10]


def test_the_cache_grows_with_the_requests_and_never_shrinks():
    model, workspace = model_of(MODEL), Workspace()
    rollout(model, requests(2), workspace)
    small = workspace.cache
    rollout(model, requests(4, new=70), workspace)
    large = workspace.cache
    assert small.num_pages == 2 * 2 + 1 and large.num_pages == 4 * 3 + 1
    rollout(model, requests(2), workspace)
    assert workspace.cache is large


def test_graphs_are_captured_once_for_many_rollouts(captures):
    model, workspace = model_of(MODEL), Workspace()
    first = rollout(model, requests(4), workspace)
    taken = list(captures)
    assert len(taken) > 1
    for _ in range(2):
        assert_same(rollout(model, requests(4), workspace), first)
    assert captures == taken
    assert_same(rollout(model, requests(4), None), first)


@pytest.mark.parametrize("what", ["weights", "split", "longer", "more rows"])
def test_graphs_are_captured_again_where_the_old_ones_do_not_fit(captures, what):
    model, workspace, split = model_of(MODEL), Workspace(), 2
    rollout(model, requests(3), workspace)
    before = len(captures)
    wanted = requests(3)
    if what == "weights":  # new memory, other values
        weight = model.layers[0].q.weight
        weight.data = weight.data * 1.5
    elif what == "split":
        split = 1
    else:
        wanted = requests(3, new=70) if what == "longer" else requests(4)
    found = rollout(model, wanted, workspace, split)
    assert len(captures) > before
    assert_same(found, rollout(model, wanted, None, split))


def test_weights_that_changed_in_place_are_read_by_the_old_graphs(captures):
    model, workspace = model_of(MODEL), Workspace()
    before = rollout(model, requests(3), workspace)
    taken = len(captures)
    with torch.no_grad():
        model.layers[1].down.weight *= -1.5
    after = rollout(model, requests(3), workspace)
    assert len(captures) == taken
    assert [r.tokens for r in before] != [r.tokens for r in after]
    assert_same(after, rollout(model, requests(3), None))


def test_a_released_cache_comes_back_in_its_size(captures, gpu_memory):
    model, workspace = model_of(MODEL), Workspace()
    first = rollout(model, requests(4, new=140), workspace)
    pages, taken = workspace.cache.num_pages, len(captures)
    workspace.release()
    assert workspace.cache is workspace.trunk_PND is None
    assert_same(rollout(model, requests(4, new=140), workspace), first)
    assert workspace.cache.num_pages == pages and len(captures) == 2 * taken
