"""An engine in another process, as its client sees it: requests go over the link, deltas come back as they are made."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from core.beam_search import BeamSearchParams
from core.config import EngineConfig
from core.engine.beams import PromptBeams
from core.engine.client import ClientSide
from core.engine.input_processor import Prompt
from core.engine.link import Link
from core.engine.news import DirectNews, News, Outlet, Round
from core.engine.output_processor import Group, Observer, OutputKind
from core.errors import BackplaneError, EngineDeadError
from core.messages import (
    CLIENT_SHIFT,
    Abort,
    Call,
    CallResult,
    EngineReady,
    EngineStats,
    FromEngine,
    Inspection,
    StepOutput,
    ToEngine,
)
from core.outputs import EmbeddingRequestOutput, RequestOutput
from core.registry import Registry, check_chosen, load_registry
from core.sampling_params import SamplingParams
from core.text.model_text import ModelText

logger = logging.getLogger("backplane")

LONG_PROMPT_CHARS = 20_000
"""Longer texts are tokenized in a thread, so that other streams go on."""


class RemoteEngine:
    """What every client of an engine process can do. How it is connected, and to whom, is a subclass's."""

    def __init__(self, config: EngineConfig, client: int = 0) -> None:
        """`client`: its number at the engine."""
        self.config = config
        self.errored: str | None = None
        """Why the engine process is dead; None while it lives."""
        self.died = asyncio.Event()
        """Set while it is dead."""
        self.num_restarts = 0
        """Times that another engine process took the place of one that died."""
        self.registry: Registry = load_registry(config.plugins)
        check_chosen(self.registry, config.plugins)
        self.ready: EngineReady
        self._first_number = client << CLIENT_SHIFT
        self._observers: list[Observer] = []
        self._client: ClientSide | None = None
        self._link: Link | None = None
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._closing = False
        self._round = Round()

    def _begin(self, ready: EngineReady, link: Link, text: ModelText | None = None) -> None:
        """The first engine is there. `text`: if it has been loaded already."""
        self.ready, self._link = ready, link
        self._client = ClientSide(self.config, ready, self._first_number, text)
        self._client.outputs.observers = self._observers

    def _begin_again(self, ready: EngineReady, link: Link) -> None:
        """One has taken the place of the one that died; what was in flight has ended with an error."""
        self.ready, self._link = ready, link
        self._connected.inputs.ready = ready
        self.num_restarts += 1
        self.died.clear()
        self.errored = None

    def _end(self) -> None:
        """No engine any more: whoever still waits is told."""
        self._closing = True
        why = "the engine was shut down"
        if self._client is not None:
            self._client.outputs.fail(why)
        self._fail_calls(why)

    # ---- what there is to know

    @property
    def _connected(self) -> ClientSide:
        if self._client is None:
            raise EngineDeadError("the engine was not started; await start() first")
        return self._client

    @property
    def tokenizer(self) -> Any:
        return self._connected.tokenizer

    @property
    def chat_template(self) -> Any:
        return self._connected.chat_template

    @property
    def inputs(self) -> Any:
        return self._connected.inputs

    @property
    def observers(self) -> list[Observer]:
        return self._observers

    @property
    def last_stats(self) -> EngineStats:
        return self._connected.outputs.last_stats

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._connected.outputs.groups)

    @property
    def oldest_arrival_s(self) -> float:
        """time.monotonic() of the oldest request that has not ended; 0 without one."""
        return min((g.request.arrival_time_s for g in self._connected.outputs.groups.values()), default=0.0)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> str:
        return self._connected.render_chat(messages, tools, **options)

    # ---- requests

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        output_kind: OutputKind = "cumulative",
        add_special_tokens: bool = True,
        outlet: Outlet | None = None,
    ) -> AsyncIterator[RequestOutput]:
        """Outputs as they come. Raises RequestError before the first one if the request is wrong.

        Leaving the iterator, or cancelling the task, aborts the request: its blocks are free within a step.
        While the caller waits for the next one, an open `outlet` gets it instead; the last one always comes from the iterator.
        """
        text, ids = await self._split(prompt, add_special_tokens)
        ids = self._connected.inputs.shorten(ids, params)
        stream = output_kind != "final" or bool(params.stop)
        request = self._connected.inputs.make(
            ids, params, request_id, priority=priority, cache_salt=cache_salt, stream=stream
        )
        outputs = self._connected.outputs
        direct = None if outlet is None else DirectNews(outlet, outputs, self._round)
        news = direct or News()
        group = outputs.add(request, text, ids, output_kind, news.tell)
        if direct is not None:
            direct.group = group
        try:
            self._send(request)
            while True:
                await news.wait()
                if group.failure is not None:
                    raise group.failure
                # read before the yield: a slow caller comes back to a group that has gone on meanwhile, even to its end
                done = group.done
                output = outputs.take(group)
                if output is not None:
                    yield output
                if done:
                    return
        finally:
            self._drop(group)

    async def beam_search(
        self,
        prompt: Prompt,
        params: BeamSearchParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> RequestOutput:
        """The likeliest answers to one prompt, the best first. Cancelling the task aborts what is asked for at that time."""
        text, ids = await self._split(prompt, add_special_tokens)
        beams = PromptBeams(self._connected, text, ids, params)
        names = (None if request_id is None else f"{request_id}-{i}" for i in itertools.count())

        async def one(ids: list[int]) -> RequestOutput:
            stream = self.generate(
                ids, beams.wish, next(names), priority=priority, cache_salt=cache_salt, output_kind="final"
            )
            return [output async for output in stream][-1]

        while requests := beams.requests:
            tasks = [asyncio.create_task(one(ids)) for ids in requests]
            try:
                outputs = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            beams.take(outputs)
        return beams.output(request_id)

    async def embed(
        self,
        prompt: Prompt,
        request_id: str | None = None,
        *,
        dimensions: int | None = None,
        normalize: bool = True,
        priority: int = 0,
        cache_salt: str = "",
        add_special_tokens: bool = True,
    ) -> EmbeddingRequestOutput:
        """The vector of one prompt, by the engine's `pooling_type`. Cancelling the task aborts the request."""
        text, ids = await self._split(prompt, add_special_tokens)
        request = self._connected.inputs.make_pooling(
            ids, self._connected.pooling_type, request_id, priority=priority, cache_salt=cache_salt
        )
        news = News()
        group = self._connected.outputs.add(request, text, ids, "final", news.tell)
        try:
            self._send(request)
            await news.wait()
            return self._connected.outputs.build_embedding(group, dimensions, normalize)
        finally:
            self._drop(group)

    async def _split(self, prompt: Prompt, add_special_tokens: bool) -> tuple[str | None, list[int]]:
        self._check_alive()
        split = self._connected.inputs.split
        if not isinstance(prompt, str) or len(prompt) <= LONG_PROMPT_CHARS:
            return split(prompt, add_special_tokens)
        found = await asyncio.to_thread(split, prompt, add_special_tokens)
        self._check_alive()  # what is sent to an engine that died meanwhile would never be answered
        return found

    def _drop(self, group: Group) -> None:
        handles = self._connected.outputs.drop(group)
        if handles and self.errored is None:
            self._send(Abort(handles))

    async def abort(self, request_id: str) -> None:
        """End a request; its stream closes with finish_reason "abort". Unknown ids are ignored."""
        group = self._connected.outputs.groups.get(request_id)
        if group is not None:
            self._send(Abort([s.handle for s in group.sequences if s.finish_reason is None]))

    async def call(self, method: str, timeout_s: float = 10.0, **arguments: Any) -> Any:
        """Ask the engine process something outside the step."""
        self._check_alive()
        call_id = self._first_number + next(self._call_ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = future
        try:
            self._send(Call(call_id, method, arguments))
            return await asyncio.wait_for(future, timeout_s)
        finally:
            self._calls.pop(call_id, None)

    async def stats(self) -> EngineStats:
        return msgspec.convert(await self.call("stats"), EngineStats)

    async def inspect(self, begin: int = 0, count: int = 8192, num_rows: int = 32) -> Inspection:
        """A look at blocks `begin` to `begin + count` and at the running sequences, between two steps."""
        return msgspec.convert(await self.call("inspect", begin=begin, count=count, num_rows=num_rows), Inspection)

    async def shutdown(self, drain_s: float = 0.0) -> None:
        """End this client, and the engine if it is its owner. Safe to call twice."""
        raise NotImplementedError

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every accepted request has ended. False: time ran out."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.num_requests and self.errored is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    # ---- the other side

    def _send(self, message: ToEngine) -> None:
        if self._link is not None:
            self._link.send(message)

    def _take(self, message: FromEngine) -> None:
        if isinstance(message, StepOutput):
            aborts = self._connected.outputs.process(message)
            if aborts:
                self._send(Abort(aborts))
        elif isinstance(message, CallResult):
            future = self._calls.get(message.call_id)
            if future is not None and not future.done():
                if message.error:
                    future.set_exception(BackplaneError(message.error))
                else:
                    future.set_result(message.value)

    def _died(self, why: str) -> None:
        if self.errored is None and not self._closing:
            self.errored = why
            self.died.set()
            logger.error(why)
            outputs = self._connected.outputs
            outputs.last_stats = outputs.last_stats.at_rest()
            outputs.fail(why)
            self._fail_calls(why)

    def _fail_calls(self, why: str) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(EngineDeadError(why))

    def _check_alive(self) -> None:
        if self.errored is not None:
            raise EngineDeadError(self.errored)
        if self._closing:
            raise EngineDeadError("the engine was shut down")
