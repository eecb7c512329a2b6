"""The engine in its own process: many at once, aborts, and its death noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config import EngineConfig
from core.engine.async_engine import AsyncEngine
from core.errors import EngineDeadError, ModelError, RequestError
from core.sampling_params import SamplingParams


def run(checkpoint, test, **options):
    async def main():
        engine = AsyncEngine(EngineConfig.from_options(model=str(checkpoint("llama")), **options))
        await engine.start()
        try:
            await asyncio.wait_for(test(engine), 60)
        finally:
            await engine.shutdown()

    asyncio.run(main())


@pytest.fixture(scope="module")
def shared(checkpoint) -> Callable[[Callable[[AsyncEngine], Any]], None]:
    """shared(test): run it with an engine that all tests share which leave theirs alive and empty."""
    with asyncio.Runner() as runner:
        engine = AsyncEngine(EngineConfig.from_options(model=str(checkpoint("llama"))))
        runner.run(engine.start())

        yield lambda test: runner.run(asyncio.wait_for(test(engine), 60))
        stats = runner.run(engine.stats())
        assert stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks
        runner.run(engine.shutdown())


async def text_of(engine, prompt, params, kind="delta"):
    text, tokens = "", []
    async for output in engine.generate(prompt, params, output_kind=kind):
        text = text + output.outputs[0].text if kind == "delta" else output.outputs[0].text
        tokens = tokens + output.outputs[0].token_ids if kind == "delta" else output.outputs[0].token_ids
    return text, tokens


def test_fifty_at_once_and_every_kind_of_output_agrees(shared):
    async def test(engine):
        params = [SamplingParams(seed=i, max_tokens=20 + i % 7, ignore_eos=True) for i in range(50)]
        deltas = await asyncio.gather(*(text_of(engine, f"hello {i}", p) for i, p in enumerate(params)))
        finals = await asyncio.gather(*(text_of(engine, f"hello {i}", p, "final") for i, p in enumerate(params)))
        wholes = await asyncio.gather(*(text_of(engine, f"hello {i}", p, "cumulative") for i, p in enumerate(params)))
        assert deltas == finals == wholes
        assert [len(tokens) for _, tokens in deltas] == [p.max_tokens for p in params]
        stats = await engine.stats()
        assert stats.num_free_blocks == stats.num_blocks and stats.num_running == 0

    shared(test)


def test_leaving_a_stream_frees_its_blocks(shared):
    async def test(engine):
        stream = engine.generate("hello", SamplingParams(max_tokens=200, ignore_eos=True, n=3), output_kind="delta")
        await anext(stream)
        await stream.aclose()
        for _ in range(100):
            stats = await engine.stats()
            if stats.num_free_blocks == stats.num_blocks:
                break
            await asyncio.sleep(0.01)
        assert stats.num_running == 0 and stats.num_free_blocks == stats.num_blocks

    shared(test)


def test_bad_requests_leave_others_alone(shared):
    async def test(engine):
        good = asyncio.create_task(text_of(engine, "hello", SamplingParams(seed=1, max_tokens=40, ignore_eos=True)))
        with pytest.raises(RequestError, match="shorten the prompt"):
            await text_of(engine, [1] * 400, SamplingParams())
        with pytest.raises(RequestError, match="is in use"):
            one = engine.generate("a", SamplingParams(max_tokens=100, ignore_eos=True), "same", output_kind="delta")
            await anext(one)
            await anext(engine.generate("b", SamplingParams(), "same"))
        await one.aclose()
        assert len((await good)[1]) == 40

    shared(test)


def test_a_killed_engine_is_noticed_at_once(checkpoint):
    async def test(engine):
        stream = engine.generate("hello", SamplingParams(max_tokens=230, ignore_eos=True), output_kind="delta")
        await anext(stream)
        killed_at = time.monotonic()
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="ended"):
            async for _ in stream:
                pass
        assert time.monotonic() - killed_at < 1
        assert engine.errored
        with pytest.raises(EngineDeadError):
            await text_of(engine, "again", SamplingParams())

    run(checkpoint, test, max_num_batched_tokens=8)


def test_a_start_that_fails_says_why(checkpoint):
    async def main():
        engine = AsyncEngine(EngineConfig.from_options(model="/nowhere"))
        with pytest.raises(ModelError, match="does not exist"):
            await engine.start()

    asyncio.run(main())


def test_an_idle_engine_uses_no_processor(shared):
    async def test(engine):
        await text_of(engine, "hello", SamplingParams(max_tokens=5))

        def ticks() -> int:
            fields = Path(f"/proc/{engine._process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return int(fields[11]) + int(fields[12])

        await asyncio.sleep(0.3)
        before = ticks()
        await asyncio.sleep(1.5)
        assert ticks() - before <= 3  # of 150

    shared(test)


def test_a_slow_reader_gets_everything(shared):
    """The engine ends the request while its reader is still busy with an earlier output."""

    async def test(engine):
        params = SamplingParams(seed=1, max_tokens=100, ignore_eos=True)
        for kind in ("delta", "cumulative"):
            text, tokens = "", []
            async for output in engine.generate("hello", params, output_kind=kind):
                (new,) = output.outputs
                text = text + new.text if kind == "delta" else new.text
                tokens = tokens + new.token_ids if kind == "delta" else new.token_ids
                while engine.num_requests:
                    await asyncio.sleep(0.01)
            assert new.finish_reason == "length"
            assert (text, tokens) == await text_of(engine, "hello", params, "final")

    shared(test)


class Bucket:
    """An outlet that is open now and then; `fail_at`: the output at which it breaks."""

    def __init__(self, is_open: Callable[[int], bool], fail_at: int = -1) -> None:
        self._is_open, self._fail_at = is_open, fail_at
        self.outputs: list[Any] = []
        self.where: list[str] = []
        self._asked = 0

    def open(self) -> bool:
        self._asked += 1
        return self._is_open(self._asked)

    def put(self, output: Any) -> None:
        if len(self.outputs) == self._fail_at:
            raise ValueError("the bucket is full")
        self.outputs.append(output)
        self.where.append("outlet")

    async def drain(self, stream: Any, pause_s: float = 0.0) -> None:
        """What comes from the iterator goes into the same bucket."""
        async for output in stream:
            await asyncio.sleep(pause_s)
            self.outputs.append(output)
            self.where.append("iterator")


@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_an_outlet_gets_what_the_iterator_does_not(shared, pause_s):
    """Nothing is lost, doubled or out of order, whoever takes it; the last output is the iterator's."""

    async def test(engine):
        params = SamplingParams(seed=1, max_tokens=120, ignore_eos=True, n=2)
        (final,) = [o async for o in engine.generate("hello", params, output_kind="final")]

        async def taken_from(is_open: Callable[[int], bool]) -> list[str]:
            bucket = Bucket(is_open)
            await bucket.drain(engine.generate("hello", params, output_kind="delta", outlet=bucket), pause_s)
            for answer in final.outputs:
                mine = [c for o in bucket.outputs for c in o.outputs if c.index == answer.index]
                assert "".join(c.text for c in mine) == answer.text
                assert [t for c in mine for t in c.token_ids] == answer.token_ids
                assert [c.finish_reason for c in mine if c.finish_reason] == ["length"]
            assert bucket.where[-1] == "iterator" and bucket.outputs[-1].finished
            return bucket.where

        assert set(await taken_from(lambda _: False)) == {"iterator"}
        always, mixed = [], []
        while always.count("outlet") < 6:  # a busy machine has tokens of many steps in one delta
            always += await taken_from(lambda _: True)
        while mixed.count("outlet") < 6 or mixed.count("iterator") < 6:
            mixed += await taken_from(lambda asked: asked % 3 != 0)

    shared(test)


