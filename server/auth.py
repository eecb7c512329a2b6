"""Who may call: Bearer keys, compared in constant time. Every route needs one unless it is marked public.

A route is public with `opt={"public": True}`, an administration route with `opt={"admin": True}`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler

from core.errors import ConfigError
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


def api_keys(options: ServerConfig) -> list[str]:
    """Keys of the options, the environment and the file. Raises ConfigError for a file that holds none."""
    keys = [*options.api_key, *os.environ.get("BACKPLANE_API_KEY", "").split(",")]
    if options.api_key_file:
        try:
            lines = Path(options.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file={options.api_key_file!r} cannot be read: {error}") from None
        found = [line.partition("#")[0].strip() for line in lines]
        if not any(found):
            # an empty file must not open the server to everybody
            raise ConfigError(f"api_key_file={options.api_key_file!r} holds no key; write one a line")
        keys += found
    return [k.strip() for k in keys if k.strip()]


class Gate:
    """Litestar guard of the whole app. A coroutine, since Litestar runs plain functions in a thread."""

    def __init__(self, options: ServerConfig) -> None:
        self._keys = KeyRing(api_keys(options))
        admin = options.admin_api_key or os.environ.get("BACKPLANE_ADMIN_API_KEY", "").strip()
        self._admin = KeyRing([admin] if admin else [])

    @property
    def has_keys(self) -> bool:
        return bool(self._keys)

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
            scope: Any = connection.scope
            scope["backplane_caller"] = hashlib.sha256(key.strip().encode()).hexdigest()
            return
        if admin and self._keys.holds(key.strip()):
            raise ApiError("this key may not use administration routes", status=403, code="not_admin")
        raise ApiError(
            "the API key is not valid", status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
