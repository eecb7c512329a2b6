"""Beam search on a CPU: seconds for 48 tokens behind a prompt of 200, beside transformers' and beside sampling as many answers.

python benchmarks/beams.py

The random Llama of cpu_peers.py, 125 M parameters; calls in turns, the best of --rounds. All must find the same best answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from cpu_peers import make_model
from machine import write

from core import BeamSearchParams, Engine, SamplingParams

PROMPT, NEW, BLOCK_SIZES = 200, 48, (16, 4)


def best(rounds: int, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    seconds = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun = time.perf_counter()
            call()
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
    return {name: round(s, 2) for name, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder))
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        prompt = torch.randint(5, 8000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
        options = {"skip_tokenizer_init": True, "cpu_kv_cache_bytes": 1 << 28}
        engines = {size: Engine(folder, block_size=size, **options) for size in BLOCK_SIZES}
        for width in (1, 4, 8):
            search = BeamSearchParams(beam_width=width, max_tokens=NEW, ignore_eos=True)
            sample = SamplingParams(n=width, max_tokens=NEW, ignore_eos=True, temperature=0)

            def theirs(width: int = width) -> list[int]:
                found = model.generate(
                    torch.tensor([prompt]), num_beams=width, do_sample=False, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0
                )  # fmt: skip
                return list(found[0, PROMPT:].tolist())

            calls: dict[str, Callable[[], Any]] = {"transformers": theirs}
            for size, engine in engines.items():
                calls[f"blocks of {size}"] = lambda e=engine, p=search: (
                    e.beam_search([prompt], p)[0].outputs[0].token_ids
                )
            calls["sampling"] = lambda p=sample: engines[BLOCK_SIZES[0]].generate([prompt], p)
            same = all(calls[f"blocks of {size}"]() == theirs() for size in BLOCK_SIZES)
            assert same, "another best answer than transformers'"
            rows.append({"beams": width, **best(rounds, calls)})
        for engine in engines.values():
            engine.shutdown()
    parameters = sum(p.numel() for p in model.parameters())
    write("beams", {"parameters": parameters, "prompt": PROMPT, "new": NEW, "seconds": rows})


if __name__ == "__main__":
    main()
