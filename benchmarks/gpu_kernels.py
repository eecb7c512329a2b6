"""Each kernel's share of the floor on this GPU: bytes over copy bandwidth, or FLOPs over the matrix rate, both measured.

    python benchmarks/gpu_kernels.py [--budget-s 120]

Llama-3.1-8B's shape, bfloat16, timed as replays of a CUDA graph over inputs too many for the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn import functional

from core.interfaces.attention import AttentionSpec
from core.kernels import activation, rms_norm, rope, sampling, skinny_linear
from plugins.attention.triton.decode import DecodeConfig, decode_attention
from plugins.attention.triton.prefill import PrefillConfig, prefill_attention

BF = torch.bfloat16
SPEC = AttentionSpec(32, 8, 128, 128**-0.5)
DECODE = [
    DecodeConfig(*tile)
    for tile in (
        (16, 4, 1, 8), (16, 3, 1, 8), (16, 4, 1, 6), (32, 4, 2, 4), (64, 2, 4, 5), (64, 3, 4, 3), (128, 2, 4, 2),
    )
]  # fmt: skip
"""Tiles to try; the first that are of more programs than fit run in turns."""
SHAPES = {
    "qkv": (6144, 4096, False),
    "o": (4096, 4096, False),
    "gate_up": (14336, 4096, True),
    "down": (4096, 14336, False),
    "head": (128256, 4096, False),
}


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=BF)


def graph_us(run: Callable[[], object], replays: int = 7) -> float:
    """Median time of one replay of a graph of run()."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for i in range(replays + 2):
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(first.elapsed_time(last) * 1e3)
    return sorted(times)[len(times) // 2]


class Report:
    """Lines of figures: printed, and appended to a file in $OUT if that is set."""

    def __init__(self, name: str = "gpu_kernels.jsonl") -> None:
        self.name = name
        self.lines: list[dict[str, Any]] = []

    def add(self, kernel: str, **figures: Any) -> None:
        line = {"kernel": kernel, **{k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}}
        self.lines.append(line)
        print(json.dumps(line), flush=True)
        if out := os.environ.get("OUT"):
            with open(Path(out) / self.name, "a") as f:
                f.write(json.dumps(line) + "\n")


def ceilings(report: Report) -> tuple[float, float]:
    a, b = (torch.randint(256, (4 << 30,), dtype=torch.uint8, device="cuda") for _ in range(2))
    bandwidth = 2 * a.numel() / graph_us(lambda: b.copy_(a)) * 1e6
    x, y = rand(8192, 8192), rand(8192, 8192)
    rate = 2 * 8192**3 / graph_us(lambda: torch.mm(x, y)) * 1e6
    whole = a.view(torch.int64)
    reading = a.numel() / graph_us(lambda: whole.sum()) * 1e6
    report.add(
        "ceilings",
        copy_gb_s=bandwidth / 1e9,
        read_gb_s=reading / 1e9,
        bf16_tflop_s=rate / 1e12,
        gpu=torch.cuda.get_device_name(),
    )
    return bandwidth, rate


def linears(report: Report, bandwidth: float) -> None:
    for name, (outputs, inputs, silu) in SHAPES.items():
        wide = outputs * (1 + silu)
        weights = [rand(wide, inputs) * 0.02 for _ in range(1 if name == "head" else 6)]
        floor = wide * inputs * 2 / bandwidth * 1e6
        for rows in (1, 4, 16, 32):
            x = rand(rows, inputs)

            def ours() -> None:
                for w in weights:
                    skinny_linear.skinny_linear(x, w, None, silu)

            def library() -> None:
                for w in weights:
                    y = functional.linear(x, w)
                    if silu:
                        activation.silu_and_mul(y)

            mine, theirs = graph_us(ours) / len(weights), graph_us(library) / len(weights)
            report.add(
                f"linear {name}",
                rows=rows,
                us=mine,
                share=floor / mine,
                library_us=theirs,
                library_share=floor / theirs,
            )


def decodes(report: Report, bandwidth: float) -> None:
    for count, context in ((1, 640), (1, 4096), (32, 640), (64, 4096), (256, 600), (1, 32768), (8, 2048)):
        blocks = -(-context // 16)
        copies = max(2, min(8, int(3e8 / (count * context * 4096)) + 1))
        total = count * blocks + 8
        table = torch.randperm(total, device="cuda")[: count * blocks].to(torch.int32).view(count, blocks)
        lengths = torch.full((count,), context, device="cuda", dtype=torch.int32)
        caches = [(rand(total, 16, 8, 128), rand(total, 16, 8, 128)) for _ in range(copies)]
        q = rand(count, 32, 128)
        out = torch.empty_like(q)
        floor = count * context * 4096 / bandwidth * 1e6

        def timed(config: DecodeConfig | None) -> float:
            def run() -> None:
                for k, v in caches:
                    decode_attention(SPEC, q, k, v, table, lengths, out, config=config)

            return graph_us(run) / copies

        us = timed(None)
        report.add(f"decode {count} x {context}", us=us, share=floor / us)
        found = sorted((timed(c), c) for c in DECODE)
        report.add(f"decode {count} x {context}, tiles", best=[(str(c), round(floor / us, 3)) for us, c in found[:4]])


def ragged(report: Report, bandwidth: float) -> None:
    """Decodes of very different lengths, as a captured graph sees them: splits and tiles."""
    for count in (8, 16, 32, 64, 96, 128, 192, 256):
        lengths_host = torch.linspace(150, 1900, count).int()
        total = int((-(-lengths_host // 16)).sum()) + 8
        most = 1900 // 16 + 2
        ids, table_host = torch.randperm(total), torch.zeros(count, most, dtype=torch.int32)
        at = 0
        for i, n in enumerate((-(-lengths_host // 16)).tolist()):
            table_host[i, :n] = ids[at : at + n]
            at += n
        order = torch.randperm(count)
        table, lengths = table_host[order].cuda(), lengths_host[order].cuda()
        copies = max(2, min(8, int(3e8 / (int(lengths_host.sum()) * 4096)) + 1))
        caches = [(rand(total, 16, 8, 128), rand(total, 16, 8, 128)) for _ in range(copies)]
        q = rand(count, 32, 128)
        out = torch.empty_like(q)
        floor = int(lengths_host.sum()) * 4096 / bandwidth * 1e6

        def timed(config: DecodeConfig | None) -> float:
            def run() -> None:
                for k, v in caches:
                    decode_attention(SPEC, q, k, v, table, lengths, out, config=config)

            return graph_us(run, 5) / copies

        now = timed(None)
        found = sorted((timed(c), c) for c in DECODE)
        best = [(str(c), round(floor / us, 3)) for us, c in found[:4]]
        report.add(f"decode {count} ragged", us=now, share=floor / now, best=best)


def prefills(report: Report) -> None:
    for tokens in (2048, 16384):
        qkv = rand(tokens, 48 * 128).view(tokens, 48, 128)
        q, k, v = qkv.split([32, 8, 8], 1)
        out = torch.empty(tokens, 32, 128, device="cuda", dtype=BF)
        blocks = tokens // 16
        table = torch.randperm(blocks, device="cuda").to(torch.int32).view(1, blocks)
        keys, values = (torch.empty(blocks, 16, 8, 128, device="cuda", dtype=BF) for _ in range(2))
        keys[table[0].long()] = k.reshape(blocks, 16, 8, 128)
        values[table[0].long()] = v.reshape(blocks, 16, 8, 128)
        starts = torch.tensor([0, tokens], device="cuda", dtype=torch.int32)
        lengths = starts[1:].clone()
        flops = 2 * tokens * tokens * 4096
        rates: dict[str, Any] = {}
        for paged in (False, True):
            for config in (PrefillConfig(128, 64, 2, 8), PrefillConfig(128, 64, 3, 8), PrefillConfig(128, 128, 2, 8), PrefillConfig(128, 32, 3, 8), PrefillConfig(64, 64, 3, 4)):  # fmt: skip
                tiles = torch.arange(tokens // config.rows - 1, -1, -1, device="cuda", dtype=torch.int32)
                tiles = torch.stack([torch.zeros_like(tiles), tiles], 1).contiguous()
                k_in, v_in = (keys, values) if paged else (k, v)

                def run() -> None:
                    prefill_attention(
                        SPEC, q, k_in, v_in, table, starts, lengths, tiles, out, paged=paged, config=config
                    )

                try:
                    us = graph_us(run, 5)
                except Exception as error:  # too much shared memory for a configuration
                    rates[f"{'paged' if paged else 'fresh'} {config.rows}/{config.keys}/{config.stages}"] = repr(error)[
                        :60
                    ]
                    continue
                rates[f"{'paged' if paged else 'fresh'} {config.rows}/{config.keys}/{config.stages}"] = round(
                    flops / us / 1e6
                )
        report.add(f"prefill {tokens}", tflop_s=rates)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            with sdpa_kernel(getattr(SDPBackend, name)):
                try:
                    us = graph_us(
                        lambda: functional.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True),
                        5,
                    )
                    report.add(f"prefill {tokens}, torch's {name}", tflop_s=round(flops / us / 1e6))
                except RuntimeError as error:
                    report.add(f"prefill {tokens}, torch's {name}", error=repr(error)[:100])


def small(report: Report, bandwidth: float) -> None:
    for rows in (1, 256, 8192):
        times = 32 if rows < 1000 else 4
        x, residual, w = rand(rows, 4096), rand(rows, 4096), rand(4096)
        us = graph_us(lambda: [rms_norm.add_rms_norm(x, residual, w, 1e-5) for _ in range(times)]) / times
        report.add("add + rms_norm", rows=rows, us=us, share=rows * 4096 * 8 / bandwidth * 1e6 / us)
        g = rand(rows, 28672)
        us = graph_us(lambda: [activation.silu_and_mul(g) for _ in range(times)]) / times
        report.add("silu_and_mul", rows=rows, us=us, share=rows * 43008 * 2 / bandwidth * 1e6 / us)
        qkv, cos_sin = rand(rows, 6144), torch.randn(20480, 128, device="cuda")
        at = torch.arange(rows, device="cuda")
        keys, values = (torch.zeros(rows // 16 + 1, 16, 8, 128, device="cuda", dtype=BF) for _ in range(2))
        us = (
            graph_us(lambda: [rope.rope_and_cache(qkv, cos_sin, at, at, keys, values, 32) for _ in range(times)])
            / times
        )
        report.add("rope + cache", rows=rows, us=us, share=rows * (5120 * 2 + 1024 + 2048) * 2 / bandwidth * 1e6 / us)
    for rows in (1, 32, 256):
        logits = rand(rows, 128256) * 2
        floats = torch.tensor([[0.8, 0.95, 0.0, 1, 0, 0]], device="cuda").repeat(rows, 1)
        top_k, seeds = torch.full((rows,), 50, device="cuda"), torch.arange(rows, device="cuda")
        at = torch.arange(rows, device="cuda")
        us = graph_us(lambda: sampling.sample(logits, at, floats, top_k, seeds, at))
        greedy = graph_us(lambda: sampling.sample(logits, at, floats, top_k, seeds, at, is_random=False))
        library = graph_us(lambda: logits.float().argmax(-1))
        report.add("sample", rows=rows, top_k_top_p_us=us, greedy_us=greedy, torch_argmax_us=library)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=1e9, help="start no group of kernels after this many seconds")
    parser.add_argument("--only", default="decodes,linears,prefills,small", help="groups, comma-separated")
    args = parser.parse_args()
    budget_s = args.budget_s
    torch.manual_seed(0)
    begun = time.perf_counter()
    report = Report()
    bandwidth, _ = ceilings(report)
    groups: dict[str, Callable[[], None]] = {
        "decodes": lambda: decodes(report, bandwidth),
        "linears": lambda: linears(report, bandwidth),
        "ragged": lambda: ragged(report, bandwidth),
        "prefills": lambda: prefills(report),
        "small": lambda: small(report, bandwidth),
    }
    for name in args.only.split(","):
        if time.perf_counter() - begun < budget_s:
            groups[name]()


if __name__ == "__main__":
    main()
