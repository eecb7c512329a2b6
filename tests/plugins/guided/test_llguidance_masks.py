"""Masks of llguidance with its slices of the vocabulary are those without, and the slices save walking through it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest

from core.interfaces.guided import Vocabulary
from core.sampling_params import GuidedDecodingParams
from core.text.tokenizer import Tokenizer
from plugins.guided.llguidance import SLICES, LLGuidanceBackend

DEMO = Path(__file__).parents[3] / "plugins" / "sources" / "demo" / "data" / "chat"
STEPS, WALKS = 40, 4
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "note": {"type": "string", "maxLength": 25}, "age": {"type": "integer"}},
    "required": ["name", "note", "age"],
    "additionalProperties": False,
}
CONSTRAINTS = {
    "prose": GuidedDecodingParams(regex="[A-Za-z ,.]{20,}"),
    "words": GuidedDecodingParams(regex="([a-z]{1,9} ){400}"),
    "names": GuidedDecodingParams(regex="[A-Z][a-z]+( [A-Z][a-z]+){0,3}"),
    "word characters": GuidedDecodingParams(regex=r"\w+"),
    "identifiers": GuidedDecodingParams(regex="[a-z_]{3,}|[A-Z]{2,40}[0-9]+"),
    "a line": GuidedDecodingParams(regex=r"[^\n]{1,500}"),
    "a line or less": GuidedDecodingParams(regex="[A-Za-z]{0,31}x|[a-z ]{5,29}|q[^aeiou]*"),
    "schema": GuidedDecodingParams(json=SCHEMA),
    "any object": GuidedDecodingParams(json_object=True),
    "pattern": GuidedDecodingParams(json={"type": "string", "pattern": "^[a-z]+@[a-z]{2,31}\\.(com|org)$"}),
    "choice": GuidedDecodingParams(choice=("a red apple", "a red brick", "Apples", "bricks and mortar")),
    "grammar": GuidedDecodingParams(grammar='start: (WORD " ")+ NUM\nWORD: /[a-zA-Z]{1,12}/\nNUM: /[0-9]+/'),
    "tags": GuidedDecodingParams(
        structural_tag={
            "type": "structural_tag",
            "structures": [{"begin": "<tool>", "schema": SCHEMA, "end": "</tool>"}],
            "triggers": ["<tool>"],
        }
    ),
}


@pytest.fixture(scope="module", params=["file", "bytes"])
def backends(request: Any) -> tuple[LLGuidanceBackend, LLGuidanceBackend, Vocabulary]:
    """With slices, without any, and their vocabulary."""
    text = Tokenizer.from_folder(str(DEMO))
    tokens = text.token_bytes()
    vocabulary = Vocabulary(tokens, (0,), len(tokens), text.file if request.param == "file" else None)
    sliced, plain = LLGuidanceBackend(vocabulary), LLGuidanceBackend(vocabulary)
    plain._tokenizer = plain._tokenizer.with_slices([])
    return sliced, plain, vocabulary


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_masks_are_those_without_slices(backends: Any, kind: str) -> None:
    sliced, plain, vocabulary = backends
    grammars = [backend.compile(CONSTRAINTS[kind]) for backend in (sliced, plain)]
    rows = np.zeros((2, (vocabulary.size + 31) // 32), np.int32)
    rng = np.random.default_rng(0)
    for _ in range(WALKS):
        matchers = [grammar.matcher() for grammar in grammars]
        for step in range(STEPS):
            for matcher, row in zip(matchers, rows, strict=True):
                matcher.fill(row)
                assert matcher.error() is None
            assert np.array_equal(rows[0], rows[1]), f"step {step}"
            allowed = np.flatnonzero(np.unpackbits(rows[0].view(np.uint8), bitorder="little"))
            allowed = allowed[allowed != 0]  # EOS
            if not allowed.size:
                break
            token = int(rng.choice(allowed))
            assert all(matcher.accept(token) for matcher in matchers)


@pytest.mark.parametrize(("pattern", "before"), [("[A-Za-z ,.]{20,}", "The"), (r"\w+", "the"), ("[a-z-]{5,}", "the")])
def test_slices_save_walking(backends: Any, pattern: str, before: str) -> None:
    """Counted by the library, of a mask after some text; its own slices, for JSON, do not help here."""
    sliced, _, _ = backends

    def walked(slices: list[str]) -> int:
        tokenizer = sliced._tokenizer.with_slices(slices)
        grammar = llguidance.LLMatcher.grammar_from_regex(pattern)
        interpreter = llguidance.LLInterpreter(tokenizer, grammar, log_level=0)
        interpreter.start_without_prompt()
        for token in tokenizer.greedy_tokenize(before):
            interpreter.compute_mask()
            interpreter.commit_token(token)
        progress = json.loads(interpreter.compute_mask()[1])["progress"]
        return int(progress[-1]["stats"]["trie_nodes_walked"])

    general = llguidance.LLTokenizer.general_slices()
    assert walked([*general, *SLICES]) < walked(general) / 3
