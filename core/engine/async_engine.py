"""AsyncEngine: the engine in a process of its own, for servers. Requests go over zmq, deltas come back as they are made."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from core import errors
from core.config import EngineConfig
from core.engine.client import ClientSide
from core.engine.input_processor import Prompt
from core.engine.output_processor import Group, Observer, OutputKind
from core.errors import BackplaneError, EngineDeadError
from core.messages import (
    Abort,
    Call,
    CallResult,
    EngineFailed,
    EngineReady,
    EngineStats,
    FromEngine,
    Inspection,
    Shutdown,
    StepOutput,
    ToEngine,
    encoder,
    from_engine_decoder,
)
from core.outputs import EmbeddingRequestOutput, RequestOutput
from core.registry import Registry, load_registry
from core.sampling_params import SamplingParams

logger = logging.getLogger("backplane")

LONG_PROMPT_CHARS = 20_000
"""Longer texts are tokenized in a thread, so that other streams go on."""


class AsyncEngine:
    """`await start()` first. One event loop owns it."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.errored: str | None = None
        """Why the engine process is dead; None while it lives."""
        self.died = asyncio.Event()
        """Set while it is dead."""
        self._spawned = 0
        self.registry: Registry = load_registry(config.plugins)
        self.ready: EngineReady
        self._observers: list[Observer] = []
        self._client: ClientSide | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._call_ids = itertools.count()
        self._folder = ""
        self._closing = False
        self._events: dict[int, asyncio.Event] = {}

    async def start(self) -> None:
        """Start the engine process and wait until it is ready. Raises what it failed with."""
        self._folder = tempfile.mkdtemp(prefix="backplane-")
        self._context = zmq.asyncio.Context()
        try:
            await self._spawn()
        except BaseException:
            await self._close()
            raise
        self._client = ClientSide(self.config, self.ready)
        self._client.outputs.observers = self._observers

    async def restart(self) -> None:
        """Start an engine process in place of one that died; what was in flight has ended with an error by then.

        Raises what the new one fails with; it may be called again.
        """
        if self.errored is None or self._closing:
            return
        await self._end_tasks()
        self._to_engine.close(linger=0)
        self._from_engine.close(linger=0)
        await self._spawn()
        self._connected.inputs.ready = self.ready
        self.died.clear()
        self.errored = None

    async def _spawn(self) -> None:
        """A process, its sockets and the tasks that watch it. Sets `ready`."""
        self._spawned += 1
        self._to_engine = self._context.socket(zmq.PUSH)
        self._from_engine = self._context.socket(zmq.PULL)
        addresses = [f"ipc://{self._folder}/{name}" for name in (f"inbox{self._spawned}", f"outbox{self._spawned}")]
        for socket, address in zip((self._to_engine, self._from_engine), addresses, strict=True):
            socket.set_hwm(0)
            socket.bind(address)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "core.engine.process",
            stdin=asyncio.subprocess.PIPE,
            env=_environment(),
        )
        options = {k: v for k, v in self.config.options().items() if v is not None}
        past = self.last_stats if self._client is not None else None
        setup = msgspec.msgpack.encode(
            {"options": options, "inbox": addresses[0], "outbox": addresses[1], "past": past}
        )
        death = asyncio.ensure_future(self._process.wait())
        first = asyncio.ensure_future(self._from_engine.recv())
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(ConnectionError):  # it is dead already, and says so below
                self._process.stdin.write(len(setup).to_bytes(8, "little") + setup)
                await self._process.stdin.drain()
            await asyncio.wait({death, first}, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                # its last words may still be on their way
                await asyncio.wait({first}, timeout=0.5)
            if not first.done():
                raise EngineDeadError(f"the engine process ended with status {death.result()} before it was ready")
            message = from_engine_decoder.decode(first.result())
            if isinstance(message, EngineFailed):
                await death
                raise _as_exception(message)
            assert isinstance(message, EngineReady)
        except BaseException:
            first.cancel()
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
            raise
        self.ready = message
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._watch(death))]

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
    ) -> AsyncIterator[RequestOutput]:
        """Outputs as they come. Raises RequestError before the first one if the request is wrong.

        Leaving the iterator, or cancelling the task, aborts the request: its blocks are free within a step.
        """
        self._check_alive()
        if isinstance(prompt, str) and len(prompt) > LONG_PROMPT_CHARS:
            text, ids = await asyncio.to_thread(self._connected.inputs.split, prompt, add_special_tokens)
            self._check_alive()  # what is sent to an engine that died meanwhile would never be answered
        else:
            text, ids = self._connected.inputs.split(prompt, add_special_tokens)
        stream = output_kind != "final" or bool(params.stop)
        request = self._connected.inputs.make(
            ids, params, request_id, priority=priority, cache_salt=cache_salt, stream=stream
        )
        event = asyncio.Event()
        group = self._connected.outputs.add(request, text, ids, output_kind, event.set)
        try:
            self._send(request)
            while True:
                await event.wait()
                event.clear()
                if group.failure is not None:
                    raise group.failure
                # read before the yield: a slow caller comes back to a group that has gone on meanwhile, even to its end
                done = group.done
                output = self._connected.outputs.take(group)
                if output is not None:
                    yield output
                if done:
                    return
        finally:
            self._drop(group)

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
        self._check_alive()
        if isinstance(prompt, str) and len(prompt) > LONG_PROMPT_CHARS:
            text, ids = await asyncio.to_thread(self._connected.inputs.split, prompt, add_special_tokens)
            self._check_alive()
        else:
            text, ids = self._connected.inputs.split(prompt, add_special_tokens)
        request = self._connected.inputs.make_pooling(
            ids, self._connected.pooling_type, request_id, priority=priority, cache_salt=cache_salt
        )
        event = asyncio.Event()
        group = self._connected.outputs.add(request, text, ids, "final", event.set)
        try:
            self._send(request)
            await event.wait()
            return self._connected.outputs.build_embedding(group, dimensions, normalize)
        finally:
            self._drop(group)

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
        call_id = next(self._call_ids)
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

    async def drain(self, timeout_s: float) -> bool:
        """Wait until every accepted request has ended. False: time ran out."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.num_requests and self.errored is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(0.02)
        return True

    async def shutdown(self, drain_s: float = 0.0) -> None:
        """Stop the engine process. Safe to call twice."""
        if self._closing:
            return
        if drain_s > 0:
            await self.drain(drain_s)
        self._closing = True
        if self._process is not None and self._process.returncode is None:
            if self.errored is None and self._tasks:
                self._send(Shutdown())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), 5)
            if self._process.returncode is None:
                self._process.kill()
                await self._process.wait()
        if self._tasks:
            self._connected.outputs.fail("the engine was shut down")
        await self._close()

    # ---- the other side

    def _send(self, message: ToEngine) -> None:
        # the socket has no high-water mark, so this neither blocks nor needs awaiting
        zmq.Socket.send(self._sync_socket(), encoder.encode(message), zmq.NOBLOCK)

    def _sync_socket(self) -> zmq.Socket[bytes]:
        return zmq.Socket.shadow(self._to_engine.underlying)

    async def _receive(self) -> None:
        try:
            while True:
                self._take(from_engine_decoder.decode(await self._from_engine.recv()))
        except Exception as error:  # nobody would hear of any request again
            logger.exception("what came from the engine could not be read")
            self._died(f"what came from the engine could not be read: {type(error).__name__}: {error}")

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
        elif isinstance(message, EngineFailed):
            self._died(f"the engine failed: {message.kind}: {message.error}")

    async def _watch(self, death: asyncio.Future[int]) -> None:
        status = await death
        await asyncio.sleep(0.05)  # an EngineFailed that is on its way says more
        if not self._closing:
            self._died(f"the engine process ended with status {status}")

    def _died(self, why: str) -> None:
        if self.errored is None:
            self.errored = why
            self.died.set()
            logger.error(why)
            outputs = self._connected.outputs
            outputs.last_stats = outputs.last_stats.at_rest()
            outputs.fail(why)
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(EngineDeadError(why))

    def _check_alive(self) -> None:
        if self.errored is not None:
            raise EngineDeadError(self.errored)
        if self._closing:
            raise EngineDeadError("the engine was shut down")

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._process is not None and self._process.returncode is None and self.errored is not None:
            self._process.kill()  # it said that it failed, and may not be gone yet
            await self._process.wait()

    async def _close(self) -> None:
        await self._end_tasks()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        self._to_engine.close(linger=0)
        self._from_engine.close(linger=0)
        self._context.term()
        shutil.rmtree(self._folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The child must find the packages that we were imported from, wherever that was."""
    paths = [p or os.getcwd() for p in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _as_exception(message: EngineFailed) -> Exception:
    kind = getattr(errors, message.kind, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        return kind(message.error)
    return EngineDeadError(f"the engine could not start: {message.kind}: {message.error}")
