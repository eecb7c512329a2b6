"""Guided decoding by llguidance: every kind of constraint, compiled in milliseconds, masks in threads.

LLMatcher never raises: after everything that may fail its is_error() is asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.errors import RequestError
from core.interfaces.guided import UnsupportedConstraintError, Vocabulary
from core.sampling_params import GuidedDecodingParams
from plugins.guided.constraint import constraint_kind, read_schema, subschemas
from plugins.guided.regex import escape
from plugins.guided.structural_tag import schemas_of, structural_tag_grammar

UNSUPPORTED_KEYWORDS = frozenset(
    (
        "$dynamicRef",
        "$recursiveRef",
        "contains",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
        "uniqueItems",
    )
)
MAX_LEXER_STATES = 50_000
"""1 to 2 KB each, for every sequence: some 100 MB at the worst."""
WHITESPACE = r"[ \t\n\r]{1,64}"
"""Between JSON's tokens. Bounded: a model that has lost its way would write blanks for ever."""
SLICES = tuple(f"[{c}]{length}" for c in ("A-Za-z ", "A-Za-z", "a-z") for length in ("{1,30}", "+"))
"""Parts of the vocabulary, beside the library's own for JSON, whose tokens a mask takes over whole where all of them may follow:
most tokens of prose, names and words, 0.02 ms instead of 2 on 128k tokens. Each lies in one of the library's, or JSON's masks would
pay for them, and none is shorter: what is too long for a counted repetition starts like what is not, so that its tokens are walked
through anyway. 0.4 s more to build and 30 to 50 MB, on 128k."""
MAX_THREADS = 16
COPIES_S = 0.1
"""Spent at most on more copies of a compiled grammar, mostly without Python's lock; 1 to 5 ms each on 128k tokens."""
_CAPABILITIES = ("oneOf constraints are not supported", "Unimplemented keys", "Unknown format", "not supported yet")


class LLGuidanceBackend:
    name = "llguidance"

    def __init__(self, vocabulary: Vocabulary) -> None:
        import llguidance

        self._library: Any = llguidance
        # in two calls: each holds Python's lock all along, 0.7 s on 128k tokens, and the steps of others wait for it
        self._tokenizer = _tokenizer(llguidance, vocabulary)
        self._tokenizer = self._tokenizer.with_slices([*llguidance.LLTokenizer.general_slices(), *SLICES])
        self._eos = frozenset(vocabulary.eos_token_ids)
        self._limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        self._num_threads = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))
        self._executor = llguidance.LLExecutor(self._num_threads)
        self._specials = {
            text: token for text, token in _added_tokens(vocabulary).items() if self._tokenizer.is_special_token(token)
        }

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        return sorted({k for schema in schemas_of(constraint) for k in _not_held(schema)})

    def compile(self, constraint: GuidedDecodingParams) -> LLGrammar:
        source = self._source(constraint)
        made: list[Any] = []
        begin = time.perf_counter()
        while not made or (len(made) < self._num_threads and time.perf_counter() - begin < COPIES_S):
            matcher = self._library.LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
            if not matcher.is_error():
                # warms what every copy then shares, and meets the limits before the request is admitted
                matcher.compute_bitmask()
            if matcher.is_error():
                raise self._refusal(constraint, matcher.get_error())
            made.append(matcher)
        return LLGrammar(made, self._eos, len(source))

    def fill_many(self, matchers: Sequence[tuple[LLMatcher, int]], bits: np.ndarray) -> None:
        # those that share a lexer wait for each other: side by side they fall to one thread
        pairs = [(m.inner, row) for m, row in sorted(matchers, key=lambda pair: pair[0].origin)]
        self._executor.unsafe_compute_mask_ptr(pairs, bits.ctypes.data, bits.shape[1] * 4, bits.shape[0])

    def _source(self, constraint: GuidedDecodingParams) -> str:
        matcher = self._library.LLMatcher
        try:
            if constraint.json is not None or constraint.json_object:
                schema = _without(read_schema(constraint), "uniqueItems")
                pattern = constraint.whitespace_pattern
                options = {
                    "whitespace_flexible": True,
                    "whitespace_pattern": WHITESPACE if pattern is None else pattern,
                }
                return str(matcher.grammar_from_json_schema(json.dumps(schema), overrides=options))
            if constraint.regex is not None:
                return str(matcher.grammar_from_regex(constraint.regex))
            if constraint.choice is not None:
                # one lexeme, far cheaper than as many alternatives in the grammar
                return str(matcher.grammar_from_regex("|".join(escape(c) for c in dict.fromkeys(constraint.choice))))
            if constraint.grammar is not None:
                return str(self._library.grammar_from("grammar", constraint.grammar))
            return structural_tag_grammar(constraint.structural_tag, self._specials)
        except RequestError:
            raise
        except (ValueError, TypeError) as error:
            raise self._refusal(constraint, str(error)) from None

    def _refusal(self, constraint: GuidedDecodingParams, message: str) -> RequestError:
        kind = constraint_kind(constraint)
        message = message.split("\n<state>")[0].removesuffix("<non-verbose/>").strip()
        if message == "NoExtensionBias":
            message = "nothing can be written that follows it (a recursion without an end?)"
        message = message if len(message) <= 500 else f"{message[:400]} ... {message[-80:]}"
        text = f"the guided-decoding {kind} is not accepted: {message}"
        if any(c in message for c in _CAPABILITIES):
            return UnsupportedConstraintError(text, param=f"guided_{kind}")
        return RequestError(text, param=f"guided_{kind}")


