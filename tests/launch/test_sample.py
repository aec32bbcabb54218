"""launch/sample.py: what is written, in which order, on any number of ranks; the template; a file that is there."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.encoding import Prompt, encode_prompts
from engine.generation import Request, generate
from engine.models import load_model, save_model
from engine.prompts import load_template
from engine.records import read_instructions
from engine.runs import template_of
from engine.sampling import Sampling
from engine.seeds import derive_seed
from engine.tokenizer import decode, load_tokenizer
from launch import sample, sft
from tests.launch import small
from tests.ranks import run_ranks

K, NEW = 3, 12


@pytest.fixture(scope="module", autouse=True)
def alone():
    with small.alone():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model that ends about every fifth token, and five prompts."""
    folder = tmp_path_factory.mktemp("files")
    base = small.make_model(folder / "base")
    model, tokenizer = load_model(base), load_tokenizer(base)
    with torch.no_grad():
        model.final_norm.bias.fill_(1.0)
        model.embedding.weight[tokenizer.eos_token_id] = 0.2
    save_model(model, folder / "m", tokenizer)
    small.write_rows(folder / "prompts.jsonl", small.INSTRUCTIONS)
    return folder


def flags(files, output, *more):
    return [
        *("--lang", "ne", "--model", str(files / "m"), "--data", str(files / "prompts.jsonl"), "--output", str(output)),
        *("--num-responses", str(K), "--max-new-tokens", str(NEW), "--template", "plain", *more),
    ]


def rows_of(files, output, *more):
    sample.job(flags(files, output, *more))
    return small.read_rows(output)


def sample_on_a_rank(argv):
    """In a process of its own: run the job. Importable, as run_ranks asks."""
    sample.job(argv)


def test_each_response_is_the_one_at_its_address(files, tmp_path):
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


def test_company_does_not_matter(files, tmp_path):
    rows = rows_of(files, tmp_path / "a.jsonl")
    assert rows_of(files, tmp_path / "b.jsonl", "--slots", "1") == rows
    # The second record is too long and left out; the others keep their places in the file, and so their responses.
    kept = rows_of(files, tmp_path / "c.jsonl", "--max-length", "40", "--truncate", "drop")
    assert kept == [row for row in rows if row["id"] != "b"]
    assert rows_of(files, tmp_path / "d.jsonl", "--seed", "1") != rows


def test_two_ranks_write_what_one_does(files, tmp_path):
    rows = rows_of(files, tmp_path / "one.jsonl")
    run_ranks(sample_on_a_rank, 2, flags(files, tmp_path / "two.jsonl"))
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert len(rows) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_prompts_are_dealt_out_evenly(lengths, ranks):
    prompts = [Prompt(str(i), (0,) * n, "", "") for i, n in enumerate(lengths)]
    shares = [sample.share(prompts, rank, ranks) for rank in range(ranks)]
    assert sorted(i for ids in shares for i in ids) == list(range(len(lengths)))
    assert all(ids == sorted(ids) for ids in shares)
    tokens = [sum(lengths[i] for i in ids) for ids in shares]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_a_prompt_is_written_as_soon_as_those_before_it_are_complete(files, tmp_path, monkeypatch):
    requests = [Request((5, 6, 7), i, k, NEW) for i in range(5) for k in range(K)]
    answers = generate(load_model(files / "m"), requests, Sampling(), 0, 2)
    order = [3, 4, 5, 0, 2, 1, 8, 7, 12, 6, 9, 10, 11, 14, 13]
    complete = [0, 0, 0, 0, 0, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5]
    seen = []

    def scrambled(*args, **kwargs):
        for i in order:
            yield i, answers[i]
            seen.append(len(small.read_rows(tmp_path / "o.jsonl.rank0.part")))

    monkeypatch.setattr(sample, "stream", scrambled)
    rows = rows_of(files, tmp_path / "o.jsonl")
    assert seen == complete
    assert [row["id"] for row in rows] == ["a", "b", "c", "d", "e"]


def test_line_breaks_of_any_kind_stay_in_their_response(files, tmp_path, monkeypatch):
    text = "a\nb\r\nc\rd\x0be\x85f\u2028g\u2029h"
    monkeypatch.setattr(sample, "decode", lambda tokenizer, tokens: text)
    assert [row["responses"] for row in rows_of(files, tmp_path / "o.jsonl")] == [[text] * K] * 5


def test_a_file_that_is_there_is_kept_until_the_new_one_is_complete(files, tmp_path, monkeypatch):
    output = tmp_path / "o.jsonl"
    output.write_text("mine")
    with pytest.raises(ValueError, match="is there already: --overwrite"):
        sample.job(flags(files, output))
    assert output.read_text() == "mine"

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "stream", stopped)
        sample.job(flags(files, output, "--overwrite"))
    assert output.read_text() == "mine"
    assert len(rows_of(files, output, "--overwrite")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


def test_the_template_is_the_one_of_the_models_run(files, tmp_path, capsys):
    common = ["--lang", "ne", "--model", str(files / "m"), "--data", str(files / "prompts.jsonl")]
    sft.job([*common, "--output", str(tmp_path / "run"), "--template", "plain", "--max-steps", "1"])
    trained = tmp_path / "run" / "model"
    assert (template_of(trained), template_of(f"{trained}/"), template_of(files / "m")) == ("plain", "plain", None)

    given = flags(files, tmp_path / "o.jsonl", "--overwrite")
    at = given.index("--template")
    without = given[:at] + given[at + 2 :]
    cases = [
        (given, trained, "plain (--template)"),
        (without, trained, "plain (recorded by the model's run)"),
        (without, files / "m", "alpaca (the default)"),
    ]
    for argv, model, said in cases:
        sample.job([*argv, "--model", str(model)])
        assert f"  template  {said}\n" in capsys.readouterr().out


def test_the_last_line_says_what_was_written(files, tmp_path, capsys):
    rows = rows_of(files, tmp_path / "o.jsonl", "--num-responses", "1", "--temperature", "0")
    ended = sum(row["finished"][0] for row in rows)
    assert all(row["finished"] in ([True], [False]) and len(row["responses"]) == 1 for row in rows)
    last = capsys.readouterr().out.splitlines()[-1]
    said = rf"5 responses to 5 prompts, {ended / 5:.0%} ended with EOS; (\d+) tokens in .* tokens/s"
    assert 5 <= int(re.fullmatch(f"  {tmp_path / 'o.jsonl'}: {said}", last)[1]) <= 5 * NEW
