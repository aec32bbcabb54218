"""The ROUGE-L filter: the same decisions as rouge_score, nearest texts, and the command."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq
from rouge_score.rouge_scorer import RougeScorer, _score_lcs
from rouge_score.tokenize import tokenize

from datagen.__main__ import main
from datagen.kits import kit_codes, load_kit
from datagen.rouge_filter import Rejection, choose_tokenizer, find_rejections
from datagen.text import near_duplicates as module
from datagen.text.words import rouge_words, unicode_words
from engine.base.records import read_instructions, read_records, write_jsonl

_SCORER = RougeScorer(["rougeL"], use_stemmer=False)


def _brute_force(pool, candidates):
    """Alpaca's loop, with rouge_score itself and each text tokenized once."""
    kept, rejections = [(i, tokenize(text, None)) for i, text in enumerate(pool)], []
    for i, candidate in enumerate(candidates):
        tokens = tokenize(candidate, None)
        scores = [(_score_lcs(text, tokens).fmeasure, -at) for at, text in kept]
        score, at = max(scores, default=(0.0, 0))
        if score > 0.7:
            rejections.append(Rejection(i, -at, score))
        else:
            kept.append((len(pool) + i, tokens))
    return rejections


def _texts(words, max_words):
    return st.lists(st.sampled_from(words), max_size=max_words).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(_texts(["a", "b", "c", "d"], 8), max_size=8), st.lists(_texts(["a", "b", "c", "d"], 8), max_size=14))
def test_rejections_match_rouge_score(pool, candidates):
    assert list(find_rejections(pool, candidates)) == _brute_force(pool, candidates)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_long_texts_match_rouge_score(data):
    words = [f"w{i}" for i in range(40)]
    base = data.draw(st.lists(st.sampled_from(words), min_size=50, max_size=90))
    texts = []
    for _ in range(5):
        keep = random.Random(data.draw(st.integers(0, 2**32)))
        texts.append(" ".join(w if keep.random() < 0.75 else keep.choice(words) for w in base))
    assert list(find_rejections(texts[:2], texts[2:])) == _brute_force(texts[:2], texts[2:])


@settings(max_examples=40, deadline=None)
@given(st.lists(_texts(["a", "b", "c"], 6), max_size=20), st.integers(1, 4), st.integers(1, 30))
def test_block_sizes_do_not_change_the_result(candidates, queries_a_block, pairs_a_block):
    whole = list(find_rejections([], candidates))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERIES_PER_BLOCK", queries_a_block)
        patch.setattr(module, "_PAIRS_PER_BLOCK", pairs_a_block)
        assert list(find_rejections([], candidates)) == whole


def _pair_with_lcs(lengths, lcs):
    shared = [f"s{i}" for i in range(lcs)]
    return [" ".join(shared + [f"{side}{i}" for i in range(n - lcs)]) for side, n in zip("xy", lengths, strict=True)]


@pytest.mark.parametrize(
    ("lengths", "rejected"), [((8, 12), True), ((12, 8), True), ((10, 10), False), ((9, 11), None), ((7, 13), None)]
)
def test_rounding_at_the_threshold_matches_rouge_score(lengths, rejected):
    """All of these are exactly 7/10; in float64 some are larger."""
    first, second = _pair_with_lcs(lengths, 7)
    by_rouge = _SCORER.score(first, second)["rougeL"].fmeasure > 0.7
    assert rejected in (None, by_rouge)
    assert bool(list(find_rejections([first], [second]))) == by_rouge


