"""launch/evaluate.py: records do not depend on batch, ranks or kills; folders, locks and errors."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from engine.base.errors import UserError
from engine.cli.parse import main
from engine.models import load_model, save_model
from engine.models.quantised import quantise_trunk
from engine.text.tokenizer import load_tokenizer
from evaluation.results.output import Output
from evaluation.results.records import RecordFile
from launch import evaluate
from tests.evaluation import made_up
from tests.launch import small
from tests.launch.jobs import assert_says, everything
from tests.ranks import run_ranks


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    small.make_model(folder / "model")
    small.make_model(folder / "llama", "llama")
    made_up.everything(folder / "data")
    return folder


def argv(files, output, **changes):
    flags = {
        "lang": "en", "model": files / "model", "data-dir": files / "data", "output": output,
        "tasks": "arc,mmlu,truthfulqa", "shots": "2", **changes,
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def loglikelihoods(output):
    rows = [json.loads(line) for name, text in records(output).items() for line in text.decode().splitlines()]
    return {(row["id"], i): row["lls"] for i, row in enumerate(rows)}


def records(output):
    return {path.name: path.read_bytes() for path in output.glob("*.jsonl")}


@pytest.fixture(scope="module")
def reference(files):
    evaluate.job(argv(files, files / "reference"))
    return records(files / "reference")


def test_run_writes_records_results_and_manifest(files, reference, capsys):
    output = files / "reference"
    assert sorted(reference) == ["arc.en.jsonl", "mmlu.en.jsonl", "truthfulqa_mc1.en.jsonl", "truthfulqa_mc2.en.jsonl"]
    rows = small.read_rows(output / "mmlu.en.jsonl")
    assert [row["index"] for row in rows] == list(range(6))
    results = json.loads((output / "results.json").read_text())
    assert results["results"]["mmlu_en"]["acc,none"] == sum(row["scores"]["acc"] for row in rows) / 6
    assert results["group_subtasks"]["mmlu_en_stem"] == ["mmlu_en_anatomy"]
    assert results["work"]["positions_computed"] == results["work"]["tree_tokens"] > 0
    assert results["manifest"] == json.loads((output / "manifest.json").read_text())
    assert results["manifest"]["tasks"]["arc.en"]["shots"] == 2
    evaluate.job(argv(files, output))  # all scores are stored: nothing is scored again
    said = capsys.readouterr().out
    assert_says(
        said,
        "template  none: the protocol's own prompts",
        "5 documents are already scored, 0 are left",
        "mmlu_en_stem",
        "results.json",
    )
    assert json.loads((output / "results.json").read_text())["work"]["forwards"] == 0
    assert records(output) == reference


@pytest.mark.parametrize("batch_tokens", ["1", "8192"])
def test_records_are_batch_invariant(files, reference, tmp_path, batch_tokens):
    evaluate.job(argv(files, tmp_path / "out", **{"batch-tokens": batch_tokens}))
    assert records(tmp_path / "out") == reference


def test_records_do_not_depend_on_other_tasks(files, reference, tmp_path):
    for task in ("mmlu", "truthfulqa_mc1", "arc"):
        evaluate.job(argv(files, tmp_path / "out", tasks=task))
    found = records(tmp_path / "out")
    assert found == {name: reference[name] for name in found}
    assert len(found) == 3
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["results"])[0] == "mmlu_en"


def kill_after(patch, count):
    """Let the evaluation die before it writes its record number `count` + 1."""
    left, record_of = count, evaluate.record_of

    def die(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return record_of(*args)

    patch.setattr(evaluate, "record_of", die)


def test_records_equal_on_two_ranks_after_a_kill_on_one(files, reference, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            evaluate.job(argv(files, tmp_path / "out"))
    there = sum(len(RecordFile(tmp_path / "out", *key).done()) for key in (("arc", "en"), ("mmlu", "en")))
    assert there == 7
    run_ranks(evaluate.job, 2, argv(files, tmp_path / "out"))
    assert records(tmp_path / "out") == reference
    assert list((tmp_path / "out" / "parts").iterdir()) == []


def test_a_quantised_model_is_scored_as_its_values_and_is_another_model(files, reference, tmp_path, capsys):
    model = load_model(files / "model")
    quantise_trunk(model, model.num_layers, "int4", "int8")
    save_model(model, tmp_path / "values", load_tokenizer(files / "model"))
    evaluate.job(argv(files, tmp_path / "codes", **{"trunk-dtype": "int4", "embedding-dtype": "int8"}))
    assert "layers in int4, embedding and head in int8\n" in capsys.readouterr().out
    evaluate.job(argv(files, tmp_path / "of_values", model=tmp_path / "values"))
    codes, values = (loglikelihoods(tmp_path / name) for name in ("codes", "of_values"))
    assert codes.keys() == values.keys() and codes
    for key, numbers in codes.items():
        assert numbers == pytest.approx(values[key], abs=1e-4)
    assert any(abs(x - y) > 1e-3 for k, xs in loglikelihoods(files / "reference").items() for x, y in zip(xs, codes[k]))
    with pytest.raises(UserError, match="weights_sha256"):
        evaluate.job(argv(files, files / "reference", **{"trunk-dtype": "int4"}))


def test_seeds_give_the_means_of_single_runs(files, tmp_path, capsys):
    singles = []
    for seed in (4, 5):
        evaluate.job(argv(files, tmp_path / f"one{seed}", seed=seed, tasks="arc,mmlu"))
        singles.append(records(tmp_path / f"one{seed}"))
    assert singles[0]["arc.en.jsonl"] != singles[1]["arc.en.jsonl"]
    capsys.readouterr()
    evaluate.job(argv(files, tmp_path / "out", seeds="4,5", tasks="arc,mmlu"))
    said = capsys.readouterr().out
    assert_says(said, "arc.en: to see a difference of 1 % here you need about 39,200 documents", "std of draws",
                "mmlu.en: all seeds give the same shots, scored once")  # fmt: skip
    assert records(tmp_path / "out" / "seed4") == singles[0]
    assert records(tmp_path / "out" / "seed5") == {"arc.en.jsonl": singles[1]["arc.en.jsonl"]}
    results, one, two = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("out", "one4", "one5"))
    for metric in ("acc_norm", "acc"):
        values = [single["results"]["arc_en"][f"{metric},none"] for single in (one, two)]
        assert results["draws"]["arc_en"][metric]["values"] == values
        assert results["results"]["arc_en"][f"{metric},none"] == pytest.approx(sum(values) / 2)
    assert results["draws"]["mmlu_en"]["acc"]["values"] == [one["results"]["mmlu_en"]["acc,none"]]
    about = results["manifest"]["tasks"]["arc.en"]
    assert about["seeds"] == [4, 5]
    assert about["prompts_sha256"] == [s["manifest"]["tasks"]["arc.en"]["prompts_sha256"] for s in (one, two)]
    # A third seed scores only what is new, and the earlier seeds' records stay.
    evaluate.job(argv(files, tmp_path / "out", seeds="4,5,6", tasks="arc,mmlu"))
    assert_says(capsys.readouterr().out, "arc.en: 5 documents are already scored, 0 are left")
    assert records(tmp_path / "out" / "seed4") == singles[0]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["draws"]["arc_en"]["acc"]["seeds"] == [4, 5, 6]
    with pytest.raises(UserError, match="holds results of arc.en with other settings .*shots"):
        evaluate.job(argv(files, tmp_path / "out", seeds="7,8", shots="1", tasks="arc"))
    with pytest.raises(UserError, match="holds results of arc.en with other settings"):
        evaluate.job(argv(files, tmp_path / "out", seed="4", tasks="arc"))


def test_seeds_resume_on_two_ranks_after_a_kill(files, tmp_path, monkeypatch):
    flags = {"seeds": "0,1,2", "tasks": "arc,truthfulqa"}
    evaluate.job(argv(files, tmp_path / "whole", **flags))
    with monkeypatch.context() as patch:
        kill_after(patch, 20)  # in the second seed: one has 5 + 6 + 6 documents
        with pytest.raises(Killed):
            evaluate.job(argv(files, tmp_path / "out", **flags))
    assert not list((tmp_path / "out").glob("*.jsonl"))
    run_ranks(evaluate.job, 2, argv(files, tmp_path / "out", **flags))
    for folder in ("", "seed0", "seed1", "seed2"):
        assert records(tmp_path / "out" / folder) == records(tmp_path / "whole" / folder)
    whole, out = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "out"))
    assert (out["draws"], out["results"]) == (whole["draws"], whole["results"])
    evaluate.job(argv(files, tmp_path / "out", overwrite="true", **{**flags, "seeds": "7,8"}))
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name.startswith("seed")) == ["seed7", "seed8"]


def test_seeds_that_draw_other_documents_are_refused(files, tmp_path):
    with pytest.raises(UserError, match="seed 0 and seed 1 give other documents of arc, as protocol okapi draws them"):
        evaluate.job(argv(files, tmp_path / "out", seeds="0,1", tasks="arc", protocol="okapi", limit="2"))


@pytest.mark.parametrize(("changes", "words"), [
    ({"lang": "nepal"}, ["unknown language 'nepal'", "did you mean 'ne'?"]),
    ({"lang": "en,vi"}, ["m_arc has en", "choose another --lang"]),
    ({"tasks": "arcc"}, ["unknown task 'arcc'", "did you mean 'arc'?"]),
    ({"protocol": "strickt"}, ["--protocol 'strickt'", "did you mean 'strict'?"]),
    ({"data-dir": "absent"}, ["--data-dir absent is no folder"]),
    ({"model": "no_tokenizer"}, ["no_tokenizer holds no tokenizer", "copy the model's own into it"]),
    ({"batch-tokens": "0"}, ["--batch-tokens is 0: give 1 or more"]),
    ({"cache-tokens": "9"}, ["--cache-tokens is 9, a prompt with its choice has", "raise it to"]),
    ({"limit": "0"}, ["--limit is 0: give 1 or more"]),
    ({"max-length": "20"}, ["tokens more than the 20 that fit", "raise --max-length"]),
    ({"output": "model"}, ["--output model holds other files"]),
    ({"model": "llama", "output": "reference"}, ["reference holds results of another model", "weights_sha256"]),
    ({"shots": "1", "output": "reference"}, ["holds results of arc.en with other settings", "shots"]),
    ({"limit": "2", "output": "reference"}, ["holds results of arc.en with other settings", "limit"]),
    ({"seeds": "0"}, ["--seeds is 0: give two or more different whole numbers, such as 0,1,2"]),
    ({"seeds": "1,1"}, ["--seeds is 1,1: give two or more"]),
    ({"seeds": "1,01,2"}, ["--seeds is 1,01,2: give two or more"]),
    ({"seeds": "1,x"}, ["--seeds is 1,x: give two or more"]),
    ({"seeds": "0,1", "seed": "3"}, ["--seed 3 and --seeds 0,1 are both given"]),
    ({"seeds": "0,1", "output": "reference"}, ["holds results of arc.en with other settings (seed differ)"]),
    ({"protocol": "okapi", "shared-shots": "true"}, ["--shared-shots is no part of protocol okapi"]),
])  # fmt: skip
def test_errors_are_one_line_and_change_nothing(files, reference, monkeypatch, capfd, changes, words):
    monkeypatch.chdir(files)
    if not (files / "no_tokenizer").exists():
        shutil.copytree(files / "model", files / "no_tokenizer")
        (files / "no_tokenizer" / "tokenizer.json").unlink()
    before = everything(files)
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["launch/evaluate.py", *argv(files, **{"output": "new", **changes})])
    with pytest.raises(SystemExit) as stopped:
        main(evaluate.job)
    said = capfd.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert_says(said, *words)
    assert everything(files) == before


def test_concurrent_runs_in_one_folder(files, tmp_path, monkeypatch):
    output, other = tmp_path / "out", {}

    def meanwhile(run, group):
        """Start a second run in the folder while the first one scores."""
        monkeypatch.setattr(evaluate, "score", score)
        for more in ((), ("--overwrite",)):
            before = everything(output)
            with pytest.raises(UserError, match="out is being written by another evaluation: wait for it, or give"):
                evaluate.job([*argv(files, output, tasks="arc"), *more])
            assert everything(output) == before
        other["refused"] = True
        score(run, group)

    score = evaluate.score
    monkeypatch.setattr(evaluate, "score", meanwhile)
    evaluate.job(argv(files, output, tasks="arc"))
    assert other == {"refused": True}
    assert sorted(path.name for path in output.iterdir()) == ["arc.en.jsonl", "manifest.json", "parts", "results.json"]
    evaluate.job(argv(files, output, tasks="arc,mmlu"))  # the first run has released its lock


def test_folder_started_by_another_run_after_the_check(files, reference, tmp_path, monkeypatch):
    output, check = tmp_path / "out", Output.check

    def began(self, manifest, overwrite):
        check(self, manifest, overwrite)
        if not output.exists():
            shutil.copytree(files / "reference", output)

    monkeypatch.setattr(Output, "check", began)
    before = (files / "reference" / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="holds results of arc.en with other settings"):
        evaluate.job(argv(files, output, tasks="arc", shots="1"))
    assert (output / "manifest.json").read_bytes() == before
    assert not (output / "lock").exists()


def test_stale_lock_is_ignored(files, reference, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lock").touch()
    evaluate.job(argv(files, tmp_path / "out"))
    assert records(tmp_path / "out") == reference


def test_skipped_records_are_printed(files, tmp_path, capsys):
    shutil.copytree(files / "data", tmp_path / "data")
    path = tmp_path / "data" / "m_arc" / "en_test.json"
    rows = json.loads(path.read_text())
    rows[0]["instruction"] *= 500
    path.write_text(json.dumps(rows))
    changes = {"tasks": "arc", "data-dir": tmp_path / "data", "bad-records": "skip"}
    evaluate.job(argv(files, tmp_path / "out", **changes))
    assert_says(capsys.readouterr().out, "arc.en: 4 documents, 1 bad records skipped")
