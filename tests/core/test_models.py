"""Every family gives transformers' greedy tokens and logits: alone, batched, chunked, preempted, with prefix hits."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest

from core import Engine, SamplingParams
from core.kernels import dispatch

SHAPES = ["llama", "llama3-scaling", "llama-bias", "llama-yarn", "mistral-window", "qwen2", "qwen2-window", "qwen3"]
LENGTHS = (1, 15, 16, 17, 40, 100)
NEW = 12


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(1, 384) for _ in range(n)] for n in LENGTHS]


@functools.cache
def expected(folder: Path) -> tuple[list[list[int]], list[list[float]]]:
    """transformers' greedy tokens, and their log probabilities."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, scores = [], []
    for prompt in prompts():
        ids = list(prompt)
        mine = []
        with torch.inference_mode():
            for _ in range(NEW):
                logits = model(torch.tensor([ids])).logits[0, -1]
                ids.append(int(logits.argmax()))
                mine.append(float(logits.log_softmax(-1).max()))
        tokens.append(ids[len(prompt) :])
        scores.append(mine)
    return tokens, scores


def greedy(logprobs: int | None = None) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=logprobs)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain"])
def test_batched_tokens_and_logprobs_are_those_of_transformers(checkpoint, name, kernels, monkeypatch):
    if kernels:
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(dispatch, "_cpu_ready", lambda: False)
    folder = checkpoint(name)
    tokens, scores = expected(folder)
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32") as engine:
        assert engine.ready.choices["attention_backend"].split()[0] == ("numba" if kernels else "torch")
        outputs = engine.generate(prompts(), greedy(logprobs=0))
        assert [o.outputs[0].token_ids for o in outputs] == tokens
        for output, score in zip(outputs, scores, strict=True):
            mine = [p[0].logprob for p in output.outputs[0].logprobs]
            assert mine == pytest.approx(score, abs=2e-4)
        again = engine.generate(prompts(), greedy())  # now from the prefix cache
        assert [o.outputs[0].token_ids for o in again] == tokens
        assert sum(o.num_cached_tokens for o in again) >= 100
        alone = [engine.generate(p, greedy())[0].outputs[0].token_ids for p in prompts()]
        assert alone == tokens


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {"max_num_batched_tokens": 7},
        {"max_num_batched_tokens": 64, "long_prefill_token_threshold": 9, "async_scheduling": True},
        {"num_blocks": 9, "max_model_len": 128, "max_num_batched_tokens": 50},
        {"num_blocks": 9, "max_model_len": 128, "async_scheduling": True, "enable_prefix_caching": False},
        {"max_num_seqs": 2, "block_size": 4},
    ],
    ids=["chunked", "chunked-overlap", "preempted", "preempted-overlap", "two-rows"],
)
def test_tokens_do_not_depend_on_scheduling(checkpoint, name, options):
    folder = checkpoint(name)
    with Engine(str(folder), skip_tokenizer_init=True, dtype="float32", **options) as engine:
        outputs = engine.generate(prompts(), greedy())
        assert [o.outputs[0].token_ids for o in outputs] == expected(folder)[0]
        if "num_blocks" in options:
            assert engine.stats().num_preemptions > 0 or name != "llama"
        stats = engine.stats()
        assert stats.num_running == stats.num_waiting == 0
        assert stats.num_free_blocks == stats.num_blocks


def test_parallel_samples_share_the_prompt_and_differ(checkpoint):
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True, async_scheduling=True) as engine:
        params = SamplingParams(n=4, seed=5, max_tokens=NEW, ignore_eos=True)
        (together,) = engine.generate([prompts()[4]], params)
        texts = {tuple(c.token_ids) for c in together.outputs}
        assert len(texts) == 4
        assert engine.stats().num_free_blocks == engine.stats().num_blocks
        (greedy_n,) = engine.generate(
            [prompts()[4]], SamplingParams(n=3, temperature=0, max_tokens=NEW, ignore_eos=True)
        )
        assert {tuple(c.token_ids) for c in greedy_n.outputs} == {tuple(expected(checkpoint("llama"))[0][4])}


def test_a_seed_gives_the_same_tokens_whatever_the_batch(checkpoint):
    params = SamplingParams(seed=11, temperature=1.3, top_p=0.9, top_k=50, max_tokens=NEW, ignore_eos=True)
    with Engine(str(checkpoint("llama")), skip_tokenizer_init=True) as engine:
        alone = engine.generate([prompts()[2]], params)[0].outputs[0].token_ids
        crowd = engine.generate([*prompts(), prompts()[2]], [*[SamplingParams(max_tokens=30)] * 6, params])
        assert crowd[-1].outputs[0].token_ids == alone


def test_prompt_logprobs_are_those_of_transformers(checkpoint):
    import torch
    import transformers

    folder, prompt = checkpoint("llama"), prompts()[4]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        reference = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    with Engine(str(folder), skip_tokenizer_init=True, max_num_batched_tokens=16) as engine:
        params = SamplingParams(max_tokens=1, prompt_logprobs=2)
        (output,) = engine.generate([prompt], params)
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(prompt)
    for i, position in enumerate(output.prompt_logprobs[1:], start=1):
        assert position[0].token_id == prompt[i]
        assert position[0].logprob == pytest.approx(float(reference[i - 1, prompt[i]]), abs=2e-4)


def test_bad_checkpoints_are_named(checkpoint, tmp_path):
    import json
    import shutil

    from core.errors import CapacityError, ConfigError, ModelError

    with pytest.raises(ModelError, match="does not exist"):
        Engine(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        Engine(str(tmp_path / "empty"))
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint("qwen2"), broken)
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cut off"):
        Engine(str(broken))
    shutil.copy(checkpoint("qwen3") / "model.safetensors", broken / "model.safetensors")
    with pytest.raises(ModelError, match="shape|no place"):
        Engine(str(broken))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForCausalLn"]}))
    with pytest.raises(ModelError, match="did you mean 'LlamaForCausalLM'"):
        Engine(str(broken))
    with pytest.raises(ConfigError, match="made for"):
        Engine(str(checkpoint("llama")), max_model_len=100_000)
    with pytest.raises(CapacityError, match="max_model_len=64"):
        Engine(str(checkpoint("llama")), num_blocks=4)
    with Engine(str(checkpoint("llama")), num_blocks=4, fit=True, skip_tokenizer_init=True) as engine:
        assert engine.ready.max_model_len == 64
