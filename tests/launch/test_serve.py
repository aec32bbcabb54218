"""The server's answers: whole and streamed, seeds, stops, log-probabilities, limits, errors, its end."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket

import aiohttp
import pytest
import torch

from engine.errors import UserError
from engine.serving.live import LiveEngine
from engine.tokenizer import encode_prompt
from launch import serve
from launch.serve import HttpSettings, ModelSettings, load, name_of
from tests.launch import small
from tests.launch.serving import CHAT, MAX_OPEN, NAME, TEXT, events, post, with_client


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.make_model(tmp_path_factory.mktemp("served") / "m")


@pytest.fixture(scope="module")
def loaded(folder):
    return load(ModelSettings(str(folder), template="plain", max_length=128, slots=4))


def served(test, **settings):
    """A test that is a coroutine, with a client and the server."""

    def run(loaded):
        return with_client(loaded, test, **settings)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@served
async def test_a_chat_and_its_text_are_the_same_answer(client, server):
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
async def test_what_is_streamed_is_the_whole_answer(client, server):
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
async def test_a_seed_gives_the_same_answers_whoever_shares_the_batch(client, server):
    alone = (await post(client, "completions", {**TEXT, "seed": 1, "n": 3}))[1]["choices"]
    assert len({choice["text"] for choice in alone}) == 3
    bodies = [{**TEXT, "seed": 1, "n": 3}, {**TEXT, "seed": 2}, {**TEXT, "temperature": 0}, {**TEXT}, {**TEXT}]
    together = await asyncio.gather(*(post(client, "completions", body) for body in bodies))
    assert together[0][1]["choices"] == alone
    texts = [answer["choices"][0]["text"] for _, answer in together]
    assert len(set(texts)) == 5, "without a seed each is drawn anew"


@served
async def test_several_prompts_are_answered_in_order(client, server):
    asked = {**TEXT, "temperature": 0, "n": 2, "prompt": ["Chào", "Good morning", "Chào"]}
    _, many = await post(client, "completions", asked)
    texts = [choice["text"] for choice in many["choices"]]
    assert [choice["index"] for choice in many["choices"]] == list(range(6))
    assert texts[0] == texts[1] == texts[4] == texts[5] != texts[2] == texts[3]
    single = (await post(client, "completions", {**TEXT, "temperature": 0}))[1]
    assert single["choices"][0]["text"] == texts[2]


@served
async def test_a_stop_string_ends_an_answer_before_itself(client, server):
    for seed in range(50):  # until there is one that begins with six characters
        body = {**TEXT, "seed": seed, "max_tokens": 60}
        whole = (await post(client, "completions", body))[1]["choices"][0]["text"]
        if "\ufffd" not in whole[:6] and len(whole) > 10:
            break
    stop = whole[3:5]
    for n_stop in (stop, ["never seen", stop]):
        _, answer = await post(client, "completions", {**body, "stop": n_stop, "logprobs": 0})
        (choice,) = answer["choices"]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        assert answer["usage"]["completion_tokens"] < 60
        assert choice["logprobs"]["text_offset"][-1] < len(choice["text"])
        assert choice["logprobs"]["top_logprobs"] is None
    streamed = await events(client, "completions", {**body, "stop": stop})
    assert "".join(event["choices"][0]["text"] for event in streamed) == whole[: whole.index(stop)]


def test_echoed_log_probabilities_are_those_of_a_forward(loaded):
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
    """Of each token but the first, by one packed forward."""
    from engine.batch import PackedBatch

    batch = PackedBatch.from_sequences([ids])
    h_TD = model.norm(model.run(model.embed(batch), batch, 0, model.num_layers))
    logprob_TV = (h_TD @ model.head_weight.T).log_softmax(-1)
    return logprob_TV[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


WRONG = [
    ("chat/completions", {**CHAT, "model": "gpt-9"}, 404, "model", "model_not_found"),
    ("chat/completions", {"messages": []}, 400, "messages", None),
    ("chat/completions", {"messages": "hi"}, 400, "messages", None),
    ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]", None),
    ("chat/completions", {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0]", None),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "messages[0]",
        None,
    ),
    ("chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", None),
    ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, "top_logprobs", None),
    ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", None),
    ("chat/completions", {**CHAT, "max_tokens": 0}, 400, "max_tokens", None),
    ("chat/completions", {**CHAT, "max_completion_tokens": 200}, 400, "messages", "context_length_exceeded"),
    ("chat/completions", {**CHAT, "temperature": 2.1}, 400, "temperature", None),
    ("chat/completions", {**CHAT, "temperature": "1"}, 400, "temperature", None),
    ("chat/completions", {**CHAT, "top_p": 0}, 400, "top_p", None),
    ("chat/completions", {**CHAT, "n": 0}, 400, "n", None),
    ("chat/completions", {**CHAT, "n": MAX_OPEN + 1}, 400, "n", None),
    ("chat/completions", {**CHAT, "n": True}, 400, "n", None),
    ("chat/completions", {**CHAT, "seed": 1 << 63}, 400, "seed", None),
    ("chat/completions", {**CHAT, "stop": ["a", ""]}, 400, "stop", None),
    ("chat/completions", {**CHAT, "stop": ["x"] * 17}, 400, "stop", None),
    ("chat/completions", {**CHAT, "stream": 1}, 400, "stream", None),
    ("chat/completions", {**CHAT, "stream_options": {}}, 400, "stream_options", None),
    ("chat/completions", {**CHAT, "tools": [{}]}, 400, "tools", "unsupported_parameter"),
    ("chat/completions", {**CHAT, "frequency_penalty": 1}, 400, "frequency_penalty", "unsupported_parameter"),
    ("chat/completions", {**CHAT, "temprature": 1}, 400, "temprature", "unknown_parameter"),
    ("completions", {"max_tokens": 3}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": []}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": ""}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": "\ud800"}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": [1, 320]}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": [[1], "a", [2, "b"]]}, 400, "prompt", None),
    ("completions", {**TEXT, "prompt": [[1]] * 7, "n": 2}, 400, "n", None),
    ("completions", {**TEXT, "prompt": "a" * 121}, 400, "prompt", "context_length_exceeded"),
    ("completions", {**TEXT, "max_tokens": 0}, 400, "max_tokens", None),
    ("completions", {**TEXT, "logprobs": True}, 400, "logprobs", None),
    ("completions", {**TEXT, "best_of": 2}, 400, "best_of", "unsupported_parameter"),
]


@served
async def test_what_cannot_be_served_is_said_in_the_apis_form(client, server):
    for path, body, status, param, code in WRONG:
        got, answer = await post(client, path, body)
        error = answer["error"]
        assert (got, error["param"], error["code"]) == (status, param, code), body
        assert error["type"] == "invalid_request_error"
        assert "\n" not in error["message"]
        assert len(error["message"]) > 15
    for data in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 90_000,
        b'{"prompt": "a", "top_p": NaN}',
        b'{"seed": 1' + b"0" * 5000,
    ):
        async with client.post("/v1/completions", data=data) as response:
            assert response.status == 400
            assert (await response.json())["error"]["type"] == "invalid_request_error"
    async with client.post("/v1/completions", data=b" " * (1 << 20) + b"x") as response:
        assert response.status == 413
        assert "1,048,576 bytes" in (await response.json())["error"]["message"]
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        async with client.request(method, path) as response:
            assert response.status == status
            assert (await response.json())["error"]["code"] is None
    assert server.worker.counts.steps == 0, "none of these reached the model"


@served
async def test_what_asks_for_nothing_special_is_served(client, server):
    neutral = {"presence_penalty": 0, "logit_bias": {}, "tools": None, "user": "u", "response_format": {"type": "text"}}
    status, _ = await post(client, "chat/completions", {**CHAT, **neutral, "model": NAME, "max_tokens": None, "n": 1.0})
    assert status == 200


@served
async def test_models_are_listed_and_found(client, server):
    async with client.get("/v1/models") as response:
        (model,) = (await response.json())["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == (NAME, "model", 128)
    async with client.get(f"/v1/models/{NAME}") as response:
        assert await response.json() == model
    async with client.get("/v1/models/a/b") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")


def test_a_key_opens_everything_but_health(loaded):
    async def test(client, server):
        for given in (None, "Bearer wrong", "sésame", "Bearer "):
            headers = {"Authorization": given} if given else {}
            status, answer = await post(client, "chat/completions", CHAT, headers=headers)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert "sésame-3" not in json.dumps(answer)
        status, _ = await post(client, "chat/completions", CHAT, headers={"Authorization": "Bearer sésame-3"})
        assert status == 200
        for path, status in (("/health", 200), ("/metrics", 401), ("/v1/models", 401)):
            async with client.get(path) as response:
                assert response.status == status

    with_client(loaded, test, api_key="sésame-3")


@served
async def test_more_than_may_wait_are_told_to_come_back(client, server):
    body = {**TEXT, "max_tokens": 100, "n": 5, "logprobs": 20}
    answers = await asyncio.gather(*(post(client, "completions", body) for _ in range(6)))
    statuses = [status for status, _ in answers]
    assert statuses.count(200) == 2, "twelve may be open, each asks for five"
    assert statuses.count(429) == 4
    error = next(answer["error"] for status, answer in answers if status == 429)
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    async with client.post("/v1/completions", json={**body, "n": 12}) as response:
        assert response.status == 200
        async with client.post("/v1/completions", json={**TEXT}) as after:
            assert after.status == 200


@served
async def test_a_client_that_leaves_takes_its_requests_with_it(client, server):
    long = {**TEXT, "max_tokens": 110, "n": 4}
    response = await client.post("/v1/completions", json={**long, "stream": True})
    await response.content.readany()
    response.close()
    task = asyncio.create_task(post(client, "completions", long))
    await asyncio.sleep(0.02)
    task.cancel()
    async with asyncio.timeout(10):
        while server._open or server.worker.counts.cancelled < 8:
            await asyncio.sleep(0.01)
    assert server.worker.counts.new_tokens < 8 * 110
    assert (await post(client, "completions", TEXT))[0] == 200


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


def test_probabilities_that_are_no_numbers_are_a_500_and_the_server_stays(loaded):
    async def test(client, server):
        weight = loaded.engine.model.final_norm.bias
        before = weight.clone()
        with torch.no_grad():
            weight[0] = math.nan
        try:
            for path, body in (("chat/completions", CHAT), ("completions", {**TEXT, "stream": True})):
                status, answer = await post(client, path, body)
                assert (status, answer["error"]["type"]) == (500, "server_error")
                assert "no numbers" in answer["error"]["message"]
        finally:
            with torch.no_grad():
                weight.copy_(before)
        assert (await post(client, "completions", TEXT))[0] == 200

    with_client(loaded, test)


def test_a_step_that_fails_ends_every_request_and_health_says_so(folder):
    class Failing(LiveEngine):
        def advance(self):
            if self.steps_left == 0:
                raise MemoryError("no memory for this step")
            self.steps_left -= 1
            return super().advance()

    async def test(client, server):
        long = {**TEXT, "max_tokens": 100}
        whole, streamed = await asyncio.gather(
            post(client, "completions", long), client.post("/v1/completions", json={**long, "stream": True})
        )
        assert (whole[0], whole[1]["error"]["code"]) == (500, "step_failed")
        last = (await streamed.text()).strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        async with client.get("/health") as response:
            assert (response.status, await response.json()) == (503, {"status": "failed"})
        assert (await post(client, "completions", TEXT))[0] == 503
        assert isinstance(server.worker.failure, MemoryError)
        server._open.clear()
        server.worker.engine = load(ModelSettings(str(folder), template="plain", max_length=128, slots=4)).engine

    loaded = load(ModelSettings(str(folder), template="plain", max_length=128, slots=4))
    loaded.engine.__class__ = Failing
    loaded.engine.steps_left = 5
    with_client(loaded, test)


def test_sigterm_lets_open_answers_end_and_takes_no_others(folder, capsys, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def test():
        task = asyncio.create_task(
            serve.serve(ModelSettings(str(folder), max_length=2048, slots=4), HttpSettings(port=port, drain_s=20), None)
        )
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as session:
            while not task.done():
                try:
                    async with session.get(f"{url}/health") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)
            body = {**CHAT, "max_tokens": 300, "stream": True}
            async with session.post(f"{url}/v1/chat/completions", json=body) as stream:
                await stream.content.readany()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0.6)
                with pytest.raises(aiohttp.ClientConnectorError):
                    await aiohttp.ClientSession().get(f"{url}/health")
                text = await stream.text()
            assert text.endswith("data: [DONE]\n\n")
        await asyncio.wait_for(task, 10)

    asyncio.run(test())
    out = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/v1" in out
    assert out.endswith("ended\n")


def test_a_name_comes_from_the_folder():
    assert name_of("runs/ne/ppo/model") == "ne-ppo"
    assert name_of("models/bloom-560m/") == "bloom-560m"


def test_wrong_settings_are_one_line(folder, monkeypatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    with pytest.raises(UserError, match="--host 0.0.0.0 can be reached by others and SERVE_API_KEY is not set: set it"):
        serve.job(["--model", str(folder), "--host", "0.0.0.0"])
    for how, words in (
        ({"port": 70_000}, "--port is 70000"),
        ({"max_waiting": -1}, "--max-waiting is -1"),
        ({"chat_tokens": 0}, "--chat-tokens is 0"),
    ):
        with pytest.raises(UserError, match=words):
            HttpSettings(**how)
    with pytest.raises(UserError, match="--slots is 0"):
        ModelSettings("m", slots=0)
    with pytest.raises(UserError, match=r"the cache holds 192 tokens, --max-length is 512: lower it to 127, or raise "):
        load(ModelSettings(str(folder), max_length=512, cache_tokens=200))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port \d+ cannot be listened on \(Address already in use\): choose"):
            serve.job(["--model", str(folder), "--port", str(taken.getsockname()[1])])
    with pytest.raises(UserError, match="--host no.such.host.invalid .* cannot be listened on"):
        monkeypatch.setenv(serve.KEY_VARIABLE, "key")
        serve.job(["--model", str(folder), "--host", "no.such.host.invalid"])
