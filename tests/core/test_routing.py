"""Several clients of one engine: each gets what is its own."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from core.config import EngineConfig
from core.engine.attached_engine import AttachedEngine
from core.engine.engine_process import EngineProcess
from core.engine.routing import Router
from core.errors import EngineDeadError
from core.messages import CLIENT_SHIFT, EngineStats, Finished, Leave, Logprobs
from core.sampling_params import GuidedDecodingParams, SamplingParams


def handle(client: int, number: int) -> int:
    return (client << CLIENT_SHIFT) + number


def test_a_step_is_split_by_client():
    sent = []
    router = Router(lambda message, client: sent.append((client, message)))
    router.join(1)
    router.join(7)
    pairs = [(handle(7, 1), 10), (handle(1, 1), 11), (handle(7, 2), 12), (handle(9, 1), 13)]  # 9 has left
    one = Logprobs([1], [0.0], [1])
    router.step(
        1.0,
        np.array([h for h, _ in pairs]),
        np.array([t for _, t in pairs], np.int32),
        [Finished(handle=handle(1, 5), reason="stop"), Finished(handle=handle(9, 5), reason="stop")],
        {handle(7, 2): [one]},
        {handle(1, 5): [None, one]},
    )
    found = dict(sent)
    assert sorted(found) == [1, 7] and len(sent) == 2
    assert np.frombuffer(found[7].handles, np.int64).tolist() == [handle(7, 1), handle(7, 2)]
    assert np.frombuffer(found[7].token_ids, np.int32).tolist() == [10, 12]
    assert found[7].finished == [] and found[7].logprobs == {handle(7, 2): [one]} and found[7].prompt_logprobs == {}
    assert np.frombuffer(found[1].token_ids, np.int32).tolist() == [11]
    assert [f.handle for f in found[1].finished] == [handle(1, 5)] and found[1].prompt_logprobs == {
        handle(1, 5): [None, one]
    }
    sent.clear()
    router.leave(7)
    router.step(2.0, stats=EngineStats(num_steps=3))
    assert [(client, m.stats.num_steps) for client, m in sent] == [(0, 3), (1, 3)]
    sent.clear()
    router.answer(found[1], handle(7, 1))
    router.join(7)  # sent before it was killed, and late
    assert sent == [] and not router.knows(7) and router.knows(1)


async def tokens_of(engine, params):
    tokens = []
    async for output in engine.generate("hello", params, output_kind="delta"):
        tokens += output.outputs[0].token_ids
    return tokens


def test_clients_share_an_engine_and_one_that_is_gone_leaves_nothing(checkpoint):
    async def main():
        config = EngineConfig.from_options(model=str(checkpoint("llama")))
        deaths = []
        process = EngineProcess(config, lambda message: None, deaths.append)
        ready = await process.spawn()
        first, second, third = engines = [AttachedEngine(config, i) for i in (1, 2, 3)]
        for engine in engines:
            engine.attach(ready, process.inbox)
        jobs = [(engines[i % 3], SamplingParams(seed=i, max_tokens=10 + i, ignore_eos=True)) for i in range(30)]
        answers = await asyncio.gather(*(tokens_of(e, p) for e, p in jobs))
        again = await asyncio.gather(*(tokens_of(first, p) for _, p in jobs))
        assert answers == again and [len(a) for a in answers] == [10 + i for i in range(30)]
        assert (await second.stats()).generation_tokens == (await third.stats()).generation_tokens == 2 * 735

        # a client that is killed says nothing more; its owner says that it is gone
        long = SamplingParams(max_tokens=1500, ignore_eos=True, n=2)
        lost = [asyncio.create_task(tokens_of(third, long)) for _ in range(4)]
        # its grammar is not there yet: the request is held outside the scheduler
        guided = SamplingParams(max_tokens=1500, guided_decoding=GuidedDecodingParams(regex="a+"))
        held = third.generate("hello", guided, output_kind="delta")
        waiting = asyncio.create_task(anext(held))
        while (await first.stats()).num_running < 4:
            await asyncio.sleep(0.005)
        process.link.send(Leave(3))
        await first.call("ping")
        third._send(third.inputs.make([1, 2], long, "late", priority=0, cache_salt="", stream=True))
        third._link.close(linger_ms=1000)
        kept = asyncio.create_task(tokens_of(second, SamplingParams(max_tokens=200, ignore_eos=True)))
        began = time.monotonic()
        while (stats := await first.stats()).num_running > 1:
            assert time.monotonic() - began < 2, stats
            await asyncio.sleep(0.01)
        assert len(await kept) == 200
        stats = await first.stats()
        assert stats.num_running == 0 and stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks
        await third.shutdown()
        for task in (*lost, waiting):
            with pytest.raises(EngineDeadError):
                await task

        # the owner starts another engine, and the clients join that
        process._process.kill()
        stream = asyncio.create_task(tokens_of(second, long))
        while not deaths:
            await asyncio.sleep(0.01)
        for engine in (first, second):
            engine.engine_died(deaths[0])
        with pytest.raises(EngineDeadError, match="ended with status -9"):
            await stream
        with pytest.raises(EngineDeadError):
            await tokens_of(first, long)
        ready = await process.spawn(stats)
        first.attach(ready, process.inbox)  # told twice, as by an owner that starts a server process meanwhile
        for engine in (first, second):
            engine.attach(ready, process.inbox)
        same = await asyncio.gather(*(tokens_of(e, SamplingParams(seed=5, max_tokens=15)) for e in (first, second)))
        assert same[0] == same[1] and len(same[0]) > 0
        assert (await first.stats()).num_steps > stats.num_steps
        for engine in (first, second):
            await engine.shutdown()
        await process.stop()

    asyncio.run(main())
