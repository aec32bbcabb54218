"""launch/sample.py: rows and their order on any number of ranks; templates; existing outputs."""

import json
import re
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.base.errors import UserError
from engine.base.in_language import in_language
from engine.base.languages import get_language
from engine.base.records import read_instructions
from engine.base.seeds import derive_seed
from engine.generation.generate import Request, generate
from engine.generation.sampling import Sampling
from engine.generation.shards import Shards
from engine.models import load_model, save_model
from engine.text.encoding import encode_prompts
from engine.text.templates import load_template
from engine.text.tokenizer import decode, load_tokenizer
from launch import sample, sample_rank, sft
from tests.launch import small

K, NEW = 3, 12


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return small.make_ending_model(tmp_path_factory.mktemp("files"))


def flags(files, output, *more):
    return [
        *("--lang", "ne", "--model", str(files / "m"), "--data", str(files / "prompts.jsonl"), "--output", str(output)),
        *("--num-responses", str(K), "--max-new-tokens", str(NEW), "--template", "plain", *more),
    ]


def rows_of(files, output, *more):
    sample.job(flags(files, output, *more))
    return small.read_rows(output)


def test_responses_match_their_addresses(files, tmp_path):
    rows = rows_of(files, tmp_path / "o.jsonl", "--seed", "7")
    model, tokenizer = load_model(files / "m"), load_tokenizer(files / "m")
    records = list(read_instructions(files / "prompts.jsonl"))
    prompts = encode_prompts(records, tokenizer, load_template("plain"), 500, "error")
    requests = [Request(p.tokens, i, k, NEW) for i, p in enumerate(prompts) for k in range(K)]
    expected = generate(model, requests, Sampling(), derive_seed(7, "sample"), tokenizer.eos_token_id)
    for i, (row, record) in enumerate(zip(rows, records, strict=True)):
        responses = expected[i * K : (i + 1) * K]
        assert row == {
            "id": record.id,
            "instruction": record.instruction,
            "input": record.input,
            "responses": [decode(tokenizer, r.tokens) for r in responses],
            "finished": [r.tokens[-1] == tokenizer.eos_token_id for r in responses],
        }
    assert {ended for row in rows for ended in row["finished"]} == {True, False}
    assert len({text for row in rows for text in row["responses"]}) > 12


def test_responses_are_batch_invariant(files, tmp_path):
    rows = rows_of(files, tmp_path / "a.jsonl")
    assert rows_of(files, tmp_path / "b.jsonl", "--slots", "1") == rows
    # The second record is too long and skipped; the others keep their index in the file, and so their responses.
    kept = rows_of(files, tmp_path / "c.jsonl", "--max-length", "40", "--truncate", "drop")
    assert kept == [row for row in rows if row["id"] != "b"]
    assert rows_of(files, tmp_path / "d.jsonl", "--seed", "1") != rows


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, K)), max_size=40), st.integers(1, 8))
def test_prompts_are_balanced_over_ranks(prompts, ranks):
    """Some prompts need fewer responses than others, as after an interruption."""
    requests = [Request((0,) * n, i, k, NEW) for i, (n, left) in enumerate(prompts) for k in range(left)]
    shares = sample_rank.share(requests, ranks)
    assert len(shares) == ranks
    assert sorted((r for mine in shares for r in mine), key=lambda r: (r.prompt_id, r.sample_id)) == requests
    for mine in shares:
        assert mine == sorted(mine, key=lambda r: (r.prompt_id, r.sample_id))
    owners = [{r.prompt_id for r in mine} for mine in shares]
    assert sum(map(len, owners)) == len(prompts), "the responses of a prompt stay together"
    lengths = [sum(r.expected_length for r in mine) for mine in shares]
    assert max(lengths) - min(lengths) <= max((left * (n + NEW) for n, left in prompts), default=0)


def test_responses_are_saved_as_they_finish_in_any_order(files, tmp_path, monkeypatch):
    requests = [Request((5, 6, 7), i, k, NEW) for i in range(5) for k in range(K)]
    answers = generate(load_model(files / "m"), requests, Sampling(), 0, 2)
    order = [3, 4, 5, 0, 2, 1, 8, 7, 12, 6, 9, 10, 11, 14, 13]
    seen = []

    def scrambled(*args, **kwargs):
        for i in order:
            yield i, answers[i]
            seen.append(Shards(tmp_path / "o.jsonl").keys())

    monkeypatch.setattr(sample_rank, "stream", scrambled)
    rows = rows_of(files, tmp_path / "o.jsonl")
    assert seen == [{divmod(i, K) for i in order[: n + 1]} for n in range(len(order))]
    assert [row["id"] for row in rows] == ["a", "b", "c", "d", "e"]
    tokenizer = load_tokenizer(files / "m")
    assert [text for row in rows for text in row["responses"]] == [decode(tokenizer, a.tokens) for a in answers]


def test_line_breaks_stay_in_their_response(files, tmp_path, monkeypatch):
    text = "a\nb\r\nc\rd\x0be\x85f\u2028g\u2029h"
    monkeypatch.setattr(sample_rank, "decode", lambda tokenizer, tokens: text)
    assert [row["responses"] for row in rows_of(files, tmp_path / "o.jsonl")] == [[text] * K] * 5


