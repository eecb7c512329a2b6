"""Guided decoding by outlines-core: regex, choice and JSON schema as one automaton over the vocabulary.

The library ignores keywords that it does not know and cannot be interrupted. So a validator stands in front, and the
index is built in a process of its own with a cap on memory, that is killed when its time is over.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import RequestError
from core.interfaces.guided import UnsupportedConstraintError, Vocabulary
from core.sampling_params import GuidedDecodingParams
from plugins.guided.constraint import read_schema, subschemas
from plugins.guided.regex import is_anchored

TIMEOUT_S = 15.0
MAX_MEMORY_BYTES = 1 << 30
MAX_INDEX_BYTES = 32 << 20
"""Reading an index holds Python's lock for about 3.5 ms a MB; a bigger one would stop the steps for too long."""
MAX_ROLLBACK = 64
END = "\0"
"""Stands behind what a constraint describes, and the end-of-sequence token is written so; no other token that has one is
taken then. For the library leaves ways out where they pass a possible end: of `(ab)+` alone nothing may follow the first
b, unless a token is a whole `ab`."""
_NOTHING_BEHIND = re.compile(r"\$|\\[bBzZ]")
"""In a pattern with one of these END cannot follow."""

UNUSED = (1 << 32) - 1
"""A token id that no vocabulary has."""
_ANNOTATIONS = {
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
}
_KEYWORDS = _ANNOTATIONS | {
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "enum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "minItems",
    "minLength",
    "pattern",
    "properties",
    "required",
    "type",
}
_FORMATS = {"date", "date-time", "email", "time", "uri", "uuid"}
_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_BY_TYPE = {
    "array": {"items", "maxItems", "minItems"},
    "object": {"additionalProperties", "properties", "required"},
    "string": {"format", "maxLength", "minLength", "pattern"},
}