def test_an_outlet_that_breaks_ends_its_own_stream_alone(shared):
    async def test(engine):
        params = SamplingParams(seed=1, max_tokens=150, ignore_eos=True)
        others = [asyncio.create_task(text_of(engine, f"hello {i}", params)) for i in range(3)]
        bucket = Bucket(lambda _: True, fail_at=2)
        with pytest.raises(ValueError, match="the bucket is full"):
            await bucket.drain(engine.generate("hello", params, output_kind="delta", outlet=bucket))
        assert len(bucket.outputs) == 2
        assert [len(tokens) for _, tokens in await asyncio.gather(*others)] == [150] * 3
        while engine.num_requests:
            await asyncio.sleep(0.01)

    shared(test)


def test_an_outlet_gets_nothing_after_its_reader_has_gone(shared):
    async def test(engine):
        bucket = Bucket(lambda _: True)
        params = SamplingParams(max_tokens=240, ignore_eos=True)
        reader = asyncio.create_task(bucket.drain(engine.generate("hello", params, output_kind="delta", outlet=bucket)))
        while len(bucket.outputs) < 2:
            await asyncio.sleep(0.001)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        seen = len(bucket.outputs)
        assert not engine.num_requests
        await asyncio.sleep(0.1)
        assert len(bucket.outputs) == seen < 240

    shared(test)


