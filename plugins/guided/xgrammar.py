"""Guided decoding by xgrammar, the extra `xgrammar`: what the other backends do not hold, propertyNames for one.

The library ignores keywords that it does not know, so a validator stands in front; it cannot be interrupted, so it
compiles in a process that can be killed (xgrammar_worker.py), and the grammar comes back serialized.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.errors import RequestError
from core.interfaces.guided import UnsupportedConstraintError, Vocabulary
from core.sampling_params import GuidedDecodingParams
from plugins.guided.constraint import constraint_kind, read_schema, subschemas
from plugins.guided.regex import exact_regex, is_anchored
from plugins.guided.structural_tag import formats_of, read_structural_tag, schemas_of
from plugins.guided.xgrammar_worker import PREFIX_BYTES

TIMEOUT_S = 12.0
START_TIMEOUT_S = 60.0
MAX_MEMORY_BYTES = 1 << 30
MAX_ANSWER_BYTES = 64 << 20
MAX_FIRST_MASK_S = 0.25
"""A grammar whose first mask takes longer would stop the steps of everybody."""
MAX_MASK_S = 1.0
"""A sequence one of whose masks took longer ends; the library has no limit of its own."""
MAX_BLANKS = 8
"""Between tokens of JSON. With 64, as llguidance has them, a grammar is ten times as large and slow."""

_ANNOTATIONS = {
    "$anchor",
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
_BY_TYPE = {
    "array": {"items", "maxItems", "minItems", "prefixItems"},
    "number": {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"},
    "object": {
        "additionalProperties",
        "maxProperties",
        "minProperties",
        "patternProperties",
        "properties",
        "propertyNames",
        "required",
    },
    "string": {"format", "maxLength", "minLength", "pattern"},
}
_CHARACTER = "[ !#-\\[\\]-\ud7ff\ue000-\U0010ffff]"
"""What may stand in a JSON string as it is; ranges, since what a class leaves out would have surrogates in it."""
_ALONE = ("$ref", "anyOf", "const", "enum")
_FORMATS = {"date", "email", "ipv4", "uuid"}


class XGrammarBackend:
    name = "xgrammar"

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import xgrammar
        except ImportError as error:
            raise ImportError(f"{error}; it is an extra: pip install 'backplane[xgrammar]'") from None
        self._library: Any = xgrammar
        self._eos = tuple(vocabulary.eos_token_ids)
        self._words = (vocabulary.size + 31) // 32
        tokens = list(vocabulary.tokens[: vocabulary.size])
        self._info = xgrammar.TokenizerInfo(
            tokens,
            xgrammar.VocabType.RAW,
            vocab_size=vocabulary.size,
            stop_token_ids=list(self._eos),
            add_prefix_space=False,
        )
        # the library leaves bits without a token set
        self._real = np.zeros(32 * self._words, bool)
        self._real[[i for i, t in enumerate(tokens) if t or i in self._eos]] = True
        self._real = np.packbits(self._real, bitorder="little").view(np.int32)
        self._batch = xgrammar.BatchGrammarMatcher(max(1, min(8, len(os.sched_getaffinity(0)))))
        self._worker = _Worker(
            msgspec.msgpack.encode({"tokens": tokens, "size": vocabulary.size, "eos": list(self._eos)})
        )

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        if constraint.whitespace_pattern:
            return ["whitespace_pattern"]
        if constraint.regex is not None:
            return [] if exact_regex(constraint.regex) is not None else ["regex"]
        found: set[str] = set()
        for schema in schemas_of(constraint):
            if isinstance(schema, bool):
                found.add(json.dumps(schema))
            for node in subschemas(_typed_names(schema)):
                found |= _ignored(node)
        return sorted(found)

    def compile(self, constraint: GuidedDecodingParams) -> XGrammar:
        order = {
            **self._order(constraint),
            "memory": MAX_MEMORY_BYTES,
            "most": MAX_ANSWER_BYTES,
            "seconds": TIMEOUT_S,
            "words": self._words,
        }
        answer = self._worker.ask(msgspec.msgpack.encode(order))
        kind, data = answer[:1], answer[1:]
        name = constraint_kind(constraint)
        if kind == b"T":
            raise RequestError(f"xgrammar took over {TIMEOUT_S:g} s to compile the constraint; simplify it")
        if kind == b"M":
            raise RequestError(
                f"xgrammar ended without a grammar; the constraint may need over {MAX_MEMORY_BYTES >> 20} MiB"
            )
        if kind == b"L":
            raise RequestError(f"the constraint's grammar has over {MAX_ANSWER_BYTES} bytes; simplify it")
        if kind == b"E":
            message = data.decode(errors="replace").split("] ", 1)[-1].strip()[:400]
            raise UnsupportedConstraintError(
                f"the guided-decoding {name} is not accepted: {message}", param=f"guided_{name}"
            )
        seconds, _, text = data.partition(b"\n")
        if float(seconds) > MAX_FIRST_MASK_S:
            raise RequestError(
                f"the constraint's first mask takes xgrammar {float(seconds):.2f} s; at most {MAX_FIRST_MASK_S:g} s are "
                "granted; simplify it"
            )
        compiled = self._library.CompiledGrammar.deserialize_json(text.decode(), self._info)
        return XGrammar(self._library, compiled, self._eos, self._real, int(compiled.memory_size_bytes))

    def fill_many(self, matchers: Sequence[tuple[XMatcher, int]], bits: np.ndarray) -> None:
        begin = time.perf_counter()
        rows = [row for _, row in matchers]
        self._batch.batch_fill_next_token_bitmask([m.inner for m, _ in matchers], bits, rows)
        bits[rows] &= self._real
        if time.perf_counter() - begin > MAX_MASK_S:
            # who of them is slow is found out one by one, and that once
            for matcher, row in matchers:
                matcher.fill(bits[row])

    def close(self) -> None:
        self._worker.stop()

    def _order(self, constraint: GuidedDecodingParams) -> dict[str, Any]:
        if constraint.json is not None or constraint.json_object:
            blanks = 0 if constraint.whitespace_pattern == "" else MAX_BLANKS
            return {"kind": "json", "source": json.dumps(_prepared(read_schema(constraint))), "blanks": blanks}
        if constraint.regex is not None:
            return {"kind": "regex", "source": exact_regex(constraint.regex)}
        if constraint.choice is not None:
            texts = [json.dumps(c, ensure_ascii=True) for c in dict.fromkeys(constraint.choice)]
            return {"kind": "ebnf", "source": "root ::= " + " | ".join(texts)}
        if constraint.grammar is not None:
            return {"kind": "ebnf" if "::=" in constraint.grammar else "lark", "source": constraint.grammar}
        tag = json.loads(json.dumps(read_structural_tag(constraint.structural_tag)))
        for _, node in formats_of(tag["format"], "format"):
            if "json_schema" in node:
                node["json_schema"] = _prepared(node["json_schema"])
        return {"kind": "structural_tag", "source": json.dumps({"type": "structural_tag", **tag})}


class _Worker:
    """The process that compiles, one order at a time; started with the first order, and again after it was killed."""

    def __init__(self, setup: bytes) -> None:
        self._setup = setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, order: bytes) -> bytes:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None
            try:
                self._send(order)
                # the worker ends the order itself when its time is over; this is for a worker that is stuck
                answer = self._receive(TIMEOUT_S + 5)
            except OSError:
                answer = None
            if answer is None:
                self._kill()
                return b"M"
            return answer

    def stop(self) -> None:
        self._kill()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("xgrammar_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with contextlib.suppress(OSError):
            self._send(self._setup)
            if self._receive(START_TIMEOUT_S) == b"R":
                return
        self._kill()
        raise RequestError("xgrammar's compile process did not start; see `python -c 'import xgrammar'`")

    def _send(self, message: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(len(message).to_bytes(PREFIX_BYTES, "little") + message)
        self._process.stdin.flush()

    def _receive(self, seconds: float) -> bytes | None:
        """One message, or None if the process ended or took too long."""
        assert self._process is not None and self._process.stdout is not None
        pipe, end = self._process.stdout.fileno(), time.monotonic() + seconds
        data = bytearray()
        size = PREFIX_BYTES
        while len(data) < size:
            ready, _, _ = select.select([pipe], [], [], max(0.0, end - time.monotonic()))
            piece = os.read(pipe, 1 << 20) if ready else b""
            if not piece:
                return None
            data += piece
            if size == PREFIX_BYTES and len(data) >= PREFIX_BYTES:
                size += int.from_bytes(data[:PREFIX_BYTES], "little")
        return bytes(data[PREFIX_BYTES:])

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class XGrammar:
    def __init__(self, library: Any, compiled: Any, eos: tuple[int, ...], real: np.ndarray, num_bytes: int) -> None:
        self._library, self._compiled, self._eos, self._real = library, compiled, eos, real
        self.num_bytes = num_bytes

    def matcher(self) -> XMatcher:
        return XMatcher(self._library.GrammarMatcher(self._compiled), self._eos, self._real)


class XMatcher:
    def __init__(self, inner: Any, eos: tuple[int, ...], real: np.ndarray) -> None:
        """inner: xgrammar.GrammarMatcher. It never sees an EOS: once terminated it would fill no mask.
        real: bits of what is a token."""
        self.inner, self._eos, self._real = inner, eos, real
        self._ended = False
        self._slow_s = 0.0

    def fill(self, bitmask_row: np.ndarray) -> None:
        begin = time.perf_counter()
        self.inner.fill_next_token_bitmask(bitmask_row[None], 0)
        bitmask_row &= self._real
        self._slow_s = max(self._slow_s, time.perf_counter() - begin)

    def accept(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._eos:
            self._ended = bool(self.inner.is_completed())
            return self._ended
        return bool(self.inner.accept_token(token_id))

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.inner.rollback(num_tokens)

    def forced(self) -> list[int]:
        # the library tells text; which tokens the tokenizer would take for it depends on what comes after
        return []

    def finished(self) -> bool:
        return self._ended

    def error(self) -> str | None:
        if self._slow_s > MAX_MASK_S:
            return f"a mask took {self._slow_s:.1f} s; at most {MAX_MASK_S:g} s are granted"
        return None


def _typed_names(schema: Any) -> Any:
    """A copy in which names of properties have a type, since they can be nothing but strings."""
    schema = json.loads(json.dumps(schema))
    for node in subschemas(schema):
        names = node.get("propertyNames")
        if isinstance(names, dict) and not names.keys() & {"type", *_ALONE}:
            names["type"] = "string"
    return schema


def _prepared(schema: Any) -> Any:
    """The schema as the library reads it right: lengths become a pattern, since with lengths it allows control characters
    in a string, which JSON does not."""
    schema = _typed_names(schema)
    for node in subschemas(schema):
        if node.keys() & {"minLength", "maxLength"} and not node.keys() & {"pattern", "format", *_ALONE}:
            least, most = node.pop("minLength", 0), node.pop("maxLength", "")  # type: ignore[attr-defined]
            node["pattern"] = f"^{_CHARACTER}{{{least},{most}}}$"  # type: ignore[index]
    return schema


def _ignored(schema: Any) -> set[str]:
    """Keywords of one schema that xgrammar would ignore or get wrong."""
    known = _ANNOTATIONS | {"type", *_ALONE}.union(*_BY_TYPE.values())
    wrong = set(schema) - known
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds] if kinds is not None else []
    # the library looks at one of these and drops what stands beside it
    alone = [k for k in _ALONE if k in schema]
    if "$ref" in schema and not re.fullmatch(r"#(/.*)?", str(schema["$ref"])):
        wrong.add("$ref")
    if alone:
        return wrong | (set(schema) - _ANNOTATIONS - {alone[0]})
    named = {"number" if k == "integer" else k for k in kinds}
    for kind, keywords in _BY_TYPE.items():
        # without its type a keyword says nothing about other values, which the library does not know
        if kind not in named:
            wrong |= schema.keys() & keywords
    properties = schema.get("properties") or {}
    if set(schema.get("required") or ()) - set(properties):
        wrong.add("required")
    if schema.get("format", "date") not in _FORMATS:
        wrong.add("format")
    if "pattern" in schema:
        wrong |= schema.keys() & {"format", "maxLength", "minLength"}
    elif "format" in schema:
        wrong |= schema.keys() & {"maxLength", "minLength"}
    # held for whole numbers alone, and without bounds
    if "multipleOf" in schema and (kinds != ["integer"] or schema.keys() & _BY_TYPE["number"] - {"multipleOf"}):
        wrong.add("multipleOf")
    # a key that is written twice counts twice there
    if schema.get("minProperties", 0) > max(1, len(schema.get("required") or ())):
        wrong.add("minProperties")
    if "pattern" in schema and not is_anchored(str(schema["pattern"])):
        wrong.add("pattern")
    if "patternProperties" in schema:
        # a name that several of these speak of gets one of them alone
        beside = schema.keys() & {"maxProperties", "minProperties", "properties", "propertyNames"}
        wrong |= {"patternProperties"} if beside else set()
        patterns = schema["patternProperties"]
        if len(patterns) != 1 or not all(map(is_anchored, patterns)):
            wrong.add("patternProperties")
    elif "propertyNames" in schema and schema.keys() & {"additionalProperties", "properties"}:
        wrong.add("propertyNames")
    return wrong
