"""The server's limits: wrong requests, keys, full queues, disconnects, broken models, shutdown."""

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

from engine.base.errors import UserError
from engine.serving.live import LiveEngine
from launch import serve
from launch.serve import HttpSettings, ModelSettings, load, name_of
from tests.launch import small
from tests.launch.serving import CHAT, MAX_OPEN, NAME, TEXT, idle, post, served, with_client

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
    ("chat/completions", {**CHAT, "top_p": -0.1}, 400, "top_p", None),
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
async def test_errors_have_the_apis_form(client, server):
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


def test_failing_chat_template_is_a_request_error(folder, tmp_path):
    failing = load(
        ModelSettings(str(small.with_failing_chat_template(folder, tmp_path / "m")), max_length=128, slots=2)
    )

    async def test(client, server):
        for words in ("divide", "call", "lines", "nothing"):
            status, answer = await post(client, "chat/completions", {"messages": [{"role": "user", "content": words}]})
            assert (status, answer["error"]["param"]) == (400, "messages"), words
            assert "\n" not in answer["error"]["message"]
        assert (await post(client, "chat/completions", CHAT))[0] == 200

    with_client(failing, test)


@served
async def test_neutral_values_are_served(client, server):
    neutral = {"presence_penalty": 0, "logit_bias": {}, "tools": None, "user": "u", "response_format": {"type": "text"}}
    status, _ = await post(client, "chat/completions", {**CHAT, **neutral, "model": NAME, "max_tokens": None, "n": 1.0})
    assert status == 200


@served
async def test_disabled_options_are_ignored(client, server):
    for body in ({"top_logprobs": 0}, {"top_logprobs": 0, "logprobs": False}, {"logprobs": False, "audio": None}):
        status, answer = await post(client, "chat/completions", {**CHAT, **body})
        assert (status, answer["choices"][0]["logprobs"]) == (200, None), body
    for body in ({"logprobs": False}, {"logprobs": None, "suffix": None}):
        status, answer = await post(client, "completions", {**TEXT, **body})
        assert (status, answer["choices"][0]["logprobs"]) == (200, None), body


@served
async def test_top_p_0_takes_the_likeliest_token(client, server):
    bodies = ({"temperature": 0}, {"top_p": 0, "seed": 3}, {"top_p": 0, "seed": 4, "temperature": 2})
    texts = [(await post(client, "completions", {**TEXT, **body}))[1]["choices"][0]["text"] for body in bodies]
    assert texts[0]
    assert len(set(texts)) == 1


def test_api_key_protects_everything_but_health(loaded):
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
async def test_full_queue_answers_with_retry(client, server):
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
async def test_disconnect_cancels_requests(client, server):
    # Twelve requests for four slots: on any machine, most still wait when the client disconnects.
    long = {**TEXT, "max_tokens": 110, "min_tokens": 110, "n": 12}
    response = await client.post("/v1/completions", json={**long, "stream": True})
    await response.content.readany()
    response.close()
    await idle(server)
    task = asyncio.create_task(post(client, "completions", long))
    while not len(server.worker.engine.rows):
        await asyncio.sleep(0.001)
    task.cancel()
    await idle(server)
    assert server.worker.counts.cancelled >= 16
    assert server.worker.counts.new_tokens < 12 * 110
    assert (await post(client, "completions", TEXT))[0] == 200


def test_nan_probabilities_are_a_500(loaded):
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


def test_failed_step_ends_every_request(folder):
    class Failing(LiveEngine):
        def advance(self):
            if self.steps_left == 0:
                raise MemoryError("no memory for this step")
            self.steps_left -= 1
            return super().advance()

    async def test(client, server):
        long = {**TEXT, "max_tokens": 100, "min_tokens": 100}  # no EOS ends them before the step that fails
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


def test_sigterm_finishes_open_answers_and_takes_no_others(folder, capsys, monkeypatch):
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
            body = {**CHAT, "max_tokens": 1000, "min_tokens": 1000, "stream": True}
            async with session.post(f"{url}/v1/chat/completions", json=body) as stream:
                await stream.content.readany()
                os.kill(os.getpid(), signal.SIGTERM)
                async with aiohttp.ClientSession() as later:
                    with pytest.raises(aiohttp.ClientConnectorError):
                        while not task.done():
                            async with later.get(f"{url}/health", headers={"Connection": "close"}):
                                await asyncio.sleep(0.01)
                assert not task.done(), "the door is closed while an answer is still coming"
                text = await stream.text()
            assert text.endswith("data: [DONE]\n\n")
        await asyncio.wait_for(task, 20)

    asyncio.run(test())
    out = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/v1" in out
    assert out.endswith("ended\n")


def test_name_of_model_folder():
    assert name_of("runs/ne/ppo/model") == "ne-ppo"
    assert name_of("models/bloom-560m/") == "bloom-560m"


def test_wrong_settings_are_one_line(folder, monkeypatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    with pytest.raises(
        UserError, match="--host 0.0.0.0 can be reached from other machines and SERVE_API_KEY is not set: set it"
    ):
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
    with pytest.raises(UserError, match=r"the cache has 192 tokens, --max-length is 512: lower it to 127, or raise "):
        load(ModelSettings(str(folder), max_length=512, cache_tokens=200))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"--port \d+ cannot be listened on \(Address already in use\): choose"):
            serve.job(["--model", str(folder), "--port", str(taken.getsockname()[1])])
    with pytest.raises(UserError, match="--host no.such.host.invalid .* cannot be listened on"):
        monkeypatch.setenv(serve.KEY_VARIABLE, "key")
        serve.job(["--model", str(folder), "--host", "no.such.host.invalid"])
