"""The server with third-party clients: the openai package, and lm-eval's local-completions.

pip install '.[peers]' openai
HF_HUB_OFFLINE=1 python -m pytest -m 'slow or not slow' tests/launch/test_serve_peers.py
"""

from __future__ import annotations

import math
import time
from functools import partial

import pytest

from launch import evaluate
from launch.serve import ModelSettings, load
from tests.evaluation.lm_eval_peer import Peer
from tests.launch.serving import NAME, in_a_thread
from tests.launch.small import read_rows

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say good morning"}]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def openai():
    return pytest.importorskip("openai", reason="pip install openai")


@pytest.fixture(scope="module")
def client(openai, folder):
    loaded = load(ModelSettings(str(folder), template="plain", max_length=128, slots=4))
    with in_a_thread(loaded, api_key="sk-here") as url:
        yield openai.OpenAI(base_url=url, api_key="sk-here", max_retries=0)


def test_chat_whole_and_streamed(client):
    how = {"model": NAME, "messages": MESSAGES, "max_tokens": 20, "seed": 5}
    whole = client.chat.completions.create(**how, logprobs=True, top_logprobs=3)
    (choice,) = whole.choices
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.top_logprobs[2].logprob
    raw = bytes(byte for token in choice.logprobs.content for byte in token.bytes)
    assert raw.decode("utf-8", "ignore") == choice.message.content.replace("\ufffd", "")
    chunks = [*client.chat.completions.create(**how, stream=True, stream_options={"include_usage": True})]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert len(chunks) > 5
    assert chunks[-1].usage == whole.usage


def test_completions_with_everything(client):
    answer = client.completions.create(
        model=NAME, prompt=["Good morning", "Chào"], max_tokens=5, n=2, echo=True, logprobs=2, stop=["zzz"], seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice, prompt in zip(answer.choices, ["Good morning"] * 2 + ["Chào"] * 2):
        assert choice.text.startswith(prompt)
        scores = choice.logprobs
        assert scores.token_logprobs[0] is None
        assert all(math.isfinite(x) for x in scores.token_logprobs[1:])
        assert len(scores.tokens) == len(scores.text_offset) == len(scores.top_logprobs)
    parts = client.completions.create(model=NAME, prompt="Good morning", max_tokens=5, seed=1, stream=True)
    assert "Good morning" + "".join(part.choices[0].text for part in parts) == answer.choices[0].text


def test_errors_are_openai_exceptions(client, openai):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "local"
    how = {"model": NAME, "messages": MESSAGES}
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(**how, max_tokens=1000)
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**{**how, "model": "gpt-9"})
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()
    with client.chat.completions.create(**how, n=12, max_tokens=100, stream=True), pytest.raises(openai.RateLimitError):
        client.chat.completions.create(**how)
    with opened(partial(client.chat.completions.create, **how, max_tokens=100, stream=True), openai) as stream:
        next(iter(stream))
    assert client.chat.completions.create(**how, max_tokens=1).usage.completion_tokens == 1


def opened(ask, openai):
    """Return the stream that `ask` opens. The server frees the slots of a closed stream when it notices the close."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return ask()
        except openai.RateLimitError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
def test_lm_eval_scores_arc_through_the_server_as_evaluate_does(real_data, tmp_path):
    pytest.importorskip("lm_eval", reason="pip install '.[peers]'")
    pytest.importorskip("datasets", reason="pip install '.[peers]'")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from tests.evaluation.test_parity_lm_eval import model_of, sample_of, tokenizer_of

    folder, limit, worst, compared = tmp_path / "m", 12, 0.0, 0
    tokenizer = tokenizer_of("byte BPE", sample_of(real_data))
    model_of("bloom", len(tokenizer), folder)
    tokenizer.save_pretrained(folder)
    loaded = load(ModelSettings(str(folder), template="plain", max_length=2048, slots=8, dtype="float32"))
    for lang, shots in (("ne", 25), ("vi", 5), ("zh", 0)):
        evaluate.job([
            "--lang", lang, "--model", str(folder), "--data-dir", str(real_data), "--tasks", "arc",
            "--protocol", "lm-eval", "--shots", str(shots), "--limit", str(limit), "--max-length", "2047",
            "--output", str(tmp_path / lang),
        ])  # fmt: skip
        ours = read_rows(tmp_path / lang / f"arc.{lang}.jsonl")
        with in_a_thread(loaded, max_open=64) as url:
            peer = Peer(folder, real_data)
            peer.lm = LocalCompletionsAPI(
                base_url=f"{url}/completions", model=NAME, tokenizer=str(folder), tokenizer_backend="huggingface",
                max_length=2048, batch_size=4, num_concurrent=1, max_retries=1,
            )  # fmt: skip
            theirs = peer.samples(f"arc_{lang}", shots, limit)
        assert len(ours) == len(theirs) == limit
        for one, other in zip(ours, theirs):
            for mine, yours in zip(one["lls"], other["lls"], strict=True):
                worst, compared = max(worst, abs(mine - yours)), compared + 1
    print(f"\n{compared} log-likelihoods, the largest difference {worst:.2e}")
    assert worst <= TOLERANCE
