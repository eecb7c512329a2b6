"""Structural tags -> a Lark grammar: free text, in which a trigger opens a part that must follow a schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.errors import RequestError
from plugins.guided.constraint import check_depth


def structural_tag_grammar(value: str | dict[str, Any] | None, special_tokens: Mapping[str, int]) -> str:
    """value: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}; special_tokens: text -> id."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _wrong(f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong("must be an object")
    if "format" in value:
        raise _wrong('with "format" is not supported; give "structures" and "triggers"')
    structures, triggers = value.get("structures"), value.get("triggers")
    if not (isinstance(structures, list) and structures):
        raise _wrong('needs "structures", a list of {"begin", "schema", "end"}')
    if not (isinstance(triggers, list) and triggers and all(isinstance(t, str) and t for t in triggers)):
        raise _wrong('needs "triggers", a list of strings that are not empty')
    check_depth(value)
    rules, names = [], []
    for index, structure in enumerate(structures):
        if not isinstance(structure, dict) or not isinstance(begin := structure.get("begin"), str):
            raise _wrong(f'structures[{index}] needs "begin", a string')
        end, schema = structure.get("end", ""), structure.get("schema", {})
        if not isinstance(end, str) or not isinstance(schema, dict | bool):
            raise _wrong(f'structures[{index}] needs "end", a string, and "schema", an object')
        # the longest fits best: <function= before <
        trigger = max((t for t in triggers if begin.startswith(t)), key=len, default=None)
        if trigger is None:
            raise _wrong(f"structures[{index}].begin={begin!r} starts with none of the triggers {triggers!r}")
        name = f"tag_{index}"
        names.append(name)
        body = f"{_quoted(begin[len(trigger) :])} %json {json.dumps(schema)} {_quoted(end)}"
        if trigger in special_tokens:
            rules.append(f"{name}: FREE_TEXT <[{special_tokens[trigger]}]> {body}")
        else:
            rules.append(f"{name}_trigger[lazy]: FREE_TEXT {_quoted(trigger)}\n{name}: {name}_trigger {body}")
    rules = [f"start: ({' | '.join(names)})* tag_end", "tag_end: FREE_TEXT", r"FREE_TEXT: /(.|\n)*/", *rules]
    return "%llguidance {}\n" + "\n".join(rules)


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _wrong(what: str) -> RequestError:
    return RequestError(f"structural_tag {what}", param="structural_tag")
