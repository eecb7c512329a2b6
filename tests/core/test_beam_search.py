"""Beam search gives the answers and scores of transformers' `generate(num_beams=...)`."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch

from core import LLM, AsyncEngine, BeamSearchParams, Engine, EngineConfig, SamplingParams
from core.errors import RequestError

PROMPTS = [[5, 9, 200, 31, 7], list(range(20, 59)), [300]]
NEW = 14


@pytest.fixture(scope="module")
def reference(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint("qwen2"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def ends(reference) -> list[int]:
    """Tokens that beams meet, so that some end early."""
    found = reference.generate(
        torch.tensor([PROMPTS[0]]), num_beams=4, num_return_sequences=4, max_new_tokens=NEW, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return sorted({int(t) for row in found for t in row[len(PROMPTS[0]) + 1 :: 2]})[:8]


def theirs(model, prompt: list[int], width: int, ends: list[int] | None, **options) -> list[tuple[list[int], float]]:
    found = model.generate(
        torch.tensor([prompt]), num_beams=width, num_return_sequences=width, do_sample=False, pad_token_id=383,
        eos_token_id=ends, max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    answers = []
    for row, score in zip(found.sequences, found.sequences_scores, strict=True):
        ids = row[len(prompt) :].tolist()
        stop = next((i for i, t in enumerate(ids) if t in (ends or ())), len(ids) - 1)
        answers.append((ids[: stop + 1], float(score)))
    return answers


def same(output, expected, penalty: float) -> None:
    assert len(output.outputs) == len(expected)
    for i, (mine, (ids, score)) in enumerate(zip(output.outputs, expected, strict=True)):
        assert mine.index == i and mine.token_ids == ids
        assert math.isclose(mine.cumulative_logprob / len(ids) ** penalty, score, rel_tol=1e-4)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_the_answers_of_transformers(checkpoint, reference, ends, penalty, early, caching):
    options = {"enable_prefix_caching": caching, "num_threads": 1, "block_size": 8}
    reasons = set()
    with Engine(str(checkpoint("qwen2")), num_blocks=256, **options) as engine:
        for width, stops in ((4, ends), (3, None)):
            params = BeamSearchParams(
                beam_width=width, max_tokens=NEW, length_penalty=penalty, early_stopping=early,
                ignore_eos=True, stop_token_ids=stops or (),
            )  # fmt: skip
            for prompt, output in zip(PROMPTS, engine.beam_search(PROMPTS, params), strict=True):
                assert output.prompt_token_ids == prompt and output.finished
                rules = {"length_penalty": penalty, "early_stopping": early}
                same(output, theirs(reference, prompt, width, stops, **rules), penalty)
                reasons |= {o.finish_reason for o in output.outputs}
                for answer in output.outputs:
                    ended = answer.finish_reason == "stop"
                    assert ended == (answer.token_ids[-1] in (stops or ()))
                    assert answer.stop_reason == (answer.token_ids[-1] if ended else None)
    assert reasons == {"stop", "length"}


def test_the_model_s_own_end_is_no_part_of_the_text(checkpoint):
    """And one beam is what the likeliest token gives, over and over."""
    with Engine(str(checkpoint("qwen2")), num_threads=1, num_blocks=64) as engine:
        greedy = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, logprobs=3)
        alone = engine.generate([PROMPTS[0]], greedy)[0].outputs[0]
        (one,) = engine.beam_search(
            [PROMPTS[0]], BeamSearchParams(beam_width=1, max_tokens=NEW, ignore_eos=True, logprobs=3)
        )
        (answer,) = one.outputs
        assert (answer.token_ids, answer.text, answer.finish_reason) == (alone.token_ids, alone.text, "length")
        assert answer.stop_reason is None and math.isclose(
            answer.cumulative_logprob, alone.cumulative_logprob, rel_tol=1e-5
        )
        for mine, its in zip(answer.logprobs, alone.logprobs, strict=True):
            assert [(c.token_id, c.rank, c.decoded_token) for c in mine] == [
                (c.token_id, c.rank, c.decoded_token) for c in its
            ]
        wide = BeamSearchParams(beam_width=6, n=2, max_tokens=NEW, stop_token_ids=[alone.token_ids[4]])
        (found,) = engine.beam_search("the quick brown fox", wide)
        assert len(found.outputs) == 2 and found.prompt == "the quick brown fox"
        for output in found.outputs:
            ids = output.token_ids[:-1] if output.finish_reason == "stop" else output.token_ids
            assert output.text == engine.tokenizer.decode_output(ids)
            assert output.logprobs is None


def test_up_to_the_model_s_length_and_no_further(checkpoint):
    with Engine(str(checkpoint("llama")), max_model_len=48, num_threads=1, num_blocks=64) as engine:
        wish = BeamSearchParams(beam_width=3, max_tokens=None, ignore_eos=True, length_penalty=0)
        (output,) = engine.beam_search([list(range(30, 70))], wish)
        assert [len(o.token_ids) for o in output.outputs] == [8, 8, 8]
        with pytest.raises(RequestError, match="the model takes 48"):
            engine.beam_search([[1, 2], list(range(60))], wish)
        cut = BeamSearchParams(beam_width=3, max_tokens=4, ignore_eos=True, truncate_prompt_tokens=-1)
        assert engine.beam_search([list(range(60))], cut)[0].prompt_token_ids == list(range(16, 60))
        assert engine.generate([[1, 2]], SamplingParams(max_tokens=2))[0].finished  # nothing is left over


def test_more_beams_than_rows_or_blocks(checkpoint):
    """They wait, or are preempted, and find the same."""
    wish = BeamSearchParams(beam_width=8, max_tokens=NEW, ignore_eos=True)
    found = []
    for options in ({}, {"max_num_seqs": 3}, {"num_blocks": 5, "max_model_len": 64}):
        options = {"num_blocks": 256, "num_threads": 1, **options}
        with Engine(str(checkpoint("qwen2")), **options) as engine:
            found.append([[o.token_ids for o in output.outputs] for output in engine.beam_search(PROMPTS, wish)])
    assert found[0] == found[1] == found[2]


def test_an_engine_in_another_process_finds_the_same(checkpoint):
    path, wish = str(checkpoint("qwen2")), BeamSearchParams(beam_width=4, max_tokens=NEW)
    with Engine(path, num_threads=1, num_blocks=256) as engine:
        here = [[(o.token_ids, o.text) for o in output.outputs] for output in engine.beam_search(PROMPTS, wish)]

    async def ask() -> list:
        engine = AsyncEngine(EngineConfig.from_options(model=path, num_threads=1, num_blocks=256))
        await engine.start()
        try:
            outputs = await asyncio.gather(*(engine.beam_search(p, wish, f"r{i}") for i, p in enumerate(PROMPTS)))
            assert [o.request_id for o in outputs] == ["r0", "r1", "r2"]
            gone = asyncio.create_task(engine.beam_search(PROMPTS[0], BeamSearchParams(beam_width=10, max_tokens=200)))
            while not engine.num_requests:
                await asyncio.sleep(0)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            assert await engine.drain(5)  # what it had asked for has ended
            with pytest.raises(RequestError, match="one of the model's"):
                await engine.beam_search([1], BeamSearchParams(beam_width=2, stop_token_ids=(10**6,)))
            assert engine.num_requests == 0
        finally:
            await engine.shutdown()
        return [[(o.token_ids, o.text) for o in output.outputs] for output in outputs]

    assert asyncio.run(ask()) == here


def test_in_vllm_s_words(checkpoint):
    with LLM(str(checkpoint("qwen2")), num_threads=1, num_blocks=256) as llm:
        prompts = [{"prompt": "the quick brown"}, {"prompt_token_ids": PROMPTS[0]}]
        params = BeamSearchParams(beam_width=3, max_tokens=5, temperature=0.0)
        for output, plain in zip(
            llm.beam_search(prompts, params), Engine.beam_search(llm, prompts, params), strict=True
        ):
            assert len(output.sequences) == 3
            for sequence, answer in zip(output.sequences, plain.outputs, strict=True):
                assert sequence.tokens == plain.prompt_token_ids + answer.token_ids
                assert sequence.cum_logprob == answer.cumulative_logprob
                assert sequence.text == llm.get_tokenizer().decode(sequence.tokens)
        assert output.sequences[0].text != output.sequences[1].text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beam_width": 0}, "from 1 to 10"),
        ({"beam_width": 11}, "from 1 to 10"),
        ({"beam_width": 3, "n": 4}, "from 1 to beam_width"),
        ({"beam_width": 2, "length_penalty": float("nan")}, "length_penalty=nan"),
        ({"beam_width": 2, "early_stopping": "soon"}, "'never'"),
        ({"beam_width": 2, "max_tokens": 0}, "max_tokens=0"),
        ({"beam_width": 2, "logprobs": 21}, "logprobs=21"),
    ],
)
def test_what_they_cannot_be(options, words):
    with pytest.raises(RequestError, match=words):
        BeamSearchParams(**options)
