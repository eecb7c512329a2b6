"""vLLM's names for what is here under other names; see docs/coming-from-vllm.md."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine, Prompt
from core.engine.engine import Engine
from core.outputs import RequestOutput
from core.sampling_params import SamplingParams

LLM = Engine


class AsyncEngineArgs:
    """Keywords of an engine, checked at once."""

    def __init__(self, **options: Any) -> None:
        self.config = EngineConfig.from_options(**options)


class AsyncLLMEngine:
    """AsyncEngine that starts with the first request."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = AsyncEngine(config)
        self._started = False

    @classmethod
    def from_engine_args(cls, args: AsyncEngineArgs) -> AsyncLLMEngine:
        return cls(args.config)

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        """Yield the whole output so far, again and again, as vLLM does."""
        if not self._started:
            self._started = True
            await self.engine.start()
        async for output in self.engine.generate(prompt, sampling_params, request_id, **options):
            yield output

    async def abort(self, request_id: str) -> None:
        await self.engine.abort(request_id)

    async def shutdown(self) -> None:
        await self.engine.shutdown()
