"""How much one caller may ask: requests by time, and requests at once. A caller is a key; without keys, an address.

Only what makes work counts: POST routes that need the key. Limits hold for one server process.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from litestar.handlers.base import BaseRouteHandler

from server.auth import Connection
from server.config import ServerConfig
from server.errors import ApiError
from server.state import ServerState

if TYPE_CHECKING:
    from limits import RateLimitItem

_LEAVE = "backplane_leave"


class Limits:
    """Litestar guard of the whole app, behind the Gate, which says who calls."""

    def __init__(self, options: ServerConfig) -> None:
        self._at_once = options.max_concurrent_per_key
        self._running: Counter[str] = Counter()
        self._rates: list[RateLimitItem] = []
        self._limiter: Any = None
        if options.rate_limit:
            from limits import parse_many
            from limits.aio.storage import MemoryStorage
            from limits.aio.strategies import SlidingWindowCounterRateLimiter

            self._rates = parse_many(options.rate_limit)
            self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, connection: Connection, handler: BaseRouteHandler) -> None:
        if not (self._rates or self._at_once):
            return
        scope: Any = connection.scope
        if scope.get("method") != "POST" or handler.opt.get("public") or handler.opt.get("admin"):
            return
        caller = scope.get("backplane_caller") or (scope.get("client") or ["-"])[0]
        # what runs is looked at first: a request that is refused for it costs nothing of the rate
        if self._at_once and self._running[caller] >= self._at_once:
            raise ApiError(
                f"{self._at_once} requests of this key run already (max_concurrent_per_key); wait for one to end",
                status=429,
                code="concurrency_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        for rate in self._rates:
            if not await self._limiter.hit(rate, caller):
                stats = await self._limiter.get_window_stats(rate, caller)
                wait_s = max(1, math.ceil(stats.reset_time - time.time()))
                raise ApiError(
                    f"this key may send {rate} (rate_limit); try again in {wait_s} s",
                    status=429,
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(wait_s)},
                )
        if self._at_once:
            self._running[caller] += 1
            scope[_LEAVE] = lambda: self._leave(caller)

    def _leave(self, caller: str) -> None:
        self._running[caller] -= 1
        if self._running[caller] <= 0:
            del self._running[caller]


App = Callable[[Any, Any, Any], Awaitable[None]]


def counting(state: ServerState) -> Callable[..., App]:
    """Litestar middleware: counts requests that ask for work until they end, whole, streamed or broken off."""

    def middleware(app: App) -> App:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if scope.get("method") != "POST":
                return await app(scope, receive, send)
            state.accepted += 1
            try:
                await app(scope, receive, send)
            finally:
                state.accepted -= 1
                _leave(scope)

        return asgi

    return middleware


def _leave(scope: Any) -> None:
    if (leave := scope.pop(_LEAVE, None)) is not None:
        leave()
