"""What guided decoding needs once is made while an engine is idle, not when the first request waits for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest

from core import Engine, GuidedDecodingParams, SamplingParams
from core.config import EngineConfig
from core.engine.engine_process import EngineProcess
from core.errors import RequestError

WISH = SamplingParams(max_tokens=8, guided_decoding=GuidedDecodingParams(choice=["yes", "no"]))


def built(engine: Engine):
    """The manager that `prepare` makes, once it is there."""
    guided = engine._loop._guided
    engine._loop.prepare()
    assert guided._building is not None
    return guided._building.result(60)


def test_the_first_guided_request_takes_what_was_prepared():
    with Engine("demo", max_model_len=256) as engine:
        manager = built(engine)
        (backend,) = manager._backends.values()
        assert engine.generate("Yes or no? ", WISH)[0].outputs[0].text in ("yes", "no")
        assert engine._loop._guided._manager is manager and list(manager._backends.values()) == [backend]
        engine._loop.prepare()
        assert engine._loop._guided._manager is manager


def test_a_backend_that_is_asked_for_is_the_one_prepared():
    with Engine("demo", max_model_len=256, guided_backend="outlines") as engine:
        assert list(built(engine)._backends) == ["outlines"]


def test_without_a_tokenizer_nothing_can_be_prepared_and_all_goes_on(checkpoint, tmp_path):
    for file in checkpoint("llama").iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    with Engine(str(tmp_path), skip_tokenizer_init=True, max_model_len=64) as engine:
        engine._loop.prepare()
        with pytest.raises(Exception, match="tokenizer"):
            engine._loop._guided._building.result(60)
        plain = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False)
        assert len(engine.generate([[1, 2, 3]], plain, use_tqdm=False)[0].outputs[0].token_ids) == 4
        with pytest.raises(RequestError, match="needs a tokenizer"):
            engine.generate([[1, 2, 3]], msgspec.structs.replace(WISH, detokenize=False))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="maps are Linux's")
def test_an_idle_engine_process_prepares_by_itself():
    async def main() -> None:
        config = EngineConfig.from_options(model="demo", max_model_len=256)
        process = EngineProcess(config, lambda message: None, lambda why: None)
        await process.spawn()
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            deadline = time.monotonic() + 30
            while "llguidance" not in maps.read_text():
                assert time.monotonic() < deadline, "nothing was prepared"
                await asyncio.sleep(0.1)
        finally:
            await process.stop()

    asyncio.run(main())
