"""The demo model's text is the same for a seed, says the truth about the engine, and its tokenizer loses nothing."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from demomodel import chat_format, corpus, engine_help, export, grading, sample, tools  # noqa: E402

from core.config import option_owners  # noqa: E402
from core.text.chat_template import ChatTemplate  # noqa: E402
from server.config import ServerConfig  # noqa: E402

TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list}


def texts(seed: int, count: int) -> list[str]:
    stream = itertools.islice(corpus.samples(seed), count)
    return ["".join(text for text, _ in chat_format.pieces(s)) for s in stream]


def test_the_text_is_the_same_for_a_seed():
    assert texts(3, 800) == texts(3, 800)
    assert texts(3, 50) != texts(4, 50)


def test_no_held_out_question_is_trained_on():
    for made in itertools.islice(corpus.samples(5), 3000):
        assert not any(sample.held_out(key) for key in made.prompts())
    for kind in corpus.KINDS:
        found = corpus.held_out_samples(7, kind, 5)
        assert len(found) == 5 and all(sample.held_out(s.prompts()[-1]) for s in found)


def test_tool_calls_fit_their_tools():
    rng, seen = Random(11), 0
    for _ in range(3000):
        made = tools.make(rng)
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in made.tools or ()}
        for message in made.messages:
            if not message.get("tool_calls"):
                continue
            parsed = grading.calls(chat_format.answer_text(message))
            assert parsed
            for name, arguments in parsed:
                schema = schemas[name]
                assert set(schema.get("required", ())) <= set(arguments) <= set(schema["properties"])
                for key, value in arguments.items():
                    wanted = schema["properties"][key]
                    assert isinstance(value, TYPES[wanted["type"]])
                    assert wanted["type"] == "boolean" or not isinstance(value, bool)
                    assert value in wanted.get("enum", [value])
                seen += 1
    assert seen > 1500


def test_right_answers_are_graded_right():
    rng = Random(13)
    for _ in range(4000):
        made = corpus.one(rng)
        if made.messages:
            answer = chat_format.answer_text(made.messages[-1])
            assert grading.right(made.check, answer), (made.check, answer)


def test_the_template_gives_the_trained_text():
    template = ChatTemplate(chat_format.TEMPLATE)
    for made in itertools.islice(corpus.samples(17), 800):
        if made.messages:
            trained = "".join(text for text, _ in chat_format.pieces(made))
            assert template.render(made.messages, made.tools, add_generation_prompt=False) == trained
            asked = template.render(made.messages[:-1], made.tools, add_generation_prompt=True)
            assert asked == chat_format.prompt(made)


def test_what_it_says_of_options_and_commands_is_so():
    from core.config import section_options
    from server.cli.main import cli

    options = {**option_owners(), **section_options("server", ServerConfig)}
    numbers = flags = commands = 0
    for names, answer in engine_help.TOPICS:
        asked = [n for n in names if n in options]
        for stated in re.findall(r"The default is (\d+(?:\.\d+)?)(?: on a CPU and (\d+) on a GPU)?", answer):
            (name,) = asked
            found = re.findall(r"\d+", options[name].help) if stated[1] else [str(options[name].default)]
            assert [n for n in stated if n] == found, (name, answer)
            numbers += 1
        for flag in re.findall(r"--([a-z-]+)", " ".join([*names, answer])):
            option = flag.removeprefix("no-").replace("-", "_")
            assert option in options and (flag == option.replace("_", "-") or options[option].type is bool), flag
            flags += 1
        for command in re.findall(r"`engine ([a-z]+)", answer):
            assert command in cli.list_commands(click.Context(cli)), command
            commands += 1
    assert (numbers, flags > 15, commands > 5) == (3, True, True)
    said = {name: answer for names, answer in engine_help.TOPICS for name in names}
    assert f"listens on port {options['port'].default};" in said["port"]
    assert f"listens on {options['host'].default};" in said["host"]
    assert "power of two" in said["block_size"] and f"{options['block_size'].default} is a good" in said["block_size"]
    assert options["enable_prefix_caching"].type is bool and options["dtype"].default == "auto"


def test_new_figures_go_into_a_card(tmp_path: Path):
    card = tmp_path / "README.md"
    card.write_text((ROOT / "plugins/sources/demo/data/draft/README.md").read_text())
    before = card.read_text()
    export.measured_again(tmp_path, {"story": (1, 3), "no tool": (2, 2)}, 0.5)
    text = card.read_text()
    assert "| story | 33.3% | 3 |\n| no tool | 100.0% | 2 |\n\n" in text and "| engine |" not in text
    assert "The draft proposes 50.0% of" in text and text.split("## How")[1] == before.split("## How")[1]
    card.write_text("no table\n")
    with pytest.raises(ValueError, match="0 tables"):
        export.measured_again(tmp_path, {}, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n \t x",
        "plain words",
        "Zürich, 東京, القاهرة, 🎉👩‍🚀",
        "\u0000\u007f\u202e\ufeff",
        "e\u0301 z\u0337",
        '{"a": [1, 2.5, null], "b": "\\n"}',
        "   leading and trailing   ",
        "a" * 500,
    ],
)
def test_the_tokenizer_gives_every_text_back(text: str):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(ROOT / "plugins/sources/demo/data/chat/tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
