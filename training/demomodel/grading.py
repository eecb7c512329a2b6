"""Whether an answer is right."""

from __future__ import annotations

import json
import re
from typing import Any

from demomodel.sample import Check

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


def right(check: Check, answer: str) -> bool:
    answer = answer.strip()
    if check.rule == "one_of":
        return answer in check.want
    if check.rule == "number":
        numbers = re.findall(r"-?\d+", answer.replace("- ", "-") if " = -" in answer else answer)
        return bool(numbers) and int(numbers[-1]) == check.want
    if check.rule == "contains":
        return all(text in answer for text in check.want)
    if check.rule == "json":
        return same(parsed(answer), check.want)
    if check.rule == "calls":
        found = calls(answer)
        return (
            found is not None
            and len(found) == len(check.want)
            and all(
                name == wanted_name and same(arguments, wanted)
                for (name, arguments), (wanted_name, wanted) in zip(found, check.want, strict=True)
            )
        )
    return True


def calls(answer: str) -> list[tuple[str, Any]] | None:
    """The tool calls in an answer; None if one of them is not what a call must be."""
    found = []
    for text in _CALL.findall(answer):
        value = parsed(text)
        if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
            return None
        found.append((value["name"], value["arguments"]))
    return found


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types: 1, true and "1" differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
