"""Guided requests on their way through the loop: held back until their grammar is there, then masked step by step.

What the tokens stand for is read from the checkpoint's tokenizer when the first guided request comes, or before, while the
engine has nothing to do; in a thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from core.batch import Bitmasks, StepPlan, StepResult
from core.config import EngineConfig
from core.guided import GuidedManager
from core.interfaces.executor import Executor, PinnedMasks
from core.interfaces.guided import Vocabulary
from core.registry import Registry
from core.request import Request
from core.sampling_params import GuidedDecodingParams
from core.scheduler.scheduler import Scheduler

MIN_FORCED, MAX_FORCED = 2, 16
"""Fewer forced tokens than rows that run are sampled, and than MIN_FORCED; MAX_FORCED are enough in any batch. Alone, every token
that is not sampled saves a step; in a batch the step is taken anyway, and on a CPU a chunk makes it one that is not recorded: of 4
to 64 rows with short runs, those that jumped took from 10 % less to 12 % more time there. On a GPU the bound is not measured."""
MANY_ROWS, LOOK_EVERY = 32, 4
"""With more rows than that a sequence is asked for forced tokens in every fourth step: an answer takes 15 us of the time in
which the masks must be ready."""


class GuidedRequests:
    """Guided requests of one loop: held until their grammar is there, masked while they run."""

    def __init__(self, registry: Registry, config: EngineConfig, executor: Executor) -> None:
        self._registry, self._config, self._executor = registry, config, executor
        self._building: Future[GuidedManager] | None = None
        self._manager: GuidedManager | None = None
        self._unsent: list[tuple[int, GuidedDecodingParams]] = []
        self._held: dict[int, Request] = {}
        self._running: set[int] = set()
        self._steps = 0
        self._pinned: dict[int, list[int]] = {}
        """handle -> forced tokens, the first of which a launched step must sample; the rest stand in the row already"""

    @property
    def num_waiting(self) -> int:
        """Requests whose grammar is not there yet."""
        return len(self._held)

    def held_handles(self) -> list[int]:
        """Those requests, by handle."""
        return list(self._held)

    @property
    def num_running(self) -> int:
        """Requests with a matcher: admitted, and not known to have ended."""
        return len(self._running)

    def _build(self) -> GuidedManager:
        from core.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_folder(self._config.model.tokenizer or self._executor.model_path)
        vocabulary = Vocabulary(
            tokenizer.token_bytes(),
            tuple(sorted(self._executor.eos_token_ids)),
            self._executor.vocab_size,
            tokenizer.file,
        )
        buffer = self._executor.mask_buffer if isinstance(self._executor, PinnedMasks) else None
        return GuidedManager(self._registry, self._config, vocabulary, buffer=buffer)

    def hold(self, request: Request, constraint: GuidedDecodingParams) -> None:
        """Keep the request until `poll` gives it back."""
        self._held[request.handle] = request
        if self._manager is not None:
            self._manager.submit(request.handle, constraint)
            return
        self._unsent.append((request.handle, constraint))
        self._begin(self._build)

    def prepare(self) -> None:
        """Have what the first guided request needs made before it comes: 1.5 s of Python's lock on 128k tokens, which other
        requests' steps would wait for. Never waits."""

        def build() -> GuidedManager:
            manager = self._build()
            manager.prepare()
            return manager

        if self._manager is None:
            self._begin(build)

    def _begin(self, build: Callable[[], GuidedManager]) -> None:
        if self._building is None:
            thread = ThreadPoolExecutor(1, "guided-vocabulary")
            self._building = thread.submit(build)
            thread.shutdown(wait=False)

    def poll(self) -> tuple[list[Request], list[tuple[int, str]]]:
        """Requests to admit now, and handles that failed with their messages. Never waits."""
        if self._manager is None:
            if self._building is None or not self._building.done():
                return [], []
            if (error := self._building.exception()) is not None:
                self._building = None
                failed = [(handle, f"guided decoding is not possible: {error}") for handle in self._held]
                self._held.clear()
                self._unsent.clear()
                return [], failed
            self._manager = self._building.result()
            for handle, constraint in self._unsent:
                if handle in self._held:
                    self._manager.submit(handle, constraint)
            self._unsent.clear()
        ready, failed = self._manager.poll()
        for handle, _ in failed:
            self._held.pop(handle, None)
        admitted = []
        for handle in sorted(ready):  # a prompt's first sample comes before those that share its blocks
            self._manager.start(handle)
            self._running.add(handle)
            admitted.append(self._held.pop(handle))
        return admitted, failed

    def drop(self, handle: int) -> Request | None:
        """The request has ended. -> it, if it was still held back."""
        if self._manager is not None and (handle in self._running or handle in self._held):
            self._manager.drop(handle)
        self._running.discard(handle)
        self._pinned.pop(handle, None)
        return self._held.pop(handle, None)

    def masks(self, plan: StepPlan, scheduler: Scheduler) -> Bitmasks | None:
        """What the guided rows among those that sample may choose from."""
        handles = scheduler.handle_of[plan.rows[plan.samples]].tolist()
        pairs = [(i, h) for i, h in enumerate(handles) if h in self._running]
        assert self._manager is not None
        if self._pinned:
            for new in plan.new_rows:  # back after a preemption, without what was appended
                self._pinned.pop(new.request.handle, None)
        return self._manager.masks(pairs, {h: t[0] for h, t in self._pinned.items()}) if pairs else None

    def sampled(self, plan: StepPlan, result: StepResult, scheduler: Scheduler) -> list[tuple[int, int]]:
        """(handle, token) of the guided rows that still belong to whom the plan was made for."""
        current = scheduler.current_handles(plan)
        rows = plan.rows[plan.samples].tolist()
        tokens = result.token_ids.tolist()
        found = [(current.get(r, -1), t) for r, t in zip(rows, tokens, strict=True)]
        return [(h, t) for h, t in found if h in self._running]

    def accept(self, sampled: list[tuple[int, int]], finished: set[int]) -> dict[int, str]:
        """Advance the grammars. -> handles that cannot go on, with what is wrong."""
        assert self._manager is not None
        broken = {}
        for handle, token in sampled:
            error = None if handle in finished else self._manager.accept(handle, [token])
            if error is not None:
                broken[handle] = error
            if error is not None or handle in finished:
                self._manager.drop(handle)
                self._running.discard(handle)
                self._pinned.pop(handle, None)
        return broken

    def jump(self, sampled: list[tuple[int, int]], scheduler: Scheduler) -> list[tuple[int, list[int]]]:
        """Append what the grammar leaves no choice about. -> (handle, tokens) that are now part of the output.

        A row whose next token is being sampled already gets that token pinned by its mask, and the rest appended behind
        it; the rest comes out once the pinned one is committed.
        """
        assert self._manager is not None
        told = []
        least = max(MIN_FORCED, min(MAX_FORCED, scheduler.num_running))
        every = LOOK_EVERY if scheduler.num_running > MANY_ROWS else 1
        self._steps += 1
        handles = [h for h, _ in sampled if (h + self._steps) % every == 0 or h in self._pinned]
        for handle in handles:
            if handle not in self._running:
                continue
            request = scheduler.running(handle)
            if request is None:
                continue
            row = request.row
            if (pinned := self._pinned.pop(handle, None)) is not None:
                told.append((handle, pinned[1:]))
            elif request.params.logprobs is None:  # a token that is not sampled has no log probability
                tokens = self._forced(request, scheduler.num_open(row))
                if scheduler.is_sampling(row):
                    if len(tokens) > least:
                        self._pinned[handle] = tokens
                        scheduler.append(row, tokens[1:])
                    continue
                if len(tokens) < least:
                    continue
                scheduler.append(row, tokens)
                told.append((handle, tokens))
            else:
                continue
            scheduler.reveal(row, len(told[-1][1]))
            self._manager.accept(handle, told[-1][1])
        return told

    def _forced(self, request: Request, num_open: int) -> list[int]:
        """Forced tokens up to the first that may end the output: ends are found where tokens are sampled."""
        assert self._manager is not None
        tokens = self._manager.forced(request.handle)[: max(0, num_open - 1)]
        ends = request.stop_token_ids | self._executor.eos_token_ids
        return tokens[: next((i for i, t in enumerate(tokens) if t in ends), len(tokens))]

    def shutdown(self) -> None:
        if self._manager is not None:
            self._manager.shutdown()
