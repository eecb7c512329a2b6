"""Decides what each step computes: one token budget, decodes first, prefill chunks fill the rest.

A running request is a row of numpy arrays (docs/decisions/0001). `schedule` advances the arrays as if the
step had run; `commit` brings the sampled tokens later, so a step can be planned while another runs. Blocks and
rows are reused at once: the device runs plans in order, and an epoch per row tells late results from a new tenant's.

Sources: continuous batching, Orca (OSDI 2022); paged KV, arXiv:2309.06180; chunked prefill, arXiv:2403.02310.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np

from core.batch import NewRow, StepPlan, StepResult
from core.config import CacheConfig, SchedulerConfig
from core.errors import QueueFullError, RequestError
from core.kv_cache.block_pool import BlockPool
from core.kv_cache.prefix import extend_hashes
from core.messages import EngineStats
from core.request import Request, RequestState
from core.scheduler.queue import WaitingQueue
from core.scheduler.update import StepUpdate

MAX_STOP_IDS = 16
"""Stop ids of a row that are checked by array; rows with more take the slow path."""


class Scheduler:
    """Owns the waiting queue, the rows and the block pool. Not thread safe: one loop calls it."""

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheConfig,
        *,
        num_blocks: int,
        max_model_len: int,
        max_num_batched_tokens: int,
    ) -> None:
        self.config = config
        self.block_size = cache.block_size
        self.prefix_caching = cache.enable_prefix_caching
        self.max_model_len = max_model_len
        self.max_num_batched_tokens = max_num_batched_tokens
        self.pool = BlockPool(num_blocks)
        self.waiting = WaitingQueue(config.scheduling_policy)
        rows = config.max_num_seqs
        self.request_of: list[Request | None] = [None] * rows
        self.blocks_of: list[list[int]] = [[] for _ in range(rows)]
        self.handle_of = np.full(rows, -1, np.int64)
        self._published = [0] * rows
        self._free_rows = list(range(rows - 1, -1, -1))
        self._requests: dict[int, Request] = {}
        self._forks: dict[int, list[Request]] = {}  # parent's handle -> children that wait for its prompt
        self._running: list[int] = []  # rows, oldest admission first
        self._running_array: np.ndarray | None = None
        self._token_ids = np.zeros((rows, max_model_len + 1), np.int32)
        self._known = np.zeros(rows, np.int32)  # tokens in _token_ids
        self._num_tokens = np.zeros(rows, np.int32)  # with those still being sampled
        self._num_computed = np.zeros(rows, np.int32)
        self._capacity = np.zeros(rows, np.int32)  # tokens that the row's blocks hold
        self._prompt_len = np.zeros(rows, np.int32)
        self._max_total = np.zeros(rows, np.int32)
        self._min_total = np.zeros(rows, np.int32)
        self._stop_ids = np.full((rows, MAX_STOP_IDS), -1, np.int32)
        self._many_stops = np.zeros(rows, bool)
        self._stream = np.zeros(rows, bool)
        self._epoch = np.zeros(rows, np.int64)
        self._step = 0
        self._counters = dict.fromkeys(("queries", "hits", "preemptions", "prompt", "generation"), 0)
        self._last_step_time_s = time.monotonic()

    # ---- arrivals and departures

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(map(len, self._forks.values()))

    @property
    def has_work(self) -> bool:
        return bool(self._running or len(self.waiting) or self._forks)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never run, QueueFullError if too many wait."""
        num_prompt = len(request.prompt_token_ids)
        limit = self.pool.num_blocks * self.block_size
        if request.max_total_tokens > limit:
            raise RequestError(
                f"the request may need {request.max_total_tokens} tokens of KV cache and there are {limit}; "
                "lower max_tokens, shorten the prompt, or give the engine more cache",
                param="max_tokens",
            )
        if not self.config.enable_chunked_prefill and num_prompt > self.max_num_batched_tokens:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and a step takes {self.max_num_batched_tokens}; "
                "raise max_num_batched_tokens or enable_chunked_prefill",
                param="prompt",
            )
        if self.num_waiting >= self.config.max_queued_requests:
            raise QueueFullError(
                f"{self.num_waiting} requests wait already (max_queued_requests="
                f"{self.config.max_queued_requests}); try again later"
            )
        self._requests[request.handle] = request
        parent = request.parent
        if parent is not None and not request.forked and parent.state is not RequestState.FINISHED:
            self._forks.setdefault(parent.handle, []).append(request)
        else:
            self.waiting.push(request)

    def abort(self, handles: Iterable[int]) -> list[Request]:
        """End sequences now; unknown handles are ignored. Their blocks are free on return."""
        ended = []
        for handle in handles:
            request = self._requests.get(handle)
            if request is None:
                continue
            request.finish_reason = "abort"
            if request.state is RequestState.RUNNING:
                self._leave(request)
            elif request.parent is not None and request in self._forks.get(request.parent.handle, ()):
                self._forks[request.parent.handle].remove(request)
                if not self._forks[request.parent.handle]:
                    del self._forks[request.parent.handle]
                request.state = RequestState.FINISHED
            else:
                request.state = RequestState.FINISHED
                self.waiting.discard(request)
            self._end(request)
            ended.append(request)
        return ended

    def _end(self, request: Request) -> None:
        request.state = RequestState.FINISHED
        request.finish_time_s = time.monotonic()
        del self._requests[request.handle]
        self._release_forks(request)

    def _release_forks(self, parent: Request) -> None:
        for child in self._forks.pop(parent.handle, ()):
            child.forked = True
            self.waiting.push_front(child)

    # ---- planning

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None if nothing can run now."""
        if not self.has_work:
            return None
        updates: list[tuple[int, int, int]] = []
        copies: list[tuple[int, int]] = []
        new_rows: list[NewRow] = []
        budget = self.max_num_batched_tokens
        if self._running_array is None:
            self._running_array = np.array(self._running, np.int32)
        running = self._running_array
        # a row whose last allowed token is being sampled has nothing left to compute
        running = running[self._num_tokens[running] < self._max_total[running]]
        remaining = self._num_tokens[running] - self._num_computed[running]
        decodes = running[remaining == 1][:budget]
        rows, counts = decodes, np.ones(len(decodes), np.int32)
        budget -= len(decodes)
        if len(decodes) != len(running):
            prefills = running[remaining > 1]
            chunks = []
            for row, left in zip(prefills.tolist(), remaining[remaining > 1].tolist(), strict=True):
                chunk = self._chunk(left, budget)
                if chunk <= 0:
                    break
                chunks.append((row, chunk))
                budget -= chunk
            if chunks:
                rows = np.concatenate([decodes, np.array([c[0] for c in chunks], np.int32)])
                counts = np.concatenate([counts, np.array([c[1] for c in chunks], np.int32)])
        rows, counts, preempted = self._make_room(rows, counts, updates)
        if not preempted:
            admitted = self._admit(budget, updates, copies, new_rows)
            if admitted:
                rows = np.concatenate([rows, np.array([r for r, _ in admitted], np.int32)])
                counts = np.concatenate([counts, np.array([c for _, c in admitted], np.int32)])
        if not len(rows):
            return None
        if new_rows or (counts > 1).any():
            order = np.argsort(counts > 1, kind="stable")  # rows with one token first
            rows, counts = rows[order], counts[order]
        computed = self._num_computed[rows]
        after = computed + counts
        samples = after == self._num_tokens[rows]
        self._num_computed[rows] = after
        self._num_tokens[rows] += samples
        if self.prefix_caching and len(rows) != len(decodes):
            for row in rows[counts > 1].tolist():
                self._publish(row)
        if self._forks:
            self._free_forks()
        self._step += 1
        return StepPlan(
            step=self._step,
            rows=rows,
            num_scheduled=counts,
            num_computed=computed,
            samples=samples,
            new_rows=new_rows,
            block_updates=np.array(updates, np.int32).reshape(-1, 3),
            block_copies=np.array(copies, np.int32).reshape(-1, 2),
            epochs=self._epoch[rows],
        )

    def _chunk(self, left: int, budget: int) -> int:
        if not self.config.enable_chunked_prefill:
            return left if left <= budget or budget == self.max_num_batched_tokens else 0
        threshold = self.config.long_prefill_token_threshold
        return min(left, budget, threshold) if threshold > 0 else min(left, budget)

    def _make_room(
        self, rows: np.ndarray, counts: np.ndarray, updates: list[tuple[int, int, int]]
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Blocks for the planned tokens of running rows, if need be by preempting the newest."""
        short = np.nonzero(self._num_computed[rows] + counts > self._capacity[rows])[0]
        gone: set[int] = set()
        for i in short.tolist():
            row, count = int(rows[i]), int(counts[i])
            if row in gone:
                continue
            if self.prefix_caching:
                self._publish(row)
            need = -(-(int(self._num_computed[row]) + count) // self.block_size) - len(self.blocks_of[row])
            while self.pool.num_free < need:
                victim = self._victim()
                gone.add(victim)
                self._preempt(victim)
                if victim == row:
                    break
            else:
                self._extend(row, need, updates)
        if not gone:
            return rows, counts, False
        updates[:] = [u for u in updates if u[0] not in gone]
        kept = ~np.isin(rows, np.fromiter(gone, np.int32))
        return rows[kept], counts[kept], True

    def _extend(self, row: int, num_blocks: int, updates: list[tuple[int, int, int]]) -> None:
        blocks = self.blocks_of[row]
        for _ in range(num_blocks):
            block = self.pool.allocate()
            updates.append((row, len(blocks), block))
            blocks.append(block)
        self._capacity[row] = len(blocks) * self.block_size

    def _victim(self) -> int:
        if self.config.scheduling_policy == "fcfs":
            return self._running[-1]

        def rank(row: int) -> tuple[int, float]:
            request = self.request_of[row]
            assert request is not None
            return request.priority, request.arrival_time_s

        return max(self._running, key=rank)

    def _preempt(self, row: int) -> None:
        request = self.request_of[row]
        assert request is not None
        self._leave(request)
        request.state = RequestState.PREEMPTED
        request.num_preemptions += 1
        self._counters["preemptions"] += 1
        self.waiting.push_front(request)

    def _admit(
        self,
        budget: int,
        updates: list[tuple[int, int, int]],
        copies: list[tuple[int, int]],
        new_rows: list[NewRow],
    ) -> list[tuple[int, int]]:
        """Let waiting requests in, in the queue's order, while budget, rows and blocks last."""
        admitted: list[tuple[int, int]] = []
        while budget > 0 and self._free_rows:
            request = self.waiting.peek()
            if request is None:
                break
            tokens = request.prompt_token_ids
            if request.output_token_ids:
                tokens = np.concatenate([tokens, np.array(request.output_token_ids, np.int32)])
            shared, source = self._shared_blocks(request, tokens)
            computed = len(tokens) - 1 if source is not None else len(shared) * self.block_size
            chunk = self._chunk(len(tokens) - computed, budget)
            if chunk <= 0:
                break
            need = -(-(computed + chunk) // self.block_size) - len(shared)
            # shared blocks that are free now leave the free list too
            taken = sum(self.pool.references[b] == 0 for b in shared)
            reserve = len(self._running) // 8 if self._running else 0  # room for the decodes of the next steps
            if self.pool.num_free - taken < need + reserve:
                break
            self.waiting.pop()
            row = self._enter(request, tokens, computed)
            for block in shared:
                self.pool.acquire(block)
                updates.append((row, len(self.blocks_of[row]), block))
                self.blocks_of[row].append(block)
            self._published[row] = len(shared) if self.prefix_caching else 0
            self._extend(row, need, updates)
            if source is not None:
                copies.append((source, self.blocks_of[row][len(shared)]))
            new_rows.append(NewRow(row, request, tokens))
            admitted.append((row, chunk))
            budget -= chunk
        return admitted

    def _shared_blocks(self, request: Request, tokens: np.ndarray) -> tuple[list[int], int | None]:
        """Blocks that need no computing, and, for a fork, the parent's block to copy. Changes nothing."""
        last = len(tokens) - 1  # the last token is always computed: its logits are wanted
        parent = request.parent
        if request.forked and parent is not None and parent.row >= 0 and not request.output_token_ids:
            num = last // self.block_size
            blocks = self.blocks_of[parent.row]
            if self._num_computed[parent.row] >= len(tokens):
                return blocks[:num], blocks[num]
        if not self.prefix_caching or request.params.prompt_logprobs is not None:
            return [], None
        extend_hashes(request.block_hashes, tokens, len(tokens), self.block_size, request.cache_salt)
        blocks = []
        for content in request.block_hashes[: last // self.block_size]:
            block = self.pool.find(content)
            if block is None:
                break
            blocks.append(block)
        return blocks, None

    def _enter(self, request: Request, tokens: np.ndarray, computed: int) -> int:
        row = self._free_rows.pop()
        self.request_of[row] = request
        self.handle_of[row] = request.handle
        self._epoch[row] += 1
        self._token_ids[row, : len(tokens)] = tokens
        self._known[row] = self._num_tokens[row] = len(tokens)
        self._num_computed[row] = computed
        self._prompt_len[row] = len(request.prompt_token_ids)
        self._max_total[row] = request.max_total_tokens
        self._min_total[row] = self._prompt_len[row] + request.params.min_tokens
        self._stop_ids[row] = -1
        stops = sorted(request.stop_token_ids)
        self._stop_ids[row, : min(len(stops), MAX_STOP_IDS)] = stops[:MAX_STOP_IDS]
        self._many_stops[row] = len(stops) > MAX_STOP_IDS
        self._stream[row] = request.stream
        self.blocks_of[row] = []
        self._running.append(row)
        self._running_array = None
        request.row, request.state = row, RequestState.RUNNING
        if not request.first_scheduled_time_s:
            request.first_scheduled_time_s = time.monotonic()
            request.num_cached_tokens = computed
            self._counters["queries"] += len(tokens)
            self._counters["hits"] += computed
            self._counters["prompt"] += len(tokens)
        return row

    def _leave(self, request: Request) -> None:
        """Give up the row and its blocks; what is known of the output moves to the request."""
        row = request.row
        if self.prefix_caching:
            self._publish(row)
        request.output_token_ids = self._token_ids[row, self._prompt_len[row] : self._known[row]].tolist()
        for block in reversed(self.blocks_of[row]):  # the end of a prompt is reused before its beginning
            self.pool.release(block)
        self.blocks_of[row] = []
        self._capacity[row] = 0
        self.request_of[row] = None
        self.handle_of[row] = -1
        self._epoch[row] += 1
        self._running.remove(row)
        self._running_array = None
        self._free_rows.append(row)
        request.row = -1

    def _publish(self, row: int) -> None:
        request = self.request_of[row]
        assert request is not None
        num_full = int(min(self._num_computed[row], self._known[row])) // self.block_size
        if num_full <= self._published[row]:
            return
        hashes = request.block_hashes
        extend_hashes(hashes, self._token_ids[row], num_full * self.block_size, self.block_size, request.cache_salt)
        for i in range(self._published[row], num_full):
            self.pool.publish(self.blocks_of[row][i], hashes[i])
        self._published[row] = num_full

    def _free_forks(self) -> None:
        """Children may start once their parent's prompt is in a plan."""
        for handle in list(self._forks):
            parent = self._requests.get(handle)
            if parent is None or (parent.row >= 0 and self._num_computed[parent.row] >= self._prompt_len[parent.row]):
                for child in self._forks.pop(handle):
                    child.forked = True
                    self.waiting.push_front(child)

    # ---- results

    def commit(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        """Take in what a plan sampled. Plans are committed in the order they were made."""
        now = self._last_step_time_s = time.monotonic()
        rows = plan.rows[plan.samples]
        position = (plan.num_computed + plan.num_scheduled)[plan.samples]
        tokens = result.token_ids
        current = self._epoch[rows] == plan.epochs[plan.samples]
        if not current.all():
            rows, position, tokens = rows[current], position[current], tokens[current]
        self._token_ids[rows, position] = tokens
        known = position + 1
        self._known[rows] = known
        self._counters["generation"] += len(rows)
        stopped = (self._stop_ids[rows] == tokens[:, None]).any(1) & (known > self._min_total[rows])
        over = stopped | (known >= self._max_total[rows]) | self._many_stops[rows]
        firsts = position == self._prompt_len[rows]
        first_tokens = []
        for row in rows[firsts].tolist():
            request = self.request_of[row]
            assert request is not None
            if not request.first_token_time_s:
                request.first_token_time_s = now
                first_tokens.append(request)
        streamed = self._stream[rows]
        handles, streamed_tokens = self.handle_of[rows][streamed], tokens[streamed]
        finished = []
        for i in np.nonzero(over)[0].tolist():
            request = self.request_of[int(rows[i])]
            assert request is not None
            if self._finish_reason(request, int(tokens[i]), int(known[i])):
                finished.append(request)
        for row, message in result.errors.items():
            request = self.request_of[row]
            if request is not None and row in rows:
                request.finish_reason, request.error = "error", message
                if request not in finished:
                    finished.append(request)
        for request in finished:
            self._leave(request)
            self._end(request)
        return StepUpdate(handles, streamed_tokens, finished, first_tokens)

    def _finish_reason(self, request: Request, token: int, known: int) -> bool:
        if token in request.stop_token_ids and known - len(request.prompt_token_ids) > request.params.min_tokens:
            request.finish_reason = "stop"
            request.stop_reason = None if token in request.eos_token_ids else token
        elif known >= request.max_total_tokens:
            request.finish_reason = "length"
        return request.finish_reason is not None

    def current_handles(self, plan: StepPlan) -> dict[int, int]:
        """row -> handle, for the plan's rows that have not changed hands since."""
        current = self._epoch[plan.rows] == plan.epochs
        rows = plan.rows[current]
        return dict(zip(rows.tolist(), self.handle_of[rows].tolist(), strict=True))

    def num_known(self, row: int) -> int:
        """Tokens of a running row that are known on the host."""
        return int(self._known[row])

    def reset_prefix_cache(self) -> None:
        self.pool.forget()
        self._published = [len(blocks) for blocks in self.blocks_of]  # running rows publish nothing old again

    def stats(self) -> EngineStats:
        c = self._counters
        return EngineStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_blocks=self.pool.num_blocks,
            num_free_blocks=self.pool.num_free,
            prefix_cache_queries=c["queries"],
            prefix_cache_hits=c["hits"],
            num_preemptions=c["preemptions"],
            prompt_tokens=c["prompt"],
            generation_tokens=c["generation"],
            num_steps=self._step,
            last_step_time_s=self._last_step_time_s,
        )
