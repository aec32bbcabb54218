"""The embedded data: schemas, sizes, no leakage, careless answers, ranks, reproducibility, files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from datagen.embedded import CARELESS_SHARE, make_embedded, write_embedded
from datagen.kits import kit_codes, load_kit
from datagen.tasks.kinds import KINDS, check
from engine.base.errors import UserError
from engine.base.records import read_instructions, read_rankings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data():
    return make_embedded("ne")


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded") / "ne"
    write_embedded(data, folder)
    return folder


def _question(item):
    return item.get("question") or item.get("ctx") or item["instruction"]


def test_default_sizes(data):
    sizes = [len(data.sft), len(data.rl), len(data.ranking), len(data.ranking_heldout), len(data.heldout)]
    assert sizes == [6_000, 4_000, 4_000, 400, 600]
    assert sorted(data.benchmarks) == [
        "m_arc/ne_test.json",
        "m_arc/ne_train.json",
        "m_arc/ne_validation.json",
        "m_hellaswag/ne_validation.json",
        "m_mmlu/ne_dev.json",
        "m_mmlu/ne_test.json",
        "m_mmlu/ne_val.json",
        "m_truthfulqa/ne_validation.json",
    ]


def test_held_out_prompts_do_not_occur_in_training(data):
    rows = [*data.sft, *data.rl, *data.ranking]
    trained = {(row["instruction"], row["input"]) for row in rows}
    for row in (*data.heldout, *data.ranking_heldout):
        assert (row["instruction"], row["input"]) not in trained
    questions = {f"{instruction}\n{input}".strip() for instruction, input in trained}
    for items in data.benchmarks.values():
        assert not questions & {_question(item) for item in items}


def test_files_of_a_benchmark_share_no_question(data):
    for benchmark in ("m_arc", "m_mmlu", "m_hellaswag", "m_truthfulqa"):
        asked = [
            _question(item) for name, items in data.benchmarks.items() if name.startswith(benchmark) for item in items
        ]
        assert len(set(asked)) == len(asked)


def test_ranks_are_valid_and_a_tenth_of_rankings_tie(data):
    ties = 0
    for row in data.ranking:
        ranks = row["ranks"]
        assert len(row["responses"]) == len(ranks) == 4
        assert set(ranks) == set(range(1, max(ranks) + 1))
        ties += len(set(ranks)) < 4
        best = {text for text, rank in zip(row["responses"], ranks) if rank == 1}
        assert len(best) == 1
        worse = [text for text, rank in zip(row["responses"], ranks) if rank > 1]
        assert not any(check({"output": next(iter(best))}, text) for text in worse)
    assert 0.08 < ties / len(data.ranking) < 0.12


def grades(row, texts):
    """Return [(rank, grade)] sorted by rank. Rank 1 is right; an answer, a newline and a text is careless."""
    right = row["responses"][row["ranks"].index(1)]
    graded = []
    for response, rank in sorted(zip(row["responses"], row["ranks"]), key=lambda pair: pair[1]):
        answer, newline, tail = response.partition("\n")
        assert not newline or tail in texts, response
        grade = ("right" if answer == right else "wrong") + (" but careless" if newline else "")
        assert check({"output": right}, response) == (grade == "right"), response
        graded.append((rank, grade))
    return graded


@pytest.mark.parametrize("code", kit_codes())
def test_right_ranks_above_careless_above_wrong(code):
    """In every language. A careless answer never counts as correct, in rankings or in `check`."""
    made, texts = make_embedded(code, size=48), set(load_kit(code).texts)
    for row in (*made.ranking, *made.ranking_heldout):
        places = {}
        for rank, grade in grades(row, texts):
            places.setdefault(grade, set()).add(rank)
        assert places.pop("right") == {1}
        wrong = places.pop("wrong", set()) | places.get("wrong but careless", set())
        last = places.pop("wrong but careless", {max(row["ranks"])})
        assert last == {max(row["ranks"])}
        careless = places.pop("right but careless", set())
        assert careless <= {2} and not careless & wrong and not places


def test_worst_response_is_careless_half_of_the_time(data):
    """So an extra sentence does not predict whether the answer before it is right, and the reverse."""
    texts = set(load_kit("ne").texts)
    untied = [grades(row, texts) for row in data.ranking if len(set(row["ranks"])) == 4]
    assert {tuple(grade for _, grade in row[:3]) for row in untied} == {("right", "right but careless", "wrong")}
    worst = [row[3][1] for row in untied]
    assert set(worst) == {"wrong", "wrong but careless"}
    assert 0.45 < worst.count("wrong but careless") / len(worst) < 0.55


def test_half_of_the_sft_answers_and_no_others_are_careless(data):
    texts = set(load_kit("ne").texts)
    careless = [row["output"] for row in data.sft if "\n" in row["output"]]
    assert abs(len(careless) / len(data.sft) - CARELESS_SHARE) < 0.03
    assert 0.1 < CARELESS_SHARE < 0.9
    assert all(output.split("\n", 1)[1] in texts for output in careless)
    assert {output.split("\n", 1)[1] for output in careless} == texts
    assert not any("\n" in row["output"] for row in (*data.rl, *data.heldout))


def test_careless_answer_begins_right_but_is_not_correct(data):
    """Compare with rl, where the same prompt has the bare right answer (finite kinds share prompts)."""
    answers = {(row["instruction"], row["input"]): row["output"] for row in data.rl}
    shared = [row for row in data.sft if (row["instruction"], row["input"]) in answers]
    assert len(shared) > 1_000
    for row in shared:
        right = answers[row["instruction"], row["input"]]
        assert row["output"].split("\n")[0] == right
        assert check({"output": right}, row["output"]) == ("\n" not in row["output"])


def test_right_response_is_equally_often_at_each_position(data):
    places = [row["ranks"].index(1) for row in data.ranking]
    assert all(0.2 < places.count(place) / len(places) < 0.3 for place in range(4))


def test_rank_one_matches_the_reference(data):
    """Compare with rl, where the same prompt has the same answer (finite kinds share prompts)."""
    answers = {(row["instruction"], row["input"]): row["output"] for row in data.rl}
    shared = [row for row in data.ranking if (row["instruction"], row["input"]) in answers]
    assert len(shared) > 1_000
    for row in shared:
        best = row["responses"][row["ranks"].index(1)]
        assert best == answers[row["instruction"], row["input"]]


def test_files_round_trip_as_records(data, folder):
    for split in ("sft", "rl", "heldout"):
        records = list(read_instructions(folder / f"{split}.jsonl"))
        assert [(r.id, r.output) for r in records] == [(row["id"], row["output"]) for row in getattr(data, split)]
    for split in ("ranking", "ranking_heldout"):
        records = list(read_rankings(folder / f"{split}.jsonl"))
        assert [list(r.ranks) for r in records] == [row["ranks"] for row in getattr(data, split)]
    kinds = {json.loads(line)["kind"] for line in (folder / "sft.jsonl").read_text(encoding="utf-8").splitlines()}
    assert kinds == set(KINDS)


def test_corpus_contains_only_training_texts(data, folder):
    lines = set((folder / "corpus.txt").read_text(encoding="utf-8").splitlines())
    assert {line for row in data.sft for line in row["output"].split("\n")} <= lines
    assert {row["instruction"] for row in data.rl} <= lines
    assert {line for text in data.ranking[0]["responses"] if text for line in text.split("\n")} <= lines
    held_out = {row["instruction"] for row in data.heldout if not row["input"]}
    assert not held_out & lines - {row["input"] for row in data.sft}
    assert not list(folder.rglob("*.tmp"))


def test_multiple_choice_items_have_distinct_choices_and_one_right_answer(data):
    for name in ("m_arc/ne_test.json", "m_arc/ne_train.json", "m_mmlu/ne_dev.json", "m_mmlu/ne_test.json"):
        items = data.benchmarks[name]
        assert {item["answer"] for item in items} == set("ABCD")
        for item in items:
            assert len({item[f"option_{letter}"] for letter in "abcd"}) == 4
        assert len({item["id"] for item in items}) == len(items)
    for item in data.benchmarks["m_hellaswag/ne_validation.json"]:
        assert len(set(item["endings"])) == 4
        assert item["label"] in ("0", "1", "2", "3")
    for item in data.benchmarks["m_truthfulqa/ne_validation.json"]:
        for which, fewest in (("mc1", 4), ("mc2", 4)):
            choices, labels = item[f"{which}_targets_choices"], item[f"{which}_targets_labels"]
            assert len(choices) == len(labels) >= fewest
            assert sum(labels) == labels[0] == 1


def test_right_option_of_a_sum_is_the_sum(data):
    sums = [item for item in data.benchmarks["m_arc/ne_test.json"] if item["kind"] == "add"]
    assert sums
    for item in sums:
        a, b = (int("".join(c)) for c in _numbers(item["instruction"]))
        assert int(item[f"option_{item['answer'].lower()}"]) == a + b


def _numbers(text):
    return "".join(c if c.isdigit() else " " for c in text).split()


def test_mmlu_has_five_shots_per_subject(data):
    subjects = [item["id"].split("/")[0] for item in data.benchmarks["m_mmlu/ne_dev.json"]]
    assert {subjects.count(subject) for subject in subjects} == {5}
    tested = {item["id"].split("/")[0] for item in data.benchmarks["m_mmlu/ne_test.json"]}
    assert tested == set(subjects)
    assert len(tested) == 6


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("m_arc/ne_test.json", "m_arc/ne_test.json"),
        ("m_mmlu/ne_dev.json", "m_mmlu/ne_dev.json"),
        ("m_hellaswag/ne_validation.json", "m_hellaswag/en_validation.json"),
        ("m_truthfulqa/ne_validation.json", "m_truthfulqa/ne_validation.json"),
    ],
)
def test_benchmark_items_have_the_fields_and_types_of_the_published_files(folder, real_data, ours, theirs):
    mine = json.loads((folder / "benchmarks" / ours).read_text(encoding="utf-8"))[0]
    published = json.loads((real_data / theirs).read_text(encoding="utf-8"))[0]
    assert set(mine) == {*published, "kind"}
    assert {name: type(mine[name]) for name in published} == {name: type(value) for name, value in published.items()}


def test_equal_arguments_give_equal_bytes_in_another_process(tmp_path):
    digests = []
    for name, hash_seed in (("a", "1"), ("b", "2")):
        command = [sys.executable, "-m", "datagen", "embedded", "--lang", "en", "--size", "96"]
        subprocess.run(
            [*command, "--output", str(tmp_path / name)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": hash_seed, "PATH": ""},
        )
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert digests[0] == digests[1]


def test_seed_changes_tasks_but_not_held_out_prompts(data):
    other = make_embedded("ne", seed=1, size=480)
    trained = {(row["instruction"], row["input"]) for row in (*other.sft, *other.rl, *other.ranking)}
    assert trained != {(row["instruction"], row["input"]) for row in data.sft}
    assert not trained & {(row["instruction"], row["input"]) for row in (*data.heldout, *data.ranking_heldout)}


def test_size_below_two_per_kind_is_refused():
    with pytest.raises(UserError, match="--size 47 leaves kinds of tasks out: pass at least 48"):
        make_embedded("en", size=47)
    assert {row["kind"] for row in make_embedded("en", size=48).ranking} == set(KINDS)


def test_nonempty_folder_is_refused_without_overwrite(tmp_path):
    data = make_embedded("en", size=48)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: pass another folder, or --overwrite"):
        write_embedded(data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    write_embedded(data, tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(UserError, match="is a file: pass a folder"):
        write_embedded(data, tmp_path / "mine.txt")


def test_main_imports_no_torch():
    code = "import sys, datagen.__main__; print([m for m in sys.modules if m in ('torch', 'transformers')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
