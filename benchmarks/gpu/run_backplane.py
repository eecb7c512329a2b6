"""Our engine on the workloads, with random weights; with --profile, where a step's time goes.

python benchmarks/gpu/run_backplane.py [--workloads latency_b1,mixed_256] [--shape qwen3-0.6b]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import workloads

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


class Server:
    """An engine in this process that serves workloads."""

    def __init__(self, shape: str, prefix_caching: bool, options: dict[str, Any]) -> None:
        from core import Engine

        start = time.perf_counter()
        self._folder = tempfile.TemporaryDirectory()
        self.engine = Engine(
            workloads.write_model_dir(Path(self._folder.name), shape),
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=workloads.MAX_MODEL_LEN,
            max_num_seqs=workloads.MAX_NUM_SEQS,
            enable_prefix_caching=prefix_caching,
            **options,
        )
        self.start_s = time.perf_counter() - start

    def serve(self, work: workloads.Workload) -> int:
        from core import SamplingParams

        params = [
            SamplingParams(
                temperature=work.temperature,
                top_p=work.top_p,
                top_k=max(0, work.top_k),
                max_tokens=r.output_len,
                ignore_eos=True,
                detokenize=False,
            )
            for r in work.requests
        ]
        outputs = self.engine.generate([list(r.prompt) for r in work.requests], params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    def close(self) -> None:
        import gc

        import torch

        self.engine.shutdown()
        del self.engine
        gc.collect()
        with contextlib.suppress(AttributeError):
            torch.cuda.empty_cache()


def steps_ms(spans: list[tuple[int, int, str]]) -> list[float]:
    """Median time between the kernels that prepare decodes: whole steps."""
    at = [begin for begin, _, name in spans if "_prepare_decodes" in name]
    gaps = sorted((b - a) / 1e6 for a, b in itertools.pairwise(at))
    return [round(gaps[len(gaps) * q // 100], 3) for q in (10, 50, 90)] if gaps else []


def profile(server: Server, work: workloads.Workload, most: int | None) -> dict[str, Any]:
    """One run under the profiler: which kernels take the time, and for what share of it any kernel runs.

    most: output tokens of a request at most, so that the trace stays small.
    """
    import torch
    from torch.profiler import ProfilerActivity

    if most is not None:
        requests = [dataclasses.replace(r, output_len=min(most, r.output_len)) for r in work.requests]
        work = dataclasses.replace(work, requests=requests)
    if work.warm_requests:
        server.serve(dataclasses.replace(work, requests=list(work.warm_requests), warm_requests=()))
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as trace:
        start = time.perf_counter()
        server.serve(work)
        wall_s = time.perf_counter() - start
    events = [e for e in trace.profiler.kineto_results.events() if e.device_type() == torch.profiler.DeviceType.CUDA]
    spans = sorted((e.start_ns(), e.start_ns() + e.duration_ns(), e.name()) for e in events)
    busy = end = 0
    totals: dict[str, list[float]] = {}
    for begin, finish, name in spans:
        # a kernel that was launched early and waits for the one before has only what is behind that one's end
        alone = max(0, finish - max(begin, end))
        busy += alone
        end = max(end, finish)
        kind = totals.setdefault(name.split("(")[0][:80], [0, 0])
        kind[0] += alone / 1e6
        kind[1] += 1
    top = sorted(totals.items(), key=lambda t: -t[1][0])[:24]
    return {
        "profile": work.name,
        "wall_s": round(wall_s, 3),
        "span_s": round((end - spans[0][0]) / 1e9, 3),
        "busy_share": round(busy / (end - spans[0][0]), 4),
        "steps_ms": steps_ms(spans),
        "kernels_ms": {name: [round(ms, 1), int(n)] for name, (ms, n) in top},
    }


def decodes(count: int) -> workloads.Workload:
    """`count` requests of very different lengths that decode together for 60 steps."""
    rng = random.Random(count)
    requests = [
        workloads.Request([rng.randrange(1000) for _ in range(300 + 1300 * i // count)], 60) for i in range(count)
    ]
    return workloads.Workload(f"decodes of {count}", requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", help="comma-separated; default: all; none: only what --profile names")
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    parser.add_argument("--options", default="{}", help="more engine options, as JSON")
    parser.add_argument("--tag", default="backplane", help="the engine's name in the lines")
    parser.add_argument("--profile", default="", help="to run profiled: NAME[:MOST_TOKENS], decodes:REQUESTS, ...")
    parser.add_argument("--budget-s", type=float, default=1e9, help="start no workload after this many seconds")
    args = parser.parse_args()
    names = [] if args.workloads == "none" else workloads.parse_workloads(args.workloads)
    options = {"max_num_batched_tokens": 16384, **json.loads(args.options)}
    begun = time.perf_counter()
    profiled = [p.partition(":") for p in args.profile.split(",") if p]

    import torch

    for prefix_caching in (False, True):
        todo = [n for n in names if workloads.build(n).prefix_caching == prefix_caching]
        traced = [p for p in profiled if (p[0] == "shared_prefix") == prefix_caching]
        if not (todo or traced) or time.perf_counter() - begun > args.budget_s:
            continue
        tags = {"engine": args.tag, "prefix_caching": prefix_caching, "options": options}
        tags |= {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        server = Server(args.shape, prefix_caching, options)
        ready = server.engine.ready
        print(json.dumps({"timeline": ready.timeline, "choices": ready.choices}), flush=True)
        start = time.perf_counter()
        server.serve(workloads.build("warmup"))
        warm_s = time.perf_counter() - start
        started = {"workload": "start", "start_s": round(server.start_s, 1), "warm_s": round(warm_s, 1)}
        workloads.emit({**tags, "shape": args.shape, **started})
        if "latency_b1" in todo and "ttft_b1" in todo:
            workloads.measure_all(["ttft_b1", "latency_b1"], server.serve, args.shape, tags)
            todo = [n for n in todo if n not in ("ttft_b1", "latency_b1")]
        for name in todo:
            if time.perf_counter() - begun > args.budget_s:
                print(f"out of time before {name}", flush=True)
                continue
            workloads.measure_all([name], server.serve, args.shape, tags)
        for name, _, most in traced:
            work = decodes(int(most)) if name == "decodes" else workloads.build(name, 9)
            cut = int(most) if most and name != "decodes" else None
            print(json.dumps(profile(server, work, cut)), flush=True)
        server.close()


if __name__ == "__main__":
    main()
