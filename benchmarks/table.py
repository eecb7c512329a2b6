"""The table of a comparison on a GPU, made from its results.jsonl.

python benchmarks/table.py benchmarks/results/h100-2026-11-21/results.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WHAT = {
    "ttft_b1": "first token of one prompt of 128",
    "latency_b1": "1 request, 128 in, 256 out",
    "latency_b32": "32 requests, 512 in, 128 out",
    "throughput_1k": "1000 requests, 512 in, 128 out",
    "mixed_256": "256 requests, 100 to 1024 in and out",
    "sampled": "the same, temperature 0.8, top-p 0.95, top-k 50",
    "long_prefill": "4 prompts of 16384, 1 out",
    "shared_prefix": "256 requests that share 2048 tokens, 64 out",
}


def table(lines: list[dict[str, Any]]) -> str:
    seconds: dict[str, dict[str, float]] = {}
    decode: dict[str, float] = {}
    for line in lines:
        if "median_s" in line:
            seconds.setdefault(line["workload"], {})[line["engine"]] = line["median_s"]
        elif "decode_ms_per_token" in line:
            decode[line["engine"]] = line["decode_ms_per_token"]
            decode["floor"] = line.get("floor_ms", 0.0)
    out = ["| workload | Backplane, s | vLLM, s | vLLM / Backplane |", "| --- | --- | --- | --- |"]
    for name, found in seconds.items():
        ours, theirs = found.get("backplane"), found.get("vllm")
        if ours and theirs:
            out.append(f"| {WHAT.get(name, name)} (`{name}`) | {ours:.4g} | {theirs:.4g} | {theirs / ours:.2f} |")
    if decode.get("backplane") and decode.get("vllm"):
        ours, theirs = decode["backplane"], decode["vllm"]
        out.append(
            f"| ms a token of 1 request (floor {decode['floor']:.2f}) | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} |"
        )
    return "\n".join(out)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
