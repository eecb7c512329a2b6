"""A look at the engine process from outside: what blocks and rows say while a request runs and after it."""

from __future__ import annotations

import asyncio

from core import AsyncEngine, EngineConfig, SamplingParams
from core.kv_cache.block_pool import BlockPool


def test_states_of_a_pool():
    pool = BlockPool(6)
    held = pool.allocate(4)
    pool.publish(held[1], b"one")
    pool.publish(held[2], b"two")
    pool.acquire(held[2])
    pool.acquire(held[2])
    pool.publish(held[3], b"three")
    pool.release(held[3])
    assert pool.states(0, 6) == bytes([1, 1 | 4, 2 | 4, 0 | 4, 0, 0])
    assert pool.states(2, 4) == bytes([2 | 4, 4])
    assert pool.states(4, 99) == bytes([0, 0])


def test_inspect_while_a_request_runs():
    async def run() -> None:
        engine = AsyncEngine(EngineConfig.from_options(model="demo", num_blocks=64, max_model_len=512, num_threads=1))
        await engine.start()
        try:
            assert (await engine.inspect()).blocks == bytes(64)
            prompt = list(range(100, 140))
            stream = engine.generate(prompt, SamplingParams(max_tokens=60, ignore_eos=True), output_kind="delta")
            await anext(stream)
            during = await engine.inspect()
            (row,) = during.rows
            assert row.num_prompt == 40 and row.max_tokens == 100 and row.num_cached == 0
            assert 40 < row.num_tokens <= 100 and row.num_blocks == sum(b & 3 == 1 for b in during.blocks)
            assert row.num_blocks == 64 - during.stats.num_free_blocks
            assert (await engine.inspect(begin=60, count=10)).begin == 60
            assert len((await engine.inspect(begin=60, count=10)).blocks) == 4
            assert (await engine.inspect(num_rows=0)).rows == []
            async for _ in stream:
                pass
            after = await engine.inspect()
            # nobody holds a block; the full ones can be found
            assert not any(b & 3 for b in after.blocks) and not after.rows
            assert sum(b == 4 for b in after.blocks) == 99 // 16
        finally:
            await engine.shutdown()

    asyncio.run(run())
