"""The manager: compile, cache, start, mask, accept, fall over. With the real backends and a small real tokenizer."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import plugins.guided
from core.config import EngineConfig, PluginConfig
from core.errors import RequestError
from core.guided import GuidedManager
from core.interfaces.guided import UnsupportedConstraintError, Vocabulary
from core.registry import Entry, Registry
from core.sampling_params import GuidedDecodingParams
from core.text.token_bytes import token_bytes

LINES = [
    '{"name": "Ann", "age": 12, "tags": ["red", "green"], "ok": true, "none": null}',
    "the quick brown fox says yes, no, maybe 192.168.0.1 über Größe 日本語 😀",
]
EOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|end|>", "<|tool|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES * 20, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["file", "bytes"])
def vocabulary(request: Any, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    size = tokenizer.get_vocab_size()
    file = None
    if request.param == "file":
        file = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
        tokenizer.save(file)
    # models pad their logits beyond the tokenizer
    return Vocabulary(token_bytes(tokenizer, frozenset({0, 1}), size), (EOS,), size + 13, file)


def registry(*more: tuple[str, str, int]) -> Registry:
    found = Registry(PluginConfig())
    found.entries = [e for e in found.entries if e.kind != "guided_backend"]

    def register(name: str, target: str, **info: Any) -> None:
        found.entries.append(Entry("guided_backend", name, target, "guided", "backplane", "0", info))

    plugins.guided.register_guided_backends(register)
    for name, target, rank in more:
        register(name, target, rank=rank)
    return found


def manager(vocabulary: Vocabulary, *more: tuple[str, str, int], **options: Any) -> GuidedManager:
    return GuidedManager(registry(*more), EngineConfig(), vocabulary, **options)


@pytest.fixture(scope="module")
def shared(vocabulary: Vocabulary) -> Iterator[GuidedManager]:
    """One manager for tests that leave nothing behind: xgrammar takes seconds to load."""
    guided = manager(vocabulary)
    yield guided
    guided.shutdown()


def settle(guided: GuidedManager, count: int = 1) -> tuple[list[int], list[tuple[int, str]]]:
    ready: list[int] = []
    failed: list[tuple[int, str]] = []
    end = time.monotonic() + 60
    while len(ready) + len(failed) < count:
        assert time.monotonic() < end
        r, f = guided.poll()
        ready += r
        failed += f
        time.sleep(0.001)
    return ready, failed


def allowed(bits: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))


def walk(
    guided: GuidedManager, vocabulary: Vocabulary, handle: int, seed: int, most: int = 400, lax: bool = False
) -> str | None:
    """Sample uniformly among allowed tokens up to EOS; None if it takes too many tokens."""
    rng = np.random.default_rng(seed)
    out: list[int] = []
    for _ in range(most):
        choices = allowed(guided.masks([(0, handle)]).bits[0])
        assert len(choices) and choices.max() < len(vocabulary.tokens)
        if len(out) > most // 2 and EOS in choices:
            choices = np.array([EOS])
        token = int(rng.choice(choices))
        assert guided.accept(handle, [token]) is None
        if token == EOS:
            assert guided.finished(handle)
            assert allowed(guided.masks([(0, handle)]).bits[0]).tolist() == [EOS]
            # xgrammar's "any character" knows no surrogates; the detokenizer too makes U+FFFD of them
            return b"".join(vocabulary.tokens[t] for t in out).decode(errors="replace" if lax else "strict")
        out.append(token)
    return None


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 10, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SIMPLE = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "ok": {"type": "boolean"}},
    "required": ["ok"],
}


def is_person(text: str) -> bool:
    value = json.loads(text)
    return (
        set(value) == {"name", "age", "tags"}
        and isinstance(value["name"], str)
        and len(value["name"]) <= 6
        and type(value["age"]) is int
        and 10 <= value["age"] <= 99
        and 1 <= len(value["tags"]) <= 3
        and set(value["tags"]) <= {"red", "green"}
    )


def is_simple(text: str) -> bool:
    value = json.loads(text)
    return isinstance(value["ok"], bool) and len(value.get("name", "")) <= 6


UNICODE = r"[äöü]{2}-\d{1,3}😀+|日本"
WALKS: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
    ({"json": PERSON}, is_person),
    ({"json": json.dumps(PERSON)}, is_person),
    ({"json_object": True}, lambda t: isinstance(json.loads(t), dict)),
    ({"regex": UNICODE}, lambda t: bool(re.fullmatch(UNICODE, t))),
    (
        {"choice": ("yes", "no", "no way", "über\n*.", "日本")},
        lambda t: t in ("yes", "no", "no way", "über\n*.", "日本"),
    ),
    ({"grammar": 'start: "a" b\nb: /[0-9]{2}/ | "(" start ")"'}, lambda t: bool(re.fullmatch(r"(a\()*a\d\d\)*", t))),
    ({"grammar": 'root ::= "x" [0-9] [0-9]?'}, lambda t: bool(re.fullmatch(r"x\d\d?", t))),
    ({"json": {"type": "integer", "minimum": 3, "maximum": 7}, "whitespace_pattern": ""}, lambda t: 3 <= int(t) <= 7),
    ({"json": SIMPLE, "backend": "outlines"}, is_simple),
    ({"regex": UNICODE, "backend": "outlines"}, lambda t: bool(re.fullmatch(UNICODE, t))),
    ({"choice": ("yes", "no way", "日本"), "backend": "outlines"}, lambda t: t in ("yes", "no way", "日本")),
    ({"json": PERSON, "backend": "xgrammar"}, is_person),
    ({"json_object": True, "backend": "xgrammar"}, lambda t: isinstance(json.loads(t), dict)),
    ({"regex": UNICODE, "backend": "xgrammar"}, lambda t: bool(re.fullmatch(UNICODE, t))),
    ({"choice": ("yes", 'no "way"', "日\n本"), "backend": "xgrammar"}, lambda t: t in ("yes", 'no "way"', "日\n本")),
    ({"grammar": 'root ::= "x" [0-9] [0-9]?', "backend": "xgrammar"}, lambda t: bool(re.fullmatch(r"x\d\d?", t))),
    (
        {"json": {"type": "object", "propertyNames": {"maxLength": 2}, "minProperties": 1, "maxProperties": 3}},
        lambda t: len(json.loads(t)) >= 1 and all(len(k) <= 2 for k in json.loads(t)),
    ),
]


@pytest.mark.parametrize(("constraint", "valid"), WALKS, ids=lambda w: "" if callable(w) else str(w)[:50])
def test_random_walks_are_valid(
    shared: GuidedManager, vocabulary: Vocabulary, constraint: dict[str, Any], valid: Callable[[str], bool]
) -> None:
    guided = shared
    for handle in range(20):
        guided.submit(handle, GuidedDecodingParams(**constraint))
    ready, failed = settle(guided, 20)
    assert not failed and sorted(ready) == list(range(20))
    ended = 0
    for handle in range(20):
        guided.start(handle)
        text = walk(guided, vocabulary, handle, handle, lax="xgrammar" in str(constraint) or "Names" in str(constraint))
        if text is not None:
            ended += 1
            assert valid(text), text
        guided.drop(handle)
    assert ended >= 10


def test_structural_tag_holds_the_tagged_part_alone(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    guided = manager(vocabulary)
    tag = {"structures": [{"begin": "<f=a>", "schema": {"enum": [1, 2]}, "end": "</f>"}], "triggers": ["<f="]}
    guided.submit(1, GuidedDecodingParams(structural_tag=tag))
    guided.submit(2, GuidedDecodingParams(structural_tag=tag))
    assert len(settle(guided, 2)[0]) == 2
    for handle, text, error in ((1, "free {text <f=a>2</f> and more", False), (2, "free <f=a>3", True)):
        guided.start(handle)
        assert (guided.accept(handle, tokenizer.encode(text).ids) is not None) is error


def test_sequences_are_apart_and_roll_back(shared: GuidedManager, vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    guided = shared
    params = GuidedDecodingParams(regex="(ab|cd)+")
    for backend_params in (
        params,
        GuidedDecodingParams(regex="(ab|cd)+", backend="outlines"),
        GuidedDecodingParams(regex="(ab|cd)+", backend="xgrammar"),
    ):
        for handle in (1, 2, 3):
            guided.submit(handle, backend_params)
        settle(guided, 3)
        for handle in (1, 2, 3):
            guided.start(handle)
        a, b, c = (tokenizer.encode(x).ids[0] for x in "abc")
        assert guided.accept(1, [a]) is None
        masks = guided.masks([(5, 1), (7, 2), (9, 3)])
        assert masks.sample_indices.tolist() == [5, 7, 9] and masks.bits.dtype == np.int32
        rows = [set(allowed(r).tolist()) for r in masks.bits]
        assert b in rows[0] and a not in rows[0] and {a, c} <= rows[1] and rows[1] == rows[2]
        assert guided.accept(1, [b, EOS, EOS]) is None and guided.finished(1)
        guided.rollback(1, 3)
        assert not guided.finished(1)
        assert set(allowed(guided.masks([(0, 1)]).bits[0]).tolist()) == rows[0]
        guided.rollback(1, 1)
        assert set(allowed(guided.masks([(0, 1)]).bits[0]).tolist()) == rows[1]
        message = guided.accept(2, [b])
        assert message is not None and "token" in message
        for handle in (1, 2, 3):
            guided.drop(handle)


def test_several_backends_serve_in_one_mask(shared: GuidedManager, vocabulary: Vocabulary) -> None:
    guided = shared
    backends = ("llguidance", "outlines", "xgrammar")
    for handle, name in enumerate(backends):
        guided.submit(handle, GuidedDecodingParams(choice=("ab", "cd"), backend=name))
    assert len(settle(guided, 3)[0]) == 3
    for handle in range(3):
        guided.start(handle)
    rows = [set(allowed(r).tolist()) for r in guided.masks([(h, h) for h in (2, 0, 1)]).bits]
    assert rows[0] == rows[1] == rows[2] and rows[0]
    for handle in range(3):
        guided.drop(handle)


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        ({"json": {"type": "array", "uniqueItems": True}}, ["uniqueItems", "llguidance", "outlines", "xgrammar"]),
        ({"json": {"type": "string", "not": {}}, "backend": "xgrammar"}, ["xgrammar", "'not'"]),
        ({"regex": "(?=a)b", "backend": "xgrammar"}, ["xgrammar", "regex"]),
        ({"json": {}, "whitespace_pattern": " ?", "backend": "xgrammar"}, ["xgrammar", "whitespace_pattern"]),
        ({"json": {"properties": {"a": {"not": {}}}}}, ["'not'"]),
        ({"json": {"type": "strin"}}, ["strin"]),
        ({"json": "{"}, ["not valid JSON"]),
        ({"json": "[]"}, ["object or a boolean"]),
        ({"regex": "(a"}, ["regex", "unclosed"]),
        ({"regex": "(?=a)b"}, ["look-around"]),
        ({"grammar": "start: nope"}, ["nope"]),
        ({"regex": "a", "backend": "llguidence"}, ["not registered", "did you mean 'llguidance'"]),
        ({"grammar": 'start: "a"', "backend": "outlines"}, ["outlines", "grammar"]),
        ({"json": {"type": "integer", "minimum": 3}, "backend": "outlines"}, ["outlines", "minimum"]),
        ({"structural_tag": {"structures": [], "triggers": []}}, ["structures"]),
        ({"json": {"$ref": "https://example.com/schema"}}, ["example.com"]),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, ["recursion without an end"]),
    ],
)
def test_what_cannot_be_held_is_named(
    shared: GuidedManager, vocabulary: Vocabulary, constraint: dict[str, Any], words: list[str]
) -> None:
    guided = shared
    guided.submit(1, GuidedDecodingParams(**constraint))
    ready, failed = settle(guided)
    assert not ready and len(failed[0][1]) < 1500
    for word in words:
        assert word in failed[0][1]


def test_property_named_as_a_keyword_is_no_keyword(vocabulary: Vocabulary) -> None:
    guided = manager(vocabulary)
    guided.submit(1, GuidedDecodingParams(json={"type": "object", "properties": {"not": {"type": "null"}}}))
    assert settle(guided)[0] == [1]


class CountingBackend:
    """A backend of a stranger: counts what it compiles, and misbehaves when asked to."""

    name = "counting"
    compiled = 0
    gate = threading.Event()

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = (vocabulary.size + 31) // 32

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        return [] if constraint.regex is not None else ["everything"]

    def compile(self, constraint: GuidedDecodingParams) -> CountingBackend:
        type(self).compiled += 1
        if constraint.regex == "unsupported":
            raise UnsupportedConstraintError("no")
        if constraint.regex == "wrong":
            raise RequestError("it is wrong")
        if constraint.regex == "crash":
            raise KeyError("boom")
        self.gate.wait(30)
        return self

    def matcher(self) -> CountingBackend:
        return self

    def fill(self, bitmask_row: np.ndarray) -> None:
        raise ZeroDivisionError("mask")

    def accept(self, token_id: int) -> bool:
        return True

    def rollback(self, num_tokens: int) -> None: ...

    def forced(self) -> list[int]:
        return []

    def finished(self) -> bool:
        return False

    def error(self) -> str | None:
        return None


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, int]:
    import sys
    import types

    module = types.ModuleType("counting_backend_of_a_test")
    module.__dict__["CountingBackend"] = CountingBackend
    monkeypatch.setitem(sys.modules, module.__name__, module)
    CountingBackend.compiled = 0
    CountingBackend.gate.clear()
    return ("counting", f"{module.__name__}:CountingBackend", -1)


@pytest.mark.parametrize("backend", ["llguidance", "outlines", "xgrammar"])
def test_many_sequences_of_one_grammar_are_masked_together(
    shared: GuidedManager, tokenizer: Tokenizer, backend: str
) -> None:
    """More of them than a grammar is compiled times; some are ahead, one has ended, one was refused."""
    guided = shared
    handles = list(range(40))
    for handle in handles:
        guided.submit(handle, GuidedDecodingParams(regex="(ab|cd)+", backend=backend))
    settle(guided, len(handles))
    for handle in handles:
        guided.start(handle)
    a, b, c, d = (tokenizer.encode(x).ids[0] for x in "abcd")
    for handle in handles:
        assert guided.accept(handle, [a, b] if handle % 2 else [c]) is None
    assert guided.accept(5, [b]) is not None and guided.accept(7, [EOS]) is None
    masks = guided.masks([(i, h) for i, h in enumerate(handles)])
    assert masks.lines is not None and (masks.lines[0] == -1).all() and np.shares_memory(masks.lines[1:], masks.bits)
    rows = [set(allowed(r).tolist()) for r in masks.bits]
    assert rows[5] == rows[7] == {EOS}
    assert d in rows[0] and not {a, b, c, EOS} & rows[0] and all(r == rows[0] for r in rows[::2])
    assert {a, c, EOS} <= rows[1] and not {b, d} & rows[1] and all(r == rows[1] for r in [*rows[3:5:2], *rows[9::2]])
    for handle in handles:
        assert guided.accept(handle, [d] if handle % 2 == 0 else [c]) is None or handle == 5
        guided.drop(handle)


def test_masks_lie_in_the_memory_that_was_given(vocabulary: Vocabulary) -> None:
    """Whatever it held before: line 0 allows everything, the rest what masks of other memory say."""
    given = []

    def buffer(lines: int, words: int) -> np.ndarray:
        given.append(np.full((lines, words), 0x5A5A5A5A, np.int32))
        return given[-1]

    managers = [manager(vocabulary, buffer=buffer), manager(vocabulary)]
    found = []
    for guided in managers:
        for handle in range(3):
            guided.submit(handle, GuidedDecodingParams(regex=f"(ab|cd){{{handle + 1}}}", backend="llguidance"))
        settle(guided, 3)
        for handle in range(3):
            guided.start(handle)
        for pairs in ([(0, 2)], [(0, 0), (1, 1), (2, 2)], [(0, 1), (1, 2)]):
            masks = guided.masks(pairs)
            assert masks.lines is not None and (masks.lines[0] == -1).all()
            assert np.shares_memory(masks.lines[1:], masks.bits) and len(masks.bits) == len(pairs)
            if guided is managers[0]:
                assert np.shares_memory(masks.bits, given[-1])
            found.append(masks.bits.copy())
        guided.shutdown()
    assert all((a == b).all() for a, b in zip(found[:3], found[3:], strict=True))
    assert len(given) == 2  # it grew once


def test_outlines_goes_on_behind_a_possible_end(shared: GuidedManager, tokenizer: Tokenizer) -> None:
    guided = shared
    ids = {x: tokenizer.encode(x).ids[0] for x in "0123456789.ab"}
    cases = {
        r"[0-9]+(\.[0-9]+)?": [("12", ".3", True), ("12.", "3", False), ("12.3", "4", True)],
        "(ab)*": [("", "a", True), ("ab", "a", True), ("aba", "b", False)],
        ".{3}": [("a", "b.1", False), ("ab", "b.1", False), ("aba", "", True)],  # a dot is no end
        "a+b?$": [("a", "ab", True), ("ab", "", True)],  # nothing can stand behind $
    }
    constraints = {regex: GuidedDecodingParams(regex=regex, backend="outlines") for regex in cases}
    constraints["choice"] = GuidedDecodingParams(choice=("a", "ab1"), backend="outlines")
    cases["choice"] = [("a", "b", True), ("ab", "1", False), ("ab1", "", True)]
    constraints["number"] = GuidedDecodingParams(json={"type": "number"}, backend="outlines")
    cases["number"] = [("12", ".3", True), ("12.", "3", False)]
    for regex, steps in cases.items():
        for written, following, may_end in steps:
            guided.submit(1, constraints[regex])
            settle(guided)
            guided.start(1)
            for x in written:
                assert guided.accept(1, [ids[x]]) is None, (regex, written)
            found = set(allowed(guided.masks([(0, 1)]).bits[0]).tolist())
            assert {ids[x] for x in following} <= found and (EOS in found) == may_end, (regex, written)
            if not following:
                assert found == {EOS} and guided.finished(1), (regex, written)
            guided.drop(1)


def test_equal_constraints_compile_once_and_stay(vocabulary: Vocabulary, counting: tuple[str, str, int]) -> None:
    guided = manager(vocabulary, counting)
    for handle in range(5):
        guided.submit(handle, GuidedDecodingParams(regex="slow"))
    guided.submit(9, GuidedDecodingParams(choice=("a",)))
    # another's compilation is not held up, and a handle may go while it waits
    assert settle(guided) == ([9], [])
    guided.drop(3)
    CountingBackend.gate.set()
    assert sorted(settle(guided, 4)[0]) == [0, 1, 2, 4]
    guided.submit(7, GuidedDecodingParams(regex="slow"))
    assert guided.poll() == ([7], []) and CountingBackend.compiled == 1
    assert guided.num_pending == 0
    # a mask that fails ends its own sequence alone
    guided.start(7)
    guided.start(9)
    bits = guided.masks([(0, 7), (1, 9)]).bits
    assert allowed(bits[0]).tolist() == [EOS] and len(allowed(bits[1])) >= 1
    assert "ZeroDivisionError" in (guided.accept(7, [EOS]) or "")


def test_auto_falls_over_only_when_unsupported(vocabulary: Vocabulary, counting: tuple[str, str, int]) -> None:
    guided = manager(vocabulary, counting)
    for handle, regex in enumerate(("unsupported", "wrong", "crash")):
        guided.submit(handle, GuidedDecodingParams(regex=regex))
    ready, failed = settle(guided, 3)
    assert ready == [0]
    assert dict(failed) == {1: "it is wrong", 2: dict(failed)[2]} and "KeyError" in dict(failed)[2]


def test_a_compilation_that_hangs_ends_its_request(vocabulary: Vocabulary, counting: tuple[str, str, int]) -> None:
    woken = threading.Event()
    guided = manager(vocabulary, counting, compile_timeout_s=0.2, on_ready=woken.set)
    guided.submit(1, GuidedDecodingParams(regex="slow"))
    assert woken.wait(10)
    ready, failed = guided.poll()
    assert not ready and "0.2 s" in failed[0][1]
    CountingBackend.gate.set()


HOSTILE: list[dict[str, Any]] = [
    {"regex": "(a*)*b"},
    {"regex": r"(\w{1,1000}){1,1000}"},
    {"regex": "(.*a){200}"},
    {"regex": "(" * 5000 + "a" + ")" * 5000},
    {"regex": "(a|b|ab)*c{1,100000}"},
    {"json": {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 200} for i in range(20_000)}}},
    {"json": '{"a":' * 50_000 + "1" + "}" * 50_000},
    {"json": {"allOf": [{"anyOf": [{"pattern": f"^(a|b{i}|.*c)*$"} for i in range(20)]} for _ in range(20)]}},
    {"json": json.dumps({"enum": ["x" * 100] * 100_000})},
    {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}},
    {"choice": tuple(f"choice number {i}" for i in range(100_000))},
    {"grammar": "start: start start | start"},
    {"grammar": "start: " + "(" * 3000 + '"a"' + ")" * 3000},
]


@pytest.mark.parametrize("constraint", HOSTILE, ids=lambda c: str(c)[:40])
def test_hostile_constraints_are_bounded(vocabulary: Vocabulary, constraint: dict[str, Any]) -> None:
    guided = manager(vocabulary)
    begin = time.monotonic()
    guided.submit(1, GuidedDecodingParams(**constraint))
    assert time.monotonic() - begin < 0.5
    ready, failed = settle(guided)
    assert time.monotonic() - begin < 10
    for _, message in failed:
        assert len(message) < 1500
    if ready:
        guided.start(1)
        begin = time.monotonic()
        for _ in range(20):
            token = int(allowed(guided.masks([(0, 1)]).bits[0])[-1])
            if guided.accept(1, [token]) is not None or token == EOS:
                break
        assert time.monotonic() - begin < 5


def test_outlines_is_killed_when_it_takes_too_much(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.guided import outlines

    monkeypatch.setattr(outlines, "TIMEOUT_S", 1.0)
    guided = manager(vocabulary)
    begin = time.monotonic()
    guided.submit(1, GuidedDecodingParams(regex=r"(\w{1,1000}){1,1000}", backend="outlines"))
    _, failed = settle(guided)
    assert "outlines" in failed[0][1] and time.monotonic() - begin < 8
