"""The demo model's text is the same for a seed, and its answer keys are what its answers say."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "training" / "dialogs.py"


def load():
    spec = importlib.util.spec_from_file_location("demo_dialogs", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo_dialogs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_dialogs_are_seeded_and_their_own_answers_are_right():
    dialogs = load()
    first, second = random.Random(5), random.Random(5)
    kinds = set()
    for _ in range(3000):
        made = dialogs.dialog(first)
        assert made == dialogs.dialog(second)
        kinds.add(made.kind)
        answer = made.messages[-1]["content"]
        assert dialogs.is_right(made, answer) and not dialogs.is_right(made, answer + "x")
        if made.key is not None and made.tools:
            by_name = {t["function"]["name"]: t["function"]["parameters"] for t in made.tools}
            schema = by_name[made.key["name"]]
            assert list(made.key["arguments"]) == schema["required"]
            types = {"string": str, "integer": int}
            for key, value in made.key["arguments"].items():
                assert type(value) is types[schema["properties"][key]["type"]]
            assert json.loads(answer.split("\n")[1]) == made.key
    assert kinds == {"small_talk", "arithmetic", "about", "extraction", "tools", "tool_answer", "story"}
