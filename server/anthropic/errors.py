"""Exceptions -> answers in Anthropic's error shape: {"type": "error", "error": {type, message}, "request_id": ...}."""

from __future__ import annotations

from typing import Any

from litestar import Request, Response

from server.errors import ApiError, encode, normalise, to_api_error
from server.state import request_id

_ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: BaseException, id: str) -> tuple[ApiError, dict[str, Any]]:
    answer = to_api_error(error)
    kind = _ERRORS.get(answer.status, "invalid_request_error" if answer.status < 500 else "api_error")
    return answer, {"type": "error", "error": {"type": kind, "message": answer.message}, "request_id": id}


def handle(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Exception handler of these routes: Anthropic's error shape, for what the guards say too."""
    id = request_id(request)
    answer, body = error_body(normalise(request, error), id)
    headers = {"request-id": id, **answer.headers}
    return Response(encode(body), status_code=answer.status, media_type="application/json", headers=headers)
