"""vLLM's names for what is here under other names; see docs/coming-from-vllm.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from core.beam_search import BeamSearchParams
from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine, Prompt
from core.engine.engine import Engine
from core.errors import RequestError
from core.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput, TokenLogprob
from core.sampling_params import GuidedDecodingParams, SamplingParams

StructuredOutputsParams = GuidedDecodingParams


@dataclass(slots=True)
class BeamSearchSequence:
    """One answer, behind its prompt."""

    tokens: list[int]
    cum_logprob: float
    """Of the answer."""
    text: str
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: list[list[TokenLogprob]] | None


@dataclass(slots=True)
class BeamSearchOutput:
    """The answers to one prompt, the best first."""

    sequences: list[BeamSearchSequence]


class LLM(Engine):
    """Engine, with the names of vLLM that it does not have itself."""

    def generate(
        self,
        prompts: Any = None,
        params: Any = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> Any:
        """`Engine.generate`; prompt_token_ids: the older way to give prompts as token ids."""
        if prompt_token_ids is not None:
            if prompts is not None:
                raise RequestError("prompts and prompt_token_ids exclude each other", param="prompt_token_ids")
            prompts = prompt_token_ids
        if prompts is None:
            raise RequestError("prompts is missing", param="prompts")
        return super().generate(prompts, params, **options)

    # another type than Engine's, whose name it shares because vLLM's has both the name and the type
    def beam_search(self, prompts: Any, params: BeamSearchParams) -> list[BeamSearchOutput]:  # type: ignore[override]
        """`Engine.beam_search`; in its outputs, as in vLLM's, prompt and answer are one."""
        return [
            BeamSearchOutput([self._sequence(found.prompt_token_ids, answer) for answer in found.outputs])
            for found in super().beam_search(prompts, params)
        ]

    def _sequence(self, prompt_ids: list[int], answer: CompletionOutput) -> BeamSearchSequence:
        ids = prompt_ids + answer.token_ids
        text = "" if self.tokenizer is None else self.tokenizer.decode(ids)
        return BeamSearchSequence(
            ids, answer.cumulative_logprob or 0.0, text, answer.finish_reason, answer.stop_reason, answer.logprobs
        )

    def get_tokenizer(self) -> Any:
        """With `encode`, `decode` and `chat_template`; None with skip_tokenizer_init."""
        return self.tokenizer

    def encode(self, prompts: Any, *, pooling_task: str = "embed", **options: Any) -> list[EmbeddingRequestOutput]:
        """`embed`. Outputs have their vector as `.outputs.data`."""
        _check_task(pooling_task)
        return self.embed(prompts, **options)

    def score(self, first: Any, second: Any, **options: Any) -> list[float]:
        """Cosine similarity of the embeddings of texts, pair by pair; one `first` is paired with every `second`."""
        a, b = self.embed(first, **options), self.embed(second, **options)
        if len(a) not in (1, len(b)):
            raise RequestError(f"{len(a)} texts cannot be paired with {len(b)}; give one, or as many")
        return [float(x.outputs.vector @ y.outputs.vector) for x, y in zip(a * (len(b) // len(a)), b, strict=True)]


def _check_task(task: str) -> None:
    if task != "embed":
        raise RequestError(f"pooling_task={task!r} is not served; decoders give one vector a text ('embed')")


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
        """Nothing starts before the first request."""
        return cls(args.config)

    async def generate(
        self, prompt: Prompt, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncIterator[RequestOutput]:
        """Yield the whole output so far, again and again, as vLLM does."""
        await self._start()
        async for output in self.engine.generate(prompt, sampling_params, request_id, **options):
            yield output

    async def encode(
        self, prompt: Prompt, request_id: str | None = None, *, pooling_task: str = "embed", **options: Any
    ) -> EmbeddingRequestOutput:
        """The vector of one prompt, as `.outputs.data`."""
        _check_task(pooling_task)
        await self._start()
        return await self.engine.embed(prompt, request_id, **options)

    async def _start(self) -> None:
        if not self._started:
            self._started = True
            await self.engine.start()

    async def abort(self, request_id: str) -> None:
        """End a request; its generator ends with finish_reason "abort"."""
        await self.engine.abort(request_id)

    async def shutdown(self) -> None:
        """Stop the engine process; what runs is lost."""
        await self.engine.shutdown()
