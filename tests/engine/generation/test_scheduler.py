"""Admission: slots and pages never over their number, every request served once, prompts run once and shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.generation.kv_cache import pages_for
from engine.generation.sample import Request
from engine.generation.scheduler import ORDERS, Scheduler, group_by_prompt

SIZE = 4


def request(prompt, sample=0, new=5, **more):
    return Request(tuple(prompt), prompt[0], sample, new, **more)


groups = st.lists(
    st.tuples(st.integers(1, 20), st.lists(st.integers(1, 15), min_size=1, max_size=5)), min_size=1, max_size=8
)


@given(
    groups,
    st.integers(1, 6),
    st.integers(0, 12),
    st.sampled_from(ORDERS),
    st.booleans(),
    st.integers(1, 9),
    st.randoms(),
)
def test_all_requests_are_served_within_slots_and_pages(groups, num_slots, spare, order, share, budget, rng):
    requests = [request([i] * n, s, new) for i, (n, news) in enumerate(groups) for s, new in enumerate(news)]
    num_pages = max(pages_for(r.max_length, SIZE) for r in requests) + 1 + spare
    scheduler = Scheduler(requests, order, num_slots, num_pages, SIZE, share)
    running, served, prompt_tokens = [], [], 0
    while len(served) < len(requests):
        scheduler.admit()
        chunks = scheduler.chunks(budget)
        assert sum(p.stop - p.start for p in chunks) <= budget
        prompt_tokens += sum(p.stop - p.start for p in chunks)
        started = scheduler.starts()
        running += started
        waiting = [s for p in scheduler.filling for s in p.admitted]
        assert len({s.slot for s in running + waiting}) == len(running + waiting) <= num_slots
        check_pages(running, scheduler)
        assert running or chunks, "nothing happens any more"
        if running and (rng.random() < 0.5 or not chunks):
            leaving = running.pop(rng.randrange(len(running)))
            scheduler.leave(leaving)
            served.append(leaving.index)
    assert sorted(served) == list(range(len(requests)))
    assert scheduler.pool.num_free == num_pages
    assert len(scheduler.free_slots) == num_slots
    assert prompt_tokens == sum(len(p.tokens) for p in group_by_prompt(requests, share))


def check_pages(running, scheduler):
    """Each has room for its longest; whole pages of a prompt are shared by its samples, all others are of one alone."""
    owners = {}
    for sample in running:
        assert len(sample.pages) == len(set(sample.pages)) == pages_for(sample.request.max_length, SIZE)
        full = len(sample.prompt.tokens) // SIZE
        assert sample.pages[:full] == sample.prompt.pages[:full]
        for place, page in enumerate(sample.pages):
            owners.setdefault(page, []).append((id(sample.prompt), place < full))
    for users in owners.values():
        assert len(users) == 1 or (len(set(users)) == 1 and users[0][1])
    assert len(owners) <= scheduler.pool.num_pages - scheduler.pool.num_free


def test_last_sample_takes_the_half_filled_page_of_a_shared_prompt():
    requests = [request([1] * 6, s) for s in range(3)] + [request([2] * 4)]
    scheduler = Scheduler(requests, "given", 4, 20, SIZE)
    scheduler.admit()
    assert [(p.start, p.stop, p.prompt.tokens[0]) for p in scheduler.chunks(100)] == [(0, 6, 1), (0, 4, 2)]
    one, two, three, other = scheduler.starts()
    assert one.pages[0] == two.pages[0] == three.pages[0]
    assert one.copied == (three.pages[1], one.pages[1])
    assert two.copied == (three.pages[1], two.pages[1])
    assert three.copied is None is other.copied
    assert scheduler.pool.num_free == 20 - (1 + 3 * 2) - 3


def test_long_prompt_runs_in_chunks_and_is_not_overtaken():
    scheduler = Scheduler([request([1] * 10), request([2] * 3)], "given", 2, 20, SIZE)
    scheduler.admit()
    seen = [[(p.prompt.tokens[0], p.start, p.stop) for p in scheduler.chunks(4)] for _ in range(4)]
    assert seen == [[(1, 0, 4)], [(1, 4, 8)], [(1, 8, 10)], [(2, 0, 3)]]


def test_order_longest():
    requests = [
        request([1], new=9),
        request([2], new=5),
        request([3], new=9, expected_new_tokens=2),
        request([4], new=8),
    ]
    scheduler = Scheduler(requests, "longest", 9, 20, SIZE)
    scheduler.admit()
    scheduler.chunks(100)
    assert [s.index for s in scheduler.starts()] == [0, 3, 1, 2]


def test_request_that_never_fits_is_refused_with_numbers():
    fits = [request([1] * 7, new=9)]
    Scheduler(fits, "given", 1, 4, SIZE)
    said = r"request 1 needs 5 pages of 4 tokens in the cache \(prompt 7, up to 10 new\), the budget holds 4: raise "
    with pytest.raises(UserError, match=said + "--cache-tokens to 20, or shorten the prompt or --max-new-tokens"):
        Scheduler([*fits, request([2] * 7, new=10)], "given", 1, 4, SIZE)
    with pytest.raises(UserError, match="needs 5 pages"):  # shared: the half-filled page of the prompt beside its copy
        Scheduler([request([1] * 7, s, 9) for s in range(2)], "given", 1, 4, SIZE)


def test_requests_can_be_added_and_cancelled():
    scheduler = Scheduler([request([1] * 3)], "given", 2, 20, SIZE)
    assert scheduler.add([request([2] * 3), request([2] * 3, 1), request([3] * 3)]) == range(1, 4)
    scheduler.admit()  # requests 0 and 1: the prompt of 2 has begun
    assert [scheduler.cancel(i) for i in (0, 1, 2, 3, 3, 9)] == [False, False, False, True, False, False]
    scheduler.chunks(100)
    first, second = scheduler.starts()
    assert (first.index, second.index) == (0, 1)
    scheduler.leave(first)
    scheduler.admit()
    assert [s.index for s in scheduler.starts()] == [2]
    assert not scheduler.queue
    with pytest.raises(UserError, match="request 4 needs 21 pages"):
        scheduler.add([request([1] * 80, new=1)])
    assert not scheduler.queue
