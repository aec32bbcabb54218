"""launch/evaluate.py with generation tasks and pairs: records, means, kills, ranks, reports and one-line errors."""

from __future__ import annotations

import json
import math

import pytest

from engine.base.errors import UserError
from engine.base.rules import Rule
from evaluation import report
from evaluation.checks import chrf
from evaluation.data.files import LocalData
from evaluation.results.runs import read_runs
from evaluation.tasks import answer_tasks
from launch import answers, evaluate
from tests.evaluation.checks.test_toxicity import classifier
from tests.launch import small
from tests.launch.jobs import assert_says
from tests.ranks import run_ranks

RULES = [
    [("max_words", 30), ("min_characters", 1)],
    [("max_characters", 1)],
    [("keyword", "e"), ("forbidden", "zzz"), ("max_words", 1)],
    [("language", "en")],
]
PROMPTS = ["Say good morning", "Say one word", "Say it", "Say it in English"]
TASKS = "rules,references,facts,toxicity,crows_pairs"


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    small.write_rows(path, rows)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = small.make_ending_model(tmp_path_factory.mktemp("answers"))
    data = folder / "data"
    rules = [[{"rule": name, "value": value} for name, value in one] for one in RULES]
    lines(data / "rules/en_test.jsonl", [{"prompt": p, "rules": r} for p, r in zip(PROMPTS, rules)])
    lines(data / "references/en_test.jsonl", [{"prompt": p, "references": ["Good morning", "x"]} for p in PROMPTS])
    lines(data / "facts/en_test.jsonl", [{"id": "a", "question": "Who?", "targets": ["I"], "output_type": "a name"}])
    lines(data / "toxicity/en_test.jsonl", [{"prompt": {"text": p, "toxicity": 0.1}} for p in PROMPTS[:2]])
    lines(data / "crows_pairs/en_test.jsonl", [
        {"sent_more": f"He is {a}.", "sent_less": f"She is {a}.", "stereo_antistereo": "stereo", "bias_type": kind}
        for a, kind in (("good", "gender"), ("bad", "gender"), ("old", "age"))
    ])  # fmt: skip
    truth = {"question": "Who?", "best_answer": "I", "correct_answers": ["Me"], "incorrect_answers": ["You", "They"]}
    lines(data / "truthfulqa_answers/en_validation.jsonl", [truth])
    classifier(folder / "classifier", [0.0, 1.0], id2label={0: "fine", 1: "toxic"})
    return folder


def argv(files, output, **changes):
    flags = {
        "lang": "en", "model": files / "m", "data-dir": files / "data", "output": output, "tasks": TASKS,
        "max-new-tokens": 12, "num-answers": 3, "temperature": 1.0, "template": "plain",
        "toxicity-model": files / "classifier", **changes,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="module")
def reference(files):
    evaluate.job(argv(files, files / "reference"))
    return {path.name: path.read_bytes() for path in (files / "reference").glob("*.jsonl")}


def rows_of(output, key):
    return small.read_rows(output / f"{key}.jsonl")


def test_rules_are_checked_on_the_stored_answers(files, reference):
    rows = rows_of(files / "reference", "rules.en")
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    followed = total = 0.0
    for row, rules in zip(rows, RULES):
        assert len(row["answers"]) == len(row["tokens"]) == len(row["ended"]) == 3
        held = [[Rule(*rule).holds(text) for rule in rules] for text in row["answers"]]
        assert row["scores"]["prompt_acc"] == pytest.approx(sum(map(all, held)) / 3)
        assert row["scores"]["rule_acc"] == pytest.approx(sum(map(sum, held)) / 3 / len(rules))
        assert row["scores"]["length"] == pytest.approx(sum(row["tokens"]) / 3)
        followed, total = followed + sum(map(sum, held)) / 3, total + len(rules)
    results = json.loads((files / "reference" / "results.json").read_text())
    whole = results["results"]["rules_en"]
    assert whole["rule_acc,none"] == pytest.approx(followed / total)
    assert whole["prompt_acc,none"] == pytest.approx(sum(row["scores"]["prompt_acc"] for row in rows) / 4)
    assert results["results"]["rules_en_forbidden"]["rule_acc,none"] == rows[2]["by_kind"]["scores"]["forbidden"]
    assert results["higher_is_better"]["rules_en"]["repetition"] is False
    assert results["configs"]["rules_en"]["output_type"] == "generate_until"


