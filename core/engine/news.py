"""How a client's task hears of its request, and the short way past it: what is new goes where it is wanted with no task
in between, and the task hears of the rest.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from core.engine.output_processor import Group, OutputProcessor
from core.outputs import RequestOutput


class News:
    """An event that one task waits for, and forgets when it is told. asyncio's own keeps a queue of those who wait."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._there = False
        self._waiter: asyncio.Future[None] | None = None

    def tell(self) -> None:
        self._there = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        if not self._there:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._there = False


class Outlet(Protocol):
    """Where the outputs of a stream may go as soon as they are there. Called in a callback of the loop: both are quick.

    What they raise, the task that waits gets.
    """

    def open(self) -> bool:
        """It takes one now. Otherwise what is new goes on gathering, until the task that waits for it takes it."""

    def put(self, output: RequestOutput) -> None: ...


class Round:
    """Streams that have something for their outlets, served in one callback of the loop.

    That runs behind all messages which are there by then, so that deltas merge where the engine is faster than this process.
    """

    def __init__(self) -> None:
        self._due: list[DirectNews] = []

    def add(self, news: DirectNews, loop: asyncio.AbstractEventLoop) -> None:
        if not self._due:
            loop.call_soon(self._run)
        self._due.append(news)

    def _run(self) -> None:
        due, self._due = self._due, []
        for news in due:
            news.deliver()


class DirectNews(News):
    """News of a stream with an outlet. The task that waits is told of an end, of an error, and of what the outlet leaves.

    Only while it waits does the outlet get anything: what the task took before has then gone its way.
    """

    group: Group
    """Set before anything is told."""

    def __init__(self, outlet: Outlet, outputs: OutputProcessor, round: Round) -> None:
        super().__init__()
        self._outlet, self._outputs, self._round = outlet, outputs, round
        self._due = False
        self._error: Exception | None = None

    def tell(self) -> None:
        if self._waiter is None or self.group.done or self.group.failure is not None:
            super().tell()
        elif not self._due:
            self._due = True
            self._round.add(self, self._loop)

    def deliver(self) -> None:
        self._due = False
        try:
            if self._waiter is None or self._there or not self._outlet.open():
                return super().tell()
            output = self._outputs.take(self.group)
            if output is not None:
                self._outlet.put(output)
        except Exception as error:  # of this stream alone: others are served behind it
            self._error = error
            super().tell()

    async def wait(self) -> None:
        await super().wait()
        if self._error is not None:
            raise self._error
