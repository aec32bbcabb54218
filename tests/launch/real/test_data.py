"""The data of a real run: what is measured on is never trained on."""

import json

import pytest

from engine.base.records import read_instructions, read_rankings
from launch.real import data as real
from launch.real import rank
from tests.launch import small

COUNT = 60
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return (folder of the data, counts), from made-up benchmarks with one training question that copies a test's."""
    root = tmp_path_factory.mktemp("real")

    def write(name, rows):
        (root / "sets" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sets" / name).write_text(json.dumps(rows))

    def questions(part, count=COUNT):
        options = {"option_a": "a", "option_b": "b", "option_c": "b", "option_d": "", "answer": "B"}
        return [{"id": f"{part}/{i}", "instruction": f"What is {part} {i}?", **options} for i in range(count)]

    copied = {**questions("copied", 1)[0], "instruction": f"Tell me: {LONG}!"}
    write("m_arc/ne_train.json", [*questions("arc-train"), copied, {**copied, "instruction": "What is arc-test 3?"}])
    write("m_arc/ne_validation.json", questions("arc-validation"))
    write("m_arc/ne_test.json", [*questions("arc-test"), {**copied, "instruction": LONG}])
    write("m_mmlu/ne_dev.json", questions("mmlu-dev", 5))
    write("m_mmlu/ne_val.json", questions("mmlu-val"))
    write("m_truthfulqa/ne_validation.json", [
        {"question": f"Is truthful {i}?", "mc1_targets_choices": ["a", "b"], "mc1_targets_labels": [1, 0],
         "mc2_targets_choices": ["yes", "no", "no", "maybe"], "mc2_targets_labels": [1, 0, 0, 0]}
        for i in range(COUNT)
    ])  # fmt: skip
    instructions = small.write_rows(root / "more.jsonl", [*small.INSTRUCTIONS, {"instruction": "x", "output": ""}])
    counts = real.make_data("ne", root / "data", root / "sets", instructions)
    return root / "data", counts


def instructions_of(folder, name):
    rows = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["instruction"] for row in rows]


def test_nothing_that_is_evaluated_on_is_trained_on(made):
    folder, counts = made
    evaluated = set()
    for file in (folder / "benchmarks").glob("*/*.json"):
        evaluated |= {row.get("instruction") or row["question"] for row in json.loads(file.read_text())}
    for name in ("heldout_tasks", "heldout_questions", "ranking_heldout"):
        evaluated |= {text for text in instructions_of(folder, name) if text.startswith("What is arc")}
    trained = {text for name in real.TRAINED_FILES for text in instructions_of(folder, name)}
    assert len(evaluated) == COUNT + 1 + COUNT // 3 + COUNT // 2 + COUNT
    assert not evaluated & trained
    assert counts["left out: shares 13 words with ARC test"] == 2
    assert not any(LONG in text for text in trained)


def test_the_two_reward_models_see_different_rankings(made):
    folder, _ = made
    prompts = list(read_instructions(folder / "ranking_prompts.jsonl"))
    samples = [
        {"id": p.id, "instruction": p.instruction, "input": p.input, "responses": [p.output, "x", "x ", f"y{i}"]}
        for i, p in enumerate(prompts)
    ]
    small.write_rows(folder / rank.SAMPLES, samples)
    sizes = rank.write_halves(folder)
    halves = [list(read_rankings(folder / f"ranking_{h}.jsonl")) for h in "ab"]
    assert [len(half) for half in halves] == list(sizes) and abs(sizes[0] - sizes[1]) <= 1
    ids = [{r.id for r in half} for half in halves]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == sum(sizes) == len(prompts) + COUNT // 2 + 2 * COUNT // 3


def test_samples_are_ranked_by_their_check():
    sampled = ["1", " 2", "3\n!", "2", "3", "", "4", "3\n?", "5", "6"]
    rows = [
        {"id": "a", "instruction": "i", "input": "", "responses": sampled},
        {"id": "b", "instruction": "j", "input": "", "responses": ["7", "8 ", "8"]},
        {"id": "c", "instruction": "k", "input": "", "responses": ["9", "9"]},
    ]
    first, second = rank.rank_samples(rows, {"a": "3", "b": "0", "c": "9"})
    assert (first["responses"], first["ranks"]) == (["3", "3\n!", "1", "2", "4", "5"], [1, 2, 3, 3, 3, 3])
    assert (second["responses"], second["ranks"]) == (["0", "7", "8"], [1, 3, 3])


def test_records_hold_the_right_option_and_each_wrong_one_once(made):
    folder, _ = made
    rows = {r.instruction: r for r in read_instructions(folder / "sft.jsonl")}
    assert rows["What is mmlu-dev 0?"].output == "b"
    ranked = {r.instruction: r for r in read_rankings(folder / "ranking_questions.jsonl")}
    mmlu = next(r for i, r in ranked.items() if i.startswith("What is mmlu-val"))
    truthful = next(r for i, r in ranked.items() if i.startswith("Is truthful"))
    assert (mmlu.responses, mmlu.ranks) == (("b", "a"), (1, 2))
    assert (truthful.responses, truthful.ranks) == (("yes", "no", "maybe"), (1, 2, 2))


def test_half_of_the_answers_to_tasks_go_on(made):
    folder, counts = made
    rows = list(read_instructions(folder / "sft.jsonl"))
    careless = sum("\n" in row.output for row in rows)
    assert 0.46 <= careless / real.TASKS <= 0.54
    assert counts["sft"] == len(rows) == real.TASKS + COUNT // 2 + 1 + 5 + len(small.INSTRUCTIONS) - missing(made)


def missing(made):
    """How many of the two left-out questions were in the half of ARC that SFT gets."""
    folder, counts = made
    return 2 - (
        (COUNT + 2) - (COUNT + 2) // 2 - sum(i.startswith("What is arc") for i in instructions_of(folder, "rl"))
    )


def test_without_benchmarks_there_are_tasks_alone(tmp_path):
    counts = real.make_data("vi", tmp_path / "data", None, None)
    assert counts["sft"] == real.TASKS and counts["heldout_questions"] == 0
    assert not (tmp_path / "data" / "benchmarks").exists()