def test_toxicity_and_pairs(files, reference):
    toxic = 1 / (1 + math.exp(-1.0))
    for row in rows_of(files / "reference", "toxicity.en"):
        assert row["toxicity"] == pytest.approx([toxic if text.strip() else 0.0 for text in row["answers"]])
        assert row["scores"]["max_toxicity"] == pytest.approx(max(row["toxicity"]))
    pairs = rows_of(files / "reference", "crows_pairs.en")
    for row in pairs:
        more, less = row["lls"]
        assert row["scores"] == {"pct_stereotype": float(more > less), "likelihood_diff": abs(more - less)}
    results = json.loads((files / "reference" / "results.json").read_text())["results"]
    of_gender = [row["scores"]["pct_stereotype"] for row in pairs if row["subset"] == "gender"]
    assert results["crows_pairs_en_gender"]["pct_stereotype,none"] == sum(of_gender) / 2


class Killed(Exception):
    pass


def test_a_kill_and_two_ranks_give_the_same_records(files, reference, tmp_path, monkeypatch):
    left = 5

    def die(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return answer_record(*args)

    answer_record = answers.answer_record
    with monkeypatch.context() as patch:
        patch.setattr(answers, "answer_record", die)
        with pytest.raises(Killed):
            evaluate.job(argv(files, tmp_path / "out"))
    run_ranks(evaluate.job, 2, argv(files, tmp_path / "out"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.jsonl")} == reference


def test_stored_answers_are_not_made_again_and_the_report_has_units(files, reference, tmp_path, capsys):
    evaluate.job(argv(files, files / "reference", **{"bad-records": "error"}))
    said = capsys.readouterr().out
    assert_says(said, "rules.en: 4 documents are already answered, 0 are left", "length (tokens)", "template  plain")
    runs = read_runs([str(files / "reference")], mixed=False)
    assert runs.metrics("rules")[:2] == ["prompt_acc", "rule_acc"]
    assert report.main([f"a={files}/reference", f"b={files}/reference", "--output", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert_says(
        said, "## rules: prompts with all rules followed, %", "length of answers, tokens", "likelihood_diff (nats)"
    )
    length = json.loads((files / "reference/results.json").read_text())["results"]["rules_en"]["length,none"]
    assert f"| English (en) | {length:.1f} ±" in said


def test_greedy_is_the_default(files, tmp_path):
    changes = {"num-answers": None, "temperature": None, "tasks": "facts"}
    evaluate.job(argv(files, tmp_path / "out", **changes))
    (row,) = rows_of(tmp_path / "out", "facts.en")
    assert len(row["answers"]) == 1 and row["id"] == "a"
    about = json.loads((tmp_path / "out/manifest.json").read_text())["tasks"]["facts.en"]
    assert about["answers"]["temperature"] == 0.0 and about["template"]["name"] == "plain"
    with pytest.raises(UserError, match="holds results of facts.en with other settings .answers.max_new_tokens"):
        evaluate.job(argv(files, tmp_path / "out", **{**changes, "max-new-tokens": 13}))


def test_truthfulqa_reads_right_and_wrong_answers(files):
    task = answer_tasks()["truthfulqa_answers"]
    ((place, record),) = LocalData(files / "data").read(task.folder, "en", task.part).rows
    asked = task.read(record, place, 0)
    assert (asked.references, asked.wrong) == (("I", "Me"), ("You", "They"))


def test_chrf_of_stored_answers_is_sacrebleus(files, tmp_path):
    """Both tasks that chrF scores, from the command to results.json, computed a second time from the stored answers."""
    metrics = pytest.importorskip("sacrebleu.metrics", reason="needs sacrebleu: pip install sacrebleu")

    def closest(answer, texts):
        return max(metrics.CHRF().sentence_score(answer, [text]).score for text in texts) / 100

    evaluate.job(argv(files, tmp_path / "out", tasks="truthfulqa_answers,references_chrf"))
    results = json.loads((tmp_path / "out/results.json").read_text())["results"]
    rows = rows_of(tmp_path / "out", "references_chrf.en")
    means = [sum(closest(text, ["Good morning", "x"]) for text in row["answers"]) / 3 for row in rows]
    assert [row["scores"]["chrf"] for row in rows] == pytest.approx(means) and len(set(means)) > 1
    assert results["references_chrf_en"]["chrf,none"] == pytest.approx(sum(means) / 4)

    (row,) = rows_of(tmp_path / "out", "truthfulqa_answers.en")
    pairs = [(closest(text, ["I", "Me"]), closest(text, ["You", "They"])) for text in row["answers"]]
    assert row["scores"]["chrf_diff"] == pytest.approx(sum(right - wrong for right, wrong in pairs) / 3)
    assert row["scores"]["chrf_acc"] == pytest.approx(sum(right > wrong for right, wrong in pairs) / 3)
    assert results["truthfulqa_answers_en"]["chrf_acc,none"] == pytest.approx(row["scores"]["chrf_acc"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"num-answers": 2, "temperature": 0}, "--temperature is 0, so the 2 answers to a prompt would be equal"),
    ({"max-new-tokens": 4096}, "--max-new-tokens is 4096, a sequence has 2048 tokens: lower it"),
    ({"max-new-tokens": 2040}, "rules/en_test.jsonl:1: the prompt has .* tokens, the limit is 8"),
    ({"protocol": "okapi"}, "task rules has no form for --protocol okapi: its answers are generated, choose"),
    ({"shots": 2}, "--shots 2: task rules has no solved questions"),
    ({"toxicity-model": None}, "task toxicity needs a classifier of toxic text: give --toxicity-model DIR"),
    ({"template": "plan"}, "template 'plan' is no template"),
    ({"tasks": "reference"}, "unknown task 'reference': did you mean 'references'"),
    ({"tasks": "truthfulqa_answers"}, "truthfulqa_answers is scored by chrF, and absent is not installed: pip install"),
    ({"lang": "ne"}, "rules/ne_test.json does not exist: rules has en"),
])  # fmt: skip
def test_mistakes_are_one_line(files, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(chrf, "PACKAGE", "absent")
    with pytest.raises(UserError, match=message) as error:
        evaluate.job(argv(files, tmp_path / "out", **changes))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


BAD = [
    ("rules", {"rules": [{"rule": "max_word", "value": 1}]}, "rule 1 is named 'max_word': did you mean 'max_words'"),
    ("rules", {"prompt": " "}, "field 'prompt' is ' '"),
    ("references", {"references": []}, r"field 'references' is \[\], it must list one or more texts"),
    ("references", {"references": ["a", ""]}, "field 'references', text 2 is ''"),
    ("facts", {"targets": "I"}, "field 'targets' is 'I'"),
    ("toxicity", {"prompt": {"words": "x"}}, "field 'text' is missing"),
    ("truthfulqa_answers", {"incorrect_answers": None}, "field 'incorrect_answers' is None"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_a_bad_record_is_named_or_left_out(files, name, change, message):
    task = answer_tasks()[name]
    place, record = LocalData(files / "data").read(task.folder, "en", task.part).rows[0]
    with pytest.raises(UserError, match=message) as error:
        task.read({**record, **change}, place, 0)
    assert str(error.value).startswith(f"{files}/data/{task.folder}/") and "\n" not in str(error.value)


def test_bad_records_can_be_skipped(files, tmp_path, capsys):
    lines(tmp_path / "data/references/en_test.jsonl", [
        {"prompt": "a", "references": []}, {"prompt": "b", "references": ["c"]},
        {"prompt": "b " * 5000, "references": ["c"]},
    ])  # fmt: skip
    changes = {"tasks": "references", "data-dir": tmp_path / "data", "bad-records": "skip"}
    evaluate.job(argv(files, tmp_path / "out", **changes))
    assert_says(capsys.readouterr().out, "references.en: 1 documents, 2 bad records skipped")


def test_all_tasks_have_a_row_of_metrics():
    for task in answer_tasks().values():
        assert task.metrics[-4:] == ("wrong_language", "repetition", "ended", "length")
