"""Scripts written for vLLM: its names, its keywords, its results."""

from __future__ import annotations

import asyncio

import pytest

from core import (
    LLM,
    AsyncEngineArgs,
    AsyncLLMEngine,
    GuidedDecodingParams,
    RequestError,
    SamplingParams,
    StructuredOutputsParams,
)

HELLO = [{"role": "user", "content": "Hello!"}]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32)


@pytest.fixture(scope="module")
def llm():
    with LLM(
        model="demo", tensor_parallel_size=1, max_model_len=512, gpu_memory_utilization=0.8, enforce_eager=True
    ) as llm:
        yield llm


def test_generate_and_its_results(llm):
    outputs = llm.generate(["Once upon a time", "The"], sampling_params=SamplingParams(max_tokens=5, ignore_eos=True))
    assert [o.prompt for o in outputs] == ["Once upon a time", "The"]
    for output in outputs:
        (answer,) = output.outputs
        assert output.finished and answer.finish_reason == "length" and len(answer.token_ids) == 5
        assert answer.index == 0 and answer.text and output.request_id and output.prompt_token_ids
        times = output.metrics
        assert times.arrival_time_s <= times.first_scheduled_time_s <= times.first_token_time_s <= times.finish_time_s


def test_prompts_of_token_ids(llm):
    ids = llm.get_tokenizer().encode("The capital of France")
    texts = {
        llm.generate(prompt, GREEDY)[0].outputs[0].text
        for prompt in (ids, {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}], "The capital of France")
    }
    texts.add(llm.generate(prompt_token_ids=[ids], sampling_params=GREEDY)[0].outputs[0].text)
    assert len(texts) == 1
    with pytest.raises(RequestError, match="exclude each other"):
        llm.generate("a", prompt_token_ids=ids)


def test_chat(llm):
    (output,) = llm.chat(HELLO, sampling_params=GREEDY, use_tqdm=False, add_generation_prompt=True)
    assert output.outputs[0].text == "Hello! How can I help you?"
    several = llm.chat([HELLO, HELLO], GREEDY)
    assert [o.outputs[0].text for o in several] == ["Hello! How can I help you?"] * 2
    pieces = [d.outputs[0].text for d in llm.chat(HELLO, GREEDY, stream=True)]
    assert "".join(pieces) == "Hello! How can I help you?" and len(pieces) > 1
    started = [*HELLO, {"role": "assistant", "content": "Hello! How"}]
    (goes_on,) = llm.chat(started, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert goes_on.outputs[0].text.strip() == "can I help you?"
    (other,) = llm.chat(
        HELLO, GREEDY, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}{{ tail }}", tail="?"
    )
    assert other.prompt == "Hello!?"


def test_an_option_of_chat_that_nobody_reads_is_an_error(llm):
    with pytest.raises(RequestError, match="'temprature' is not known"):
        llm.chat(HELLO, temprature=0)
    with pytest.raises(RequestError, match="did you mean 'sampling_params'"):
        llm.chat(HELLO, sampling_parms=GREEDY)
    with pytest.raises(RequestError, match="enable_thinking"):
        llm.chat(HELLO, GREEDY, chat_template_kwargs={"enable_thinking": False})


@pytest.mark.parametrize("name", ["guided_decoding", "structured_outputs"])
def test_guided_decoding(llm, name):
    kind = GuidedDecodingParams if name == "guided_decoding" else StructuredOutputsParams
    params = SamplingParams(max_tokens=9, seed=1, **{name: kind(choice=("Lisbon", "Porto"))})
    assert llm.generate("x", params)[0].outputs[0].text in ("Lisbon", "Porto")
    with pytest.raises(RequestError, match="guided_decoding says the same"):
        SamplingParams(guided_decoding=kind(regex="a"), structured_outputs=kind(regex="a"))


def test_best_of_works_and_beam_search_has_a_call_of_its_own(llm):
    params = SamplingParams(n=2, best_of=4, max_tokens=6, seed=3, logprobs=0, ignore_eos=True)
    (output,) = llm.generate("Once upon a time", params)
    means = [c.cumulative_logprob / len(c.token_ids) for c in output.outputs]
    assert len(means) == 2 and means == sorted(means, reverse=True)
    with pytest.raises(RequestError, match="use_beam_search.*call beam_search"):
        SamplingParams(use_beam_search=True)


def test_async_engine():
    async def run() -> None:
        args = AsyncEngineArgs(model="demo", max_model_len=256, dtype="float", disable_log_requests=False)
        engine = AsyncLLMEngine.from_engine_args(args)
        seen = []
        async for output in engine.generate("Once upon a time", SamplingParams(max_tokens=6, ignore_eos=True), "one"):
            assert output.request_id == "one"
            seen.append(output.outputs[0].text)
        # the whole text so far, again and again
        assert output.finished and all(
            later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False)
        )
        await engine.shutdown()

    asyncio.run(run())
