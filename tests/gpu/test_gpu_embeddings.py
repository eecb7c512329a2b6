"""Embeddings on a GPU: transformers' hidden states, with graphs and without, chunked, beside generations."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from core import Engine, SamplingParams

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

LENGTHS = (1, 1, 2, 15, 16, 17, 40, 100, 200)


def prompts() -> list[list[int]]:
    rng = random.Random(5)
    return [[rng.randrange(1, 384) for _ in range(n)] for n in LENGTHS]


@functools.cache
def expected(folder: Path) -> dict[str, list[np.ndarray]]:
    """transformers' last hidden states, in float32 on the CPU, pooled both ways"""
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        states = [model(torch.tensor([p])).last_hidden_state[0].double().numpy() for p in prompts()]
    pooled = {"last": [s[-1] for s in states], "mean": [s.mean(0) for s in states]}
    return {k: [v / np.linalg.norm(v) for v in vectors] for k, vectors in pooled.items()}


def close(outputs, wanted, atol) -> None:
    for output, vector in zip(outputs, wanted, strict=True):
        np.testing.assert_allclose(output.outputs.vector, vector, atol=atol)


@pytest.mark.parametrize("rule", ["last", "mean"])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize(
    "options",
    [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 48}, {"async_scheduling": False}],
    ids=["graphs", "eager", "chunked", "no-overlap"],
)
def test_vectors_alone_together_and_beside_generations(checkpoint, name, rule, options):
    folder = checkpoint(name)
    wanted = expected(folder)[rule]
    common = {"skip_tokenizer_init": True, "dtype": "float32", "max_num_seqs": 16, "num_blocks": 512}
    with Engine(str(folder), pooling_type=rule, **common, **options) as engine:
        close(engine.embed(prompts()), wanted, 3e-3)  # TF32
        close(engine.embed(prompts()), wanted, 3e-3)
        for prompt, vector in zip(prompts(), wanted, strict=True):
            close(engine.embed([prompt]), [vector], 3e-3)
        params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
        alone = [o.outputs[0].token_ids for o in engine.generate(prompts(), params)]
        # decodes run while prompts are pooled: single tokens of both kinds share steps
        streams = [engine.stream(p, params) for p in prompts()[:4]]
        firsts = [next(s).outputs[0].token_ids for s in streams]
        close(engine.embed(prompts()), wanted, 3e-3)
        rest = [[t for o in s for t in o.outputs[0].token_ids] for s in streams]
        assert [f + r for f, r in zip(firsts, rest, strict=True)] == alone[:4]


def test_bfloat16_is_near(checkpoint):
    folder = checkpoint("llama")
    for rule in ("last", "mean"):
        with Engine(str(folder), pooling_type=rule, skip_tokenizer_init=True, dtype="bfloat16") as engine:
            for output, vector in zip(engine.embed(prompts()), expected(folder)[rule], strict=True):
                assert output.outputs.vector @ vector > 0.99
