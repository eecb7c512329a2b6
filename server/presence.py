"""Whether a request's client is still there: what is done for it ends when it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeVar

from server.connection import OwnConnection, own_connection
from server.errors import ClientGoneError
from server.state import HttpRequest

T = TypeVar("T")


def unless_gone(request: HttpRequest, work: Awaitable[T]) -> Awaitable[T]:
    """Await `work`; cancel it as soon as the client is gone, and raise ClientGoneError. A handler is told in no other way."""
    return while_there(request.scope, request.receive, work)


async def while_there(scope: Any, receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """`unless_gone`, of ASGI's scope and `receive`. A body must have been read."""
    connection = own_connection(scope)
    if connection is None:
        return await _race(receive, work)
    with _Presence(connection):
        return await work


class _Presence:
    """Cancels the task within as its connection is lost, as asyncio.timeout does when time is up: no task has to watch."""

    def __init__(self, connection: OwnConnection) -> None:
        self._connection = connection
        self._is_gone = self._is_over = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._connection.watch(self._leave)

    def _leave(self) -> None:
        if not (self._is_gone or self._is_over):
            self._is_gone = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._connection.unwatch(self._leave)
        # somebody else may have cancelled the task too: that goes on
        if self._is_gone and self._task.uncancel() <= self._cancelling:
            raise ClientGoneError from error


async def _race(receive: Callable[[], Awaitable[Any]], work: Awaitable[T]) -> T:
    """The same under another server, which tells nobody but who asks."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for t in (task, watcher):
            if not t.done():
                t.cancel()
        # both must be over before somebody reads the connection again or the handler's state goes
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
