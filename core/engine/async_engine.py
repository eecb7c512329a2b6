"""AsyncEngine: the engine in a process of its own, for servers."""

from __future__ import annotations

from core.config import EngineConfig
from core.engine.engine_process import EngineProcess
from core.engine.input_processor import Prompt
from core.engine.remote import RemoteEngine

__all__ = ["AsyncEngine", "Prompt"]


class AsyncEngine(RemoteEngine):
    """Owns its engine process. `await start()` first. One event loop owns it."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._process: EngineProcess | None = None

    async def start(self) -> None:
        """Start the engine process and wait until it is ready. Raises what it failed with."""
        self._process = EngineProcess(self.config, self._take, self._died)
        try:
            ready = await self._process.spawn()
            self._begin(ready, self._process.link)
        except BaseException:
            await self._process.stop()
            raise

    async def restart(self) -> None:
        """Start an engine process in place of one that died; what was in flight has ended with an error by then.

        Raises what the new one fails with; it may be called again.
        """
        if self.errored is None or self._closing or self._process is None:
            return
        ready = await self._process.spawn(self.last_stats)
        self._begin_again(ready, self._process.link)

    async def shutdown(self, drain_s: float = 0.0) -> None:
        """Stop the engine process. Safe to call twice."""
        if self._closing:
            return
        if drain_s > 0:
            await self.drain(drain_s)
        self._closing = True
        if self._process is not None:
            await self._process.stop()
        self._end()
