"""Guided decoding: compile and mask time of each backend on 128k tokens, and what it costs a batch on a CPU.

python benchmarks/guided.py [masks|batch] [ROUNDS]

The vocabulary is a byte-level BPE trained on the sources of Python's standard library and torch; the model is the demo model.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import write
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from core.errors import RequestError
from core.interfaces.guided import Vocabulary
from core.sampling_params import GuidedDecodingParams, SamplingParams
from core.text.token_bytes import token_bytes

NUM_TOKENS = 128_000
BATCH, ROUNDS = 64, 9
CACHE = Path(tempfile.gettempdir()) / "backplane-benchmark-tokenizer-128k.json"

NESTED = {
    "type": "object",
    "properties": {
        "order": {"type": "integer"},
        "customer": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "email": {"type": "string"},
                "address": {
                    "type": "object",
                    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
                    "required": ["street", "city"],
                    "additionalProperties": False,
                },
            },
            "required": ["name", "email", "address"],
            "additionalProperties": False,
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}, "gift": {"type": "boolean"}},
                "required": ["sku", "count", "gift"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["order", "customer", "items"],
    "additionalProperties": False,
}
DOCUMENT = {
    "order": 4711,
    "customer": {
        "name": "Ada Lovelace",
        "email": "ada@engine.example",
        "address": {"street": "12 St James's Square", "city": "London"},
    },
    "items": [{"sku": "analytical-engine", "count": 1, "gift": False}, {"sku": "cards", "count": 2000, "gift": True}],
}
SIMPLE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
IP = r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
CHOICES = tuple(f"option number {i} of the list" for i in range(100))

# name -> constraint, a text that follows it
CONSTRAINTS: dict[str, tuple[GuidedDecodingParams, str]] = {
    "simple": (GuidedDecodingParams(json=SIMPLE), '{"name": "Ada Lovelace", "age": 36}'),
    "nested": (GuidedDecodingParams(json=NESTED), json.dumps(DOCUMENT)),
    "regex": (GuidedDecodingParams(regex=IP), "192.168.100.17"),
    "100 choices": (GuidedDecodingParams(choice=CHOICES), CHOICES[57]),
    # most tokens may follow, and each of the first 20 characters is a state of its own
    "prose": (GuidedDecodingParams(regex="[A-Za-z ,.]{20,}"), "The quick brown fox jumps over the lazy dog, they say."),
}
BACKENDS = {
    "llguidance": "plugins.guided.llguidance:LLGuidanceBackend",
    "outlines": "plugins.guided.outlines:OutlinesBackend",
    "xgrammar": "plugins.guided.xgrammar:XGrammarBackend",
}


def tokenizer() -> Tokenizer:
    if not CACHE.exists():
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        folders = (Path(json.__file__).parents[1], Path(np.__file__).parents[1] / "torch")
        files = sorted(p for folder in folders for p in folder.rglob("*.py"))
        trainer = trainers.BpeTrainer(
            vocab_size=NUM_TOKENS,
            special_tokens=["<|end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        made.train_from_iterator((p.read_text(errors="replace") for p in files), trainer)
        made.save(str(CACHE))
    return Tokenizer.from_file(str(CACHE))


def masks() -> dict[str, Any]:
    """Milliseconds to compile, microseconds of a mask and of an accept, over a document's tokens."""
    text = tokenizer()
    size = text.get_vocab_size()
    vocabulary = Vocabulary(token_bytes(text, frozenset({0}), size), (0,), size, str(CACHE))
    found: dict[str, Any] = {"tokens": size}
    for name, target in BACKENDS.items():
        module, _, attribute = target.partition(":")
        begin = time.perf_counter()
        backend = getattr(importlib.import_module(module), attribute)(vocabulary)
        rows: dict[str, Any] = {"build_s": round(time.perf_counter() - begin, 2)}
        for kind, (params, document) in CONSTRAINTS.items():
            if name == "xgrammar" and kind == "simple":
                backend.compile(GuidedDecodingParams(regex="a"))  # starts its process
            begin = time.perf_counter()
            try:
                grammar = backend.compile(params)
            except RequestError as error:
                rows[kind] = {"refused": str(error)[:120]}
                continue
            compile_ms = 1e3 * (time.perf_counter() - begin)
            rows[kind] = {"compile_ms": round(compile_ms, 1), **over(grammar, backend, text, document, size)}
        found[name] = rows
        getattr(backend, "close", lambda: None)()
    return found


