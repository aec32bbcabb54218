"""launch/tokens.py: its two tables, the user's own text, and errors."""

from __future__ import annotations

import re

import pytest

from datagen.kits import kit_codes, load_kit
from engine.base.errors import UserError
from engine.base.languages import LANGUAGES
from engine.init_model import init_model
from engine.text.tokenizer import load_tokenizer
from launch.tokens import run


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Return the folder of two models, whose tokenizers were trained on Nepali and on English."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for code in ("ne", "en"):
        init_model(load_kit(code).texts, 360, folder / code, family="bloom", layers=1, hidden=16, heads=2)
    return folder


def table(capsys):
    """Return {first cell: other cells} of the first printed table, and the last line."""
    tables, last = all_tables(capsys)
    return tables[0], last


def all_tables(capsys):
    """Return {first cell: other cells} of each printed table, and the last line."""
    *parts, last = capsys.readouterr().out.strip("\n").split("\n\n")
    tables = []
    for part in parts:
        cells = [re.split(r"  +", line.strip()) for line in part.splitlines() if line.strip()]
        tables.append({first: others for first, *others in cells if not set(first) <= {"-"}})
    return tables, last


def test_one_language_has_a_row_for_each_tokenizer(tokenizers, monkeypatch, capsys):
    monkeypatch.chdir(tokenizers)
    run(["--lang", "ne", "--tokenizer", "ne", "en"])
    rows, below = table(capsys)
    assert rows["Nepali"] == [
        "vocabulary",
        "tokens per word",
        "tokens per character",
        "bytes per token",
        "bytes or unknown",
    ]
    texts = load_kit("ne").texts
    tokens = [len(load_tokenizer(name).encode(t, add_special_tokens=False)) for name in ("ne", "en") for t in texts]
    words, characters, size = (
        sum(len(t.split()) for t in texts), sum(map(len, texts)), sum(len(t.encode()) for t in texts)
    )  # fmt: skip
    for name, total in (("ne", sum(tokens[: len(texts)])), ("en", sum(tokens[len(texts) :]))):
        expected = [f"{total / words:.2f}", f"{total / characters:.2f}", f"{size / total:.2f}"]
        assert rows[name][:-1] == [f"{len(load_tokenizer(name)):,}", *expected]
    assert float(rows["ne"][1]) < 0.5 * float(rows["en"][1])
    assert below == f"  {len(texts)} texts of datagen/kits; words are split at spaces, no special tokens"


def test_all_languages_have_a_row_each(tokenizers, monkeypatch, capsys):
    monkeypatch.chdir(tokenizers)
    run(["--lang", "all", "--tokenizer", "ne", "en"])
    rows, _ = table(capsys)
    assert rows.pop("tokens per word") == ["ne", "en"]
    named = {f"{LANGUAGES[code].name} ({code})" for code in kit_codes()} - {"Chinese (zh)"}
    assert set(rows) == named | {"Chinese (zh, per character)"}
    assert len(rows) == 27
    assert float(rows["Nepali (ne)"][0]) < float(rows["Nepali (ne)"][1])
    assert float(rows["English (en)"][1]) < float(rows["English (en)"][0])


def test_chinese_is_counted_by_character_only(tokenizers, capsys):
    run(["--lang", "zh", "--tokenizer", str(tokenizers / "en")])
    rows, _ = table(capsys)
    assert rows["Chinese"] == ["vocabulary", "tokens per character", "bytes per token", "bytes or unknown"]


def test_what_a_word_costs_a_model(tokenizers, monkeypatch, capsys):
    """One layer of 2 heads of 8: keys and values of a token take 2 * 16 * 2 bytes. BLOOM has no longest sequence."""
    monkeypatch.chdir(tokenizers)
    run(["--lang", "ne", "--tokenizer", "en"])
    (first, longest, costs), _ = all_tables(capsys)
    per_word = float(first["en"][1])
    word, count = longest["en"][0].split(", ")[0].split(" ")
    assert len(load_tokenizer("en").encode(word, add_special_tokens=False)) == int(count) > per_word
    steps, cache, fitting = costs["en"]
    assert float(steps) == per_word and fitting == "no limit"
    assert float(cache) == pytest.approx(per_word * 64 / 1e3, abs=0.06)


def test_own_text_takes_the_place_of_the_kit(tokenizers, tmp_path, capsys):
    (tmp_path / "own.txt").write_text("नमस्ते संसार\n", encoding="utf-8")
    run(["--lang", "ne", "--tokenizer", str(tokenizers / "ne"), "--text", str(tmp_path / "own.txt")])
    rows, below = table(capsys)
    tokens = len(load_tokenizer(tokenizers / "ne").encode("नमस्ते संसार", add_special_tokens=False))
    assert rows[str(tokenizers / "ne")][1] == f"{tokens / 2:.2f}"
    assert below.startswith(f"  1 texts of {tmp_path / 'own.txt'};")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lang", "xx", "--tokenizer", "{ne}"], "'xx'"),
        (["--lang", "ne", "--tokenizer", "nowhere"], "tokenizer nowhere is not a directory"),
        (["--lang", "ne", "hi", "--tokenizer", "{ne}", "--text", "{empty}"], "--text is in one language, --lang has 2"),
        (["--lang", "ne", "--tokenizer", "{ne}", "--text", "{empty}"], "empty.txt holds no text: give files with"),
    ],
)
def test_bad_flags_are_one_line(tokenizers, tmp_path, flags, said):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(UserError, match=said) as caught:
        run([flag.format(ne=tokenizers / "ne", empty=tmp_path / "empty.txt") for flag in flags])
    assert "\n" not in str(caught.value)
