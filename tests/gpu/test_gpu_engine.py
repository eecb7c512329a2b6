"""The whole engine on a GPU: transformers' greedy tokens, with graphs and overlap on and off, preempted, seeded, masked."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pytest
import torch

from core import Engine, SamplingParams

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

SHAPES = ["llama", "llama3-scaling", "llama-bias", "llama-yarn", "mistral-window", "qwen2", "qwen2-window", "qwen3"]
LENGTHS = (1, 15, 16, 17, 40, 100)
NEW = 24


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(1, 384) for _ in range(n)] for n in LENGTHS]


@functools.cache
def expected(folder: Path) -> list[list[int]]:
    """transformers' greedy tokens, in float32 on the CPU"""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = []
    for prompt in prompts():
        ids = list(prompt)
        with torch.inference_mode():
            for _ in range(NEW):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        tokens.append(ids[len(prompt) :])
    return tokens


def greedy(**more: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, **more)


def engine(folder: Path, **options: object) -> Engine:
    return Engine(
        str(folder),
        **{"skip_tokenizer_init": True, "dtype": "float32", "max_num_seqs": 16, "num_blocks": 512, **options},
    )


def tokens_of(outputs: list) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in outputs]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_greedy_tokens_are_those_of_transformers(checkpoint, name, eager, overlap):
    folder = checkpoint(name)
    with engine(folder, enforce_eager=eager, async_scheduling=overlap) as e:
        assert tokens_of(e.generate(prompts(), greedy())) == expected(folder)
        for prompt, tokens in zip(prompts()[:3], expected(folder), strict=False):
            assert e.generate(prompt, greedy())[0].outputs[0].token_ids == tokens
        again = e.generate(prompts(), greedy())
        assert tokens_of(again) == expected(folder)
        assert sum(o.num_cached_tokens for o in again) >= 100


@pytest.mark.parametrize(
    "options",
    [{"max_num_batched_tokens": 24}, {"num_blocks": 18, "max_model_len": 160}, {"block_size": 32}, {"block_size": 64}],
    ids=["chunked", "preempted", "blocks of 32", "blocks of 64"],
)
def test_tokens_do_not_depend_on_scheduling(checkpoint, options):
    folder = checkpoint("llama")
    with engine(folder, **options) as e:
        outputs = e.generate(prompts(), greedy())
        assert tokens_of(outputs) == expected(folder)
        if "num_blocks" in options:
            assert e.stats().num_preemptions > 0


def test_a_seeded_request_gives_the_same_tokens_alone_and_among_others(checkpoint):
    folder = checkpoint("llama")
    params = SamplingParams(temperature=0.9, top_p=0.9, top_k=50, seed=7, max_tokens=NEW, ignore_eos=True)
    with engine(folder) as e:
        alone = e.generate(prompts()[4], params)[0].outputs[0].token_ids
        among = e.generate(prompts(), params)
        assert among[4].outputs[0].token_ids == alone
        assert len({tuple(o.outputs[0].token_ids) for o in among}) > 1


def test_logprobs_penalties_and_bias(checkpoint):
    folder = checkpoint("llama")
    with engine(folder) as e:
        plain = e.generate(prompts(), greedy(logprobs=3, prompt_logprobs=2))
        assert tokens_of(plain) == expected(folder)
        assert all(len(o.outputs[0].logprobs) == NEW for o in plain)
        wishes = SamplingParams(
            temperature=0, max_tokens=NEW, ignore_eos=True, repetition_penalty=1.5, logit_bias={5: 100.0}
        )
        assert e.generate(prompts()[2], wishes)[0].outputs[0].token_ids[0] == 5
        forked = e.generate(prompts()[4], SamplingParams(n=4, temperature=1.0, seed=1, max_tokens=8, ignore_eos=True))
        assert len(forked[0].outputs) == 4


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("name", ["llama", "llama-bias", "qwen3"])
def test_steps_of_many_tokens(checkpoint, name, eager):
    """From 1024 tokens on a product is added to the residual by the library."""
    rng = random.Random(8)
    many = [[rng.randrange(1, 384) for _ in range(150)] for _ in range(12)]
    with engine(checkpoint(name), enable_prefix_caching=False, max_num_batched_tokens=4096, enforce_eager=eager) as e:
        alone = [tokens_of(e.generate(p, greedy()))[0] for p in many]
        assert tokens_of(e.generate(many, greedy())) == alone


def test_requests_that_share_a_long_prefix(checkpoint):
    """Shared blocks may be read once for all of them: the tokens stay the same."""
    folder = checkpoint("llama")
    rng = random.Random(5)
    prefix = [rng.randrange(1, 384) for _ in range(96)]
    many = [prefix + [rng.randrange(1, 384) for _ in range(1 + i % 5)] for i in range(12)]
    with engine(folder, enable_prefix_caching=False) as e:
        apart = tokens_of(e.generate(many, greedy()))
    with engine(folder) as e:
        e.generate(prefix + [1], greedy())
        assert tokens_of(e.generate(many, greedy())) == apart


def many_prompts() -> list[str]:
    """Some 2,500 tokens in 40 prompts: steps of more tokens than every model's graphs hold."""
    return [f"Tell me of number {i}, " + "and of the one behind it, " * (i % 11) for i in range(40)]


def test_long_steps_are_captured_for_a_small_model():
    found = []
    params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    told = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, prompt_logprobs=1)
    for options in ({}, {"enforce_eager": True}):
        with Engine("demo", dtype="float32", max_num_seqs=64, num_blocks=2048, **options) as e:
            outputs = e.generate(many_prompts(), params, use_tqdm=False)
            assert sum(len(o.prompt_token_ids) for o in outputs) > 1024
            logprobs = e.generate(many_prompts(), told, use_tqdm=False)  # these want every token's state
            assert all(len(o.prompt_logprobs) == len(o.prompt_token_ids) for o in logprobs)
            found.append((tokens_of(outputs), tokens_of(logprobs)))
            if not options:
                assert max(e._loop.executor.runner.graphs.mixed_sizes) > 1024
    assert found[0] == found[1]


def test_nothing_is_compiled_while_it_serves(monkeypatch):
    """A kernel that warming up had missed would hold every request up for a second."""
    from triton.runtime.jit import JITFunction

    with Engine("demo", max_num_seqs=100, num_blocks=4096, max_num_batched_tokens=2048, max_graph_batch=512) as e:
        compiled = []
        original = JITFunction._do_compile

        def compile_and_tell(self, *args, **kwargs):
            compiled.append(self.__name__)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(JITFunction, "_do_compile", compile_and_tell)
        rng = random.Random(11)
        for count in (1, 3, 40, 100, 77):
            for temperature in (0.0, 0.7):
                lengths = [rng.choice((1, 2, 9, 70, 300, 700)) for _ in range(count)]
                ids = [[rng.randrange(1, 384) for _ in range(n)] for n in lengths]
                params = [
                    SamplingParams(temperature=temperature, max_tokens=rng.randint(1, 20), ignore_eos=True) for _ in ids
                ]
                e.generate(ids, params, use_tqdm=False)
        assert compiled == []
