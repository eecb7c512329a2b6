"""AsyncEngine: the engine in a process of its own, for servers."""

from __future__ import annotations

import asyncio

from core.config import EngineConfig
from core.engine.engine_process import EngineProcess
from core.engine.input_processor import Prompt
from core.engine.remote import RemoteEngine
from core.executor.model_source import find_local_model
from core.text.model_text import ModelText

__all__ = ["AsyncEngine", "Prompt"]


class AsyncEngine(RemoteEngine):
    """Owns its engine process. `await start()` first. One event loop owns it."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self._process: EngineProcess | None = None

    async def start(self) -> None:
        """Start the engine process and wait until it is ready. Raises what it failed with."""
        self._process = EngineProcess(self.config, self._take, self._died)
        spawning = asyncio.create_task(self._process.spawn())
        try:
            ready, text = await asyncio.gather(spawning, self._early_text())
            self._begin(ready, self._process.link, text)
        except BaseException:
            spawning.cancel()
            await asyncio.gather(spawning, return_exceptions=True)
            await self._process.stop()
            raise

    async def _early_text(self) -> ModelText | None:
        """Tokenizer and template, while the engine loads the weights: 0.4 s for 128k tokens, and what is wrong with them is
        known before. None: the model has to be fetched first, or something else is wrong, which the engine says."""
        folder = find_local_model(self.config.model, self.registry)
        if folder is None or not (folder / "config.json").is_file():
            return None
        return await asyncio.to_thread(ModelText, self.config.model, folder)

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
