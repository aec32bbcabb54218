"""launch/pretrain.py: what it writes, a stopped run that resumes, and a line for each mistake."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from engine.models import load_model
from tests.launch import small
from tests.launch.jobs import assert_says, run
from tests.launch.test_resume import stop_at
from tests.reliability.remains import assert_same

NEPALI = [f"नेपाली शुभ प्रभात {'good morning ' * n}" for n in range(1, 12)]
ENGLISH = [f"how are you today {'x' * n}, good morning" for n in range(1, 9)]
CHANGES = {"data": "text.txt:3", "max-steps": "4", "lr": "0.003"}
MORE = ("--data", "en.jsonl.gz", "--eval-data", "held_ne.txt", "held_en.txt", "--eval-every", "2")


@pytest.fixture(autouse=True)
def files(here):
    (here / "text.txt").write_text("\n\n".join(NEPALI))
    rows = "".join(json.dumps({"text": text}) + "\n" for text in ENGLISH)
    (here / "en.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (here / "held_ne.txt").write_text("शुभ प्रभात, good morning")
    (here / "held_en.txt").write_text("good morning, how are you?")
    return here


def test_run_writes_model_card_and_measures_each_language(here, monkeypatch, capfd):
    run(monkeypatch, "pretrain", {**CHANGES, "keep-best": "bits_per_byte"}, *MORE)
    said = capfd.readouterr().out
    assert_says(
        said, "text 1", "text.txt: 11 documents", "75.0% of the rows", "en.jsonl.gz: 8 documents", "25.0% of the rows",
        "held_ne.txt (1 documents, 42 bytes), as held_ne", "held_en: perplexity, before -> after", "drawn from text",
    )  # fmt: skip
    result = json.loads((here / "out" / "result.json").read_text())
    for name in ("held_ne", "held_en"):
        assert result[f"perplexity/{name}"] < result[f"perplexity/{name}_before"]
        assert result[f"bits_per_byte/{name}"] < result[f"bits_per_byte/{name}_before"]
    assert result["kept"]["measure"] == "bits_per_byte" and result["kept"]["step"] == 4
    assert set(result["drawn"]) == {"text", "en"} and result["drawn"]["en"]["tokens"] > 0
    rows = small.read_rows(here / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/bits_per_byte/held_en" in row] == [0, 2, 4]
    last = [row for row in rows if "drawn/text/tokens" in row][-1]
    assert last["drawn/text/tokens"] == result["drawn"]["text"]["tokens"]
    card = (here / "out" / "model" / "README.md").read_text()
    assert_says(
        card, "# Nepali: continued pretraining", "text: `text.txt:3, en.jsonl.gz:1`", "perplexity/held ne before"
    )
    assert "instructions" not in card
    model, base = load_model(here / "out" / "model"), load_model(here / "m")
    assert not torch.equal(model.embedding.weight, base.embedding.weight)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (here / "out" / "model" / name).is_file()
    assert "chat_template" not in (here / "out" / "model" / "tokenizer_config.json").read_text()


def test_stopped_run_resumes(here, refused, monkeypatch, capfd):
    changes = {**CHANGES, "save-every": "100", "embedding-lr": "0.001", "keep-best": "bits_per_byte_mean"}
    run(monkeypatch, "pretrain", {**changes, "output": "whole"}, *MORE)
    stop_at(monkeypatch, 3, lambda: run(monkeypatch, "pretrain", changes, *MORE))
    assert "SIGTERM: saved out/checkpoints/step-000003, --resume continues there" in capfd.readouterr().out
    assert_says(refused("pretrain", {**changes, "seed": "4"}, *MORE, "--resume"), "out was started with other settings")
    run(monkeypatch, "pretrain", changes, *MORE, "--resume")
    assert "continuing after optimizer step 3," in capfd.readouterr().out
    assert_same(here / "out", here / "whole")
    run(monkeypatch, "pretrain", changes, *MORE)
    assert "complete" in capfd.readouterr().out


def test_changed_text_is_another_run(here, refused, monkeypatch, capfd):
    changes = {"max-steps": "2", "save-every": "100"}
    stop_at(monkeypatch, 1, lambda: run(monkeypatch, "pretrain", changes))
    (here / "text.txt").write_text("\n\n".join(NEPALI[::-1]))
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "pretrain", changes, "--resume")
    assert stopped.value.code == 2
    assert_says(capfd.readouterr().err, "error: ", "tokens", "--override")


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"\n \n", "text.txt", ("text.txt holds no text",)),
        (b"", "text.jsonl", ("text.jsonl holds no records",)),
        (b"good\n\nmorn\xffing", "text.txt", ("text.txt: byte 10 is not UTF-8", "save it as UTF-8")),
        (b'{"text": "x"}\n{"text": "\xff"}\n', "text.jsonl", ("text.jsonl:2: byte 0xff is not UTF-8",)),
        (b'{"text": "x"}\n{"body": "x"}\n', "text.jsonl", ("text.jsonl:2: field 'text' is missing (fields: body)",)),
        (b"x", "text.md", ("text.md: text comes in .txt, .jsonl",)),
        (b"x", "text.txt.gz", ("text.txt.gz: the gzip file is damaged",)),
    ],
)
@pytest.mark.parametrize("flag", ["data", "eval-data"])
def test_fault_of_a_file_is_a_line(here, monkeypatch, capfd, flag, content, name, words):
    (here / "wrong").mkdir()
    (here / "wrong" / name).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "pretrain", {flag: f"wrong/{name}"})
    said = capfd.readouterr()
    assert stopped.value.code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert_says(said.err, *words)
    assert not (here / "out").exists() and not list(here.glob("runs/ne/tokens/*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": None}, ("--data is not given",)),
        ({"data": "absent.txt"}, ("cannot read absent.txt: No such file",)),
        ({"model": "short", "max-length": "64"}, ("--max-length is 64, short serves 32 tokens", "lower it")),
        ({"max-length": "2"}, ("--max-length is 2: give 3 or more",)),
        ({"template": "plain"}, ("--template is given: it is for prompts",)),
        ({"keep-best": "bits_per_byte", "eval-every": "1"}, ("no data is held out: give --eval-data",)),
        ({"keep-best": "loss", "eval-every": "1"}, ("this stage measures bits_per_byte, bits_per_byte_mean",)),
        ({"top-layers": "3"}, ("--top-layers is 3, the model has 2 layers",)),
        ({"bottom-layers": "1"}, ("--bottom-layers is 1 and --top-layers all trains them anyway",)),
        ({"top-layers": "1", "bottom-layers": "1"}, ("are all of the model's 2 layers",)),
        ({"top-layers": "1", "embedding-lr": "1e-3"}, ("--top-layers 1 keeps the embeddings: give --bottom-layers",)),
        ({"decay-steps": "2", "schedule": "cosine"}, ("--decay-steps is 2 and --schedule cosine",)),
        ({"data": "text.txt:0"}, ("the weight is 0",)),
        ({"token-cache": "out/tokens"}, ("tokenised text goes to out/tokens, in --output out",)),
    ],
)  # fmt: skip
def test_wrong_flag_is_a_line(refused, changes, words):
    assert_says(refused("pretrain", changes), *words)
