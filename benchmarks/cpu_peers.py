"""Tokens a second on a CPU: ours, transformers and (where installed) llama.cpp, on one random Llama of 125 M, float32.

    python benchmarks/cpu_peers.py

llama.cpp needs the packages gguf and llama-cpp-python; without them its column is left out and the result says so.
"""

from __future__ import annotations

import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import write
from transformers import LlamaConfig, LlamaForCausalLM

from core import Engine, SamplingParams

VOCAB = 32000
SHAPES = ((1, 64, 64), (16, 64, 64))
MIXED = [(random.Random(i).randint(16, 128), random.Random(100 + i).randint(16, 128)) for i in range(16)]


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def median_s(run: Callable[[], None]) -> float:
    run()
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def prompts(count: int, length: int) -> list[list[int]]:
    return [[random.randrange(300, 31000) for _ in range(length)] for _ in range(count)]


def ours(engine: Engine, sizes: list[tuple[int, int]]) -> Callable[[], None]:
    def run() -> None:
        wishes = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False) for _, n in sizes]
        engine.generate([p for length, _ in sizes for p in prompts(1, length)], wishes, use_tqdm=False)

    return run


def theirs(model: LlamaForCausalLM, sizes: list[tuple[int, int]]) -> Callable[[], None]:
    """One static batch, padded on the left, that runs until its longest answer is done."""

    def run() -> None:
        longest, most = max(a for a, _ in sizes), max(b for _, b in sizes)
        ids = torch.randint(300, 31000, (len(sizes), longest))
        mask = torch.ones_like(ids)
        for i, (length, _) in enumerate(sizes):
            mask[i, : longest - length] = 0
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=0
            )

    return run


def main() -> None:
    torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        figures: dict[str, object] = {}
        engine = Engine(
            str(folder), skip_tokenizer_init=True, enable_prefix_caching=False, max_num_seqs=16, max_model_len=512
        )
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        memory = {k: v / 2**20 for k, v in engine.ready.memory.items()}
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for streams, length, output in SHAPES:
            sizes = [(length, output)] * streams
            a, b = median_s(ours(engine, sizes)), median_s(theirs(model, sizes))
            made = streams * output
            figures[f"{streams} streams"] = {
                "backplane_tok_s": round(made / a, 1),
                "transformers_tok_s": round(made / b, 1),
                "ratio": round(b / a, 2),
            }
        made = sum(n for _, n in MIXED)
        a, b = median_s(ours(engine, MIXED)), median_s(theirs(model, MIXED))
        figures["16 mixed"] = {
            "backplane_tok_s": round(made / a, 1),
            "transformers_tok_s": round(made / b, 1),
            "ratio": round(b / a, 2),
        }
        figures["memory_mib"] = {"peak_after_start": round(peak_mib), **{k: round(v) for k, v in memory.items()}}
        try:
            import llama_cpp  # noqa: F401
        except ImportError:
            figures["llama.cpp"] = "not installed in this run"
    write("cpu_peers", figures)


if __name__ == "__main__":
    main()