def test_existing_output_is_kept_until_the_new_one_is_complete(files, tmp_path, monkeypatch):
    output = tmp_path / "o.jsonl"
    output.write_text("mine")
    with pytest.raises(ValueError, match="exists: --overwrite"):
        sample.job(flags(files, output))
    assert output.read_text() == "mine"

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample_rank, "stream", stopped)
        sample.job(flags(files, output, "--overwrite"))
    assert output.read_text() == "mine"
    assert len(rows_of(files, output, "--overwrite")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_template_comes_from_the_models_run(files, tmp_path, capsys):
    common = ["--lang", "ne", "--model", str(files / "m"), "--data", str(files / "prompts.jsonl")]
    sft.job([*common, "--output", str(tmp_path / "run"), "--template", "plain", "--max-steps", "1"])
    trained = tmp_path / "run" / "model"
    moved = shutil.copytree(trained, tmp_path / "away" / "m")
    given = flags(files, tmp_path / "o.jsonl", "--overwrite")
    at = given.index("--template")
    without = given[:at] + given[at + 2 :]
    cases = [
        (given, trained, "plain (given)"),
        (without, trained, "plain (the model was trained with it)"),
        (without, moved, "plain (the model was trained with it)"),
        ([*without, "--template", "alpaca"], moved, "alpaca (given; the model was trained with plain)"),
        (without, files / "m", "alpaca (the default: the model has neither a record nor a chat template)"),
    ]
    for argv, model, said in cases:
        sample.job([*argv, "--model", str(model)])
        assert f"  template  {said}\n" in capsys.readouterr().out


def test_summary_line(files, tmp_path, capsys):
    rows = rows_of(files, tmp_path / "o.jsonl", "--num-responses", "1", "--seed", "3")
    ended = sum(row["finished"][0] for row in rows)
    assert all(row["finished"] in ([True], [False]) and len(row["responses"]) == 1 for row in rows)
    last = capsys.readouterr().out.splitlines()[-1]
    odd = sum(not in_language(row["responses"][0], get_language("ne")) for row in rows)
    assert 0 < odd < 5
    said = rf"5 responses to 5 prompts, {ended / 5:.0%} ended with EOS, {odd / 5:.0%} in a wrong language"
    said += r"; (\d+) tokens in .* tokens/s"
    assert 5 <= int(re.fullmatch(f"  {tmp_path / 'o.jsonl'}: {said}", last)[1]) <= 5 * NEW


def test_stop_string_ends_a_response_and_is_cut(files, tmp_path, capsys):
    rows = rows_of(files, tmp_path / "o.jsonl")
    texts = [text for row in rows for text in row["responses"]]
    stops = [next(t[3:5] for t in texts if len(t) > 6), next(t[2] for t in reversed(texts) if len(t) > 6)]
    cut = rows_of(files, tmp_path / "s.jsonl", "--stop", stops[0], "--stop", stops[1])
    said = capsys.readouterr().out.splitlines()
    expected, stopped = [], 0
    for row in rows:
        for text, ended in zip(row["responses"], row["finished"]):
            found = [text.find(stop) for stop in stops if stop in text]
            expected.append((text[: min(found)] if found else text, bool(found) or ended))
            stopped += bool(found)
    assert [pair for row in cut for pair in zip(row["responses"], row["finished"])] == expected
    assert 0 < stopped < len(texts)
    assert f", {stopped / len(texts):.0%} at a stop string, " in said[-1]


def test_every_eos_of_generation_config_ends_a_response(files, tmp_path, monkeypatch):
    output, tokens = tmp_path / "o.jsonl", []
    with monkeypatch.context() as patch:
        finish = sample_rank.finish
        patch.setattr(sample_rank, "finish", lambda q, r, t: tokens.append(r.tokens) or finish(q, r, t))
        before = [text for row in rows_of(files, output) for text in row["responses"]]
    token, _ = Counter(t for response in tokens for t in response[1:] if t != 2).most_common(1)[0]
    shutil.copytree(files / "m", tmp_path / "m")
    shutil.copy(files / "prompts.jsonl", tmp_path)
    config = tmp_path / "m" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [2, token]}))
    rows = rows_of(tmp_path, output, "--overwrite")
    after = [pair for row in rows for pair in zip(row["responses"], row["finished"])]
    cut = [(text, ended, old) for (text, ended), old in zip(after, before) if text != old]
    assert cut
    assert len(cut) == sum(token in response for response in tokens)
    assert all(ended and old.startswith(text.rstrip("\ufffd")) for text, ended, old in cut)


def test_nan_probabilities_are_an_error(files, tmp_path):
    model, tokenizer = load_model(files / "m"), load_tokenizer(files / "m")
    with torch.no_grad():
        model.final_norm.weight[3] = float("nan")
    save_model(model, tmp_path / "m", tokenizer)
    with pytest.raises(UserError, match="m are NaN or infinite: its weights are damaged, or too large for --dtype"):
        rows_of(files, tmp_path / "o.jsonl", "--model", str(tmp_path / "m"))
    assert not (tmp_path / "o.jsonl").exists()


def test_min_new_tokens_penalty_and_small_cache(files, tmp_path):
    rows = rows_of(files, tmp_path / "o.jsonl")
    assert rows_of(files, tmp_path / "c.jsonl", "--cache-tokens", "192") == rows
    longer = rows_of(files, tmp_path / "l.jsonl", "--min-new-tokens", str(NEW))
    assert any(ended for row in rows for ended in row["finished"])
    assert not any(ended for row in longer for ended in row["finished"])
    assert rows_of(files, tmp_path / "p.jsonl", "--repetition-penalty", "3") != rows
    assert rows_of(files, tmp_path / "q.jsonl", "--min-p", "0.9") != rows


def test_progress_lines_without_a_terminal(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample_rank, "LINE_EVERY_S", 0.0)
    rows_of(files, tmp_path / "o.jsonl")
    lines = [line for line in capsys.readouterr().out.splitlines() if "time left" in line]
    assert len(lines) >= NEW
    assert re.fullmatch(r"  0 of 15 responses, [\d,]+ tokens/s, time left unknown", lines[0])
    assert re.fullmatch(r"  15 of 15 responses, [\d,]+ tokens/s, time left 00:00", lines[-1])
