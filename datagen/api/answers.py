"""Classify the HTTP response of a chat API: a reply, a retry, a refused request, or a fatal error."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datagen.api.chat import BROKEN, CUT, WITHHELD, Reply, Request, ending_of
from datagen.api.journal import NO_TOKENS, Tokens
from datagen.api.pricing import token_bound
from datagen.api.settings import Endpoint
from engine.base.strict_json import parse_whole

RETRIED_STATUSES = frozenset({408, 409, 425, 429, *range(500, 600)})
OVERLOAD_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
_MAX_MESSAGE = 200  # characters
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "account_deactivated"}
_MODEL_CODES = {"model_not_found", "invalid_model", "deployment_not_found", "deploymentnotfound"}
_PARAMETER_CODES = {"unsupported_parameter", "unsupported_value"}
_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
_ADVICE = {
    "temperature": "give another --temperature, or none to send none",
    "max_tokens": "add --max-tokens-field max_completion_tokens",
    "max_completion_tokens": "add --max-tokens-field max_tokens",
}
_TYPE_WORDS = {dict: "an object", int: "a number", float: "a number", bool: "a truth value"}


@dataclass(frozen=True)
class TryAgain:
    """The attempt failed; retry it. tokens: its cost, or None if unknown."""

    reason: str
    tokens: Tokens | None = NO_TOKENS
    overloaded: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Refused:
    """The API will not answer this request. Other requests may succeed."""

    reason: str
    tokens: Tokens = NO_TOKENS


@dataclass(frozen=True)
class Fatal:
    """The API will answer no request: the run stops and prints the reason."""

    reason: str


Outcome = Reply | TryAgain | Refused | Fatal
_Clean = Callable[[str], str]


def read_response(
    status: int, body: bytes, request: Request, endpoint: Endpoint, retry_after_s: float | None
) -> Outcome:
    """Return the outcome of a complete response.

    A reply keeps its text unchanged. Every other outcome hides API keys.
    """

    def clean(text: str) -> str:
        """Hide keys, join the lines to one, and cut it to _MAX_MESSAGE characters."""
        one = " ".join(endpoint.hide_key(text).split())
        return one if len(one) <= _MAX_MESSAGE else f"{one[:_MAX_MESSAGE]}..."

    if status == 200:
        return _read_answer(body, request, clean)
    host, key_variable = endpoint.host, endpoint.key_variable
    code, message, parameter = _read_error(body, clean)
    shown = f"{status}{f' {code}' if code else ''}{f': {message}' if message else ''}"
    if code in _QUOTA_CODES:
        return Fatal(f"{host} says {code}: the account of {key_variable} has no credit left: add credit and run again")
    if status == 401:
        return Fatal(f"{host} refuses the key in {key_variable} (401): set a valid key and run again")
    if status == 403:
        return Fatal(
            f"{host} forbids this request (403): check the rights of the key in {key_variable}, and the country"
        )
    if code in _MODEL_CODES:
        return Fatal(f"{host} has no model {request.model!r} for the key in {key_variable}: pass another --model")
    if status == 404 or status == 405:
        return Fatal(f"{host} serves no chat completions at this URL ({status}): check --base-url and --model")
    if 300 <= status < 400:
        return Fatal(f"{host} redirects to another address ({status}): pass that address as --base-url")
    if status in RETRIED_STATUSES:
        return TryAgain(shown, overloaded=status in OVERLOAD_STATUSES, retry_after_s=retry_after_s)
    if refused := _refused_parameter(code, message, parameter, request):
        what = f"{host} refuses the parameter {refused!r} for {request.model!r} ({shown})"
        return Fatal(f"{what}: {_ADVICE.get(refused, 'leave it out or change it')}, and run again")
    return Refused(f"the API refused the request: {shown}")


def _refused_parameter(code: str, message: str, parameter: str, request: Request) -> str | None:
    """Return the parameter that the server refuses for every request of the run, or None.

    If the error names no parameter, search its message. A token limit can be too large for one long prompt only, so it
    counts only if the server does not know the parameter at all.
    """
    is_unknown = code in _PARAMETER_CODES
    if parameter in _LIMIT_FIELDS:
        return parameter if is_unknown else None
    others = [name for name in request.params if name not in _LIMIT_FIELDS]
    if parameter:
        return parameter if parameter in others else None
    quoted = r"['\"`]{0}['\"`]|\b{0}="
    for name in others:
        says_support = re.search(rf"\b{name}\b", message, re.IGNORECASE) and "support" in message
        if says_support or re.search(quoted.format(re.escape(name)), message):
            return name
    return None


def _read_error(body: bytes, clean: _Clean) -> tuple[str, str, str]:
    """Return (code or type, message, parameter) of an error body: one short line each, without keys; "" if absent."""
    try:
        value = parse_whole(body.decode("utf-8"), any_text=True)
    except ValueError:
        return "", clean(body.decode("utf-8", "replace")), ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return "", clean(str(error)), ""
    names = [name for name in (error.get("code"), error.get("type")) if isinstance(name, str) and name]
    known = [name.lower() for name in names if name.lower() in _QUOTA_CODES | _MODEL_CODES]
    message = error.get("message") or error.get("detail") or ""  # FastAPI's errors have a `detail`
    parameter = error.get("param")
    code = (known or [clean(name) for name in names] or [""])[0]
    return code, clean(str(message)), clean(parameter) if isinstance(parameter, str) else ""


def _read_answer(body: bytes, request: Request, clean: _Clean) -> Outcome:
    try:
        value = parse_whole(body.decode("utf-8"), any_text=True)
    except ValueError as error:
        # A truncated body: the token usage is in the missing part.
        return TryAgain(f"malformed answer: {clean(str(error))}", tokens=None)
    if not isinstance(value, dict):
        return TryAgain("malformed answer: no JSON object", tokens=None)
    tokens = _usage(value.get("usage"))
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        if "error" in value:  # some gateways report errors with status 200
            return TryAgain(": ".join(filter(None, _read_error(body, clean)[:2])), tokens, overloaded=True)
        return TryAgain("malformed answer: no choices", tokens)
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if isinstance(finish_reason, str) else ""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        refusal = refusal or _joined(content, "refusal", {"refusal"})
        content = _joined(content, "text", {"text", "output_text", None})
    fault = _fault_of_text(content, refusal, finish_reason, tokens or token_bound(request), tokens, clean)
    if fault is not None:
        return fault
    if tokens is None:
        tokens = Tokens(token_bound(request).prompt, len(content.encode()))
    return Reply(content, finish_reason, *tokens)


def _joined(parts: list[Any], field: str, types: set[str | None]) -> str:
    """Join `field` of all parts with one of these types. Other types, such as a model's thoughts, are left out."""
    parts = [part for part in parts if isinstance(part, dict) and part.get("type") in types]
    return "".join(part[field] for part in parts if isinstance(part.get(field), str))


def _fault_of_text(
    text: Any, refusal: Any, finish_reason: str, paid: Tokens, tokens: Tokens | None, clean: _Clean
) -> TryAgain | Refused | None:
    """Return why the text is unusable, or None. Refused, not TryAgain, if a retry would give the same result."""
    ending = ending_of(finish_reason)
    if type(text) in _TYPE_WORDS:
        return Refused(f"the answer's content is no text, but {_TYPE_WORDS[type(text)]}", paid)
    if not text:
        if isinstance(refusal, str) and refusal:
            return Refused(f"the model refused: {clean(refusal)}", paid)
        if ending in (CUT, WITHHELD):
            return Refused(f"no text: finish_reason is {finish_reason}", paid)
        return TryAgain("malformed answer: no content", tokens)
    if ending == BROKEN:
        return TryAgain(f"the server broke the answer off: finish_reason is {finish_reason}", tokens)
    if any("\ud800" <= character <= "\udfff" for character in text):
        return TryAgain("malformed answer: half a character (a lone surrogate)", tokens)
    return None


def _usage(usage: Any) -> Tokens | None:
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    if len(counts) == 2 and all(type(count) is int and 0 <= count < 2**40 for count in counts):
        return Tokens(*counts)
    return None
