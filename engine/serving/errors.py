"""Errors in the API's format: a status, and a body that names the parameter and the mistake."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An error response. code and param as in OpenAI's API reference; retry_after_s becomes the header."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        message = " ".join(message.split())  # one line, even if a chat template or a library wrote several
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return a 400 error."""
    return ApiError(400, message, param, code)
