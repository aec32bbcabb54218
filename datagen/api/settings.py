"""Settings of API jobs: their command-line flags, and the keys, which come only from environment variables."""

from __future__ import annotations

import argparse
import os
import re
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datagen.api.chat import Message, Request, make_request
from datagen.api.known_models import parameters_of
from engine.base.errors import UserError

DEFAULT_BASE_URL = "https://api.openai.com/v1"
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
_MIN_SECRET_LENGTH = 16  # characters; a key this long does not occur in a text by chance
_NOT_SENT = "none"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ApiSettings:
    """Settings of an OpenAI-compatible API.

    base_urls          URLs without the final /chat/completions
    key_variables      names of environment variables: one for all endpoints, or one for each; a variable may contain
                       several keys, separated by commas
    temperature        overrides the command's temperature; None: keep the command's
    sends_temperature  False for a model that accepts no temperature
    max_tokens         default token limit of an answer
    max_tokens_field   the request field for that limit
    concurrency        the maximum number of requests in flight for each endpoint and key (lower while the API is
                       overloaded), and of records processed at once
    requests_per_min, tokens_per_min   limits for each key; None: learned from the answers' headers
    max_attempts       attempts per request
    budget_usd         maximum spending of all runs on one journal; None: no limit
    usd_per_m_prompt, usd_per_m_completion   prices per million tokens; None: from the price table
    retry_quarantined  request again what was refused, given up or rejected before
    window_s           the period of the limits "per minute"
    """

    model: str = "gpt-4o-mini"
    base_urls: tuple[str, ...] = (DEFAULT_BASE_URL,)
    key_variables: tuple[str, ...] = (DEFAULT_KEY_VARIABLE,)
    temperature: float | None = None
    sends_temperature: bool = True
    max_tokens: int = 2048
    max_tokens_field: str = "max_tokens"
    concurrency: int = 100
    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    max_attempts: int = 8
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    connect_timeout_s: float = 15.0
    first_byte_timeout_s: float = 180.0
    total_timeout_s: float = 300.0
    budget_usd: float | None = None
    usd_per_m_prompt: float | None = None
    usd_per_m_completion: float | None = None
    retry_quarantined: bool = False
    window_s: float = 60.0

    def request(self, messages: Sequence[Message], nonce: Any = None, **params: Any) -> Request:
        """Build the request of one `ask(messages, **params)`."""
        if not self.sends_temperature:
            params.pop("temperature", None)
        elif self.temperature is not None:
            params["temperature"] = self.temperature
        request = make_request(self.model, self.max_tokens, messages, nonce, **params)
        return replace(request, max_tokens_field=self.max_tokens_field)


@dataclass(frozen=True)
class Endpoint:
    """One URL with one key and an optional proxy. Its repr shows no secret."""

    url: str
    host: str
    key_variable: str
    _key: str
    _proxy: str | None

    def __repr__(self) -> str:
        return f"Endpoint({self.host})"

    @property
    def headers(self) -> dict[str, str]:
        """The request headers, including the key."""
        authorization = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return {"Content-Type": "application/json", **authorization}

    @property
    def proxy(self) -> str | None:
        """The proxy's URL, or None. It may contain a password."""
        return self._proxy

    def hide_key(self, text: str) -> str:
        """Replace the key, and shortened keys as some servers repeat them, in a message of the API.

        Use it for messages, never for answers. A short key can be a common word, because local servers accept any key:
        it is replaced only as a separate word.
        """
        if self._key:
            key = re.escape(self._key)
            text = re.sub(key if len(self._key) >= _MIN_SECRET_LENGTH else rf"(?<!\w){key}(?!\w)", "[key]", text)
        return re.sub(r"(?i)\b(?:(?:sk|pk|key)-|bearer\s+)\S+", "[key]", text)


def endpoints(settings: ApiSettings, environment: Mapping[str, str] = os.environ) -> list[Endpoint]:
    """Return an Endpoint for each URL and key. UserError for a bad URL, a missing variable or an invalid key."""
    variables = settings.key_variables
    if len(variables) not in (1, len(settings.base_urls)):
        counts = f"{len(variables)} --key-env for {len(settings.base_urls)} --base-url"
        raise UserError(f"{counts}: pass one for all, or one for each in the same order")
    variables = variables * len(settings.base_urls) if len(variables) == 1 else variables
    pairs = []
    for base_url, variable in zip(settings.base_urls, variables):
        parts = _checked_url(base_url)
        proxy = None if urllib.request.proxy_bypass(parts.hostname) else urllib.request.getproxies().get(parts.scheme)
        url = f"{base_url.rstrip('/')}/chat/completions"
        for key in _keys(variable, environment, is_local=parts.hostname in _LOOPBACK):
            pairs.append(Endpoint(url, parts.netloc, variable, key, proxy))
    return pairs


