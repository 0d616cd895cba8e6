"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
"""By status; others are the client's: invalid_request_error."""


class ApiError(Exception):
    """A request that is not answered, and why.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, as a path: "messages[0].role".
        code: a word for programs, as "context_length_exceeded".
        headers: that the response has.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        what = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": what}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)
