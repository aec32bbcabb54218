"""Classification of responses: replies, retries, refused requests, fatal errors; keys are never shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from datagen.api.answers import Fatal, Refused, TryAgain, read_response
from datagen.api.chat import COMPLETE, CUT, UNKNOWN, WITHHELD, Reply, make_request
from datagen.api.settings import ApiSettings, Endpoint, endpoints
from datagen.translation.answer_json import parse_answer_object
from engine.base.errors import UserError

REQUEST = make_request("gpt-4o-mini", 50, [{"role": "user", "content": "नमस्ते"}], temperature=0.3)
BOUND = (16 + 8 + 18, 50)


def endpoint(key="sk-secret-0123456789"):
    return Endpoint("https://api.example/v1/chat/completions", "api.example", "MY_KEY", key, None)


def read(status, body, retry_after_s=None, key="sk-secret-0123456789"):
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return read_response(status, body, REQUEST, endpoint(key), retry_after_s)


def answer(text="hello", finish_reason="stop", usage=(5, 7), **message):
    choice = {"message": {"content": text, **message}, "finish_reason": finish_reason}
    body = {"choices": [choice]}
    if usage:
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), usage))
    return body


def error(code, message="because", kind=None):
    return {"error": {"code": code, "type": kind, "message": message}}


def test_answer_with_and_without_finish_reason():
    assert read(200, answer("नेपाल")) == Reply("नेपाल", "stop", 5, 7)
    assert read(200, answer(finish_reason=None)) == Reply("hello", "", 5, 7)


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": "नेपाल"}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "नेपाल"}],
        [{"type": "output_text", "text": "नेपा", "annotations": []}, {"text": "ल"}],
    ],
)
def test_content_parts_are_joined(parts):
    assert read(200, answer(parts)) == Reply("नेपाल", "stop", 5, 7)


@pytest.mark.parametrize(
    ("ending", "spellings"),
    [
        (COMPLETE, ["stop", "", "eos", "eos_token", "end_turn", "stop_sequence", "STOP", "COMPLETE"]),
        (CUT, ["length", "max_tokens", "MAX_TOKENS", "model_length"]),
        (WITHHELD, ["content_filter", "SAFETY", "refusal"]),
        (UNKNOWN, ["full moon", "tool_calls"]),
    ],
)
def test_finish_reason_spellings(ending, spellings):
    for spelling in spellings:
        reply = read(200, answer(finish_reason=spelling))
        assert (reply.ending, reply.finish_reason) == (ending, spelling)
        assert (reply.fault is None) == (ending in (COMPLETE, UNKNOWN))


@pytest.mark.parametrize("key", ["test", "null", "e", "5", "content", "sk-secret-0123456789"])
def test_answers_keep_text_equal_to_the_key(key):
    text = "getestet: the test was null, 5 e's, content sk-secret-0123456789"
    assert read(200, answer(text), key=key) == Reply(text, "stop", 5, 7)
    assert read(200, answer(text, None), key=key) == Reply(text, "", 5, 7)


@pytest.mark.parametrize(
    ("key", "message", "shown"),
    [
        ("sk-secret-0123456789", "bad key sk-secret-0123456789", "bad key [key]"),
        ("abcdef0123456789", "bad key nabcdef0123456789x", "bad key n[key]x"),
        ("test", "the latest test: my_test, test.", "the latest [key]: my_test, [key]."),
        ("e", "here is e", "here is [key]"),
        ("rate_limit_exceeded", "slow down", "slow down"),
    ],
)
def test_error_messages_hide_the_key(key, message, shown):
    """A key that is a common word, as local servers accept, is replaced only as a separate word."""
    outcome = read(500, error("rate_limit_exceeded", message), key=key)
    code = "[key]" if key == "rate_limit_exceeded" else "rate_limit_exceeded"
    assert outcome.reason == f"500 {code}: {shown}"


@pytest.mark.parametrize("usage", [None, (-1, 7), ("5", 7), (True, 7), (None, None), (2**50, 1)])
def test_invalid_usage_charges_the_bound(usage):
    assert read(200, answer("é!", usage=usage)) == Reply("é!", "stop", BOUND[0], 3)


@pytest.mark.parametrize(
    ("body", "reason", "tokens"),
    [
        (b"", "malformed answer: Expecting value", None),
        (json.dumps(answer()).encode()[:-9], "malformed answer: ", None),
        (json.dumps(answer()).encode() + b"}", "malformed answer: more text after the value", None),
        (b"[" * 100_000, "malformed answer: nested deeper than 100", None),
        (b'{"choices": [], "choices": []}', "malformed answer: field 'choices' is given twice", None),
        (b'{"choices": NaN}', "malformed answer: NaN is not a JSON value", None),
        (b"\xff\xfe", "malformed answer: 'utf-8' codec", None),
        (["hello"], "malformed answer: no JSON object", None),
        ({"choices": []}, "malformed answer: no choices", None),
        ({"choices": None}, "malformed answer: no choices", None),
        ({"choices": ["x"]}, "malformed answer: no choices", None),
        ({**answer(), "choices": []}, "malformed answer: no choices", (5, 7)),
        (answer(None), "malformed answer: no content", (5, 7)),
        (answer(""), "malformed answer: no content", (5, 7)),
        (answer([{"type": "thinking", "thinking": "Hm."}]), "malformed answer: no content", (5, 7)),
        (answer("half of i", "abort"), "the server broke the answer off: finish_reason is abort", (5, 7)),
        (answer("a\ud800b"), "malformed answer: half a character", (5, 7)),
        (error("overloaded", "try later"), "overloaded: try later", None),
    ],
)
def test_malformed_answers_are_retried(body, reason, tokens):
    outcome = read(200, body)
    assert isinstance(outcome, TryAgain)
    assert outcome.reason.startswith(reason)
    assert outcome.tokens == tokens


@pytest.mark.parametrize(
    ("body", "reason", "tokens"),
    [
        (answer(None, refusal="I cannot help"), "the model refused: I cannot help", (5, 7)),
        (answer(None, "content_filter"), "no text: finish_reason is content_filter", (5, 7)),
        (answer("", "length", usage=None), "no text: finish_reason is length", BOUND),
        (answer(None, "MAX_TOKENS"), "no text: finish_reason is MAX_TOKENS", (5, 7)),
        (answer(None, "SAFETY"), "no text: finish_reason is SAFETY", (5, 7)),
        (answer([{"type": "refusal", "refusal": "No."}]), "the model refused: No.", (5, 7)),
        (answer({"text": "hello"}), "the answer's content is no text, but an object", (5, 7)),
        (answer(7), "the answer's content is no text, but a number", (5, 7)),
    ],
)
def test_unusable_answers_are_refused_without_retry(body, reason, tokens):
    assert read(200, body) == Refused(reason, tokens)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 520, 529])
def test_temporary_statuses_are_retried(status):
    outcome = read(status, error("rate_limit_exceeded"), 2.5)
    assert outcome == TryAgain(
        f"{status} rate_limit_exceeded: because", overloaded=outcome.overloaded, retry_after_s=2.5
    )
    assert outcome.tokens == (0, 0)
    assert outcome.overloaded == (status not in (409, 425, 520))


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_request_errors_are_refused(status):
    assert read(status, error("context_length_exceeded")) == Refused(
        f"the API refused the request: {status} context_length_exceeded: because"
    )


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (429, error("insufficient_quota"), "the account of MY_KEY has no credit left"),
        (429, error(None, kind="insufficient_quota"), "the account of MY_KEY has no credit left"),
        (429, error("x", kind="billing_hard_limit_reached"), "the account of MY_KEY has no credit left"),
        (401, error("invalid_api_key"), "refuses the key in MY_KEY (401)"),
        (403, b"<html>", "forbids this request (403): check the rights of the key in MY_KEY"),
        (404, error("model_not_found"), "has no model 'gpt-4o-mini' for the key in MY_KEY"),
        (400, error("model_not_found"), "has no model 'gpt-4o-mini'"),
        (404, b"not found", "serves no chat completions at this URL (404): check --base-url and --model"),
        (405, b"", "serves no chat completions at this URL (405)"),
        (301, b"", "redirects to another address (301)"),
    ],
)
def test_fatal_errors(status, body, says):
    outcome = read(status, body)
    assert isinstance(outcome, Fatal)
    assert says in outcome.reason
    assert outcome.reason.startswith("api.example ") and "\n" not in outcome.reason


def parameter_error(param, message, code=None, status=400):
    return read(status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


@pytest.mark.parametrize(
    ("outcome", "advice"),
    [
        (
            parameter_error("temperature", "'temperature' does not support 0.3", "unsupported_value"),
            "--temperature",
        ),
        (parameter_error(None, "litellm.UnsupportedParamsError: it doesn't take temperature=0.3"), "--temperature"),
        (parameter_error(None, "`temperature` may only be 1 when thinking is on"), "--temperature"),
        (parameter_error(None, "Temperature is not supported by this model"), "--temperature"),
        (read(422, {"detail": [{"loc": ["body", "temperature"], "msg": "extra"}]}), "--temperature"),
        (
            parameter_error("max_tokens", "Use 'max_completion_tokens' instead.", "unsupported_parameter"),
            "--max-tokens-field max_completion_tokens",
        ),
        (
            parameter_error("max_completion_tokens", "Unsupported parameter", "unsupported_parameter"),
            "--max-tokens-field max_tokens",
        ),
    ],
)  # fmt: skip
def test_refused_parameter_is_fatal(outcome, advice):
    assert isinstance(outcome, Fatal)
    assert outcome.reason.startswith("api.example refuses ") and "'gpt-4o-mini'" in outcome.reason
    assert advice in outcome.reason and "\n" not in outcome.reason


@pytest.mark.parametrize(
    "outcome",
    [
        parameter_error("messages", "maximum context length is 8192 tokens", "context_length_exceeded"),
        parameter_error("max_tokens", "'max_tokens' is too large: the context is 8192, the input 8000"),
        parameter_error(None, "'max_tokens' or 'max_completion_tokens' is too large: 4096"),
        parameter_error(None, "The prompt was filtered"),
        parameter_error("top_p", "'top_p' was not sent"),
    ],
)
def test_error_in_one_request_is_not_fatal(outcome):
    assert isinstance(outcome, Refused)


@pytest.mark.parametrize("body", [b"<html>\n<b>no</b>", b'"plain"', b"{", b"null", b'{"error": "why"}', b"x" * 9999])
def test_error_bodies_become_one_short_line(body):
    outcome = read(500, body)
    assert outcome.reason.startswith("500") and "\n" not in outcome.reason and len(outcome.reason) < 250


@pytest.mark.parametrize("shown", ["sk-proj-abc123", "sk-ab****yz", "Bearer abcdefgh", "key-0123"])
def test_keys_repeated_by_the_server_are_hidden(shown):
    outcome = read(500, error("x", f"Incorrect API key provided: {shown}. Find yours elsewhere"))
    assert shown not in outcome.reason and "[key]" in outcome.reason


def settings(*urls, variables=("MY_KEY",)):
    return ApiSettings(base_urls=urls or ("https://api.example/v1/",), key_variables=variables)


def test_endpoints_and_keys():
    (one,) = endpoints(settings(), {"MY_KEY": " secret1 "})
    assert one.url == "https://api.example/v1/chat/completions"
    assert one.headers["Authorization"] == "Bearer secret1"
    assert "secret1" not in repr(one)
    both = endpoints(settings("https://a/v1", "https://b/v1"), {"MY_KEY": "secret1, secret2,"})
    assert [(e.host, e.headers["Authorization"][-1]) for e in both] == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2")]
    each = endpoints(settings("https://a/v1", "https://b/v1", variables=("A", "B")), {"A": "k1", "B": "k2"})
    assert [(e.host, e.headers["Authorization"]) for e in each] == [("a", "Bearer k1"), ("b", "Bearer k2")]


def test_local_server_needs_no_key():
    (one,) = endpoints(settings("http://localhost:8080/v1"), {})
    assert "Authorization" not in one.headers


def test_proxies_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://user:word@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "localhost,inside.example")
    (outside,) = endpoints(settings("https://api.example/v1"), {"MY_KEY": "k"})
    assert outside.proxy == "http://user:word@proxy.example:3128" and "word" not in repr(outside)
    (inside,) = endpoints(settings("https://inside.example/v1"), {"MY_KEY": "k"})
    assert inside.proxy is None


@pytest.mark.parametrize(
    ("url", "key", "says"),
    [
        ("https://me:secretword@api.example/v1", "k", "contains a password or a query"),
        ("https://api.example/v1?key=secretword", "k", "contains a password or a query"),
        ("ftp://api.example/v1", "k", "is not an http(s) URL"),
        ("api.example/v1", "k", "is not an http(s) URL"),
        ("https://api.example/v1", "", "set the environment variable MY_KEY"),
        ("https://api.example/v1", "secret\nword", "MY_KEY contains a character not allowed in an API key"),
        ("https://api.example/v1", "“secretword”", "MY_KEY contains a character not allowed in an API key"),
    ],
)
def test_bad_endpoint_errors_hide_the_secret(url, key, says):
    with pytest.raises(UserError) as caught:
        endpoints(settings(url), {"MY_KEY": key})
    assert says in str(caught.value) and "word" not in str(caught.value).replace("password", "")


def test_endpoints_and_key_variables_must_match():
    with pytest.raises(UserError, match="2 --key-env for 3 --base-url"):
        endpoints(settings("https://a", "https://b", "https://c", variables=("A", "B")), {})


@pytest.mark.parametrize("text", ['{"a": 1}', ' {"a": 1}\n', '```json\n{"a": 1}\n```', '```\n{"a": 1}\n```\n'])
def test_answer_object_bare_or_fenced(text):
    assert parse_answer_object(text) == {"a": 1}


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', 'Here: {"a": 1}', '{"a": 1} done', '{"a": 1', "[1]", "", '```json\n{"a": 1}', '{"a": NaN}']
    + ['{"a": "cut \\ud83d"}', '{"a": ["\\ude00"]}', '{"\\ud83d": 1}']
    + ['```json\n{"a": 1}\n```\n```json\n{"a": 2}\n```', "```python\nx\n```", "[" * 100_000],
)
def test_other_answer_texts_are_refused(text):
    with pytest.raises(ValueError):
        parse_answer_object(text)


def test_request_key_ignores_field_order():
    messages = [{"role": "user", "content": "x"}]
    a = make_request("m", 50, messages, temperature=0, top_p=1)
    b = make_request("m", 99, [{"content": "x", "role": "user"}], top_p=1, temperature=0, max_tokens=50)
    assert a.key == b.key and len(a.key) == 16
    others = [make_request("m", 51, messages, temperature=0, top_p=1), make_request("n", 50, messages, temperature=0)]
    others += [make_request("m", 50, messages, nonce=n, temperature=0, top_p=1) for n in (1, 2)]
    assert len({request.key for request in [a, *others]}) == 5


def test_nonce_is_not_sent():
    request = make_request("m", 50, [{"role": "user", "content": "x"}], nonce=7, temperature=0)
    sent = json.loads(replace(request, max_tokens_field="max_completion_tokens").body())
    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "max_completion_tokens": 50,
        "temperature": 0,
    }
