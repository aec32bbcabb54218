"""Mixtures: shares at every draw, whole passes over each file, one file as without a mixture, mistakes in a line."""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.mixture import Mixture, Source, names_of, parse_sources, turns, with_unique_ids
from engine.base.seeds import batches

weights = st.floats(0.01, 100)


@dataclass(frozen=True)
class Named:
    id: str


def mixture(counts, of):
    return Mixture(tuple(Source(f"{f}.jsonl", w) for f, w in enumerate(of)), tuple(counts))


@settings(deadline=None)
@given(of=st.lists(weights, min_size=2, max_size=6), draws=st.integers(1, 300))
def test_every_file_has_its_share_at_every_draw(of, draws):
    shares, had = [w / sum(of) for w in of], [0] * len(of)
    for draw, f in enumerate(turns(shares, draws), start=1):
        had[f] += 1
        for share, n in zip(shares, had):
            assert abs(share * draw - n) <= 1 - 1 / (2 * len(of) - 2) + 1e-6
    assert sum(had) == draws


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    data=st.data(),
    size=st.integers(1, 12),
    epochs=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_a_file_is_read_whole_before_it_is_read_again(counts, data, size, epochs, seed):
    mixed = mixture(counts, data.draw(st.lists(weights, min_size=len(counts), max_size=len(counts))))
    steps = mixed.batches(size, epochs, seed, "sft")
    assert steps == mixed.batches(size, epochs, seed, "sft")
    drawn = [i for step in steps for i in step]
    assert len(drawn) == epochs * sum(counts) and max(map(len, steps)) <= size
    first = 0
    for count in counts:
        own = [i for i in drawn if first <= i < first + count]
        for start in range(0, len(own), count):
            part = own[start : start + count]
            assert len(set(part)) == len(part), "no record twice in a pass"
        assert max(Counter(own).values(), default=0) <= mixed.passes(epochs)
        first += count


def test_shares_by_hand():
    """3 to 1: of 8 draws, 6 and 2, the rarer one in the middle of each four."""
    assert turns([0.75, 0.25], 8) == [0, 0, 1, 0, 0, 0, 1, 0]
    mixed = mixture((3, 9), (3, 1))
    (step,) = mixed.batches(12, 1, 0, "sft")
    assert Counter("small" if i < 3 else "large" for i in step) == {"small": 9, "large": 3}
    assert Counter(i for i in step if i < 3) == {0: 3, 1: 3, 2: 3}
    assert mixed.passes(1) == 3
    assert mixed.rows([step]) == {
        "file 1": "0.jsonl: 3 records, 75.0% of those drawn, read 3.00 times",
        "file 2": "1.jsonl: 9 records, 25.0% of those drawn, read 0.33 times",
    }
    assert mixed.batches(12, 1, 1, "sft") != [step]


def test_each_pass_has_another_order():
    steps = mixture((8, 8), (1, 1)).batches(16, 2, 0, "sft")
    orders = [[i for i in step if i < 8] for step in steps]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8)) and orders[0] != orders[1]
    assert [i - 8 for i in steps[0] if i >= 8] != orders[0]


@given(count=st.integers(1, 50), size=st.integers(1, 20), epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_one_file_is_drawn_as_without_weights(count, size, epochs, seed):
    for one in (Mixture.of_one(count), mixture((count,), (0.3,))):
        assert one.batches(size, epochs, seed, "x", fewest=2) == batches(count, size, epochs, seed, "x", fewest=2)
        assert one.passes(epochs) == epochs and one.rows([[0]]) == {}


def test_a_number_after_the_last_colon_is_the_weight(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:2").write_text("")
    words = ["a.jsonl:0.7", "b.jsonl", "c:d.jsonl:2e1", "odd:2", "e.jsonl:x", "odd:2:3"]
    assert [(s.path, s.weight) for s in parse_sources(words[:-1])] == [
        ("a.jsonl", 0.7), ("b.jsonl", 1.0), ("c:d.jsonl", 20.0), ("odd:2", 1.0), ("e.jsonl:x", 1.0),
    ]  # fmt: skip
    assert parse_sources(["odd:2:3"]) == (Source("odd:2", 3.0),)
    assert names_of(parse_sources(words[:2])) == "a.jsonl:0.7, b.jsonl:1" and names_of([Source("x", 0.5)]) == "x"


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "1e999"])
def test_a_weight_is_finite_and_above_zero(weight):
    with pytest.raises(UserError, match=rf"--data a.jsonl:{weight}: the weight is {weight}, give a finite number"):
        parse_sources([f"a.jsonl:{weight}"])


def test_a_file_is_named_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"--ptx-data names .*/b.jsonl twice: name a file once"):
        parse_sources([f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl:2"], "--ptx-data")


def test_ids_get_the_name_of_their_file_where_they_clash():
    def ids(*paths, parts):
        named = with_unique_ids([Source(p) for p in paths], [[Named(i) for i in part] for part in parts])
        return [[record.id for record in part] for part in named]

    assert ids("a.jsonl", "b.jsonl", parts=(["1", "2"], ["3"])) == [["1", "2"], ["3"]]
    assert ids("d/a.jsonl.gz", "b.jsonl", parts=(["1", "2"], ["2"])) == [["a/1", "a/2"], ["b/2"]]
    assert ids("d/a.jsonl", "e/a.jsonl", parts=(["1"], ["1"])) == [["1-a/1"], ["2-a/1"]]