def test_threshold_for_all_lengths_up_to_60_words():
    """For each pair of lengths: the smallest LCS that reaches 7/10, and one word less."""
    wrong = []
    for m in range(1, 61):
        for n in range(m, min(60, 13 * m // 7) + 1):
            for lcs in {-(-7 * (m + n) // 20), -(-7 * (m + n) // 20) - 1} - {0, -1}:
                if lcs > m:
                    continue
                precision, recall = lcs / m, lcs / n
                f = 2 * precision * recall / (precision + recall)
                first, second = _pair_with_lcs((m, n), lcs)
                if bool(list(find_rejections([first], [second]))) != (f > 0.7):
                    wrong.append((m, n, lcs, f))
        if m > 20 and wrong:
            break
    assert wrong == []


def test_rejected_candidate_rejects_no_other():
    # b is near a and c is near b, but c is not near a.
    a, b, c = "1 2 3 4 5 6 7 8 9 10", "1 2 3 4 5 6 7 8 x y", "1 2 3 4 5 6 z z x y"
    assert [r.index for r in find_rejections([], [b, c])] == [1]
    assert [r.index for r in find_rejections([], [a, b, c])] == [1]


def test_texts_without_words_are_kept():
    assert list(find_rejections(["", "तपाईं"], ["", "तपाईं", "??"])) == []
    assert [r.index for r in find_rejections(["तपाईं"], ["", "तपाईं"], unicode_words)] == [1]


def test_empty_inputs():
    assert list(find_rejections([], [])) == list(find_rejections(["a b c"], [])) == []


def _mutations(texts, count, seed):
    """Yield changed texts with a score of about 0.7 against their original."""
    draw = random.Random(seed)
    words = sorted({word for text in texts for word in text.split()})
    for _ in range(count):
        original = draw.randrange(len(texts))
        changed = texts[original].split()
        for _ in range(max(1, round(len(changed) * draw.uniform(0.25, 0.7)))):
            at = draw.randrange(len(changed)) if changed else 0
            kind = draw.randrange(4)
            if kind == 0 and changed:
                del changed[at]
            elif kind == 1:
                changed.insert(at, draw.choice(words))
            elif kind == 2 and changed:
                changed[at] = draw.choice(words)
            elif changed:
                changed.insert(draw.randrange(len(changed)), changed.pop(at))
        yield original, " ".join(changed)


def test_mutations_near_the_threshold_match_rouge_score(real_data):
    """3,000 mutations, each compared only with its original."""
    texts = [record.instruction for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)]
    mutations = list(_mutations(texts, 3000, seed=1))
    expected = {
        i: score
        for i, (original, text) in enumerate(mutations)
        if (score := _SCORER.score(texts[original], text)["rougeL"].fmeasure) > 0.7
    }
    assert 600 < len(expected) < 2400
    alone = [list(find_rejections([texts[original]], [text])) for original, text in mutations]
    assert {i: found[0].score for i, found in enumerate(alone) if found} == expected


def test_real_instructions_match_brute_force(real_data):
    """2,000 instructions and 300 mutations, compared with brute force over pairs that share 30 % of their words."""
    texts = [record.instruction for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)]
    texts = texts[:2000]
    mutations = [text for _, text in _mutations(texts, 300, seed=2)]
    words = [set(rouge_words(text)) for text in texts + mutations]
    expected = []
    for i, text in enumerate(mutations):
        mine = words[len(texts) + i]
        near = [j for j in range(len(texts) + i) if len(words[j] & mine) * 10 >= 3 * len(mine)]
        near = [j for j in near if j - len(texts) not in {r.index for r in expected}]
        scores = [(_SCORER.score((texts + mutations)[j], text)["rougeL"].fmeasure, -j) for j in near]
        score, at = max(scores, default=(0.0, 0))
        if score > 0.7:
            expected.append(Rejection(i, -at, score))
    assert list(find_rejections(texts, mutations)) == expected
    assert list(find_rejections([], texts)) == []


@pytest.mark.slow
def test_alpaca_replay_rejects_none(real_data):
    """Alpaca kept all of its 52,002 instructions under this rule, compared with earlier ones and the human seeds."""
    seeds = [fields["instruction"] for _, fields in read_records(real_data / "seed_tasks.jsonl")]
    texts = [record.instruction for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)]
    assert list(find_rejections(seeds, texts)) == []


@pytest.mark.slow
def test_mutations_against_all_of_alpaca_match_brute_force(real_data):
    """25 mutations against 52,002 instructions: 1.3 million pairs with rouge_score's own LCS."""
    texts = [record.instruction for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)]
    mutations = [text for _, text in _mutations(texts, 25, seed=3)]
    assert list(find_rejections(texts, mutations)) == _brute_force(texts, mutations)


def _files(tmp_path, pool, candidates):
    write_jsonl(tmp_path / "pool.jsonl", [{"instruction": text} for text in pool])
    write_jsonl(tmp_path / "new.jsonl", [{"id": i, "instruction": text} for i, text in enumerate(candidates)])
    argv = ["filter", "--pool", "pool.jsonl", "--candidates", "new.jsonl", "--output", "kept.jsonl"]
    return [*argv, "--rejected", "rejected.jsonl"]