def over(grammar: Any, backend: Any, text: Tokenizer, document: str, size: int) -> dict[str, float]:
    bits = np.zeros((BATCH, (size + 31) // 32), np.int32)
    mask_us, accept_us = [], []
    tokens = text.encode(document).ids
    matcher = grammar.matcher()
    for token in tokens:
        begin = time.perf_counter()
        matcher.fill(bits[0])
        mask_us.append(1e6 * (time.perf_counter() - begin))
        assert bits[0].view(np.uint32)[token // 32] >> (token % 32) & 1, "the document does not follow the constraint"
        begin = time.perf_counter()
        assert matcher.accept(token)
        accept_us.append(1e6 * (time.perf_counter() - begin))
    many = [grammar.matcher() for _ in range(BATCH)]
    batch_us = []
    for token in tokens:
        begin = time.perf_counter()
        if hasattr(backend, "fill_many"):
            backend.fill_many([(m, row) for row, m in enumerate(many)], bits)
        else:
            for row, m in enumerate(many):
                m.fill(bits[row])
        batch_us.append(1e6 * (time.perf_counter() - begin))
        for m in many:
            m.accept(token)
    return {
        "mask_us": round(statistics.mean(mask_us), 1),
        "mask_us_most": round(max(mask_us), 1),
        "accept_us": round(statistics.mean(accept_us), 1),
        f"mask_us_of_{BATCH}": round(statistics.mean(batch_us), 1),
    }


def batch(rounds: int = ROUNDS) -> dict[str, Any]:
    """Tokens a second of 64 requests on the demo model, guided over free ones of the same lengths, which run right after.

    Documents end where the model ends them, at 48 tokens at most. Seconds are those of the processor, of all threads together:
    the clock's would tell who else is on the machine.
    """
    from core import Engine

    most = 48
    long_document = {
        "type": "array",
        "minItems": 100,
        "items": {
            "type": "object",
            "properties": {"first_name": {"type": "string"}, "age_in_years": {"type": "integer"}},
            "required": ["first_name", "age_in_years"],
            "additionalProperties": False,
        },
    }
    kinds = {
        **{kind: constraint for kind, (constraint, _) in CONSTRAINTS.items()},
        "objects": GuidedDecodingParams(json=long_document),
        "a long string": GuidedDecodingParams(json={"type": "string", "minLength": 2000}),
        "words": GuidedDecodingParams(regex="([a-z]{1,9} ){400}"),
        "objects, every token sampled": GuidedDecodingParams(json=long_document),
    }
    found: dict[str, Any] = {}
    # one thread: several wait for each other at the expense of processor time
    with Engine(max_num_seqs=BATCH, max_model_len=256, num_threads=1) as engine:
        prompts = [f"Write number {i}: " for i in range(BATCH)]

        def rate(lengths: list[int], constraint: GuidedDecodingParams | None) -> tuple[float, list[int]]:
            """Tokens per processor second, and how many each request wrote."""
            wishes = [
                SamplingParams(
                    temperature=1.0, seed=i, max_tokens=n, ignore_eos=constraint is None, guided_decoding=constraint
                )
                for i, n in enumerate(lengths)
            ]
            begin = time.process_time()
            outputs = engine.generate(prompts, wishes, use_tqdm=False)
            seconds = time.process_time() - begin
            written = [len(o.outputs[0].token_ids) for o in outputs]
            return sum(written) / seconds, written

        rates: dict[str, list[tuple[float, float]]] = {k: [] for k in kinds}
        for attempt in range(1 + rounds):
            for kind, constraint in kinds.items():
                manager = engine._loop._guided._manager
                if manager is not None:
                    manager.forced = (lambda handle: []) if "," in kind else type(manager).forced.__get__(manager)  # type: ignore[method-assign]
                guided, lengths = rate([most] * BATCH, constraint)
                free, written = rate(lengths, None)
                assert written == lengths
                print(f"{kind}: {guided:.0f} tokens per CPU second, free {free:.0f}", file=sys.stderr, flush=True)
                if attempt:  # the first compiles and warms
                    rates[kind].append((guided, free))
                found[kind] = {"tokens": sum(lengths)}
        for kind, pairs in rates.items():
            found[kind]["tokens_per_cpu_s"] = round(statistics.median(guided for guided, _ in pairs))
            # of the same moment: the machine's speed changes in between
            found[kind]["of_free"] = round(statistics.median(guided / free for guided, free in pairs), 3)
        found["alone"] = alone(engine)
    return found


def alone(engine: Any) -> dict[str, Any]:
    """One request whose document is mostly keys: steps and seconds with and without jump-forward."""
    keys = ["first_name_of_customer", "postal_code_of_address", "number_of_items_ordered", "date_of_last_delivery"]
    schema = {"type": "object", "properties": {k: {"enum": [1, 2, 3]} for k in keys}, "required": keys}
    schema["additionalProperties"] = False
    constraint = GuidedDecodingParams(json=schema, whitespace_pattern="")
    wish = SamplingParams(temperature=0, max_tokens=150, guided_decoding=constraint)
    manager = engine._loop._guided._manager
    found = {}
    for name in ("jump", "sampled"):
        manager.forced = (lambda handle: []) if name == "sampled" else type(manager).forced.__get__(manager)
        seconds, steps = [], 0
        for _ in range(8):
            before = engine.stats().num_steps
            begin = time.process_time()
            (output,) = engine.generate("Write: ", wish, use_tqdm=False)
            seconds.append(time.process_time() - begin)
            steps = engine.stats().num_steps - before
        tokens = len(output.outputs[0].token_ids)
        found[name] = {"tokens": tokens, "steps": steps, "cpu_ms": round(1e3 * statistics.median(seconds), 1)}
    return found


def main() -> None:
    wanted = [a for a in sys.argv[1:] if not a.isdigit()] or ["masks", "batch"]
    rounds = next((int(a) for a in sys.argv[1:] if a.isdigit()), ROUNDS)
    figures: dict[str, Any] = {}
    if "masks" in wanted:
        figures["masks"] = masks()
    if "batch" in wanted:
        figures["batch"] = batch(rounds)
    if set(wanted) == {"masks", "batch"}:
        write("guided", figures)
    else:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
