"""Tokens a second of 64 guided requests over the same without guidance, on a GPU; with jump-forward and without.

    python benchmarks/gpu/guided_batch.py [--tokenizer tokenizer.json]

Random weights of Llama-3.1-8B's shape, a tokenizer of 128k tokens. All requests write the same number of tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import streaming
import workloads

BATCH, OUTPUT, RUNS = 64, 128, 4

DOCUMENT = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {"first_name": {"type": "string"}, "age_in_years": {"type": "integer"}},
        "required": ["first_name", "age_in_years"],
        "additionalProperties": False,
    },
}


def main() -> None:
    from core import Engine, GuidedDecodingParams, SamplingParams

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a tokenizer.json of 128k tokens; unset: one is trained (5 minutes)")
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    args = parser.parse_args()
    kinds: dict[str, GuidedDecodingParams | None] = {
        "free": None,
        "a long string": GuidedDecodingParams(json={"type": "string", "minLength": 2000}),
        "objects": GuidedDecodingParams(json=DOCUMENT),
        "regex": GuidedDecodingParams(regex="([a-z]{1,9} ){400}"),
    }
    record: dict[str, Any] = {"workload": "guided", "engine": "backplane", "shape": args.shape, "batch": BATCH}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    folder = streaming.model_folder(args.tokenizer, args.shape)
    with Engine(folder, load_format="dummy", max_num_seqs=BATCH, max_model_len=1024) as engine:
        prompts = [[1 + i] * 32 for i in range(BATCH)]
        for run in range(RUNS + 1):
            for kind, constraint in kinds.items():
                params = [
                    SamplingParams(
                        temperature=1.0, seed=i, max_tokens=OUTPUT, ignore_eos=True, guided_decoding=constraint
                    )
                    for i in range(BATCH)
                ]
                begin = time.perf_counter()
                outputs = engine.generate(prompts, params, use_tqdm=False)
                seconds = time.perf_counter() - begin
                if any(len(o.outputs[0].token_ids) != OUTPUT for o in outputs):
                    raise RuntimeError(f"{kind}: not every request wrote {OUTPUT} tokens")
                if run:  # the first compiles grammars
                    rates[kind].append(BATCH * OUTPUT / seconds)
    free = statistics.median(rates["free"])
    for kind, found in rates.items():
        record[kind] = {"tok_s": round(statistics.median(found)), "of_free": round(statistics.median(found) / free, 3)}
    workloads.emit(record)


if __name__ == "__main__":
    main()
