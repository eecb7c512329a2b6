"""The bundled model, as a first user meets it; transformers reads it too."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(
    "text",
    [
        "Tell me a story about a fox.",
        "What is 17 times 23?",
        "Extract name and phone as JSON: Maria Lopez, phone 555-1234.",
        "Grüße, 東京 🎉",
    ],
)
@pytest.mark.parametrize("name", ["demo", "demo-draft"])
def test_transformers_reads_it_and_agrees(name, text):
    """The same prompt from the template, and the same greedy tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with Engine(name, dtype="float32") as engine:
        output = engine.chat([{"role": "user", "content": text}], GREEDY, tools=[WEATHER])[0]
        path = engine.ready.model_path
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tools=[WEATHER], add_generation_prompt=True, return_dict=True
    )
    assert output.prompt_token_ids == list(prompt["input_ids"])
    with torch.inference_mode():
        ids = torch.tensor([output.prompt_token_ids])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=100, do_sample=False)
    theirs = out[0, ids.shape[1] :].tolist()
    assert output.outputs[0].token_ids == theirs[: len(output.outputs[0].token_ids)] and len(theirs) > 3
    assert theirs[len(output.outputs[0].token_ids) :] in ([], [2])  # 2 ends an answer


@pytest.mark.parametrize(
    ("asked", "option", "threads"),
    [("1", None, 1), ("1,4", None, 1), ("1", 2, 2), ("many", None, min(2, len(os.sched_getaffinity(0))))],
)
def test_threads_are_those_that_were_asked_for(monkeypatch, asked, option, threads):
    """The demo model has work for two."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    try:
        with Engine(num_threads=option, max_model_len=64) as one:
            assert one.ready.choices["device"].startswith(f"cpu ({threads} thread")
    finally:
        torch.set_num_threads(before)


def test_the_draft_has_the_same_tokens(engine):
    chat = Path(engine.ready.model_path)
    draft = chat.parent / "draft"
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json", "generation_config.json"):
        assert (chat / name).read_bytes() == (draft / name).read_bytes()
    sizes = {
        key: [json.loads((folder / "config.json").read_text())[key] for folder in (chat, draft)]
        for key in ("vocab_size", "max_position_embeddings")
    }
    assert all(a == b for a, b in sizes.values()), sizes


def test_the_cards_state_what_was_measured(engine):
    data = Path(engine.ready.model_path).parent
    card = (data / "chat" / "README.md").read_text()
    shares = dict(re.findall(r"^\| ([a-z ]+) \| ([\d.]+)% \| 400 \|$", card, re.MULTILINE))
    assert len(shares) == 9 and float(shares["tool call"]) >= 90 and float(shares["extraction"]) >= 90
    assert "train_demo.py --evaluate" in card
    files = [f for f in data.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 16_000_000
    assert {f.name for f in files} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


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
