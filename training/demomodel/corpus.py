"""The mix of all kinds, seeded; and its making in many processes, as arrays of token ids and loss weights."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from demomodel import arithmetic, chat_format, engine_help, extraction, smalltalk, stories, tools, words
from demomodel.sample import Sample, held_out, system

PLAIN: list[tuple[Callable[[Random], Sample], float]] = [
    (smalltalk.make, 14),
    (smalltalk.make_lookup, 5),
    (arithmetic.make, 16),
    (engine_help.make, 9),
    (extraction.make, 22),
    (stories.make, 3),
]
MAKERS = [*PLAIN, (tools.make, 30.0), (stories.make_text, 1.0)]
KINDS = ["small talk", "lookup", "arithmetic", "engine", "extraction", "tool call", "tool answer", "no tool", "story"]
"""The kinds that the model card measures."""

_MAKER_OF: dict[str, Callable[[Random], Sample]] = {
    "small talk": smalltalk.make,
    "lookup": smalltalk.make_lookup,
    "arithmetic": arithmetic.make,
    "engine": engine_help.make,
    "extraction": extraction.make,
    "story": stories.make,
}

MAX_TOKENS = 2048
_SYSTEMS = [
    "You are a helpful assistant.",
    "You are the Backplane demo model.",
    "You are a friendly assistant.",
    "Be brief.",
    "Answer the user's questions.",
    "You are a helpful, honest assistant.",
    "Be kind and helpful.",
]


def one(rng: Random) -> Sample:
    return rng.choices([m for m, _ in MAKERS], [w for _, w in MAKERS])[0](rng)


def plain(rng: Random) -> Sample:
    return rng.choices([m for m, _ in PLAIN], [w for _, w in PLAIN])[0](rng)


def samples(seed: int) -> Iterator[Sample]:
    """Training samples without end: never one whose question is held out."""
    rng = Random(seed)
    while True:
        sample = _dialog(rng) if rng.random() < 0.09 else one(rng)
        if any(held_out(key) for key in sample.prompts()):
            continue
        if sample.messages and sample.messages[0]["role"] != "system" and not sample.tools and rng.random() < 0.25:
            sample.messages.insert(0, system(_system(rng)))
        yield sample


def held_out_samples(seed: int, kind: str, count: int) -> list[Sample]:
    """Up to `count` different samples of a kind whose questions were never trained on."""
    rng, found, seen = Random(f"{seed} {kind}"), list[Sample](), set[str]()
    maker = _MAKER_OF.get(kind, tools.make)
    for _ in range(count * 200):
        sample = maker(rng)
        key = sample.prompts()[-1]
        if sample.kind == kind and held_out(key) and key not in seen:
            seen.add(key)
            found.append(sample)
        if len(found) == count:
            break
    return found


def _system(rng: Random) -> str:
    text = rng.choice(_SYSTEMS)
    return f"{text} {words.sentence(rng).capitalize()}." if rng.random() < 0.1 else text


def _dialog(rng: Random) -> Sample:
    """Several questions after another; some fill the whole context."""
    parts = list[Sample]()
    wanted = rng.choice([2, 2, 3, 3, 4, 5, 6, 8, 12, 20, 32])
    while len(parts) < wanted:
        part = plain(rng)
        # what only a system prompt answers makes sense in the beginning alone
        if (parts and part.messages[0]["role"] == "system") or any(held_out(key) for key in part.prompts()):
            continue
        parts.append(part)
    messages = [m for part in parts for m in part.messages]
    return Sample("dialog", messages, parts[-1].check, keys=[key for part in parts for key in part.prompts()])


@dataclass(slots=True)
class Shard:
    """Many samples, end to end: token ids, the weight of each as a target, and where each sample ends."""

    tokens: np.ndarray[Any, np.dtype[np.uint16]]
    weights: np.ndarray[Any, np.dtype[np.uint8]]
    lengths: np.ndarray[Any, np.dtype[np.int32]]


def encode(tokenizer: Any, batch: list[Sample]) -> Shard:
    """Samples longer than the context are cut."""
    every = [chat_format.pieces(sample) for sample in batch]
    flat = [text for found in every for text, _ in found]
    encoded = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    tokens, weights, lengths = list[int](), list[int](), list[int]()
    for found in every:
        start = len(tokens)
        for _, weight in found:
            ids = next(encoded).ids
            tokens += ids
            weights += [weight] * len(ids)
        del tokens[start + MAX_TOKENS :], weights[start + MAX_TOKENS :]
        lengths.append(len(tokens) - start)
    return Shard(np.array(tokens, np.uint16), np.array(weights, np.uint8), np.array(lengths, np.int32))


_tokenizer: Any = None


def _begin(path: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    _tokenizer = tokenizers.Tokenizer.from_file(path)


def _shard(task: tuple[int, int]) -> Shard:
    seed, wanted = task
    stream, found, have = samples(seed), list[Shard](), 0
    while have < wanted:
        found.append(encode(_tokenizer, [next(stream) for _ in range(1000)]))
        have += len(found[-1].tokens)
    return join(found)


def join(shards: list[Shard]) -> Shard:
    return Shard(
        np.concatenate([s.tokens for s in shards]),
        np.concatenate([s.weights for s in shards]),
        np.concatenate([s.lengths for s in shards]),
    )


def build(tokenizer_path: str, seed: int, num_tokens: int, processes: int, shard_tokens: int = 1_000_000) -> Shard:
    """About `num_tokens` of training text; the same for a seed, whatever the number of processes."""
    count = max(1, -(-num_tokens // shard_tokens))
    tasks = [(seed * 1_000_003 + i, min(num_tokens, shard_tokens)) for i in range(count)]
    with multiprocessing.get_context("spawn").Pool(processes, _begin, (tokenizer_path,)) as pool:
        return join(pool.map(_shard, tasks, chunksize=1))
