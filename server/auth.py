"""API keys: every route needs one, unless it is marked public."""

from __future__ import annotations

import hmac
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from server.errors import ApiError

PUBLIC = {"public": True}
"""`opt=PUBLIC` marks a route that needs no key."""


class KeyGuard:
    def __init__(self, keys: tuple[str, ...]) -> None:
        self._keys = [k.encode() for k in keys]

    def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        if not self._keys or handler.opt.get("public") or connection.scope.get("method") == "OPTIONS":
            return
        header = connection.headers.get("authorization", "")
        scheme, _, key = header.partition(" ")
        if not header:
            raise ApiError(
                401, "this server wants an API key: send 'Authorization: Bearer KEY'", type="authentication_error",
                code="missing_api_key", headers={"WWW-Authenticate": "Bearer"},
            )
        # every key is compared, each in constant time
        matches = [hmac.compare_digest(key.strip().encode(), k) for k in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401, "the API key is not one of this server's", type="authentication_error", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