class LLGrammar:
    """A grammar compiled a few times over: copies of one matcher share its lexer, and a lock with it, so that the masks of
    64 of them take as long in two threads as in one; sequences take turns with the origins."""

    def __init__(self, origins: list[Any], eos: frozenset[int], num_source_bytes: int) -> None:
        """origins: llguidance.LLMatcher, each at the beginning."""
        self._origins, self._eos, self._next = origins, eos, 0
        self.num_bytes = len(origins) * ((64 << 10) + 20 * num_source_bytes)

    def matcher(self) -> LLMatcher:
        origin = self._origins[self._next]
        self._next = (self._next + 1) % len(self._origins)
        return LLMatcher(origin.deep_copy(), self._eos, id(origin))


class LLMatcher:
    def __init__(self, inner: Any, eos: frozenset[int], origin: int) -> None:
        """inner: llguidance.LLMatcher; origin: equal for those that share a lexer."""
        self.inner, self._eos, self._ended, self.origin = inner, eos, False, origin

    def fill(self, bitmask_row: np.ndarray) -> None:
        self.inner.unsafe_compute_mask_ptr(bitmask_row.ctypes.data, bitmask_row.nbytes)

    def accept(self, token_id: int) -> bool:
        if token_id in self._eos:
            # kept here: the library's rollback counts an EOS in some states and not in others
            self._ended = bool(self.inner.is_accepting())
            return self._ended
        return bool(not self._ended and self.inner.try_consume_tokens([token_id]) == 1)

    def rollback(self, num_tokens: int) -> None:
        if num_tokens and self._ended:
            self._ended = False
            num_tokens -= 1
        if num_tokens:
            self.inner.rollback(num_tokens)

    def forced(self) -> list[int]:
        return list(self.inner.compute_ff_tokens())

    def finished(self) -> bool:
        return self._ended or bool(self.inner.is_stopped() and not self.inner.is_error())

    def error(self) -> str | None:
        if not self.inner.is_error():
            return None
        return str(self.inner.get_error()).split("\n")[0][:300] or "unknown"


class _Bytes:
    """A vocabulary of bytes as llguidance wants to see a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        padding = max(0, vocabulary.size - len(vocabulary.tokens))
        self.tokens = [*vocabulary.tokens, *[b""] * padding][: vocabulary.size]
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        self.special_token_ids = [i for i, t in enumerate(self.tokens) if not t]
        self._by_bytes = {t: i for i, t in enumerate(self.tokens) if t}
        self._longest = max(map(len, self._by_bytes), default=1)

    def __call__(self, text: bytes | str) -> list[int]:
        # greedy: only llguidance's own tests of canonical tokens ask for it
        data = text.encode() if isinstance(text, str) else text
        ids, at = [], 0
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                if (token := self._by_bytes.get(data[at : at + length])) is not None:
                    ids.append(token)
                    at += length
                    break
            else:
                at += 1
        return ids


def _tokenizer(library: Any, vocabulary: Vocabulary) -> Any:
    """llguidance.LLTokenizer, without slices."""
    eos = list(vocabulary.eos_token_ids)
    if vocabulary.tokenizer_file is not None:
        try:
            found = library.LLTokenizer(vocabulary.tokenizer_file, n_vocab=vocabulary.size, eos_token=eos, slices=[])
            if found.vocab_size == vocabulary.size:
                return found
        except Exception:  # a pre-tokenizer that it does not know raises ValueError or a panic; the bytes will do
            pass
    from llguidance._tokenizer import TokenizerWrapper

    wrapper = TokenizerWrapper(_Bytes(vocabulary))
    return library.LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=eos, slices=[])


def _added_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    if vocabulary.tokenizer_file is None:
        return {}
    with open(vocabulary.tokenizer_file, encoding="utf-8") as file:
        return {t["content"]: t["id"] for t in json.load(file).get("added_tokens", ())}


def _not_held(schema: Any) -> set[str]:
    """Keywords of a schema and those in it that the library does not hold, or gets wrong."""
    nodes = list(subschemas(schema))
    found = {k for node in nodes for k in node.keys() & UNSUPPORTED_KEYWORDS}
    # false says nothing
    if "uniqueItems" in found and not any(n.get("uniqueItems") for n in nodes):
        found.discard("uniqueItems")
    for node in nodes:
        # beside prefixItems it means nothing, and the library then forgets prefixItems
        if "prefixItems" in node and "additionalItems" in node:
            found.add("additionalItems")
        # a key that is written twice counts twice there
        if node.get("minProperties", 0) > max(1, len(node.get("required") or ())):
            found.add("minProperties")
    merged = any("allOf" in n or (n.keys() & {"$ref", "anyOf", "oneOf"} and len(n) > 1) for n in nodes)
    for group in [nodes] if merged else [[n] for n in nodes]:
        found |= _narrow_bounds(group)
    return found


def _narrow_bounds(nodes: list[Any]) -> set[str]:
    """Exclusive bounds at a whole number with another bound less than 1 away: the library takes the whole number."""
    bounds = [
        (key, node[key])
        for node in nodes
        for key in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
        if isinstance(node.get(key), int | float) and node.get("type") != "integer"
    ]
    return {
        key
        for key, value in bounds
        if key.startswith("exclusive") and value == round(value)
        if any(0 < abs(value - other) < 1 for _, other in bounds)
    }


def _without(schema: Any, keyword: str) -> Any:
    """The schema without a keyword that is false wherever it stands (`unsupported` has seen to that)."""
    if not any(keyword in s for s in subschemas(schema)):
        return schema
    schema = json.loads(json.dumps(schema))
    for node in subschemas(schema):
        node.pop(keyword, None)  # type: ignore[attr-defined]
    return schema
