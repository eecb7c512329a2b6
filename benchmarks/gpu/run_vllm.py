"""vLLM's offline engine on the workloads, at its own defaults, with random weights. Runs in vLLM's environment."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import workloads


class Peer:
    def __init__(self, shape: str, prefix_caching: bool) -> None:
        from vllm import LLM

        start = time.perf_counter()
        folder = Path(tempfile.mkdtemp())
        self._llm = LLM(
            model=workloads.write_model_dir(folder, shape),
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=workloads.MAX_MODEL_LEN,
            max_num_seqs=workloads.MAX_NUM_SEQS,
            gpu_memory_utilization=0.9,
            enable_prefix_caching=prefix_caching,
        )
        self.start_s = time.perf_counter() - start

    def serve(self, work: workloads.Workload) -> int:
        from vllm import SamplingParams

        chosen: dict[str, Any] = {"temperature": work.temperature, "top_p": work.top_p, "top_k": work.top_k}
        params = [
            SamplingParams(max_tokens=r.output_len, ignore_eos=True, detokenize=False, **chosen) for r in work.requests
        ]
        prompts = [{"prompt_token_ids": r.prompt} for r in work.requests]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    def close(self) -> None:
        """Its engine is a process of its own; the next one needs the memory."""
        self._llm.llm_engine.engine_core.shutdown()


def main() -> None:
    import dataclasses

    import vllm

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", help="comma-separated; default: all")
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    args = parser.parse_args()
    names = workloads.parse_workloads(args.workloads)
    for prefix_caching in (False, True):
        todo = [n for n in names if workloads.build(n).prefix_caching == prefix_caching]
        if not todo:
            continue
        tags = {"engine": "vllm", "version": vllm.__version__, "prefix_caching": prefix_caching}
        peer = Peer(args.shape, prefix_caching)
        start = time.perf_counter()
        warm = workloads.build("warmup")
        peer.serve(warm)
        if "sampled" in todo:
            peer.serve(dataclasses.replace(warm, temperature=0.8, top_p=0.95, top_k=50))
        warm_s = time.perf_counter() - start
        started = {"workload": "start", "start_s": round(peer.start_s, 1), "warm_s": round(warm_s, 1)}
        workloads.emit({**tags, "shape": args.shape, **started})
        workloads.measure_all(todo, peer.serve, args.shape, tags)
        peer.close()


if __name__ == "__main__":
    main()
