"""Structural tags: free text in which a trigger opens a part that must follow a schema, or any tree of such formats.

Both spellings are read into the newer one, {"format": {...}}; from it a Lark grammar is made for llguidance. What Lark
cannot say (single tokens, budgets of tokens) is left to a backend that reads the formats itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import RequestError
from core.interfaces.guided import UnsupportedConstraintError
from core.sampling_params import GuidedDecodingParams
from plugins.guided.constraint import check_depth, read_schema
from plugins.guided.regex import escape, exact_regex

FORMATS: dict[str, tuple[set[str], set[str]]] = {
    # type -> keys that must be there, keys that may be
    "any_text": (set(), {"excludes", "max_tokens", "max_chars"}),
    "any_tokens": (set(), {"exclude_tokens", "max_tokens"}),
    "const_string": ({"value"}, set()),
    "dispatch": ({"rules"}, {"loop", "excludes"}),
    "exclude_token": (set(), {"exclude_tokens"}),
    "grammar": ({"grammar"}, set()),
    "json_schema": ({"json_schema"}, {"style", "any_order", "max_whitespace_cnt", "excludes"}),
    "optional": ({"content"}, set()),
    "or": ({"elements"}, set()),
    "plus": ({"content"}, set()),
    "qwen_xml_parameter": ({"json_schema"}, set()),
    "regex": ({"pattern"}, set()),
    "repeat": ({"content", "min", "max"}, set()),
    "sequence": ({"elements"}, set()),
    "star": ({"content"}, set()),
    "tag": ({"begin", "content", "end"}, set()),
    "tags_with_separator": ({"tags", "separator"}, {"at_least_one", "stop_after_first"}),
    "token": ({"token"}, set()),
    "token_dispatch": ({"rules"}, {"loop", "exclude_tokens"}),
    "token_triggered_tags": (
        {"trigger_tokens", "tags"},
        {"exclude_tokens", "at_least_one", "stop_after_first"},
    ),
    "triggered_tags": ({"triggers", "tags"}, {"at_least_one", "stop_after_first", "excludes"}),
}
MAX_FORMATS = 10_000


def read_structural_tag(value: str | dict[str, Any] | None) -> dict[str, Any]:
    """Either spelling -> {"format": {...}}, checked. Raises RequestError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _wrong(f"is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _wrong("must be an object")
    check_depth(value)
    unknown = set(value) - {"type", "format", "structures", "triggers"}
    if unknown:
        raise _wrong(f"has {sorted(unknown)[0]!r}, which is not known; it takes format, or structures and triggers")
    if "format" not in value:
        value = {"format": _triggered(value)}
    elif "structures" in value or "triggers" in value:
        raise _wrong("has format beside structures or triggers; send one of the two spellings")
    for place, node in formats_of(value["format"], "format"):
        _check(place, node)
    return {"format": value["format"]}


def schemas_of(constraint: GuidedDecodingParams) -> Iterator[Any]:
    """Every JSON schema that a constraint holds."""
    if constraint.json is not None:
        yield read_schema(constraint)
    elif constraint.structural_tag is not None:
        for _, node in formats_of(read_structural_tag(constraint.structural_tag)["format"], "format"):
            if "json_schema" in node:
                yield node["json_schema"]


def structural_tag_grammar(value: str | dict[str, Any] | None, special_tokens: Mapping[str, int]) -> str:
    """-> Lark. special_tokens: text -> id. Raises UnsupportedConstraintError for what Lark cannot say."""
    return _Writer(special_tokens).grammar(read_structural_tag(value)["format"])


def _triggered(value: dict[str, Any]) -> dict[str, Any]:
    structures, triggers = value.get("structures"), value.get("triggers")
    if not (isinstance(structures, list) and structures):
        raise _wrong('needs "structures", a list of {"begin", "schema", "end"}, or "format"')
    if not (isinstance(triggers, list) and triggers):
        raise _wrong('needs "triggers", a list of strings that are not empty')
    tags = []
    for index, structure in enumerate(structures):
        if not isinstance(structure, dict) or not isinstance(structure.get("begin"), str):
            raise _wrong(f'structures[{index}] needs "begin", a string')
        schema = structure.get("schema", {})
        if not isinstance(schema, dict | bool):
            raise _wrong(f'structures[{index}] needs "schema", an object')
        content = {"type": "json_schema", "json_schema": schema}
        tags.append({"type": "tag", "begin": structure["begin"], "content": content, "end": structure.get("end") or ""})
    return {"type": "triggered_tags", "triggers": triggers, "tags": tags}


def formats_of(root: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every format with its place, each once."""
    stack = [(place, root)]
    count = 0
    while stack:
        place, node = stack.pop()
        count += 1
        if count > MAX_FORMATS:
            raise _wrong(f"has over {MAX_FORMATS} formats; simplify it")
        yield place, node
        if not isinstance(node, dict):
            continue
        if "content" in node:
            stack.append((f"{place}.content", node["content"]))
        for key in ("elements", "tags"):
            if isinstance(node.get(key), list):
                stack += [(f"{place}.{key}[{i}]", n) for i, n in enumerate(node[key])]
        if isinstance(node.get("rules"), list):
            stack += [
                (f"{place}.rules[{i}]", rule[1])
                for i, rule in enumerate(node["rules"])
                if isinstance(rule, list) and len(rule) == 2
            ]


def _check(place: str, node: Any) -> None:
    kind = node.get("type") if isinstance(node, dict) else None
    if not isinstance(kind, str) or kind not in FORMATS:
        raise _wrong(f"{place}.type={kind!r} is not known ({', '.join(FORMATS)})")
    needed, optional = FORMATS[kind]
    for key in sorted(needed - set(node)):
        raise _wrong(f"{place} ({kind}) needs {key!r}")
    for key in sorted(set(node) - needed - optional - {"type"}):
        raise _wrong(
            f"{place} ({kind}) has {key!r}, which is not known; it takes {', '.join(sorted(needed | optional))}"
        )
    strings = {"const_string": ("value",), "regex": ("pattern",), "grammar": ("grammar",)}.get(kind, ())
    for key in (*strings, *(["separator"] if kind == "tags_with_separator" else [])):
        if not isinstance(node[key], str):
            raise _wrong(f"{place}.{key} must be a string")
    for key in ("elements", "tags", "rules"):
        if key in node and not (isinstance(node[key], list) and node[key]):
            raise _wrong(f"{place}.{key} must be a list that is not empty")
    excludes = node.get("excludes", [])
    if not isinstance(excludes, list) or not all(isinstance(t, str) and t for t in excludes):
        raise _wrong(f"{place}.excludes must be a list of strings that are not empty")
    for key in ("at_least_one", "stop_after_first", "loop", "any_order"):
        if not isinstance(node.get(key, False), bool):
            raise _wrong(f"{place}.{key} must be true or false")
    if "json_schema" in node and not isinstance(node["json_schema"], dict | bool):
        raise _wrong(f"{place}.json_schema must be an object")
    if kind == "tag":
        ends = node["end"] if isinstance(node["end"], list) else [node["end"]]
        for key, texts in (("begin", [node["begin"]]), ("end", ends)):
            if not texts or not all(isinstance(t, str | dict) for t in texts):
                raise _wrong(f"{place}.{key} must be a string")
    if kind == "repeat" and not (
        isinstance(node["min"], int)
        and isinstance(node["max"], int)
        and 0 <= node["min"] <= 1000
        and (node["max"] == -1 or node["min"] <= node["max"] <= 1000)
    ):
        raise _wrong(f"{place} needs 0 <= min <= max <= 1000, or max -1 for no limit")
    if kind == "triggered_tags":
        triggers = node["triggers"]
        if not (isinstance(triggers, list) and triggers and all(isinstance(t, str) and t for t in triggers)):
            raise _wrong(f'{place} needs "triggers", a list of strings that are not empty')
        for index, tag in enumerate(node["tags"]):
            begin = tag.get("begin") if isinstance(tag, dict) else None
            if not isinstance(begin, str) or not begin.startswith(tuple(triggers)):
                raise _wrong(f"{place}.tags[{index}].begin={begin!r} starts with none of the triggers {triggers!r}")


class _Writer:
    """One format -> rules. Text that is not lazy takes all it can, so free text may stand only where nothing follows,
    or before a literal that ends it."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special = special_tokens
        self._rules: list[str] = []

    def grammar(self, root: dict[str, Any]) -> str:
        start = self._write(root, last=True)
        rules = [f"start: {start}", r"FREE_TEXT: /(.|\n)*/", *self._rules]
        return "%llguidance {}\n" + "\n".join(rules)

    def _rule(self, body: str, *, terminal: bool = False, lazy: bool = False) -> str:
        name = f"{'T' if terminal else 'r'}_{len(self._rules)}"
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def _write(self, node: dict[str, Any], *, last: bool) -> str:
        """The name of a rule. last: nothing follows."""
        if (regular := self._regular(node)) is not None:
            return self._rule(regular, terminal=True)
        kind = node["type"]
        if kind == "const_string":
            return self._rule(self._literal(node["value"]))
        if kind == "any_text" and last and set(node) == {"type", "excludes"}:
            return self._rule(self._text_without(node["excludes"]), terminal=True)
        if extra := sorted(set(node) & {"excludes", "exclude_tokens", "max_tokens", "max_chars", "style", "any_order"}):
            raise _unsupported(f"{kind} with {extra[0]!r}")
        if kind == "json_schema":
            return self._rule(f"%json {json.dumps(node['json_schema'])}")
        if kind == "any_text":
            if not last:
                raise _unsupported("any_text before anything but a string or the end of its tag")
            return self._rule("FREE_TEXT")
        if kind == "sequence":
            return self._sequence(node["elements"], last)
        if kind == "or":
            return self._rule(" | ".join(self._write(n, last=last) for n in node["elements"]))
        if kind == "tag":
            return self._tag(node, last)
        if kind in ("optional", "plus", "star", "repeat"):
            name = self._write(node["content"], last=last and kind == "optional")
            limits = f"{{{node['min']},{'' if node['max'] < 0 else node['max']}}}" if kind == "repeat" else ""
            return self._rule(f"{name}{ {'optional': '?', 'plus': '+', 'star': '*'}.get(kind, limits) }")
        if kind == "triggered_tags":
            return self._triggered(node, last)
        if kind == "tags_with_separator":
            tags = self._rule(" | ".join(self._write(n, last=False) for n in node["tags"]))
            separator = _quoted(node["separator"])
            many = tags if node.get("stop_after_first") else f"{tags} ({separator} {tags})*"
            return self._rule(many if node.get("at_least_one") else f"({many})?")
        raise _unsupported(kind)

    def _regular(self, node: dict[str, Any]) -> str | None:
        """What makes one terminal, as its body: literals and regexes, and what is built of them alone."""
        kind = node["type"]
        if kind == "const_string":
            if node["value"] in self._special:
                return None
            return json.dumps(node["value"])
        if kind == "regex":
            if (pattern := exact_regex(node["pattern"])) is None:
                raise _unsupported(f"regex {node['pattern'][:80]!r}")
            return f"/{_slashes(pattern)}/" if pattern else '""'
        if kind in ("sequence", "or"):
            parts = [self._regular(n) for n in node["elements"]]
            if any(p is None for p in parts):
                return None
            return "(" + (" " if kind == "sequence" else " | ").join(map(str, parts)) + ")"
        if kind == "tag" and isinstance(node["begin"], str) and node["begin"] not in self._special:
            content, ends = self._regular(node["content"]), _ends(node)
            if content is not None and not any(e in self._special for e in ends):
                return f"({json.dumps(node['begin'])} {content} ({' | '.join(map(json.dumps, ends))}))"
        return None

    def _literal(self, text: str) -> str:
        return f"<[{self._special[text]}]>" if text in self._special else _quoted(text)

    def _sequence(self, elements: list[dict[str, Any]], last: bool) -> str:
        names = []
        index = 0
        while index < len(elements):
            node, following = elements[index], elements[index + 1 : index + 2]
            after = following[0] if following else {"type": ""}
            text = after.get("value") if after["type"] == "const_string" else after.get("begin")
            # what it excludes may be just the text that ends it
            if following and node in ({"type": "any_text"}, {"type": "any_text", "excludes": [text]}):
                if not isinstance(text, str) or not text:
                    raise _unsupported("any_text before anything but a string or the end of its tag")
                names.append(self._text_until([text]))
                if after["type"] == "tag":
                    names.append(self._tag({**after, "begin": ""}, last and index + 2 == len(elements)))
                index += 2
                continue
            names.append(self._write(node, last=last and index + 1 == len(elements)))
            index += 1
        return self._rule(" ".join(names))

    def _text_without(self, texts: list[str]) -> str:
        """Free text in which none of these stands. It holds no special tokens anyway."""
        found = "|".join(map(escape, (t for t in texts if t not in self._special)))
        return f"/(.|\\n)*/ & ~/(.|\\n)*({_slashes(found)})(.|\\n)*/" if found else "FREE_TEXT"

    def _text_until(self, ends: list[str]) -> str:
        """Free text up to the first of the ends, and that."""
        if any(e in self._special for e in ends):
            if len(ends) > 1:
                raise _unsupported("several ends of free text, one of them a special token")
            return self._rule(f"FREE_TEXT {self._literal(ends[0])}")
        literals = " | ".join(map(json.dumps, ends))
        return self._rule(f"FREE_TEXT ({literals})", lazy=True)

    def _tag(self, node: dict[str, Any], last: bool) -> str:
        if not isinstance(node["begin"], str):
            raise _unsupported("tag.begin that is a token")
        content, ends = node["content"], _ends(node)
        begin = self._literal(node["begin"])
        if content["type"] == "any_text" and set(content) == {"type"} and all(ends):
            return self._rule(f"{begin} {self._text_until(ends)}")
        body = self._write(content, last=last and not any(ends))
        closing = self._rule(" | ".join(self._literal(e) or '""' for e in ends)) if any(ends) else ""
        return self._rule(f"{begin} {body} {closing}")

    def _triggered(self, node: dict[str, Any], last: bool) -> str:
        if not last:
            raise _unsupported("triggered_tags that are not at the end")
        names = []
        for tag in node["tags"]:
            begin = tag["begin"]
            # the longest fits best: <function= before <
            trigger = max((t for t in node["triggers"] if begin.startswith(t)), key=len)
            opening = self._text_until([trigger])
            names.append(self._rule(f"{opening} {self._tag({**tag, 'begin': begin[len(trigger) :]}, False)}"))
        tags = self._rule(" | ".join(names))
        if node.get("stop_after_first"):
            return self._rule(tags if node.get("at_least_one") else f"{tags} | FREE_TEXT")
        return self._rule(f"{tags}{'+' if node.get('at_least_one') else '*'} {self._rule('FREE_TEXT')}")


def _ends(tag: dict[str, Any]) -> list[str]:
    ends = tag["end"] if isinstance(tag["end"], list) else [tag["end"]]
    if not all(isinstance(e, str) for e in ends):
        raise _unsupported("tag.end that is a token")
    return ends


def _slashes(pattern: str) -> str:
    return pattern.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _wrong(what: str) -> RequestError:
    return RequestError(f"structural_tag {what}", param="structural_tag")


def _unsupported(what: str) -> UnsupportedConstraintError:
    return UnsupportedConstraintError(f"structural_tag: {what} is not supported", param="structural_tag")
