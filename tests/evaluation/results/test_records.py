"""Records: the fields of a line, and a file that does not depend on kills, ranks or the order of work."""

from __future__ import annotations

import hashlib
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.results.records import RecordFile, ids_sha256, prompts_sha256, record_of
from evaluation.scoring.metrics import document_scores
from tests.evaluation.scoring.documents import choice_of, document_of, documents_of

DOCUMENTS = documents_of(12)


def record(index):
    return record_of(DOCUMENTS[index], [-1.0 - index, -2.0, -1.5, -9.0, -1.0 - index], ("acc_norm", "acc"))


def test_record_has_all_fields_that_scores_need():
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


def test_hashes_cover_tokens_their_split_and_texts():
    def hashes(context, continuation, text="a", prompt="p"):
        document = [document_of(0, [choice_of(context, continuation, text)], prompt=prompt)]
        return ids_sha256(document), prompts_sha256(document)

    base = hashes((1, 2), (3,))
    assert hashes((1, 2), (4,))[0] != base[0] != hashes((1,), (2, 3))[0]
    assert hashes((1, 2), (3,), text="b")[1] != base[1] != hashes((1, 2), (3,), prompt="q")[1]


@given(
    runs=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    cut=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_file_is_invariant_to_kills_and_numbers_of_ranks(tmp_path_factory, runs, seed, cut):
    """runs: number of ranks of each run; all but the last are killed. cut: the kill cuts a line short."""
    whole = RecordFile(tmp_path_factory.mktemp("whole"), "arc", "ne")
    with whole.append(0) as write:
        for index in range(len(DOCUMENTS)):
            write(record(index))
    whole.merge()

    draw, killed = random.Random(seed), RecordFile(tmp_path_factory.mktemp("killed"), "arc", "ne")
    for run, num_ranks in enumerate(runs):
        remaining = [index for index in range(len(DOCUMENTS)) if index not in killed.done()]
        is_last = run == len(runs) - 1
        draw.shuffle(remaining)
        for rank in range(num_ranks):
            indices = remaining[rank::num_ranks]
            with killed.append(rank) as write:
                for index in indices if is_last else indices[: draw.randrange(len(indices) + 1)]:
                    write(record(index))
        if cut and not is_last:
            part = killed.folder / f"arc.ne.rank{num_ranks - 1}.jsonl"
            part.write_bytes(part.read_bytes()[:-5])  # ends inside the last line
    records = killed.merge()
    assert killed.path.read_bytes() == whole.path.read_bytes()
    assert records == [json.loads(line) for line in whole.path.read_text().splitlines()]
    assert list(killed.folder.iterdir()) == []
    assert len(killed.done()) == len(DOCUMENTS)


def test_merge_is_idempotent(tmp_path):
    file = RecordFile(tmp_path, "arc", "ne")
    with file.append(0) as write:
        write(record(3))
    first = file.merge()
    assert file.merge() == first
