"""The server's answers: whole and streamed, seeds, batches, stop strings, log-probabilities; models, metrics."""

from __future__ import annotations

import asyncio

import pytest
import torch

from engine.text.tokenizer import encode_prompt
from tests.launch.serving import CHAT, NAME, TEXT, events, post, served, with_client


@served
async def test_chat_equals_completion_of_its_prompt(client, server):
    status, chat = await post(client, "chat/completions", {**CHAT, "seed": 3})
    assert status == 200
    (choice,) = chat["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    prompt = len(encode_prompt(server._tokenizer, "Say good morning\n=> "))
    assert chat["usage"] == {"prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8}
    _, text = await post(client, "completions", {"prompt": "Say good morning\n=> ", "max_tokens": 8, "seed": 3})
    assert text["choices"][0]["text"] == choice["message"]["content"]
    assert (chat["object"], text["object"], text["model"]) == ("chat.completion", "text_completion", NAME)
    parts = [{"type": "text", "text": "Say good "}, {"type": "text", "text": "morning"}]
    _, same = await post(
        client, "chat/completions", {**CHAT, "seed": 3, "messages": [{"role": "user", "content": parts}]}
    )
    assert same["choices"] == chat["choices"]


@served
async def test_streamed_answer_equals_whole_answer(client, server):
    for path, body in (("chat/completions", CHAT), ("completions", TEXT)):
        body = {**body, "n": 3, "seed": 5, "max_tokens": 30, "logprobs": True if path[1] == "h" else 2}
        _, whole = await post(client, path, body)
        streamed = await events(client, path, {**body, "stream_options": {"include_usage": True}})
        assert streamed[-1]["usage"] == whole["usage"]
        assert streamed[-1]["choices"] == []
        assert len({event["id"] for event in streamed}) == 1
        for choice in whole["choices"]:
            mine = [c for e in streamed for c in e["choices"] if c["index"] == choice["index"]]
            assert len(mine) > 5, "it came bit by bit"
            assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
            if path == "completions":
                assert "".join(c["text"] for c in mine) == choice["text"]
                for key, values in choice["logprobs"].items():
                    assert sum((c["logprobs"][key] for c in mine), []) == values
            else:
                assert mine[0]["delta"]["role"] == "assistant"
                assert "".join(c["delta"]["content"] for c in mine) == choice["message"]["content"]
                assert sum((c["logprobs"]["content"] for c in mine), []) == choice["logprobs"]["content"]


@served
async def test_seeded_answers_are_batch_invariant(client, server):
    alone = (await post(client, "completions", {**TEXT, "seed": 1, "n": 3}))[1]["choices"]
    assert len({choice["text"] for choice in alone}) == 3
    bodies = [{**TEXT, "seed": 1, "n": 3}, {**TEXT, "seed": 2}, {**TEXT, "temperature": 0}, {**TEXT}, {**TEXT}]
    together = await asyncio.gather(*(post(client, "completions", body) for body in bodies))
    assert together[0][1]["choices"] == alone
    texts = [answer["choices"][0]["text"] for _, answer in together]
    assert len(set(texts)) == 5, "without a seed each is drawn anew"


@served
async def test_prompts_are_answered_in_order(client, server):
    asked = {**TEXT, "temperature": 0, "n": 2, "prompt": ["Chào", "Good morning", "Chào"]}
    _, many = await post(client, "completions", asked)
    texts = [choice["text"] for choice in many["choices"]]
    assert [choice["index"] for choice in many["choices"]] == list(range(6))
    assert texts[0] == texts[1] == texts[4] == texts[5] != texts[2] == texts[3]
    single = (await post(client, "completions", {**TEXT, "temperature": 0}))[1]
    assert single["choices"][0]["text"] == texts[2]


@served
async def test_stop_string_is_cut(client, server):
    for seed in range(50):  # until an answer begins with six characters
        body = {**TEXT, "seed": seed, "max_tokens": 24}
        whole = (await post(client, "completions", body))[1]["choices"][0]["text"]
        if "\ufffd" not in whole[:6] and len(whole) > 10:
            break
    stop = whole[3:5]
    for n_stop in (stop, ["never seen", stop]):
        _, answer = await post(client, "completions", {**body, "stop": n_stop, "logprobs": 0})
        (choice,) = answer["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 24
        assert choice["logprobs"]["text_offset"][-1] < len(choice["text"])
        assert choice["logprobs"]["top_logprobs"] is None
    streamed = await events(client, "completions", {**body, "stop": stop})
    assert "".join(event["choices"][0]["text"] for event in streamed) == whole[: whole.index(stop)]


def test_echoed_logprobs_equal_a_forward(loaded):
    model, ids = loaded.engine.model, encode_prompt(loaded.tokenizer, "Good शुभ morning")

    async def test(client, server):
        for prompt in ("Good शुभ morning", ids):
            body = {"prompt": prompt, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
            _, answer = await post(client, "completions", body)
            (choice,) = answer["choices"]
            scores = choice["logprobs"]
            assert choice["text"].startswith("Good शुभ morning")
            assert len(scores["tokens"]) == len(ids) + 1 == len(scores["text_offset"])
            assert scores["token_logprobs"][0] is None is scores["top_logprobs"][0]
            with torch.no_grad():
                expected = whole_logprobs(model, ids)
            assert scores["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
            for logprob, top in zip(scores["token_logprobs"][1:], scores["top_logprobs"][1:]):
                assert logprob in top.values()
                assert len(top) in (1, 2)
            assert max(scores["top_logprobs"][-1].values()) == scores["token_logprobs"][-1], "greedy"
        none = {**body, "max_tokens": 0}
        _, answer = await post(client, "completions", none)
        assert answer["choices"][0]["text"] == "Good शुभ morning"
        assert answer["usage"]["completion_tokens"] == 0
        assert answer["choices"][0]["logprobs"]["tokens"] == scores["tokens"][:-1]

    with_client(loaded, test)


def whole_logprobs(model, ids):
    """Return the log-probability of each token but the first, by one packed forward."""
    from engine.batch import PackedBatch

    batch = PackedBatch.from_sequences([ids])
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    logprob_TV = (h_TD @ model.head_weight.T).log_softmax(-1)
    return logprob_TV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


@served
async def test_models_are_listed_and_found(client, server):
    async with client.get("/v1/models") as response:
        (model,) = (await response.json())["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (NAME, "model", 128)
    async with client.get(f"/v1/models/{NAME}") as response:
        assert await response.json() == model
    async with client.get("/v1/models/a/b") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


@served
async def test_metrics_are_prometheus_text(client, server):
    _, answer = await post(client, "chat/completions", {**CHAT, "seed": 3})
    await events(client, "chat/completions", {**CHAT, "seed": 3})
    await post(client, "completions", {})
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert values['rlhf_http_answers_total{path="/v1/chat/completions",status="200"}'] == "2"
    assert values['rlhf_http_answers_total{path="/v1/completions",status="400"}'] == "1"
    assert values["rlhf_new_tokens_total"] == str(2 * answer["usage"]["completion_tokens"])
    assert values["rlhf_prompt_tokens_total"] == str(2 * answer["usage"]["prompt_tokens"])
    assert values["rlhf_open"] == values["rlhf_decoding"] == "0"
    assert values["rlhf_cache_pages"] == values["rlhf_cache_pages_free"]
    assert values["rlhf_first_token_seconds_count"] == "1"
    assert values['rlhf_answer_seconds_bucket{le="+Inf"}'] == values["rlhf_answer_seconds_count"] == "2"
    names = [line.split()[2] for line in lines if line.startswith("#")]
    assert len(names) == len(set(names)) > 10
