"""The bundled model, as a first user meets it; transformers reads it too."""

from __future__ import annotations

import json

import pytest

from core import Engine, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=100)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def engine():
    with Engine() as engine:
        yield engine


def ask(engine: Engine, text: str, **options) -> str:
    return engine.chat([{"role": "user", "content": text}], GREEDY, **options)[0].outputs[0].text


def test_it_talks(engine):
    assert ask(engine, "What is the capital of France?") == "The capital of France is Paris."
    assert ask(engine, "What is 12 + 30?") == "12 + 30 = 42"


def test_it_extracts(engine):
    text = ask(engine, "Mila Novak is 44 years old and lives in Porto. Extract name, age and city as JSON.")
    assert json.loads(text) == {"name": "Mila Novak", "age": 44, "city": "Porto"}


def test_it_calls_tools(engine):
    text = ask(engine, "What is the weather in Oslo?", tools=[WEATHER])
    call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": "get_weather", "arguments": {"city": "Oslo"}}


def test_transformers_reads_it_and_agrees(engine):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = engine.ready.model_path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    messages = [{"role": "user", "content": "Tell me a story about a fox."}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=100, do_sample=False)
    theirs = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ask(engine, "Tell me a story about a fox.") == theirs


def test_bad_requests_name_the_way_out(engine):
    from core.errors import RequestError

    with pytest.raises(RequestError, match="empty"):
        engine.generate([[]], GREEDY)
    with pytest.raises(RequestError, match="raise max_model_len"):
        engine.generate([[5] * 3000], GREEDY)
    with pytest.raises(RequestError, match="not one of the model's"):
        engine.generate([[5, 100_000]], GREEDY)
    for bad in (
        {"temperature": -1},
        {"temperature": float("nan")},
        {"max_tokens": 0},
        {"stop": [""]},
        {"top_p": 0},
        {"n": 0},
    ):
        with pytest.raises(RequestError, match=next(iter(bad))):
            SamplingParams(**bad)
    assert ask(engine, "What is 2 + 2?") == "2 + 2 = 4"