def _checked_url(url: str) -> urllib.parse.SplitResult:
    parts = urllib.parse.urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError("--base-url contains a password or a query: pass the bare URL, and keys by --key-env NAME")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base-url {url} is not an http(s) URL: write it like {DEFAULT_BASE_URL}")
    return parts


def _keys(variable: str, environment: Mapping[str, str], is_local: bool) -> list[str]:
    keys = [key.strip() for key in environment.get(variable, "").split(",") if key.strip()]
    if not keys and is_local:
        return [""]
    if not keys:
        raise UserError(f"no API key: set the environment variable {variable}, or name another with --key-env")
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise UserError(f"{variable} contains a character not allowed in an API key: set it without spaces or newlines")
    return keys


def add_api_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by all commands that use an API: API settings and the files of a run."""
    default = ApiSettings()
    api = parser.add_argument_group("API")
    api.add_argument("--model", default=default.model, help=f"the API's model name ({default.model})")
    api.add_argument("--base-url", action="append", metavar="URL", help=f"may be repeated ({DEFAULT_BASE_URL})")
    api.add_argument("--key-env", action="append", metavar="NAME", help=f"variable with keys ({DEFAULT_KEY_VARIABLE})")
    api.add_argument("--temperature", metavar="X", help="a number, or none to send none (by command and model)")
    max_tokens = default.max_tokens
    api.add_argument("--max-tokens", type=int, default=max_tokens, metavar="N", help="per answer (%(default)s)")
    api.add_argument("--max-tokens-field", metavar="F", help="its request field (by model: max_tokens)")
    api.add_argument("--concurrency", type=int, default=default.concurrency, metavar="N", help="requests at once (100)")
    api.add_argument("--rpm", type=int, metavar="N", help="requests per minute and key (learned)")
    api.add_argument("--tpm", type=int, metavar="N", help="tokens per minute and key (learned)")
    api.add_argument("--max-attempts", type=int, default=default.max_attempts, metavar="N", help="per request (8)")
    api.add_argument("--timeout", type=float, default=default.total_timeout_s, metavar="S", help="per attempt (300)")
    api.add_argument("--budget", type=float, metavar="USD", help="maximum spending (no limit)")
    api.add_argument("--price-in", type=float, metavar="USD", help="per million prompt tokens (price table)")
    api.add_argument("--price-out", type=float, metavar="USD", help="per million completion tokens (price table)")
    files = parser.add_argument_group("run")
    files.add_argument("--journal", type=Path, metavar="FILE", help="all paid answers (OUTPUT.journal)")
    files.add_argument("--quarantine", type=Path, metavar="FILE", help="failed records (OUTPUT.quarantine.jsonl)")
    files.add_argument("--retry-quarantined", action="store_true", help="request failed records again")
    files.add_argument("--dry-run", action="store_true", help="print requests, tokens, cost and hours; send nothing")


def api_settings(args: argparse.Namespace) -> ApiSettings:
    """Build the settings from parsed flags. UserError for a number out of range."""
    for flag in ("max_tokens", "concurrency", "rpm", "tpm", "max_attempts", "timeout", "budget"):
        value = getattr(args, flag)
        if value is not None and not value > 0:
            raise UserError(f"--{flag.replace('_', '-')} {value} must be above 0")
    for flag in ("price_in", "price_out"):
        value = getattr(args, flag)
        if value is not None and not value >= 0:
            raise UserError(f"--{flag.replace('_', '-')} {value} must be 0 or more")
    known = parameters_of(args.model)
    temperature, sends_temperature = _temperature(args.temperature), args.temperature != _NOT_SENT
    if args.temperature is None and known is not None:
        sends_temperature = known.takes_temperature
    return ApiSettings(
        model=args.model,
        temperature=temperature,
        sends_temperature=sends_temperature,
        base_urls=tuple(args.base_url or (os.environ.get("OPENAI_BASE_URL", DEFAULT_BASE_URL),)),
        key_variables=tuple(args.key_env or (DEFAULT_KEY_VARIABLE,)),
        max_tokens=args.max_tokens,
        max_tokens_field=args.max_tokens_field or (known.max_tokens_field if known else ApiSettings.max_tokens_field),
        concurrency=args.concurrency,
        requests_per_min=args.rpm,
        tokens_per_min=args.tpm,
        max_attempts=args.max_attempts,
        first_byte_timeout_s=min(ApiSettings.first_byte_timeout_s, args.timeout),
        total_timeout_s=args.timeout,
        budget_usd=args.budget,
        usd_per_m_prompt=args.price_in,
        usd_per_m_completion=args.price_out,
        retry_quarantined=args.retry_quarantined,
    )


def _temperature(text: str | None) -> float | None:
    if text is None or text == _NOT_SENT:
        return None
    try:
        temperature = float(text)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature <= 2:
        raise UserError(f"--temperature {text}: pass a number from 0 to 2, or {_NOT_SENT} to send none")
    return temperature
