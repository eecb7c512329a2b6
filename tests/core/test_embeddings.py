"""Embeddings are transformers' hidden states, pooled: alone, batched, chunked, preempted, beside generations."""

from __future__ import annotations

import asyncio
import functools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from core import LLM, AsyncEngine, AsyncEngineArgs, AsyncLLMEngine, Engine, EngineConfig, RequestError, SamplingParams
from core.errors import ConfigError
from core.pooling import finish, pooling_type

LENGTHS = (1, 15, 16, 17, 40, 100, 33)


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    made = [[rng.randrange(1, 384) for _ in range(n)] for n in LENGTHS]
    made[-1] = made[5][:33]  # begins as another does
    return made


@functools.cache
def expected(folder: Path) -> dict[str, list[np.ndarray]]:
    """transformers' last hidden states, pooled both ways, not normalised."""
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    states = []
    with torch.inference_mode():
        for prompt in prompts():
            states.append(model(torch.tensor([prompt])).last_hidden_state[0].double().numpy())
    return {"last": [s[-1] for s in states], "mean": [s.mean(0) for s in states]}


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def check(outputs, wanted) -> None:
    assert len(outputs) == len(wanted)
    for output, vector in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(output.outputs.embedding, unit(vector), atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "qwen3"])
@pytest.mark.parametrize("rule", ["last", "mean"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"max_num_batched_tokens": 64, "long_prefill_token_threshold": 9, "async_scheduling": True},
        {"num_blocks": 9, "max_model_len": 128, "max_num_batched_tokens": 50, "async_scheduling": True},
        {"max_num_seqs": 2, "block_size": 4, "async_scheduling": True},
    ],
    ids=["plain", "chunked", "chunked-overlap", "tight-overlap", "two-rows"],
)
def test_vectors_are_those_of_transformers(checkpoint, name, rule, options):
    folder = checkpoint(name)
    wanted = expected(folder)[rule]
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32", pooling_type=rule, **options) as engine:
        check(engine.embed(prompts()), wanted)
        again = engine.embed(prompts())  # what the prefix cache may serve now
        check(again, wanted)
        hits = sum(o.num_cached_tokens for o in again)
        assert hits == 0 if rule == "mean" else hits > 0 or "num_blocks" in options
        for prompt, vector in zip(prompts(), wanted, strict=True):
            check(engine.embed(prompt), [vector])
        stats = engine.stats()
        assert stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks
        assert stats.generation_tokens == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rule", ["last", "mean"])
