"""Records: what a line holds, and that kills, ranks and the order of work leave no trace in the file."""

from __future__ import annotations

import hashlib
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.results.records import RecordFile, ids_sha256, prompts_sha256, record_of
from evaluation.scoring.metrics import document_scores
from tests.evaluation.scoring.scorable import choice_of, document_of, documents_of

DOCUMENTS = documents_of(12)


def record(index):
    return record_of(DOCUMENTS[index], [-1.0 - index, -2.0, -1.5, -9.0, -1.0 - index], ("acc_norm", "acc"))


def test_a_line_holds_all_that_scores_are_made_of():
    document = document_of(
        7, [choice_of((1, 2), (3, 4), "ab"), choice_of((1,), (2, 5, 6), "नेपा")], gold=1, shot_ids=("x", "y"),
        prompt="Q: क", subject="anatomy",
    )  # fmt: skip
    line = record_of(document, [-4.0, -6.0], ("acc_norm", "acc"))
    digest = hashlib.sha256()
    for numbers in ((2, 2, 1, 2, 3, 4), (1, 3, 1, 2, 5, 6)):  # two lengths, then the ids
        digest.update(b"".join(n.to_bytes(4, "little") for n in numbers))
    assert line == {
        "id": "d7", "index": 7, "subject": "anatomy", "gold": 1, "lls": [-4.0, -6.0],
        "predictions": {"acc_norm": 1, "acc": 0}, "margins": {"acc_norm": 0.5, "acc": 2.0},
        "ties": {"acc_norm": False, "acc": False}, "scores": {"acc_norm": 1.0, "acc": 0.0}, "chance": 0.5,
        "shot_ids": ("x", "y"), "context_sha256": hashlib.sha256("Q: क".encode()).hexdigest(),
        "ids_sha256": digest.hexdigest(), "tokens": [2, 3], "characters": [2, 4], "bytes": [2, 12],
        "truncated": [False, False],
    }  # fmt: skip
    assert line["scores"] == document_scores(document, line["lls"], ("acc_norm", "acc"))


def test_hashes_see_every_token_every_border_and_every_text():
    def of(context, continuation, text="a", prompt="p"):
        document = [document_of(0, [choice_of(context, continuation, text)], prompt=prompt)]
        return ids_sha256(document), prompts_sha256(document)

    base = of((1, 2), (3,))
    assert of((1, 2), (4,))[0] != base[0] != of((1,), (2, 3))[0]
    assert of((1, 2), (3,), text="b")[1] != base[1] != of((1, 2), (3,), prompt="q")[1]


@given(
    ranks=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    cut=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_kills_and_changing_numbers_of_ranks_leave_no_trace(tmp_path_factory, ranks, seed, cut):
    whole = RecordFile(tmp_path_factory.mktemp("whole"), "arc", "ne")
    with whole.append(0) as write:
        for index in range(len(DOCUMENTS)):
            write(record(index))
    whole.merge()

    draw, killed = random.Random(seed), RecordFile(tmp_path_factory.mktemp("killed"), "arc", "ne")
    for run, size in enumerate(ranks):
        left = [index for index in range(len(DOCUMENTS)) if index not in killed.done()]
        last = run == len(ranks) - 1
        draw.shuffle(left)
        for rank in range(size):
            mine = left[rank::size]
            with killed.append(rank) as write:
                for index in mine if last else mine[: draw.randrange(len(mine) + 1)]:
                    write(record(index))
        if cut and not last:
            part = killed.folder / f"arc.ne.rank{size - 1}.jsonl"
            part.write_bytes(part.read_bytes()[:-5])  # in the middle of its last line
    records = killed.merge()
    assert killed.path.read_bytes() == whole.path.read_bytes()
    assert records == [json.loads(line) for line in whole.path.read_text().splitlines()]
    assert list(killed.folder.iterdir()) == []
    assert len(killed.done()) == len(DOCUMENTS)


def test_merging_twice_is_merging_once(tmp_path):
    file = RecordFile(tmp_path, "arc", "ne")
    with file.append(0) as write:
        write(record(3))
    first = file.merge()
    assert file.merge() == first
