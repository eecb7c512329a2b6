"""Exceptions -> OpenAI's error bodies with the right status."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from core.errors import CapacityError, EngineDeadError, QueueFullError, RequestError

logger = logging.getLogger("backplane")


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


class ApiError(Exception):
    """An error with its HTTP status."""

    def __init__(
        self, status: int, message: str, *, type: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.detail = ErrorDetail(message, type, param, code)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of any exception. Unknown ones are logged and say nothing of the inside."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), type="rate_limit_error", code="queue_full", headers={"Retry-After": "1"})
    if isinstance(error, RequestError):
        return ApiError(400, str(error), param=error.param)
    if isinstance(error, EngineDeadError | CapacityError):
        return ApiError(503, str(error), type="server_error", code="engine_unavailable")
    if isinstance(error, HTTPException):
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        return ApiError(error.status_code, str(error.detail), type=kind)
    logger.error("a request failed inside the server", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why", type="server_error")


def error_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    found = as_api_error(error)
    return Response(
        msgspec.json.encode(ErrorBody(found.detail)), status_code=found.status, media_type="application/json",
        headers=found.headers,
    )


def error_event(error: BaseException) -> bytes:
    """A server-sent event that says why a stream ends."""
    return b"data: " + msgspec.json.encode(ErrorBody(as_api_error(error).detail)) + b"\n\n"
