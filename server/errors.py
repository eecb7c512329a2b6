"""Exceptions -> HTTP answers in OpenAI's error shape: {"error": {message, type, param, code}}.

What went wrong inside is logged, never sent: a client learns of a 500 only that it happened.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException

from core.errors import BackplaneError, EngineDeadError, QueueFullError, RequestAbortedError, RequestError

log = logging.getLogger("backplane.server")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "request_aborted",
    503: "service_unavailable",
}
RETRY_AFTER_S = 1


class ApiError(Exception):
    """An answer that is not 200. `param` is the offending field, as the client spelled it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.param = param
        self.code = code
        self.type = type or _TYPES.get(status, "server_error")
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def unsupported(param: str, why: str) -> ApiError:
    return ApiError(f"{param} is not supported: {why}", param=param, code="unsupported_parameter")


def invalid(param: str, message: str) -> ApiError:
    return ApiError(message, param=param, code="invalid_value")


def rename(error: BaseException, names: Mapping[str, str]) -> None:
    """Give an error the parameter names of another API: `names` maps ours to theirs, in `param` and the message."""
    if not isinstance(error, ApiError | RequestError) or not error.param:
        return
    for ours in sorted(names, key=len, reverse=True):
        if re.match(re.escape(ours) + r"(?![\w])", error.param):
            error.param = names[ours] + error.param[len(ours) :]
            text = names[ours].join(re.split(rf"(?<![\w.]){re.escape(ours)}(?![\w])", str(error)))
            error.args = (text,)
            if isinstance(error, ApiError):
                error.message = text
            return


def from_decode_error(error: Exception) -> ApiError:
    """A body that msgspec refused."""
    if isinstance(error, msgspec.ValidationError):
        text = str(error)
        match = re.search(r" - at `\$\.?([^`]*)`$", text)
        param = re.sub(r"\[\.\.\.\]", "", match[1]) if match else None
        message = text[: match.start()] if match else text
        missing = re.search(r"missing required field `([^`]+)`", message)
        if missing:
            param = f"{param}.{missing[1]}" if param else missing[1]
            return ApiError(f"{param} is required", param=param, code="missing_required_parameter")
        return ApiError(
            f"{param or 'the body'} has the wrong type: {message[:1].lower()}{message[1:]}",
            param=param or None,
            code="invalid_type",
        )
    return ApiError(f"the body is not JSON: {error}", code="invalid_json")


def to_api_error(error: BaseException) -> ApiError:
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return ApiError(str(error), status=429, code="queue_full", headers={"Retry-After": str(RETRY_AFTER_S)})
        case RequestError():
            code = "context_length_exceeded" if "max_model_len" in str(error) else "invalid_value"
            return ApiError(str(error), param=error.param, code=code)
        case EngineDeadError():
            return ApiError(str(error), status=503, code="engine_dead")
        case RequestAbortedError():
            return ApiError(str(error), status=503, code="request_aborted")
        case ClientGoneError():
            return ApiError("the client closed the connection", status=499)
        case HTTPException() if error.status_code < 500:
            codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
            return ApiError(
                error.detail,
                status=error.status_code,
                code=codes.get(error.status_code),
                headers=dict(error.headers or {}),
            )
        case _:
            log.error("request failed", exc_info=error)
            message = str(error) if isinstance(error, BackplaneError) else "internal error; the server's log has more"
            return ApiError(message, status=500, code="internal_error")


def to_response(error: BaseException) -> Response[bytes]:
    answer = to_api_error(error)
    return Response(
        encode(answer.body()), status_code=answer.status, media_type="application/json", headers=answer.headers
    )


def normalise(request: Request[Any, Any, Any], error: Exception) -> Exception:
    """Litestar's own exceptions in our words."""
    if not isinstance(error, HTTPException):
        return error
    if error.status_code == 404:
        return ApiError(f"no route {request.method} {request.url.path}{_meant(request)}", status=404, code="not_found")
    if error.status_code == 405:
        return ApiError(
            f"{request.url.path} does not take {request.method}",
            status=405,
            code="method_not_allowed",
            headers=dict(error.headers or {}),
        )
    if error.status_code == 413:
        limit = request.app.state.server.options.max_body_bytes
        return ApiError(
            f"the body is larger than {limit} bytes (max_body_bytes); send less, or raise the limit",
            status=413,
            code="body_too_large",
        )
    return error


def _meant(request: Request[Any, Any, Any]) -> str:
    """The route that a base URL without /v1, or with two of them, has missed."""
    path = request.url.path.rstrip("/")
    known = {route.path for route in request.app.routes}
    for near in (f"/v1{path}", path.removeprefix("/v1")):
        if near != path and near in known:
            return (
                f"; did you mean {near}? Clients of OpenAI want a base URL that ends with /v1, Anthropic's one without"
            )
    return ""


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar's exception handler, for everything."""
    return to_response(normalise(request, error))


def finite(value: Any) -> Any:
    """JSON knows no infinity: OpenAI's own stand-in for an impossible token is -9999."""
    return value if math.isfinite(value) else -9999.0


encode = msgspec.json.Encoder().encode