def test_command_reports_the_nearest_text_and_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = _files(
        tmp_path, ["List five red fruits now"], ["Count to ten", "List five red fruits", "count to ten!", "हो"]
    )
    assert main([*argv, "--tokenizer", "rouge"]) == 0
    assert [fields["id"] for _, fields in read_records("kept.jsonl")] == [0, 3]
    rejected = [fields for _, fields in read_records("rejected.jsonl")]
    assert [(r["id"], r["nearest"], r["nearest_at"]) for r in rejected] == [
        (1, "List five red fruits now", "pool.jsonl:1"),
        (2, "Count to ten", "new.jsonl:1"),
    ]
    assert [r["rouge_l"] for r in rejected] == [pytest.approx(8 / 9), 1.0]
    out = capsys.readouterr().out
    assert "2  kept" in out
    assert "2  rejected" in out
    assert "1  of the kept have no word" in out
    assert "1 of 4 candidates have letters that this tokenizer ignores: use --tokenizer unicode" in out


def test_auto_tokenizer_depends_on_the_letters(tmp_path, monkeypatch, capsys):
    """For rouge_score, "GPT 怎么用？" and "GPT 是什么？" have the same single token."""
    monkeypatch.chdir(tmp_path)
    candidates = ["GPT 怎么用？", "GPT 是什么？", "水果是甜的", "List fruits", "List some fruits"]
    assert main(_files(tmp_path, ["x"], candidates)) == 0
    assert [fields["id"] for _, fields in read_records("kept.jsonl")] == [0, 1, 2, 3]
    assert "rejected.jsonl (ROUGE-L above 0.7, unicode words)" in capsys.readouterr().out


@pytest.mark.parametrize("lang", kit_codes())
def test_auto_tokenizer_for_every_language(lang):
    texts = load_kit(lang).texts
    assert choose_tokenizer(texts) == ("rouge" if lang in ("en", "id", "nl") else "unicode")
    assert choose_tokenizer([]) == "rouge"


def test_english_with_rare_foreign_letters_uses_rouge(real_data):
    texts = [record.instruction for record in read_instructions(real_data / "alpaca_en.jsonl.gz", require_output=False)]
    assert choose_tokenizer(texts) == "rouge"
    chinese = [fields["instruction"] for _, fields in read_records(real_data / "alpaca_zh.jsonl.gz")]
    assert choose_tokenizer(chinese) == "unicode"
    rejections = list(find_rejections([], chinese, unicode_words))
    assert len(rejections) < 1200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--output", "rejected.jsonl"], "--rejected rejected.jsonl is also another file of this command"),
        (["--output", "./pool.jsonl"], "--output ./pool.jsonl is also another file of this command"),
        (["--output", "kept.txt"], "--output kept.txt: the name must end in .jsonl"),
        (["--field", "text"], "pool.jsonl:1: field 'text' is missing"),
        (["--field", "id"], "new.jsonl:1: field 'id' is 0: every record needs a string there"),
        (["--pool", "none.jsonl"], "none.jsonl: there is no such file"),
        (["--tokenizer", "bert"], "argument --tokenizer: invalid choice: 'bert'"),
    ],
)
def test_user_errors_are_one_line_and_write_nothing(tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    argv = _files(tmp_path, ["a b c d"], ["a b c d e"])
    if change == ["--field", "id"]:
        argv[1:3] = []
    assert main(argv + change) == 2
    assert message in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.jsonl", "pool.jsonl"]


def _lcs_by_table(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above, row = row, [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    return row[-1]


@pytest.mark.parametrize("vocabulary_size", [70_000, module._CHARACTERS], ids=["strings", "tuples"])
def test_lcs_of_words_in_any_representation_equals_the_classical_table(vocabulary_size):
    """Word numbers around the surrogates, which are not characters, stay distinct."""
    rng = np.random.default_rng(0)
    texts = [rng.choice(np.arange(0xD7FC, 0xD804, dtype=np.int32), size=n) for n in (0, 1, 5, 40, 70, 130)]
    length = np.array([len(text) for text in texts])
    made = module._strings(np.concatenate(texts), np.cumsum(length) - length, length, vocabulary_size)
    for a, x in zip(texts, made):
        for b, y in zip(texts, made):
            assert LCSseq.similarity(x, y) == _lcs_by_table(a.tolist(), b.tolist())
