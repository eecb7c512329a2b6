"""The engine's loop: messages in, steps, messages out. Knows neither text nor transport.

With overlap, step N+1 is planned and its forward pass launched before step N's tokens are read; what a grammar must
see of step N is known before N+1 is sampled.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from core.batch import StepPlan
from core.config import EngineConfig
from core.engine.guided_requests import GuidedRequests
from core.engine.routing import Router, client_of
from core.errors import ConfigError, RequestError
from core.interfaces.executor import Executor, StepTicket
from core.messages import (
    Abort,
    AddRequest,
    Call,
    CallResult,
    EngineReady,
    EngineStats,
    Finished,
    FromEngine,
    Inspection,
    Join,
    Leave,
    Logprobs,
    RunningRow,
    Shutdown,
    StepOutput,
    ToEngine,
)
from core.registry import Registry, check_chosen, load_registry
from core.request import Request
from core.scheduler.scheduler import Scheduler
from core.scheduler.update import StepUpdate

STATS_INTERVAL_S = 0.1


class EngineLoop:
    """`send(message, client)` gets every message; it is called from the thread that calls `handle` and `step`."""

    def __init__(
        self,
        config: EngineConfig,
        send: Callable[[FromEngine, int], None],
        registry: Registry | None = None,
        past: EngineStats | None = None,
    ) -> None:
        """`past`: the last known counters of the engine that this one takes the place of; its own go on from there."""
        self._router = Router(send)
        self._past = past
        registry = registry or load_registry(config.plugins)
        check_chosen(registry, config.plugins)
        name = "in_process" if config.device.executor == "auto" else config.device.executor
        self.executor: Executor = registry.get("executor", name)(config, registry)
        self.config = self.executor.config
        budget = self.config.scheduler.max_num_batched_tokens
        assert budget is not None
        self.scheduler = Scheduler(
            self.config.scheduler,
            self.config.cache,
            num_blocks=self.executor.num_blocks,
            max_model_len=self.executor.max_model_len,
            max_num_batched_tokens=budget,
        )
        self._overlap = bool(self.config.scheduler.async_scheduling)
        self._in_flight: tuple[StepPlan, StepTicket] | None = None
        self._guided = GuidedRequests(registry, self.config, self.executor)
        self._stats_due_s = 0.0
        self.stop_at_s: float | None = None
        """time.monotonic() at which a draining engine stops, whatever still runs."""
        self.ready = EngineReady(
            max_model_len=self.executor.max_model_len,
            num_blocks=self.executor.num_blocks,
            block_size=self.config.cache.block_size,
            vocab_size=self.executor.vocab_size,
            eos_token_ids=sorted(self.executor.eos_token_ids),
            choices=self.executor.choices,
            timeline=self.executor.timeline,
            memory=self.executor.memory,
            model_path=self.executor.model_path,
            generates=getattr(self.executor, "generates", True),
            plugins=[
                f"{e.kind}:{e.name} ({e.distribution} {e.version})" for e in registry.entries if e.state == "selected"
            ],
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self._in_flight is not None or self._guided.num_waiting > 0

    # ---- messages

    def knows(self, client: int) -> bool:
        """The client has joined and not left."""
        return self._router.knows(client)

    def handle(self, message: ToEngine) -> None:
        """Take in one message. A bad request ends itself alone."""
        if isinstance(message, AddRequest):
            if self.knows(client_of(message.handles[0])):
                self._add(message)
        elif isinstance(message, Abort):
            self._abort(message.handles)
        elif isinstance(message, Join):
            self._router.join(message.client)
        elif isinstance(message, Leave):
            self._router.leave(message.client)
            live = (*self.scheduler.live_handles(), *self._guided.held_handles())
            self._abort([h for h in live if client_of(h) == message.client])
        elif isinstance(message, Call):
            self._call(message)
        elif isinstance(message, Shutdown):
            self.stop_at_s = time.monotonic() + message.drain_s

    def _add(self, message: AddRequest) -> None:
        prompt = np.frombuffer(message.prompt, np.int32)
        params = message.params
        length = self.executor.max_model_len
        total = length if params.max_tokens is None else min(length, len(prompt) + params.max_tokens)
        if message.pooling is not None:
            total = len(prompt) + 1  # the scheduler's rows want room after the prompt; nothing is put there
        eos = frozenset() if params.ignore_eos else self.executor.eos_token_ids
        parent: Request | None = None
        for handle, seed in zip(message.handles, message.seeds, strict=True):
            request = Request(
                handle=handle,
                request_id=message.request_id,
                prompt_token_ids=prompt,
                params=params,
                arrival_time_s=message.arrival_time_s,
                max_total_tokens=total,
                stop_token_ids=eos | frozenset(params.stop_token_ids),
                eos_token_ids=eos,
                priority=message.priority,
                seed=seed,
                stream=message.stream,
                cache_salt=message.cache_salt,
                parent=parent,
                bad_words_ids=message.bad_words_ids,
                pooling=message.pooling,
            )
            if params.guided_decoding is not None:
                self._guided.hold(request, params.guided_decoding)
            else:
                self._admit(request)
            parent = parent or request

    def _admit(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except RequestError as error:
            self._guided.drop(request.handle)
            self._refuse(request.handle, str(error), error.param, type(error).__name__)

    def _refuse(self, handle: int, message: str, param: str | None, kind: str = "RequestError") -> None:
        finished = Finished(handle=handle, reason="error", error=message, param=param, stop_reason=kind)
        self._router.answer(StepOutput(finished=[finished]), handle)

    def _abort(self, handles: list[int]) -> None:
        held = [r for h in handles if (r := self._guided.drop(h)) is not None]
        for request in held:
            request.finish_reason = "abort"
        self._finish([*held, *self.scheduler.abort(handles)])

    def _call(self, call: Call) -> None:
        value: Any = None
        error = None
        if call.method == "stats":
            value = self._stats()
        elif call.method == "reset_prefix_cache":
            self.scheduler.reset_prefix_cache()
        elif call.method == "inspect":
            value = self._inspect(**call.arguments)  # type: ignore[arg-type]
        elif call.method in ("start_profile", "stop_profile"):
            try:
                value = self.executor.profile(call.method.removesuffix("_profile"))
            except (ConfigError, OSError) as failed:
                error = str(failed)
        elif call.method != "ping":
            error = f"engine call {call.method!r} is not known (inspect, ping, reset_prefix_cache, start_profile, stats, stop_profile)"
        self._router.answer(CallResult(call_id=call.call_id, value=value, error=error), call.call_id)

    def _inspect(self, begin: int, count: int, num_rows: int) -> Inspection:
        scheduler = self.scheduler
        rows, blocks_of, requests = scheduler.rows, scheduler.blocks_of, scheduler.request_of
        found = []
        for row in rows.running[:num_rows]:
            request = requests[row]
            assert request is not None
            arrays = (rows.prompt_len, rows.num_computed, rows.known, rows.max_total)
            prompt, computed, known, most = (int(a[row]) for a in arrays)
            found.append(RunningRow(row, prompt, computed, known, most, len(blocks_of[row]), request.num_cached_tokens))
        return Inspection(
            begin=begin, blocks=scheduler.pool.states(begin, begin + count), rows=found, stats=self._stats()
        )

    def _stats(self) -> EngineStats:
        stats = self.scheduler.stats()
        return stats if self._past is None else stats.after(self._past)

    def prepare(self) -> None:
        """For an idle engine: make what takes long once and may be wanted. Never waits."""
        if self.ready.generates:
            self._guided.prepare()

    # ---- steps

    def step(self) -> bool:
        """Run one step. False: there was nothing to do."""
        if self._guided.num_waiting:
            self._take_compiled()
        plan = self.scheduler.schedule()
        if plan is not None:
            self.executor.launch(plan)
        if self._in_flight is not None:
            self._commit(*self._in_flight)
            self._in_flight = None
        elif plan is None:
            if self._guided.num_waiting:
                time.sleep(0.001)  # a grammar is being compiled and nothing else is to do
            return False
        if plan is not None:
            masks = self._guided.masks(plan, self.scheduler) if self._guided.num_running else None
            ticket = self.executor.sample(masks)
            if self._overlap:
                self._in_flight = (plan, ticket)
            else:
                self._commit(plan, ticket)
        return True

    def _take_compiled(self) -> None:
        ready, failed = self._guided.poll()
        for request in ready:
            self._admit(request)
        for handle, message in failed:
            self._refuse(handle, message, "guided_decoding")

    def _commit(self, plan: StepPlan, ticket: StepTicket) -> None:
        result = ticket.result()
        logprobs: dict[int, list[Logprobs]] = {}
        prompt_logprobs: dict[int, list[Logprobs | None]] = {}
        if result.logprobs or result.prompt_logprobs:
            # a row that changed hands since the plan was made has another epoch, and its logprobs go nowhere
            handles = self.scheduler.current_handles(plan)
            logprobs = {h: [p] for row, p in result.logprobs.items() if (h := handles.get(row)) is not None}
            prompt_logprobs = {
                h: self._untold(plan, row, p)
                for row, p in result.prompt_logprobs.items()
                if (h := handles.get(row)) is not None
            }
        sampled = self._guided.sampled(plan, result, self.scheduler) if self._guided.num_running else []
        update = self.scheduler.commit(plan, result)
        if sampled:
            broken = self._guided.accept(sampled, {r.handle for r in update.finished})
            ended = self.scheduler.abort(broken)
            for request in ended:
                request.finish_reason, request.error = "error", broken[request.handle]
            update = dataclasses.replace(update, finished=[*update.finished, *ended])
            if jumped := self._guided.jump(sampled, self.scheduler):
                update = self._with_jumped(update, jumped)
        self._emit(update, logprobs, prompt_logprobs)

    def _untold(self, plan: StepPlan, row: int, positions: Sequence[Logprobs]) -> list[Logprobs | None]:
        """Of a chunk's prompt logprobs, those that were not sent: a preempted prompt is computed again from its beginning."""
        request = self.scheduler.request_of[row]
        assert request is not None
        first = int(plan.num_computed[plan.rows == row][0])
        new = positions[max(0, request.num_prompt_logprobs - first) :]
        request.num_prompt_logprobs = max(request.num_prompt_logprobs, first + len(positions))
        return list(new)

    def _with_jumped(self, update: StepUpdate, jumped: list[tuple[int, list[int]]]) -> StepUpdate:
        """The update with tokens that were not sampled, after those that were."""
        pairs = [(handle, t) for handle, tokens in jumped if self.scheduler.streams(handle) for t in tokens]
        if not pairs:
            return update
        handles, tokens = np.array(pairs, np.int64).T
        return dataclasses.replace(
            update,
            handles=np.concatenate([update.handles, handles]),
            token_ids=np.concatenate([update.token_ids, tokens.astype(np.int32)]),
        )

    def _emit(
        self,
        update: StepUpdate,
        logprobs: dict[int, list[Logprobs]],
        prompt_logprobs: dict[int, list[Logprobs | None]],
    ) -> None:
        now = time.monotonic()
        stats = None
        if now >= self._stats_due_s or not self.scheduler.has_work:
            self._stats_due_s = now + STATS_INTERVAL_S
            stats = self._stats()
        if not (len(update.handles) or update.finished or logprobs or prompt_logprobs or stats):
            return
        self._router.step(
            now,
            update.handles,
            update.token_ids,
            [_finished(r) for r in update.finished],
            logprobs,
            prompt_logprobs,
            stats,
            {r.handle: r.num_cached_tokens for r in update.first_tokens if r.stream and r.num_cached_tokens},
        )

    def _finish(self, requests: Iterable[Request]) -> None:
        finished = []
        for request in requests:
            self._guided.drop(request.handle)
            finished.append(_finished(request))
        if finished:
            self._router.step(time.monotonic(), finished=finished, stats=self._stats())

    def shutdown(self) -> None:
        self._guided.shutdown()
        self.executor.shutdown()


def _finished(request: Request) -> Finished:
    tokens = None if request.stream else np.array(request.output_token_ids, np.int32).tobytes()
    return Finished(
        handle=request.handle,
        reason=request.finish_reason or "abort",
        stop_reason=request.stop_reason,
        error=request.error,
        token_ids=tokens,
        embedding=None if request.embedding is None or request.error else request.embedding.tobytes(),
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=len(request.output_token_ids),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        arrival_time_s=request.arrival_time_s,
        first_scheduled_time_s=request.first_scheduled_time_s,
        first_token_time_s=request.first_token_time_s,
        finish_time_s=request.finish_time_s,
    )
