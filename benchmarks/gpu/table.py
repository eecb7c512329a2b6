"""The table of a comparison, made from its results.jsonl.

python benchmarks/gpu/table.py benchmarks/results/h100-2026-11-21/results.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import workloads  # noqa: E402

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
PEERS = {"vllm": "vLLM", "transformers": "transformers"}


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _share(line: dict[str, Any], ceilings: workloads.Ceilings | None) -> str:
    """Of the floor as workloads.py counts it now, from the ceilings of the same run."""
    if ceilings is None:
        return ""
    floor = workloads.floor_s(workloads.SHAPES[line["shape"]], workloads.build(line["workload"]), ceilings)
    return f"{floor / line['median_s']:.3f}"


def _one_shape(shape: str, lines: list[dict[str, Any]], ceilings: workloads.Ceilings | None) -> list[str]:
    seconds: dict[str, dict[str, dict[str, Any]]] = {}
    decode: dict[str, dict[str, float]] = {}
    for line in lines:
        if "median_s" in line:
            seconds.setdefault(line["workload"], {})[line["engine"]] = line
        elif "decode_ms_per_token" in line:
            decode[line["engine"]] = line
    peers = [p for p in PEERS if any(p in found for found in seconds.values())]
    head = [f"{shape}: workload", "Backplane, s", "share of the floor"]
    for peer in peers:
        head += [f"{PEERS[peer]}, s", f"{PEERS[peer]} / Backplane"]
    out = [_row(head), _row(["---"] * len(head))]
    for name, found in seconds.items():
        if "backplane" not in found:
            continue
        ours = found["backplane"]
        cells = [f"{WHAT.get(name, name)} (`{name}`)", f"{ours['median_s']:.4g}", _share(ours, ceilings)]
        for peer in peers:
            theirs = found.get(peer, {}).get("median_s")
            cells += [f"{theirs:.4g}", f"{theirs / ours['median_s']:.2f}"] if theirs else ["", ""]
        out.append(_row(cells))
    if "backplane" in decode:
        ours_ms, floor = decode["backplane"]["decode_ms_per_token"], decode["backplane"].get("floor_ms")
        cells = ["ms a token of 1 request", f"{ours_ms:.2f}", f"{floor / ours_ms:.3f}" if floor else ""]
        for peer in peers:
            theirs = decode.get(peer, {}).get("decode_ms_per_token")
            cells += [f"{theirs:.2f}", f"{theirs / ours_ms:.2f}"] if theirs else ["", ""]
        out.append(_row(cells))
    return out


def make(results: str) -> str:
    """Markdown: one table a model shape."""
    shapes: dict[str, list[dict[str, Any]]] = {}
    ceilings = None
    for line in map(json.loads, results.splitlines()):
        if line.get("workload") == "ceilings":
            ceilings = workloads.Ceilings(line["copy_gb_s"], line["matmul_tflop_s"])
        if "median_s" in line or "decode_ms_per_token" in line:
            shapes.setdefault(line.get("shape", "llama-3.1-8b"), []).append(line)
    return "\n\n".join("\n".join(_one_shape(shape, lines, ceilings)) for shape, lines in shapes.items())


if __name__ == "__main__":
    print(make(Path(sys.argv[1]).read_text()))