def test_beside_generations_that_they_push_out_and_that_push_them_out(checkpoint, rule, overlap):
    """Little cache, so that both kinds are preempted; both come out as if they had been alone."""
    folder = checkpoint("llama")
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32") as engine:
        alone = [engine.generate(p, params)[0].outputs[0].token_ids for p in prompts()[:5]]
    options = {"num_blocks": 14, "max_model_len": 144, "max_num_batched_tokens": 24, "async_scheduling": overlap}
    config = {"skip_tokenizer_init": True, "dtype": "float32", "pooling_type": rule, **options}

    async def main() -> None:
        engine = AsyncEngine(EngineConfig.from_options(model=str(folder), **config))
        await engine.start()
        try:

            async def generate(prompt):
                async for output in engine.generate(prompt, params, output_kind="final"):
                    return output.outputs[0].token_ids

            jobs = [generate(p) for p in prompts()[:5]] + [engine.embed(p) for p in prompts() * 3]
            results = await asyncio.gather(*jobs)
            assert results[:5] == alone
            check(results[5:], expected(folder)[rule] * 3)
            assert (await engine.stats()).num_preemptions > 0
            # one that nobody waits for any more leaves nothing behind
            task = asyncio.create_task(engine.embed(prompts()[5]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await engine.stats()).num_free_blocks < 14:
                await asyncio.sleep(0.01)
            raw = await engine.embed(prompts()[3], normalize=False)
            np.testing.assert_allclose(raw.outputs.embedding, expected(folder)[rule][3], atol=2e-4)
            assert engine.num_requests == 0
        finally:
            await engine.shutdown()

    asyncio.run(main())


def test_dimensions_encode_and_the_longest_prompt(checkpoint):
    folder = checkpoint("llama")
    wanted = expected(folder)["last"]
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32", max_model_len=100) as engine:
        (cut,) = engine.embed([prompts()[4]], dimensions=8)
        np.testing.assert_allclose(cut.outputs.embedding, unit(wanted[4][:8]), atol=2e-5)
        (raw,) = engine.embed([prompts()[4]], normalize=False)
        np.testing.assert_allclose(raw.outputs.embedding, wanted[4], atol=2e-4)
        # nothing is generated, so the prompt may fill the model
        check(engine.embed(prompts()[5]), [wanted[5]])
        with pytest.raises(RequestError, match="101 tokens, and the model takes 100"):
            engine.embed([[1], list(range(1, 102))])
        with pytest.raises(RequestError, match="empty"):
            engine.embed([[]])
        size = len(wanted[0])
        for bad in (0, -1, size + 1):
            with pytest.raises(RequestError, match=f"dimensions={bad}") as info:
                engine.embed([[1]], dimensions=bad)
            assert info.value.param == "dimensions"
    with pytest.raises(ConfigError, match="pooling_type='cls' is not one of"):
        EngineConfig.from_options(pooling_type="cls")


def test_states_that_are_not_finite_end_their_request_alone(checkpoint, tmp_path):
    """A token whose embedding is NaN breaks the sequences that hold it."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "broken"
    shutil.copytree(checkpoint("qwen3"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for rule in ("last", "mean"):
        with Engine(str(folder), skip_tokenizer_init=True, dtype="float32", pooling_type=rule) as engine:
            with pytest.raises(Exception, match="no finite hidden states"):
                engine.embed([[7, 8, 9]])
            check(engine.embed([[*prompts()[3]]]), [expected(checkpoint("qwen3"))[rule][3]])


def test_auto_reads_what_the_model_was_made_for(tmp_path):
    assert pooling_type("auto", str(tmp_path)) == "last"
    (tmp_path / "1_Pooling").mkdir()
    file = tmp_path / "1_Pooling" / "config.json"
    file.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}))
    assert pooling_type("auto", str(tmp_path)) == "mean" and pooling_type("last", str(tmp_path)) == "last"
    file.write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert pooling_type("auto", str(tmp_path)) == "last"
    file.write_text("[")
    assert pooling_type("auto", str(tmp_path)) == "last"


def test_finish():
    vector = np.array([3, 4, 12], np.float32)
    assert finish(vector).tolist() == pytest.approx([3 / 13, 4 / 13, 12 / 13])
    assert finish(vector, 2).tolist() == pytest.approx([0.6, 0.8])
    assert finish(vector, 2, normalize=False).tolist() == [3, 4]
    assert finish(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    assert np.isfinite(finish(np.full(4, 3e38, np.float32))).all()


def test_vllms_names(checkpoint):
    folder = checkpoint("qwen2")
    wanted = [unit(v) for v in expected(folder)["last"]]
    options = {"skip_tokenizer_init": True, "dtype": "float32"}
    with LLM(str(folder), **options) as llm:
        (output,) = llm.encode([prompts()[4]])
        np.testing.assert_allclose(output.outputs.data, wanted[4], atol=2e-5)
        assert output.outputs.hidden_size == len(wanted[4])
        scores = llm.score([prompts()[2]], [prompts()[3], prompts()[2]])
        assert scores == pytest.approx([wanted[2] @ wanted[3], 1], abs=1e-4)
        assert llm.score(prompts()[:2], prompts()[:2]) == pytest.approx([1, 1], abs=1e-5)
        with pytest.raises(RequestError, match="2 texts cannot be paired with 3"):
            llm.score(prompts()[:2], prompts()[:3])
        with pytest.raises(RequestError, match="pooling_task='classify'"):
            llm.encode([[1]], pooling_task="classify")

    async def main() -> None:
        engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=str(folder), **options))
        output = await engine.encode(prompts()[4], "a")
        np.testing.assert_allclose(output.outputs.data, wanted[4], atol=2e-5)
        await engine.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen2", "qwen3"])
def test_checkpoints_of_the_decoder_alone(checkpoint, tmp_path, name):
    """As embedding models are published: no head, names without `model.`, the architecture with and without its head's."""
    import torch
    import transformers

    from core.errors import ModelError

    folder, source = tmp_path / "bare", checkpoint(name)
    transformers.AutoModel.from_pretrained(source, dtype=torch.float32).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"][0].endswith("Model")
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32") as engine:
        check(engine.embed(prompts()), expected(source)["last"])
        with pytest.raises(RequestError, match="no head to generate with"):
            engine.generate([1, 2, 3])
    # with tied embeddings the head is there after all
    causal = {**config, "architectures": [config["architectures"][0].replace("Model", "ForCausalLM")]}
    (folder / "config.json").write_text(json.dumps({**causal, "tie_word_embeddings": True}))
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32") as engine:
        check(engine.embed(prompts()[:4]), expected(source)["last"][:4])
        assert (
            len(engine.generate([1, 2, 3], SamplingParams(max_tokens=3, ignore_eos=True))[0].outputs[0].token_ids) == 3
        )
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    with pytest.raises(ModelError, match="both directions"):
        Engine(str(folder), skip_tokenizer_init=True)
