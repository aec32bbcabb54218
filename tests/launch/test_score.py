"""launch/score.py: the same scores as PPO's, normalised; unfinished answers; wrong lines."""

import pytest
import torch

from engine.base.errors import UserError
from engine.batch import PackedBatch
from engine.models import load_model
from engine.reward_functions import noise
from engine.text.chats import encode_instruction
from engine.text.templates import load_template
from engine.text.tokenizer import encode_response, load_tokenizer
from engine.training.scorers import RewardModelScorer
from launch import score
from tests.launch import small

ROWS = [
    {**row, "responses": ["Gut", "शुभ प्रभात, yes", ""], "finished": [True, False, True]} for row in small.INSTRUCTIONS
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    small.make_reward_model(folder / "reward", small.make_model(folder / "m"), score=0.3)
    small.write_rows(folder / "responses.jsonl", ROWS)
    return folder


def scored(files, output, *more, reward=None, data=None):
    score.job([
        *("--reward", str(reward or files / "reward"), "--data", str(data or files / "responses.jsonl")),
        *("--output", str(output), "--template", "plain", *more),
    ])  # fmt: skip
    return small.read_rows(output)


def test_scores_are_those_that_ppo_gives(files, tmp_path):
    rows = scored(files, tmp_path / "o.jsonl", "--tokens-per-microbatch", "128", "--max-length", "128")
    policy, tokenizer = load_model(files / "m"), load_tokenizer(files / "m")
    scorer, template = RewardModelScorer(files / "reward", policy, None, tokenizer, 4096, False), load_template("plain")
    for row, given in zip(rows, ROWS, strict=True):
        assert {name: row[name] for name in given} == given
        prompt = encode_instruction(tokenizer, template, given["instruction"], given["input"])
        answers = [encode_response(tokenizer, text) for text in given["responses"]]
        answers[1] = answers[1][:-1]  # not finished: no EOS
        batch = PackedBatch.from_sequences([(*prompt, *answer) for answer in answers], torch.device("cpu"))
        torch.testing.assert_close(torch.tensor(row["scores"]), scorer(batch, None, [], []))
    assert rows[0]["scores"][0] != rows[0]["scores"][1]


def test_a_function_scores_text(files, tmp_path):
    rows = scored(files, tmp_path / "o.jsonl", reward="engine.reward_functions:noise")
    prompt = load_template("plain").format(ROWS[1]["instruction"], ROWS[1]["input"])
    assert rows[1]["scores"] == pytest.approx([noise(prompt, text) for text in ROWS[1]["responses"]])


def test_log_ratios_are_those_of_the_whole_logits(files, tmp_path):
    """The sum over the response's tokens, EOS included where it finished, of log p - log p of another model."""
    other = small.make_model(tmp_path / "other", seed=7)
    rows = scored(files, tmp_path / "o.jsonl", "--reference", str(other), reward=files / "m")
    tokenizer, template = load_tokenizer(files / "m"), load_template("plain")
    policy, reference = load_model(files / "m"), load_model(other)

    @torch.no_grad()
    def logprob(model, prompt, answer):
        batch = PackedBatch.from_sequences([(*prompt, *answer)])
        h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
        logits_AV = (h_TD @ model.head_weight.T)[len(prompt) - 1 : -1].double()
        return float(logits_AV.log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)].sum())

    for row, given in zip(rows, ROWS, strict=True):
        prompt = encode_instruction(tokenizer, template, given["instruction"], given["input"])
        answers = [encode_response(tokenizer, text) for text in given["responses"]]
        answers[1] = answers[1][:-1]
        expected = [logprob(policy, prompt, a) - logprob(reference, prompt, a) for a in answers]
        assert row["scores"] == pytest.approx(expected, abs=1e-4)
    assert abs(rows[0]["scores"][0]) > 0.01


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"responses": ["a"]}, "line 1: field 'instruction' is None"),
        ({"instruction": "a", "responses": []}, "line 1: field 'responses' must be a list of at least one string"),
        ({"instruction": "a", "responses": [1]}, "line 1: field 'responses' must be a list of at least one string"),
        ({"instruction": "a", "responses": ["b"], "finished": []}, "field 'finished' must have one value per response"),
    ],
)
def test_a_wrong_line_is_named(files, tmp_path, row, message):
    data = small.write_rows(tmp_path / "d.jsonl", [row])
    with pytest.raises(UserError, match=message):
        scored(files, tmp_path / "o.jsonl", data=data)


def test_what_would_be_lost_or_cannot_be_scored_is_refused(files, tmp_path):
    (tmp_path / "o.jsonl").write_text("kept")
    with pytest.raises(UserError, match="--overwrite replaces it"):
        scored(files, tmp_path / "o.jsonl")
    with pytest.raises(UserError, match="has no score head"):
        scored(files, tmp_path / "p.jsonl", reward=files / "m")
    with pytest.raises(UserError, match="--max-length is 8: raise it"):
        scored(files, tmp_path / "p.jsonl", "--max-length", "8")
    assert (tmp_path / "o.jsonl").read_text() == "kept"
