"""Our engine on the workloads of a peer comparison, Llama-3.1-8B's shape by default, dummy weights, token-id prompts.

    python benchmarks/engine_gpu.py --workloads-module ../shared/peers/workloads.py [--workloads latency_b1,mixed_256]

The module gives the workloads, the timing and the result lines (build, measure_all, emit); ours are tagged "backplane".
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def load_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("workloads", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules["workloads"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


class Server:
    """An engine in this process that serves workloads."""

    def __init__(
        self, workloads: ModuleType, config: dict[str, Any], prefix_caching: bool, options: dict[str, Any]
    ) -> None:
        from core import Engine

        start = time.perf_counter()
        self._folder = tempfile.TemporaryDirectory()
        Path(self._folder.name, "config.json").write_text(json.dumps(config))
        self.engine = Engine(
            self._folder.name,
            load_format="dummy",
            skip_tokenizer_init=True,
            max_model_len=workloads.MAX_MODEL_LEN,
            max_num_seqs=workloads.MAX_NUM_SEQS,
            enable_prefix_caching=prefix_caching,
            **options,
        )
        self.start_s = time.perf_counter() - start

    def serve(self, work: Any) -> int:
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


def profile(server: Server, work: Any, most: int | None) -> dict[str, Any]:
    """One run under the profiler: which kernels take the time, and for what share of it any kernel runs.

    most: output tokens of a request at most, so that the trace stays small.
    """
    import torch
    from torch.profiler import ProfilerActivity

    if most is not None:
        requests = [dataclasses.replace(r, output_len=min(most, r.output_len)) for r in work.requests]
        work = dataclasses.replace(work, requests=requests)
    if work.warm_requests:
        server.serve(dataclasses.replace(work, requests=work.warm_requests))
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


def decodes(workloads: ModuleType, count: int) -> Any:
    """`count` requests of very different lengths that decode together for 60 steps."""
    rng = random.Random(count)
    requests = [
        workloads.Request([rng.randrange(1000) for _ in range(300 + 1300 * i // count)], 60) for i in range(count)
    ]
    return workloads.Workload(f"decodes of {count}", requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads-module", required=True, help="path of workloads.py")
    parser.add_argument("--workloads", help="comma-separated; default: all")
    parser.add_argument("--options", default="{}", help="more engine options, as JSON")
    parser.add_argument("--shape", default="{}", help="values that replace those of the model's config.json, as JSON")
    parser.add_argument("--profile", default="", help="to run profiled: NAME[:MOST_TOKENS], decodes:REQUESTS, ...")
    parser.add_argument("--budget-s", type=float, default=1e9, help="start no workload after this many seconds")
    args = parser.parse_args()
    workloads = load_module(args.workloads_module)
    names = (args.workloads or ",".join(workloads.RUNS)).split(",")
    options = {"max_num_batched_tokens": 16384, **json.loads(args.options)}
    config = {**workloads.LLAMA_8B, **json.loads(args.shape)}
    begun = time.perf_counter()
    profiled = [p.partition(":")[0] for p in args.profile.split(",") if p]

    import torch

    for prefix_caching in (False, True):
        todo = [n for n in names if n and workloads.build(n).prefix_caching == prefix_caching]
        if (
            not (todo or prefix_caching in [n == "shared_prefix" for n in profiled])
            or time.perf_counter() - begun > args.budget_s
        ):
            continue
        tags = {
            "engine": "backplane",
            "quant": "bf16",
            "prefix_caching": prefix_caching,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
            "torch": torch.__version__,
        }
        server = Server(workloads, config, prefix_caching, options)
        print(
            json.dumps({"timeline": server.engine.ready.timeline, "choices": server.engine.ready.choices}), flush=True
        )
        start = time.perf_counter()
        server.serve(workloads.build("warmup"))
        warm_s = time.perf_counter() - start
        workloads.emit({**tags, "workload": "start", "start_s": round(server.start_s, 1), "warm_s": round(warm_s, 1)})
        for name in todo:
            if time.perf_counter() - begun > args.budget_s:
                print(f"out of time before {name}", flush=True)
                continue
            both = ["ttft_b1", "latency_b1"] if name == "latency_b1" and "ttft_b1" not in todo else [name]
            if name == "ttft_b1" and "latency_b1" in todo:
                continue  # measured with it, so that decode can be told apart
            workloads.measure_all(["ttft_b1", "latency_b1"] if name == "latency_b1" else both, server.serve, tags)
        for name, _, most in (p.partition(":") for p in args.profile.split(",") if p):
            work = decodes(workloads, int(most)) if name == "decodes" else workloads.build(name, 9)
            if work.prefix_caching == prefix_caching:
                cut = int(most) if most and name != "decodes" else None
                print(json.dumps(profile(server, work, cut)), flush=True)
        server.close()


if __name__ == "__main__":
    main()