class OutlinesBackend:
    name = "outlines"

    def __init__(self, vocabulary: Vocabulary) -> None:
        import outlines_core

        self._library: Any = outlines_core
        self._eos = vocabulary.eos_token_ids
        tokens: dict[bytes, list[int]] = {}
        for index, token in enumerate(vocabulary.tokens):
            if token and index not in self._eos and index < vocabulary.size:
                tokens.setdefault(token, []).append(index)
        self._tokens = msgspec.msgpack.encode([(t, ids) for t, ids in tokens.items()])
        rest = [(t, ids) for t, ids in tokens.items() if END.encode() not in t]
        self._tokens_and_end = msgspec.msgpack.encode([*rest, (END.encode(), [self._eos[0]])])

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        if constraint.grammar is not None:
            return ["grammar"]
        if constraint.structural_tag is not None:
            return ["structural_tag"]
        if constraint.json is None:
            return []
        return sorted({k for s in subschemas(read_schema(constraint)) for k in _ignored(s)})

    def compile(self, constraint: GuidedDecodingParams) -> OutlinesGrammar:
        regex = self._regex(constraint)
        has_end = not _NOTHING_BEHIND.search(regex) and (constraint.json is None or _may_be_number(constraint))
        data = self._build(rf"(?:{regex})\x00" if has_end else regex, has_end)
        index = self._library.Index.from_binary(data)
        return OutlinesGrammar(self._library, index, self._eos, len(data), has_end)

    def _regex(self, constraint: GuidedDecodingParams) -> str:
        if constraint.regex is not None:
            return constraint.regex
        if constraint.choice is not None:
            return "|".join(re.escape(c) for c in dict.fromkeys(constraint.choice))
        from outlines_core.json_schema import build_regex_from_schema

        try:
            text = json.dumps(read_schema(constraint))
            return str(build_regex_from_schema(text, constraint.whitespace_pattern))
        except (ValueError, TypeError) as error:
            message = str(error).split("\n")[0][:300]
            raise UnsupportedConstraintError(
                f"the JSON schema is not accepted: {message}", param="guided_json"
            ) from None

    def _build(self, regex: str, has_end: bool) -> bytes:
        worker = Path(__file__).with_name("outlines_worker.py")
        order = msgspec.msgpack.encode(
            {
                "regex": regex,
                # with END the library's own is never taken
                "eos": UNUSED if has_end else self._eos[0],
                "tokens": msgspec.Raw(self._tokens_and_end if has_end else self._tokens),
                "memory": MAX_MEMORY_BYTES,
                "seconds": int(TIMEOUT_S) + 1,
            }
        )
        process = subprocess.Popen(
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            answer, _ = process.communicate(order, TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RequestError(f"outlines took over {TIMEOUT_S:g} s to compile the constraint; simplify it") from None
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        if not answer:
            raise RequestError(
                f"outlines ended without an index; the constraint may need over {MAX_MEMORY_BYTES >> 20} MiB"
            )
        if answer[:1] == b"E":
            raise RequestError(f"the guided-decoding constraint is not accepted: {answer[1:].decode()[:500]}")
        if len(answer) > MAX_INDEX_BYTES:
            raise RequestError(
                f"the constraint's index has {len(answer)} bytes; at most {MAX_INDEX_BYTES} are taken; simplify it, or use 'llguidance'"
            )
        return answer[1:]


class OutlinesGrammar:
    def __init__(self, library: Any, index: Any, eos: tuple[int, ...], num_bytes: int, has_end: bool) -> None:
        self._library, self._index, self._eos, self._has_end = library, index, eos, has_end
        self.num_bytes = 2 * num_bytes

    def matcher(self) -> OutlinesMatcher:
        return OutlinesMatcher(self._library.Guide(self._index, MAX_ROLLBACK), self._index, self._eos, self._has_end)


class OutlinesMatcher:
    def __init__(self, guide: Any, index: Any, eos: tuple[int, ...], has_end: bool) -> None:
        self._guide, self._index, self._eos, self._has_end = guide, index, eos, has_end
        self._ended = False

    def fill(self, bitmask_row: np.ndarray) -> None:
        words = bitmask_row.view(np.uint32)
        if self._ended:
            words[:] = 0
        else:
            self._guide.write_mask_into(bitmask_row.ctypes.data, bitmask_row.size, bitmask_row.itemsize)
        eos = self._eos[0]
        words[eos // 32] &= ~np.uint32(1 << (eos % 32))  # END may also be what a dot stands for
        if self._accepting():
            # the library knows one EOS, the model may have several
            for token in self._eos:
                words[token // 32] |= np.uint32(1 << (token % 32))

    def accept(self, token_id: int) -> bool:
        if token_id in self._eos:
            self._ended = self._accepting()
            return self._ended
        if self._ended:
            return False
        try:
            self._guide.advance(token_id, False)
        except ValueError:
            return False
        return True

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self._guide.rollback_state(num_tokens)

    def forced(self) -> list[int]:
        # one allowed token is one way to write it, not the one that the tokenizer would choose
        return []

    def finished(self) -> bool:
        return self._ended or (self._accepting() and set(self._guide.get_tokens()) <= {self._eos[0]})

    def error(self) -> str | None:
        return None

    def _accepting(self) -> bool:
        if self._ended:
            return True
        if not self._has_end:
            return bool(self._index.is_final_state(self._guide.get_state()))
        try:
            self._guide.advance(self._eos[0], False)
        except ValueError:
            return False
        found = bool(self._index.is_final_state(self._guide.get_state()))
        self._guide.rollback_state(1)
        return found


def _may_be_number(constraint: GuidedDecodingParams) -> bool:
    """Of the documents of a schema numbers alone may end and go on. Any value at all is left out: with
    END its automaton takes over TIMEOUT_S, without 0.2 s."""
    schema = read_schema(constraint)
    kinds = schema.get("type", [])
    return bool(
        {"number", "integer"} & set(kinds if isinstance(kinds, list) else [kinds]) or {"const", "enum"} & set(schema)
    )


def _all_of_type(schema: Any, kinds: list[str]) -> bool:
    """Whether every value of const or enum has one of the types."""
    types = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None), "integer": int}
    values = [schema["const"]] if "const" in schema else schema["enum"]
    allowed = tuple(types[k] for k in kinds if k in types) + ((int, float) if "number" in kinds else ())
    return all(isinstance(v, allowed) and ("boolean" in kinds or not isinstance(v, bool)) for v in values)


def _ignored(schema: Any) -> set[str]:
    """Keywords of one schema that outlines-core would ignore or get wrong."""
    wrong = set(schema) - _KEYWORDS
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds] if kinds is not None else []
    wrong |= {"type"} if not all(isinstance(k, str) and k in _TYPES for k in kinds) else set()
    # the library looks at one of these and drops what stands beside it
    alone = [k for k in ("$ref", "anyOf", "const", "enum") if k in schema]
    if alone:
        wrong |= set(schema) - _ANNOTATIONS - {alone[0], "type"}
        if kinds and not (alone[0] in ("const", "enum") and _all_of_type(schema, kinds)):
            wrong.add("type")
        return wrong
    for kind, keywords in _BY_TYPE.items():
        # without its type a keyword says nothing about other values, which the library does not know
        if [kind] != kinds:
            wrong |= schema.keys() & keywords
    properties = schema.get("properties")
    if properties is not None and schema.get("additionalProperties") not in (None, True, False):
        wrong.add("additionalProperties")
    if properties is None and schema.get("additionalProperties") is False:
        wrong.add("additionalProperties")
    if set(schema.get("required") or ()) - set(properties or ()):
        wrong.add("required")
    if "items" in schema and not isinstance(schema["items"], dict):
        wrong.add("items")
    if schema.get("format", "date") not in _FORMATS:
        wrong.add("format")
    if "pattern" in schema:
        beside = schema.keys() & {"format", "maxLength", "minLength"}
        text = str(schema["pattern"])
        # pasted between quotes as it is, so nothing in it may match a quote, a backslash or a control character
        unsafe = re.search(r'\.|\[\^|\\[^dw.\-+*?()|\[\]{}]|"|\s', text.replace(r"\.", ""))
        if beside or unsafe or not is_anchored(text):
            wrong |= beside | {"pattern"}
    elif "format" in schema:
        wrong |= schema.keys() & {"maxLength", "minLength"}
    return wrong
