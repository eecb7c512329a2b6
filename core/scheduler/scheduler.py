"""Decides what each step computes: one token budget, decodes first, prefill chunks fill the rest.

A running request is a row of numpy arrays (rows.py, docs/decisions/0001). `schedule` advances the arrays as if the
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
from core.kv_cache.manager import BlockManager
from core.messages import EngineStats
from core.request import Request, RequestState
from core.scheduler.queue import WaitingQueue
from core.scheduler.rows import Rows
from core.scheduler.update import StepUpdate

MIN_COMMON_TOKENS = 256
"""A shorter prefix is not worth a kernel of its own."""


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
        self.max_model_len = max_model_len
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting = WaitingQueue(config.scheduling_policy)
        self.rows = Rows(config.max_num_seqs, max_model_len)
        self.blocks = BlockManager(
            num_rows=config.max_num_seqs,
            num_blocks=num_blocks,
            block_size=cache.block_size,
            prefix_caching=cache.enable_prefix_caching,
        )
        self.pool = self.blocks.pool
        self.blocks_of = self.blocks.blocks_of
        self.request_of = self.rows.request_of
        self.handle_of = self.rows.handle_of
        self._requests: dict[int, Request] = {}
        self._forks: dict[int, list[Request]] = {}  # parent's handle -> children that wait for its prompt
        self._appended: list[np.ndarray] = []  # tokens that were not sampled, for the next plan
        self._step = 0
        self._counters = dict.fromkeys(("queries", "hits", "preemptions", "prompt", "generation"), 0)
        self._last_step_time_s = time.monotonic()
        self._common: tuple[np.ndarray | None, int] = (None, 0)

    # ---- arrivals and departures

    @property
    def num_running(self) -> int:
        return len(self.rows.running)

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + sum(map(len, self._forks.values()))

    @property
    def has_work(self) -> bool:
        return bool(self.rows.running or len(self.waiting) or self._forks)

    def add(self, request: Request) -> None:
        """Queue a request. Raises RequestError if it can never run, QueueFullError if too many wait."""
        num_prompt = len(request.prompt_token_ids)
        limit = self.pool.num_blocks * self.block_size
        needed = num_prompt if request.pooling else request.max_total_tokens
        if needed > limit:
            raise RequestError(
                f"the request may need {needed} tokens of KV cache and there are {limit}; "
                "lower max_tokens, shorten the prompt, or give the engine more cache",
                param="max_tokens",
            )
        if num_prompt >= request.max_total_tokens:
            raise RequestError(
                f"the prompt has {num_prompt} tokens and prompt and output together may have "
                f"{request.max_total_tokens}: nothing is left to generate; shorten the prompt or raise max_model_len",
                param="prompt",
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
        if parent is not None and not request.forked and parent.handle in self._requests:
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
        for child in reversed(self._forks.pop(parent.handle, ())):  # the last one pushed is the first to enter
            child.forked = True
            self.waiting.push_front(child)

    # ---- planning

    def schedule(self) -> StepPlan | None:
        """Plan the next step, or None if nothing can run now."""
        if not self.has_work:
            return None
        state = self.rows
        updates: list[np.ndarray] = []
        copies: list[tuple[int, int]] = []
        new_rows: list[NewRow] = []
        rows, counts, chunked = self._running_rows()
        rows, counts, preempted = self._make_room(rows, counts, updates)
        if len(self.waiting) and not preempted:
            admitted = self._admit(self.max_num_batched_tokens - int(counts.sum()), updates, copies, new_rows)
            if admitted:
                rows = np.concatenate([rows, np.array([r for r, _ in admitted], np.int64)])
                counts = np.concatenate([counts, np.array([c for _, c in admitted], np.int32)])
                chunked = True
        if not len(rows):
            return None
        if chunked:
            order = np.argsort(counts > 1, kind="stable")  # rows with one token first
            rows, counts = rows[order], counts[order]
        computed, tokens = state.num_computed.take(rows), state.num_tokens.take(rows)
        after = computed + counts
        samples = after == tokens
        if state.num_pooling:
            samples &= ~state.pools.take(rows)
        state.num_computed[rows] = after
        state.num_tokens[rows] = tokens + samples
        if chunked:
            for row in rows[counts > 1].tolist():
                self._publish(row)
        if self._forks:
            self._free_forks()
        self._step += 1
        known, self._appended = self._appended, []
        return StepPlan(
            step=self._step,
            rows=rows.astype(np.int32),
            num_scheduled=counts,
            num_computed=computed,
            samples=samples,
            new_rows=new_rows,
            block_updates=np.concatenate(updates) if updates else np.empty((0, 3), np.int32),
            block_copies=np.array(copies, np.int32).reshape(-1, 2),
            known_tokens=np.concatenate(known) if known else np.empty((0, 3), np.int32),
            num_common=0 if chunked else self._num_common(),
            all_decode=not chunked and not state.num_pooling,
            epochs=state.epoch.take(rows),
        )

    def _num_common(self) -> int:
        """Tokens at the beginning of every running row that lie in shared blocks; looked at when rows come or go."""
        order = self.rows.order
        if self._common[0] is not order:
            found = self.blocks.num_common_blocks(self.rows.running) * self.block_size if len(order) > 1 else 0
            self._common = order, found if found >= MIN_COMMON_TOKENS else 0
        return self._common[1]

    def _running_rows(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Rows that go on, how many tokens each, and whether any of them is still at its prompt."""
        budget = self.max_num_batched_tokens
        state = self.rows
        running = state.order
        tokens = state.num_tokens.take(running)
        # a row whose last allowed token is being sampled has nothing left to compute
        unfinished = tokens < state.max_total.take(running)
        remaining = tokens - state.num_computed.take(running)
        if not unfinished.all():
            running, remaining = running[unfinished], remaining[unfinished]
        single = remaining == 1
        if single.all():
            rows = running[:budget]
            return rows, np.ones(len(rows), np.int32), False
        rows = running[single][:budget]
        budget -= len(rows)
        prefills: list[int] = []
        chunks: list[int] = []
        many = remaining > 1  # a row whose vector is on its way has nothing left
        for row, left in zip(running[many].tolist(), remaining[many].tolist(), strict=True):
            chunk = self._chunk(left, budget)
            if chunk <= 0:
                break
            prefills.append(row)
            chunks.append(chunk)
            budget -= chunk
        counts = np.array([1] * len(rows) + chunks, np.int32)
        return np.concatenate([rows, np.array(prefills, np.int64)]), counts, True

    def _chunk(self, left: int, budget: int) -> int:
        """How many of `left` tokens a prefill may compute now."""
        if not self.config.enable_chunked_prefill and left <= self.max_num_batched_tokens:
            return left if left <= budget else 0
        # what a preempted request must recompute may be longer than a step: it is cut in any case
        threshold = self.config.long_prefill_token_threshold
        if threshold > 0 and len(self.rows.running) + len(self.waiting) > 1:
            budget = min(budget, threshold)
        return min(left, budget)

    def _make_room(
        self, rows: np.ndarray, counts: np.ndarray, updates: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Blocks for the planned tokens of running rows, if need be by preempting the newest."""
        state = self.rows
        after = state.num_computed.take(rows) + counts
        capacity = self.blocks.capacity.take(rows)
        short = np.nonzero(after > capacity)[0]
        if not len(short):
            return rows, counts, False
        short_rows = rows[short]
        need = (after[short] - capacity[short] + self.block_size - 1) // self.block_size
        full = np.minimum(state.num_computed.take(short_rows), state.known.take(short_rows))
        self.blocks.publish_due(short_rows, self.request_of, state.token_ids, full)
        if int(need.sum()) <= self.pool.num_free:
            if (need == 1).all():
                updates.append(self.blocks.extend_each(short_rows))
            else:
                updates += [self.blocks.extend(r, n) for r, n in zip(short_rows.tolist(), need.tolist(), strict=True)]
            return rows, counts, False
        gone: set[int] = set()
        for row, num_blocks in zip(short_rows.tolist(), need.tolist(), strict=True):
            while row not in gone and self.pool.num_free < num_blocks:
                victim = self._victim()
                gone.add(victim)
                self._preempt(victim)
            if row not in gone:
                updates.append(self.blocks.extend(row, num_blocks))
        updates[:] = [u for u in updates if int(u[0, 0]) not in gone]
        kept = ~np.isin(rows, np.array(list(gone)))
        return rows[kept], counts[kept], True

    def _victim(self) -> int:
        if self.config.scheduling_policy == "fcfs":
            return self.rows.running[-1]

        def rank(row: int) -> tuple[int, float]:
            request = self.request_of[row]
            assert request is not None
            return request.priority, request.arrival_time_s

        return max(self.rows.running, key=rank)

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
        updates: list[np.ndarray],
        copies: list[tuple[int, int]],
        new_rows: list[NewRow],
    ) -> list[tuple[int, int]]:
        """Let waiting requests in, in the queue's order, while budget, rows and blocks last."""
        admitted: list[tuple[int, int]] = []
        promised = -1
        while budget > 0 and self.rows.free:
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
            # the whole prompt must fit, or it would preempt itself half way through
            whole = self.blocks.num_blocks_for(len(tokens)) - len(shared)
            need = self.blocks.num_blocks_for(computed + chunk) - len(shared)
            # shared blocks that are free now leave the free list too
            taken = sum(self.pool.references[b] == 0 for b in shared)
            if promised < 0:
                promised = self._promised_blocks()
            if self.pool.num_free - taken < whole + promised + len(self.rows.running) // 8:  # and room for decodes
                break
            self.waiting.pop()
            row = self.rows.enter(request, tokens, computed)
            updates.append(self.blocks.enter(row, shared, need))
            if source is not None:
                copies.append((source, self.blocks_of[row][len(shared)]))
            new_rows.append(NewRow(row, request, tokens))
            admitted.append((row, chunk))
            budget -= chunk
            promised += whole - need
            if not request.first_scheduled_time_s:
                request.first_scheduled_time_s = time.monotonic()
                request.num_cached_tokens = computed
                self._counters["queries"] += len(tokens)
                self._counters["hits"] += computed
                self._counters["prompt"] += len(tokens)
        return admitted

    def _promised_blocks(self) -> int:
        """Free blocks that the rest of the running rows' prompts will take."""
        running = self.rows.order
        missing = self.rows.num_tokens.take(running) - self.blocks.capacity.take(running)
        return int((-(-np.maximum(missing, 0) // self.block_size)).sum())

    def _shared_blocks(self, request: Request, tokens: np.ndarray) -> tuple[list[int], int | None]:
        """Blocks that need no computing, and, for a fork, the parent's block to copy. Changes no block."""
        parent = request.parent
        if request.forked and parent is not None and parent.row >= 0 and not request.output_token_ids:
            num = (len(tokens) - 1) // self.block_size
            blocks = self.blocks_of[parent.row]
            if self.rows.num_computed[parent.row] >= len(tokens):
                return blocks[:num], blocks[num]
        all_wanted = request.params.prompt_logprobs is not None or request.pooling == "mean"
        if not self.blocks.prefix_caching or all_wanted:
            return [], None
        return self.blocks.match(request, tokens), None

    def _leave(self, request: Request) -> None:
        """Give up the row and its blocks."""
        if request.error is None:
            self._publish(request.row)
        else:
            self.blocks.withdraw(request.row)  # the next prompt of this kind must not meet what broke this one
        self.blocks.leave(request.row)
        self.rows.leave(request)

    def _publish(self, row: int) -> None:
        request = self.request_of[row]
        assert request is not None
        state = self.rows
        self.blocks.publish(row, request, state.token_ids[row], int(min(state.num_computed[row], state.known[row])))

    def _free_forks(self) -> None:
        """Children may start once their parent's prompt is in a plan."""
        state = self.rows
        for handle in list(self._forks):
            parent = self._requests[handle]
            if parent.row >= 0 and state.num_computed[parent.row] >= state.prompt_len[parent.row]:
                self._release_forks(parent)

    # ---- results

    def commit(self, plan: StepPlan, result: StepResult) -> StepUpdate:
        """Take in what a plan sampled. Plans are committed in the order they were made."""
        now = self._last_step_time_s = time.monotonic()
        state, tokens = self.rows, result.token_ids
        rows, position, epochs = plan.rows.astype(np.int64), plan.num_computed + plan.num_scheduled, plan.epochs
        if not plan.samples.all():
            rows, position, epochs = rows[plan.samples], position[plan.samples], epochs[plan.samples]
        current = state.epoch.take(rows) == epochs
        if not current.all():
            rows, position, tokens = rows[current], position[current], tokens[current]
        may_end = state.write(rows, position, tokens)
        self._counters["generation"] += len(rows)
        first_tokens = []
        for row in rows[position == state.prompt_len.take(rows)].tolist():
            request = self.request_of[row]
            assert request is not None
            if not request.first_token_time_s:
                request.first_token_time_s = now
                first_tokens.append(request)
        handles, streamed_tokens, streamed = state.handle_of.take(rows), tokens, state.stream.take(rows)
        if not streamed.all():
            handles, streamed_tokens = handles[streamed], tokens[streamed]
        finished = []
        for i in may_end.tolist():
            request = self.request_of[int(rows[i])]
            assert request is not None
            if self._finish_reason(request, int(tokens[i]), int(position[i]) + 1):
                finished.append(request)
        if state.num_pooling:
            finished += self._finish_pooled(plan, result)
        for row, message in result.errors.items():
            request = self.request_of[row]
            if request is not None and (row in rows or request in finished):
                request.finish_reason, request.error = "error", message
                if request not in finished:
                    finished.append(request)
        for request in finished:
            self._leave(request)
            self._end(request)
        return StepUpdate(handles, streamed_tokens, finished, first_tokens)

    def _finish_pooled(self, plan: StepPlan, result: StepResult) -> list[Request]:
        """Requests whose prompt ended with the plan, unless they left their row since it was made."""
        state = self.rows
        ended = state.pools.take(plan.rows) & (state.epoch.take(plan.rows) == plan.epochs)
        ended &= plan.num_computed + plan.num_scheduled == state.prompt_len.take(plan.rows)
        finished = []
        for row in plan.rows[ended].tolist():
            request = self.request_of[row]
            assert request is not None
            request.embedding, request.finish_reason = result.embeddings.get(row), "stop"
            if request.embedding is None:
                request.finish_reason, request.error = "error", "the executor gave no embedding for this sequence"
            finished.append(request)
        return finished

    def _finish_reason(self, request: Request, token: int, known: int) -> bool:
        early = known - len(request.prompt_token_ids) <= request.params.min_tokens
        if early and token in request.eos_token_ids:
            # before min_tokens an EOS is sampled only where a grammar allows nothing else
            early = request.params.guided_decoding is None
        if token in request.stop_token_ids and not early:
            request.finish_reason = "stop"
            request.stop_reason = None if token in request.eos_token_ids else token
        elif known >= request.max_total_tokens:
            request.finish_reason = "length"
        return request.finish_reason is not None

    def current_handles(self, plan: StepPlan) -> dict[int, int]:
        """row -> handle, for the plan's rows that have not changed hands since."""
        current = self.rows.epoch[plan.rows] == plan.epochs
        rows = plan.rows[current]
        return dict(zip(rows.tolist(), self.handle_of[rows].tolist(), strict=True))

    # ---- jump-forward (docs/decisions/0005)

    def running(self, handle: int) -> Request | None:
        """The request, if it has a row now."""
        request = self._requests.get(handle)
        return request if request is not None and request.row >= 0 else None

    def live_handles(self) -> list[int]:
        """Of every sequence that has not ended."""
        return list(self._requests)

    def streams(self, handle: int) -> bool:
        return self._requests[handle].stream

    def num_open(self, row: int) -> int:
        """Tokens that the row may still get, one of which must be sampled."""
        return int(self.rows.max_total[row] - self.rows.num_tokens[row])

    def is_sampling(self, row: int) -> bool:
        """A plan that is not committed samples the row's next token."""
        return bool(self.rows.num_tokens[row] > self.rows.known[row])

    def append(self, row: int, token_ids: list[int]) -> None:
        """Give a row tokens that need no sampling; the next plan computes them as it does a prompt's."""
        self._appended.append(self.rows.append(row, token_ids))

    def reveal(self, row: int, count: int) -> None:
        """Appended tokens are the row's own from now on: what came before them is known."""
        self.rows.reveal(row, count)
        self._counters["generation"] += count

    def num_known(self, row: int) -> int:
        """Tokens of a running row that are known on the host."""
        return int(self.rows.known[row])

    def reset_prefix_cache(self) -> None:
        self.blocks.forget()

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
