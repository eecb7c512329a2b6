"""Any sequence of add, abort, preemption and finish: no block is leaked or wrongly shared, every token is right.

The model is a function of the cache alone: a simulated cache keeps the token of every slot, and a row's next token is a
hash of what its block table leads to. A wrong block, a lost copy or a block reused too early changes the tokens. A request
that pools gets that hash of its whole prompt, and the sum of the tokens that were computed for it.
"""

from __future__ import annotations

import dataclasses

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
        self.requests: list[Request | None] = [None] * rows
        self.sums = [0] * rows

    def run(self, plan: StepPlan) -> StepResult:
        for new in plan.new_rows:
            self.tokens[new.row, : len(new.token_ids)] = new.token_ids
            self.requests[new.row] = new.request
        for row, index, block in plan.block_updates.tolist():
            self.table[row, index] = block
        if len(plan.block_copies):
            self.slots[plan.block_copies[:, 1]] = self.slots[plan.block_copies[:, 0]]
        assert len(set(plan.rows.tolist())) == len(plan.rows)
        for row, begin, count in zip(plan.rows, plan.num_computed, plan.num_scheduled, strict=True):
            for p in range(begin, begin + count):
                self.slots[self.table[row, p // BLOCK], p % BLOCK] = self.tokens[row, p]
        out = []
        embeddings = {}
        for row, begin, count, samples in zip(
            plan.rows, plan.num_computed, plan.num_scheduled, plan.samples, strict=True
        ):
            if samples:
                seen = [int(self.slots[self.table[row, p // BLOCK], p % BLOCK]) for p in range(begin + count)]
                self.tokens[row, begin + count] = next_token(seen)
                out.append(next_token(seen))
            if (request := self.requests[row]).pooling is not None:
                assert not samples
                new = int(self.tokens[row, begin : begin + count].sum())
                self.sums[row] = new + (self.sums[row] if begin else 0)
                if begin + count == len(request.prompt_token_ids):
                    seen = [int(self.slots[self.table[row, p // BLOCK], p % BLOCK]) for p in range(begin + count)]
                    embeddings[int(row)] = np.array([next_token(seen), self.sums[row]], np.float32)
        return StepResult(np.array(out, np.int32), embeddings=embeddings)


def make(
    handle: int,
    prompt: list[int],
    max_tokens: int,
    parent: Request | None = None,
    priority: int = 0,
    limit: int = 64,
    stream: bool = True,
    salt: str = "",
    stops: frozenset[int] = frozenset({7}),
    pooling: str | None = None,
    **params,
) -> Request:
    return Request(
        handle=handle,
        request_id=str(handle),
        prompt_token_ids=np.array(prompt, np.int32),
        params=SamplingParams(max_tokens=max_tokens, **params),
        arrival_time_s=float(handle),
        max_total_tokens=min(limit, len(prompt) + max_tokens),
        stop_token_ids=stops,
        eos_token_ids=frozenset({7}),
        priority=priority,
        stream=stream,
        cache_salt=salt,
        parent=parent,
        pooling=pooling,
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
    st.tuples(st.just("add"), st.integers(6, 12), st.integers(1, 9), st.just(1), st.just(0)),  # goes on from an answer
    st.tuples(st.just("pool"), st.integers(0, 5), st.sampled_from(["last", "mean"]), st.integers(0, 2)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("fail"), st.integers(0, 5)),
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
    chunked=st.booleans(),
    threshold=st.sampled_from([0, 3]),
    policy=st.sampled_from(["fcfs", "priority"]),
)
def test_any_sequence(actions, depth, num_blocks, rows, budget, caching, chunked, threshold, policy):
    limit = 64
    scheduler = Scheduler(
        SchedulerConfig(
            max_num_seqs=rows,
            scheduling_policy=policy,
            enable_chunked_prefill=chunked,
            long_prefill_token_threshold=threshold,
        ),
        CacheConfig(block_size=BLOCK, enable_prefix_caching=caching),
        num_blocks=num_blocks,
        max_model_len=limit,
        max_num_batched_tokens=budget,
    )
    device = Device(rows, num_blocks, limit)
    requests: dict[int, Request] = {}
    streamed: dict[int, list[int]] = {}
    flying: list[tuple[StepPlan, StepResult]] = []

    failing: list[int] = []

    def commit() -> None:
        plan, result = flying.pop(0)
        sampled = plan.rows[plan.samples].tolist()
        broken = {sampled[i]: "no finite logits" for i in failing if i < len(sampled)}
        failing.clear()
        update = scheduler.commit(plan, dataclasses.replace(result, errors=broken))
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
            if which < len(PROMPTS):
                prompt = PROMPTS[which]
            else:
                before = requests.get(which - len(PROMPTS) + 1)
                if before is None or before.finish_reason is None:
                    continue
                prompt = [*before.prompt_token_ids.tolist(), *before.output_token_ids, 3][:50]
            for _ in range(count):
                handle = len(requests) + 1
                # of every three, one has a tenant of its own and one wants its prompt's logprobs
                request = make(
                    handle,
                    prompt,
                    max_tokens,
                    parent,
                    priority,
                    stream=bool(handle % 4),
                    salt="tenant" if handle % 3 == 1 and count == 1 else "",
                    prompt_logprobs=0 if handle % 3 == 2 and count == 1 else None,
                )
                if not chunked and len(prompt) > budget:
                    with pytest.raises(RequestError, match="enable_chunked_prefill"):
                        scheduler.add(request)
                    break
                requests[handle], streamed[handle] = request, []
                scheduler.add(request)
                parent = parent or request
        elif action[0] == "pool":
            _, which, pooling, priority = action
            handle, prompt = len(requests) + 1, PROMPTS[which]
            if chunked or len(prompt) <= budget:
                # as the loop makes them
                request = make(handle, prompt, 1, None, priority, limit + 1, stream=False, pooling=pooling)
                requests[handle], streamed[handle] = request, []
                scheduler.add(request)
        elif action[0] == "abort":
            scheduler.abort([action[1]])
            check_blocks(scheduler)
        elif action[0] == "fail":
            failing.append(action[1])
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
        if request.pooling is not None:
            prompt = request.prompt_token_ids.tolist()
            assert request.finish_reason in ("stop", "abort") and streamed[handle] == request.output_token_ids == []
            if request.finish_reason == "stop":
                seen, total = request.embedding.tolist()
                assert seen == next_token(prompt)
                assert total == sum(prompt) or request.pooling == "last", "a mean without the states of a cached prefix"
            continue
        want = continuation(request.prompt_token_ids.tolist(), request.stop_token_ids, request.max_total_tokens)
        assert request.finish_reason in ("stop", "length", "abort", "error")
        if request.finish_reason in ("abort", "error"):
            assert streamed[handle] == want[: len(streamed[handle])]
        else:
            assert streamed[handle] == (want if request.stream else [])
            assert request.output_token_ids == want
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

    with pytest.raises(RequestError, match="nothing is left to generate"):
        scheduler.add(make(3, list(range(5)), 3, limit=5))


def run(scheduler: Scheduler, device: Device, steps: int = 1000) -> list[Request]:
    """Plan, run and commit until nothing is left, or `steps` times."""
    finished: list[Request] = []
    while steps and (plan := scheduler.schedule()):
        finished += scheduler.commit(plan, device.run(plan)).finished
        check_blocks(scheduler)
        steps -= 1
    return finished


def test_a_second_prompt_finds_the_first_ones_blocks_but_its_last_token_is_computed():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    prompt = list(range(10, 18))
    scheduler.add(make(1, prompt, 2))
    run(scheduler, device)
    for handle, options, cached in (
        (2, {}, 4),  # the second block holds the last token
        (3, {"salt": "x"}, 0),
        (4, {"prompt_logprobs": 0}, 0),
    ):
        scheduler.add(make(handle, prompt, 2, **options))
        (request,) = run(scheduler, device)
        assert (request.num_cached_tokens, request.output_token_ids[0]) == (cached, next_token(prompt))
    stats = scheduler.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (32, 4)


def test_samples_of_one_prompt_share_its_full_blocks_and_copy_the_last():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    parent = make(1, list(range(10, 20)), 5)
    children = [make(h, list(range(10, 20)), 5, parent) for h in (2, 3)]
    for request in (parent, *children):
        scheduler.add(request)
    run(scheduler, device, 1)
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)
    plan = scheduler.schedule()
    blocks = [scheduler.blocks_of[r.row] for r in (parent, *children)]
    assert blocks[0][:2] == blocks[1][:2] == blocks[2][:2] and len({b[2] for b in blocks}) == 3
    assert plan.block_copies.tolist() == [[blocks[0][2], b[2]] for b in blocks[1:]]
    assert plan.num_scheduled.tolist() == [1, 1, 1] and plan.samples.all()
    scheduler.commit(plan, device.run(plan))
    run(scheduler, device)
    assert parent.output_token_ids == children[0].output_token_ids == children[1].output_token_ids


def test_a_sample_whose_first_one_was_never_admitted_runs_alone():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    stranger = make(1, [5, 6, 7], 3)
    scheduler.add(make(2, [5, 6, 7], 3, stranger))
    assert [r.handle for r in run(scheduler, device)] == [2]


def test_what_a_broken_sequence_computed_is_not_found_by_the_next():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    prompt = list(range(10, 20))
    scheduler.add(make(1, prompt, 5))
    plan = scheduler.schedule()
    row = int(plan.rows[0])
    result = dataclasses.replace(device.run(plan), errors={row: "no finite logits"})
    (broken,) = scheduler.commit(plan, result).finished
    assert (broken.finish_reason, broken.error) == ("error", "no finite logits")
    assert scheduler.pool.num_free == 64
    scheduler.add(make(2, prompt, 5))
    assert run(scheduler, device)[0].num_cached_tokens == 0


def test_a_finish_is_seen_after_the_next_step_was_planned():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    request = make(1, [3, 4], 10, stops=frozenset(range(50)))  # its first token ends it
    scheduler.add(request)
    first = scheduler.schedule()
    answer = device.run(first)
    second = scheduler.schedule()
    extra = device.run(second)
    assert second.rows.tolist() == first.rows.tolist()
    update = scheduler.commit(first, answer)
    assert [r.handle for r in update.finished] == [1] and scheduler.pool.num_free == 64
    late = scheduler.commit(second, extra)
    assert not late.finished and not len(late.handles)
    assert len(request.output_token_ids) == 1 and not scheduler.has_work


def test_stop_ids_end_a_sequence_after_min_tokens_and_strangers_ids_do_not():
    prompt = [3, 4]
    free = continuation(prompt, frozenset(), 12)
    many = frozenset(range(8192 + 50, 8192 + 90)) | {free[0], free[3]}
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    scheduler.add(make(1, prompt, 10, stops=many))
    scheduler.add(make(2, prompt, 10, stops=many, min_tokens=2))
    scheduler.add(make(3, prompt, 10, stops=frozenset(t + 8192 for t in range(50))))  # same low bits, other ids
    done = {r.handle: r for r in run(scheduler, device)}
    assert done[1].output_token_ids == free[:1]
    # a token counts once min_tokens others stand before it
    after = next(i for i, t in enumerate(free) if i >= 2 and t in many)
    assert done[2].output_token_ids == free[: after + 1]
    assert done[2].stop_reason == (None if free[after] == 7 else free[after])
    assert (done[3].output_token_ids, done[3].finish_reason) == (free, "length")


def test_the_newest_is_preempted_keeps_its_tokens_and_finds_its_blocks_again():
    scheduler = Scheduler(
        SchedulerConfig(),
        CacheConfig(block_size=BLOCK),
        num_blocks=8,
        max_model_len=32,
        max_num_batched_tokens=32,
    )
    device = Device(256, 8, 32)
    prompts = [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]]
    for handle, prompt in enumerate(prompts, 1):
        scheduler.add(make(handle, prompt, 20, stops=frozenset()))
    done = {r.handle: r for r in run(scheduler, device)}
    assert (done[1].num_preemptions, done[2].num_preemptions >= 1) == (0, True)
    for handle, prompt in enumerate(prompts, 1):
        assert done[handle].output_token_ids == continuation(prompt, frozenset(), 26)
    assert scheduler.stats().num_preemptions == done[2].num_preemptions


def test_priority_decides_who_is_preempted():
    scheduler = Scheduler(
        SchedulerConfig(scheduling_policy="priority"),
        CacheConfig(block_size=BLOCK),
        num_blocks=8,
        max_model_len=32,
        max_num_batched_tokens=32,
    )
    device = Device(256, 8, 32)
    scheduler.add(make(1, [11, 12, 13, 14, 15, 16], 20, priority=3, stops=frozenset()))
    scheduler.add(make(2, [21, 22, 23, 24, 25, 26], 20, priority=1, stops=frozenset()))
    done = {r.handle: r for r in run(scheduler, device)}
    assert done[1].num_preemptions >= 1 and done[2].num_preemptions == 0


def test_a_prompt_enters_only_when_all_of_it_fits():
    scheduler = Scheduler(
        SchedulerConfig(),
        CacheConfig(block_size=BLOCK),
        num_blocks=12,
        max_model_len=48,
        max_num_batched_tokens=8,
    )
    device = Device(256, 12, 48)
    scheduler.add(make(1, list(range(10, 36)), 4, stops=frozenset()))  # 7 blocks, in 4 steps
    scheduler.add(make(2, list(range(50, 76)), 4, stops=frozenset()))
    done = run(scheduler, device)
    assert [r.handle for r in done] == [1, 2]
    assert sum(r.num_preemptions for r in done) == 0


def test_long_prompts_are_bounded_only_while_others_want_the_step():
    scheduler, device = scheduler_of(long_prefill_token_threshold=4), Device(256, 64, 64)
    scheduler.add(make(1, list(range(40)), 4))
    plan = scheduler.schedule()
    assert plan.num_scheduled.tolist() == [16], "alone, it may have the whole step"
    scheduler.commit(plan, device.run(plan))
    scheduler.add(make(2, [1, 2, 3], 4))
    plan = scheduler.schedule()
    assert plan.num_scheduled.tolist() == [4, 3]


def test_an_abort_frees_its_blocks_at_once_whatever_its_state():
    scheduler, device = scheduler_of(max_num_seqs=1), Device(1, 64, 64)
    parent = make(1, list(range(40)), 4)
    for request in (parent, make(2, list(range(40)), 4, parent), make(3, [1], 4)):
        scheduler.add(request)
    run(scheduler, device, 1)
    assert scheduler.pool.num_free < 64
    ended = scheduler.abort([2, 3, 1, 99])
    assert [r.finish_reason for r in ended] == ["abort"] * 3
    assert scheduler.pool.num_free == 64 and not scheduler.has_work and scheduler.schedule() is None


def test_a_vector_whose_row_changed_hands_is_dropped():
    scheduler, device = scheduler_of(max_num_seqs=1), Device(1, 64, 64)
    scheduler.add(make(1, [1, 2, 3], 1, stream=False, pooling="mean"))
    first = scheduler.schedule()
    given = device.run(first)
    scheduler.abort([1])
    scheduler.add(second := make(2, [4, 5], 1, stream=False, pooling="mean"))
    plan = scheduler.schedule()
    result = device.run(plan)
    assert scheduler.commit(first, given).finished == []
    assert scheduler.commit(plan, result).finished == [second] and second.embedding[1] == 9


def test_a_vector_on_its_way_holds_up_nobody():
    """Planned one step ahead: what waits for its result takes no part in the next step, and no budget."""
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    scheduler.add(make(1, [1, 2, 3], 1, stream=False, pooling="last"))
    first = scheduler.schedule()
    scheduler.add(make(2, list(range(20)), 4))
    scheduler.add(make(3, list(range(20, 40)), 4))
    second = scheduler.schedule()
    assert second.rows.tolist() == [1] and second.num_tokens == 16
    third = scheduler.schedule()  # two rows go on with their prompts
    assert third.num_tokens == 16 and len(third.rows) == 2
    for plan in (first, second, third):
        scheduler.commit(plan, device.run(plan))


def test_a_vector_that_the_executor_does_not_give_is_an_error():
    scheduler, device = scheduler_of(), Device(256, 64, 64)
    scheduler.add(request := make(1, list(range(20)), 1, stream=False, pooling="last"))
    for ends in (False, True):
        plan = scheduler.schedule()
        update = scheduler.commit(plan, dataclasses.replace(device.run(plan), embeddings={}))
        assert bool(update.finished) == ends
    assert (request.finish_reason, scheduler.has_work) == ("error", False) and "no embedding" in request.error
