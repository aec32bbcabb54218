"""The simulator's faults: each is a function from a good response to a faulty one."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.base.errors import UserError


@dataclass(frozen=True)
class Response:
    """A response of the simulator. delivery: "whole", or one of these faults:

    hang            nothing is ever sent
    drip            the body comes byte by byte and never ends
    reset_before    the connection is reset before the first byte
    reset_headers   the connection is reset after the headers
    reset_half      the connection is reset after half of the body
    reset_after     the connection is reset after the whole response
    short_close     the connection is closed normally after half of the body
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    delivery: str = "whole"

    @property
    def is_answered(self) -> bool:
        """Whether the client receives a usable answer, which it would pay for."""
        return self.status == 200 and self.delivery in ("whole", "reset_after")


def completion(
    text: str | None, prompt_tokens: int, completion_tokens: int, finish_reason: str = "stop"
) -> dict[str, Any]:
    """Return a chat completion as a JSON object."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"id": "simulated", "object": "chat.completion", "choices": [choice], "usage": usage}


def error_response(status: int, code: str, message: str, **headers: str) -> Response:
    """Return an error in OpenAI's format. headers: with "_" for "-"."""
    body = json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()
    return Response(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def _delivered(delivery: str) -> Callable[[Response], Response]:
    return lambda good: dataclasses.replace(good, delivery=delivery)


def _with_headers(**headers: str) -> Callable[[Response], Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda good: dataclasses.replace(good, headers={**good.headers, **named})


def _without_limits(good: Response) -> Response:
    return dataclasses.replace(good, headers={k: v for k, v in good.headers.items() if not k.startswith("x-ratelimit")})


def _status(status: int, code: str = "server_error", **headers: str) -> Callable[[Response], Response]:
    return lambda good: error_response(status, code, f"simulated {status}", **headers)


def _retry_after_date(good: Response) -> Response:
    date = email.utils.formatdate(time.time() + 1, usegmt=True)
    return error_response(429, "rate_limit_exceeded", "simulated 429", retry_after=date, date=email.utils.formatdate())


def _refused_temperature(good: Response) -> Response:
    message = "Unsupported value: 'temperature' does not support it with this model. Only the default is supported."
    error = {"message": message, "type": "invalid_request_error", "param": "temperature", "code": "unsupported_value"}
    return Response(400, json.dumps({"error": error}).encode())


def _body(change: Callable[[dict[str, Any]], Any]) -> Callable[[Response], Response]:
    return lambda good: dataclasses.replace(good, body=json.dumps(change(json.loads(good.body))).encode())


def _content(change: Callable[[str], str | None], finish_reason: str = "stop") -> Callable[[Response], Response]:
    def changed(value: dict[str, Any]) -> dict[str, Any]:
        text = change(value["choices"][0]["message"]["content"])
        usage = value["usage"]
        return completion(text, usage["prompt_tokens"], usage["completion_tokens"], finish_reason)

    return _body(changed)


def _duplicate_key(text: str) -> str:
    """Return the JSON object with its first key repeated."""
    value = json.loads(text) if text.startswith("{") else {"answer": text}
    first = json.dumps(dict([next(iter(value.items()))]), ensure_ascii=False)
    return first[:-1] + ", " + json.dumps(value, ensure_ascii=False)[1:]


def _drop_first_key(text: str) -> str:
    value = json.loads(text) if text.startswith("{") else {}
    return json.dumps(dict(list(value.items())[1:]), ensure_ascii=False)


_LIMITS = ("limit_requests", "remaining_requests", "limit_tokens", "remaining_tokens")
_RATELIMIT = {name: f"x_ratelimit_{name}" for name in _LIMITS}

FAULTS: dict[str, Callable[[Response], Response]] = {
    **{name: _delivered(name) for name in ("hang", "drip", "reset_before", "reset_headers", "reset_half")},
    **{name: _delivered(name) for name in ("reset_after", "short_close")},
    **{str(status): _status(status) for status in (408, 409, 500, 502, 503, 504, 529)},
    "429": _status(429, "rate_limit_exceeded"),
    "429_seconds": _status(429, "rate_limit_exceeded", retry_after="1"),
    "429_ms": _status(429, "rate_limit_exceeded", retry_after_ms="50"),
    "429_date": _retry_after_date,
    "429_bad_header": _status(429, "rate_limit_exceeded", retry_after="soon"),
    "html": lambda good: Response(502, b"<html><body>Bad gateway</body></html>", {"content-type": "text/html"}),
    "empty_body": lambda good: dataclasses.replace(good, body=b""),
    "truncated_json": lambda good: dataclasses.replace(good, body=good.body[: len(good.body) // 2]),
    "empty_choices": _body(lambda value: {**value, "choices": []}),
    "null_content": _content(lambda text: None),
    "error_in_200": lambda good: dataclasses.replace(good, body=b'{"error": {"message": "overloaded"}}'),
    "no_usage": _body(lambda value: {name: item for name, item in value.items() if name != "usage"}),
    "cut_off": _content(lambda text: text[: len(text) // 2], "length"),
    "content_filter": _content(lambda text: None, "content_filter"),
    "fenced": _content(lambda text: f"```json\n{text}\n```"),
    "chatty": _content(lambda text: f"Here it is:\n{text}\nI hope this helps!"),
    "truncated_content": _content(lambda text: text[: len(text) // 2]),
    "duplicate_keys": _content(_duplicate_key),
    "wrong_counts": _content(_drop_first_key),
    "limits_minus_one": _with_headers(**dict.fromkeys(_RATELIMIT.values(), "-1")),
    "limits_zero": _with_headers(**dict.fromkeys(_RATELIMIT.values(), "0")),
    "limits_absent": _without_limits,
    "400": _status(400, "invalid_request_error"),
    "400_temperature": _refused_temperature,
    "401": _status(401, "invalid_api_key"),
    "403": _status(403, "permission_denied"),
    "404": _status(404, "model_not_found"),
    "insufficient_quota": _status(429, "insufficient_quota"),
}


def parse_faults(text: str) -> dict[str, float]:
    """Parse "429:0.1,hang:0.01" into name -> share of the requests. UserError for an unknown name or a bad share."""
    faults: dict[str, float] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, share = part.partition(":")
        if name not in FAULTS:
            raise UserError(f"--faults: unknown fault {name!r}: the faults are {', '.join(FAULTS)}")
        try:
            faults[name] = float(share or "1")
        except ValueError:
            raise UserError(f"--faults: {share!r} is not a number: write a share like {name}:0.1") from None
        if not 0 <= faults[name] <= 1:
            raise UserError(f"--faults: {name} has the share {share}: pass a number from 0 to 1")
    if sum(faults.values()) > 1 + 1e-9:
        raise UserError(f"--faults: the shares add up to {sum(faults.values()):g}: lower them to at most 1 in total")
    return faults
