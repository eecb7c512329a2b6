"""Tokens a second of 64 guided requests over the same number of tokens without guidance, on a GPU.

    python benchmarks/gpu/guided_batch.py [--tokenizer tokenizer.json]

Random weights of Llama-3.1-8B's shape, a tokenizer of 128k tokens. Documents end where the model ends them, at 128 tokens
at most; the free requests of a kind are as long as its guided ones.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import streaming
import workloads

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import guided  # noqa: E402

BATCH, OUTPUT, RUNS = 64, 128, 3
SHORT = ("regex", "100 choices")

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
    kinds = {
        **{kind: constraint for kind, (constraint, _) in guided.CONSTRAINTS.items()},
        "objects": GuidedDecodingParams(json=DOCUMENT),
        # hard on the masks: every length is a state of its own, and most tokens may follow
        "a long string": GuidedDecodingParams(json={"type": "string", "minLength": 2000}),
        "words": GuidedDecodingParams(regex="([a-z]{1,9} ){400}"),
    }
    record: dict[str, Any] = {"workload": "guided", "engine": "backplane", "shape": args.shape, "batch": BATCH}
    folder = streaming.model_folder(args.tokenizer, args.shape)
    with Engine(folder, load_format="dummy", max_num_seqs=BATCH, max_model_len=1024) as engine:
        prompts = [[1 + i] * 32 for i in range(BATCH)]

        def timed(lengths: list[int], constraint: GuidedDecodingParams | None) -> tuple[float, list[int]]:
            params = [
                SamplingParams(
                    temperature=1.0, seed=i, max_tokens=n, ignore_eos=constraint is None, guided_decoding=constraint
                )
                for i, n in enumerate(lengths)
            ]
            begin = time.perf_counter()
            outputs = engine.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - begin, [len(o.outputs[0].token_ids) for o in outputs]

        for kind, constraint in kinds.items():
            timed([OUTPUT] * BATCH, constraint)  # compiles the grammar
            ratios, rates = [], []
            # an address or a choice is written in a few steps: more runs, or chance decides
            for _ in range(RUNS if kind not in SHORT else 3 * RUNS):
                took, lengths = timed([OUTPUT] * BATCH, constraint)
                free, written = timed(lengths, None)
                if written != lengths:
                    raise RuntimeError(f"{kind}: {sum(written)} tokens instead of {sum(lengths)}")
                ratios.append(free / took)
                rates.append(sum(lengths) / took)
            record[kind] = {
                "tokens": sum(lengths),
                "tok_s": round(statistics.median(rates)),
                "of_free": round(statistics.median(ratios), 3),
            }
            print(kind, record[kind], flush=True)
    workloads.emit(record)


if __name__ == "__main__":
    main()
