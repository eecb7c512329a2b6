"""Who may call: Bearer keys, compared in constant time. Every route needs one unless it is marked public.

A route is public with `opt={"public": True}`, an administration route with `opt={"admin": True}`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from server.config import ServerConfig
from server.errors import ApiError

Connection = ASGIConnection[Any, Any, Any, Any]


class KeyRing:
    """Digests of the keys. Comparing digests takes the same time whatever the keys' lengths."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(k.encode()).digest() for k in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holds(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        # every digest is compared, so that the time does not tell which one fits
        return any([hmac.compare_digest(digest, d) for d in self._digests])


class Gate:
    """Litestar guard of the whole app. A coroutine, since Litestar runs plain functions in a thread."""

    def __init__(self, options: ServerConfig) -> None:
        env = os.environ.get("BACKPLANE_API_KEY", "")
        self._keys = KeyRing((*options.api_key, *([env] if env else [])))
        self._admin = KeyRing([options.admin_api_key] if options.admin_api_key else [])

    async def __call__(self, connection: Connection, handler: BaseRouteHandler) -> None:
        if handler.opt.get("public") or connection.scope.get("method") == "OPTIONS":
            return
        admin = bool(handler.opt.get("admin"))
        if admin and not self._admin:
            if self._keys:
                raise ApiError("administration routes are off; set --admin-api-key", status=403, code="admin_off")
            return
        ring = self._admin if admin else self._keys
        if not ring:
            return
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        if not key and (other := connection.headers.get("x-api-key")):
            scheme, key = "bearer", other
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                "no API key; send it as `Authorization: Bearer KEY`",
                status=401,
                code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if ring.holds(key.strip()):
            return
        if admin and self._keys.holds(key.strip()):
            raise ApiError("this key may not use administration routes", status=403, code="not_admin")
        raise ApiError(
            "the API key is not valid", status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