def test_an_outlet_leaves_the_engines_death_to_the_reader(checkpoint):
    async def test(engine):
        bucket = Bucket(lambda _: True)
        params = SamplingParams(max_tokens=230, ignore_eos=True)
        reader = asyncio.create_task(bucket.drain(engine.generate("hello", params, output_kind="delta", outlet=bucket)))
        while len(bucket.outputs) < 2:
            await asyncio.sleep(0.001)
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="ended"):
            await reader

    run(checkpoint, test)


def test_an_engine_started_again_counts_on(checkpoint):
    async def test(engine):
        params = SamplingParams(max_tokens=20, ignore_eos=True)
        await text_of(engine, "hello", params)
        before = await engine.stats()
        assert before.generation_tokens == 20
        stream = engine.generate("hello", SamplingParams(max_tokens=300, ignore_eos=True), output_kind="delta")
        await anext(stream)
        call = asyncio.create_task(engine.call("ping", timeout_s=30))
        await asyncio.sleep(0)
        os.kill(engine._process.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError):
            async for _ in stream:
                pass
        await engine.died.wait()
        await asyncio.wait([call])  # answered before, or told of the death; never left to wait
        stats = engine.last_stats
        assert stats.num_running == 0 and stats.num_free_blocks == stats.num_blocks
        await engine.restart()
        assert engine.errored is None and not engine.died.is_set()
        assert len((await text_of(engine, "hello", params))[1]) == 20
        after = await engine.stats()
        assert after.generation_tokens >= stats.generation_tokens + 20
        assert after.num_steps > stats.num_steps and after.prompt_tokens > before.prompt_tokens
        assert after.num_free_blocks == after.num_blocks

    run(checkpoint, test)


def test_a_start_that_is_stopped_leaves_nothing(checkpoint):
    async def main():
        engine = AsyncEngine(EngineConfig.from_options(model=str(checkpoint("llama"))))
        starting = asyncio.create_task(engine.start())
        while engine._process is None or engine._process._process is None:  # until there is a process to leave behind
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert engine._process.returncode is not None
        await engine.shutdown()

    asyncio.run(main())


def test_a_tokenizer_that_cannot_be_read_is_known_before_the_weights_are(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": 1')
    for weights in folder.glob("*.safetensors*"):
        weights.write_bytes(b"no weights")

    async def start() -> None:
        engine = AsyncEngine(EngineConfig.from_options(model=str(folder)))
        try:
            with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
                await engine.start()
            assert engine._process.returncode is not None  # nothing is left of the engine process
        finally:
            await engine.shutdown()

    asyncio.run(start())
