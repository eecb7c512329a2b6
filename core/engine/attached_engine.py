"""AttachedEngine: one of several clients of an engine process that somebody else started and watches."""

from __future__ import annotations

import zmq

from core.config import EngineConfig
from core.engine.link import Link
from core.engine.remote import RemoteEngine
from core.messages import EngineReady, Join


class AttachedEngine(RemoteEngine):
    """`attach` first, and again for every engine that takes the place of a dead one. One event loop owns it."""

    def __init__(self, config: EngineConfig, client: int) -> None:
        """`client`: a number of 1 or more that no other client has or had."""
        super().__init__(config, client)
        self._number = client
        self._context: zmq.Context = zmq.Context()
        self._num_links = 0

    def attach(self, ready: EngineReady, inbox: str) -> None:
        """Join the engine that listens at `inbox`, a zmq address; ours is made beside it."""
        if self._link is not None:
            self._link.close()
        # an address of its own each time: zmq may take the last one away after we bound it again
        self._num_links += 1
        outbox = f"{inbox}-client{self._number}-{self._num_links}"
        link = Link(self._context, outbox, self._take, self._died)
        link.connect(inbox)
        link.send(Join(self._number, outbox))
        if self._client is None:
            self._begin(ready, link)
        else:
            self._begin_again(ready, link)

    def engine_died(self, why: str) -> None:
        """The owner says so: everything in flight ends with an error."""
        self._died(why)

    async def shutdown(self, drain_s: float = 0.0) -> None:
        """End what is in flight here; the engine goes on. Safe to call twice."""
        if self._closing:
            return
        if drain_s > 0:
            await self.drain(drain_s)
        self._end()
        if self._link is not None:
            self._link.close()
        self._context.term()
