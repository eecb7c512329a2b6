"""Any sequence of add, abort, preemption and finish: no block is leaked or wrongly shared, every token is right.

The model is a function of the cache alone: a simulated cache keeps the token of every slot, and a row's next token is a
hash of what its block table leads to. A wrong block, a lost copy or a block reused too early changes the tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.batch import StepPlan, StepResult
from core.config import CacheConfig, SchedulerConfig
from core.errors import QueueFullError, RequestError
from core.request import Request
from core.sampling_params import SamplingParams
from core.scheduler.scheduler import Scheduler

BLOCK = 4


def next_token(tokens: list[int]) -> int:
    value = 17
    for t in tokens:
        value = (value * 31 + t + 1) % 1_000_003
    return value % 50


def continuation(prompt: list[int], stops: frozenset[int], total: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < total:
        tokens.append(next_token(tokens))
        if tokens[-1] in stops:
            break
    return tokens[len(prompt) :]


class Device:
    """Runs plans in order, as a GPU's stream would."""

    def __init__(self, rows: int, num_blocks: int, max_len: int) -> None:
        self.tokens = np.zeros((rows, max_len + 1), np.int64)
        self.table = np.zeros((rows, max_len // BLOCK + 1), np.int64)
        self.slots = np.full((num_blocks, BLOCK), -1)

    def run(self, plan: StepPlan) -> StepResult:
        for new in plan.new_rows:
            self.tokens[new.row, : len(new.token_ids)] = new.token_ids
        for row, index, block in plan.block_updates.tolist():
            self.table[row, index] = block
        if len(plan.block_copies):
            self.slots[plan.block_copies[:, 1]] = self.slots[plan.block_copies[:, 0]]
        assert len(set(plan.rows.tolist())) == len(plan.rows)
        for row, begin, count in zip(plan.rows, plan.num_computed, plan.num_scheduled, strict=True):
            for p in range(begin, begin + count):
                self.slots[self.table[row, p // BLOCK], p % BLOCK] = self.tokens[row, p]
        out = []
        for row, begin, count, samples in zip(
            plan.rows, plan.num_computed, plan.num_scheduled, plan.samples, strict=True
        ):
            if samples:
                seen = [int(self.slots[self.table[row, p // BLOCK], p % BLOCK]) for p in range(begin + count)]
                self.tokens[row, begin + count] = next_token(seen)
                out.append(next_token(seen))
        return StepResult(np.array(out, np.int32))


def make(
    handle: int, prompt: list[int], max_tokens: int, parent: Request | None = None, priority: int = 0, limit: int = 64
) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=np.array(prompt, np.int32),
        params=SamplingParams(max_tokens=max_tokens),
        arrival_time_s=float(handle),
        max_total_tokens=min(limit, len(prompt) + max_tokens),
        stop_token_ids=frozenset({7}),
        eos_token_ids=frozenset({7}),
        priority=priority,
        stream=True,
        parent=parent,
    )


def check_blocks(scheduler: Scheduler) -> None:
    """Reference counts are exactly the rows' uses; a block that a row still writes belongs to it alone."""
    uses = [0] * scheduler.pool.num_blocks
    for row, blocks in enumerate(scheduler.blocks_of):
        for block in blocks:
            uses[block] += 1
        if scheduler.request_of[row] is None:
            assert not blocks
    assert uses == scheduler.pool.references
    assert scheduler.pool.num_free == uses.count(0)


PROMPTS = [
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 5, 6, 7, 8],
    [1, 2, 3, 4, 9, 9],
    [5],
    list(range(30)),
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2],
]
ACTION = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 5), st.integers(1, 20), st.integers(1, 3), st.integers(0, 2)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("reset")),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(ACTION, max_size=25),
    depth=st.sampled_from([1, 2]),
    num_blocks=st.integers(16, 40),
    rows=st.integers(1, 6),
    budget=st.integers(1, 40),
    caching=st.booleans(),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_any_sequence(actions, depth, num_blocks, rows, budget, caching, policy):
    limit = 64
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=rows, scheduling_policy=policy),
        CacheConfig(block_size=BLOCK, enable_prefix_caching=caching),
        num_blocks=num_blocks,
        max_model_len=limit,
        max_num_batched_tokens=budget,
    )
    device = Device(rows, num_blocks, limit)
    requests: dict[int, Request] = {}
    streamed: dict[int, list[int]] = {}
    flying: list[tuple[StepPlan, StepResult]] = []

    def commit() -> None:
        update = scheduler.commit(*flying.pop(0))
        for handle, token in zip(update.handles.tolist(), update.token_ids.tolist(), strict=True):
            streamed[handle].append(token)
        check_blocks(scheduler)

    def step() -> None:
        plan = scheduler.schedule()
        check_blocks(scheduler)
        if plan is not None:
            assert plan.num_tokens <= budget and (plan.num_scheduled >= 1).all()
            assert (np.diff((plan.num_scheduled > 1).astype(int)) >= 0).all(), "rows with one token come first"
            flying.append((plan, device.run(plan)))
        if len(flying) >= depth or (plan is None and flying):
            commit()

    for action in actions:
        if action[0] == "add":
            _, which, max_tokens, count, priority = action
            parent = None
            for _ in range(count):
                handle = len(requests) + 1
                request = make(handle, PROMPTS[which], max_tokens, parent, priority)
                requests[handle], streamed[handle] = request, []
                scheduler.add(request)
                parent = parent or request
        elif action[0] == "abort":
            scheduler.abort([action[1]])
            check_blocks(scheduler)
        elif action[0] == "reset":
            scheduler.reset_prefix_cache()
        else:
            for _ in range(action[1]):
                step()
    for _ in range(5000):
        if not scheduler.has_work and not flying:
            break
        step()
    assert not scheduler.has_work and not flying
    assert scheduler.pool.num_free == num_blocks
    for handle, request in requests.items():
        want = continuation(request.prompt_token_ids.tolist(), request.stop_token_ids, request.max_total_tokens)
        assert request.finish_reason in ("stop", "length", "abort")
        if request.finish_reason == "abort":
            assert streamed[handle] == want[: len(streamed[handle])]
        else:
            assert streamed[handle] == want == request.output_token_ids
            assert request.finish_reason == ("stop" if want[-1] == 7 else "length")


def scheduler_of(**options) -> Scheduler:
    return Scheduler(
        SchedulerConfig(**options),
        CacheConfig(block_size=BLOCK),
        num_blocks=64,
        max_model_len=64,
        max_num_batched_tokens=16,
    )


def test_a_long_prompt_does_not_hold_up_decodes():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    scheduler.add(make(1, [1, 2, 3], 30))
    scheduler.commit(plan := scheduler.schedule(), device.run(plan))
    scheduler.add(make(2, list(range(50)), 4))
    for _ in range(3):
        plan = scheduler.schedule()
        assert 1 in scheduler.handle_of[plan.rows] and plan.num_tokens <= 16
        scheduler.commit(plan, device.run(plan))


def test_priorities_decide_who_enters():
    scheduler = scheduler_of(max_num_seqs=1, scheduling_policy="priority")
    scheduler.add(make(1, [1], 4, priority=5))
    scheduler.add(make(2, [2], 4, priority=-1))
    assert scheduler.handle_of[scheduler.schedule().rows].tolist() == [2]


def test_what_can_never_run_is_refused():
    scheduler = Scheduler(
        SchedulerConfig(enable_chunked_prefill=False, max_queued_requests=1),
        CacheConfig(block_size=BLOCK),
        num_blocks=8,
        max_model_len=64,
        max_num_batched_tokens=8,
    )
    with pytest.raises(RequestError, match="KV cache"):
        scheduler.add(make(1, list(range(30)), 10))
    with pytest.raises(RequestError, match="enable_chunked_prefill"):
        scheduler.add(make(1, list(range(9)), 2))
    scheduler.add(make(1, [1], 2))
    with pytest.raises(QueueFullError, match="max_queued_requests"):
        scheduler.add(make(2, [1], 2))
