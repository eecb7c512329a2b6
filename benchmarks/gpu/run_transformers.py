"""transformers' generate() on the workloads: static batches of 32, bf16, SDPA. Runs in its own environment.

Only workloads whose requests have one length; throughput_1k is its first 128 requests, scaled, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch
import transformers
import workloads

BATCH = 32
SUBSET = 128
CAN = ("ttft_b1", "latency_b1", "latency_b32", "throughput_1k")


class Peer:
    def __init__(self, shape: str) -> None:
        config = transformers.AutoConfig.from_pretrained(workloads.write_model_dir(Path(tempfile.mkdtemp()), shape))
        with torch.device("cuda"):
            self._model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            ).eval()
        wishes = self._model.generation_config
        wishes.eos_token_id, wishes.pad_token_id, wishes.do_sample = None, 0, False

    @torch.inference_mode()
    def serve(self, work: workloads.Workload) -> int:
        made = 0
        for at in range(0, len(work.requests), BATCH):
            batch = work.requests[at : at + BATCH]
            ids = torch.tensor([r.prompt for r in batch], device="cuda")
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=batch[0].output_len, min_new_tokens=None
            )
            made += (out.shape[1] - ids.shape[1]) * len(batch)
        torch.cuda.synchronize()
        return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", help=f"comma-separated, of {', '.join(CAN)}")
    parser.add_argument("--shape", choices=list(workloads.SHAPES), default="llama-3.1-8b")
    args = parser.parse_args()
    names = [n for n in workloads.parse_workloads(args.workloads) if n in CAN]
    tags = {"engine": "transformers", "version": transformers.__version__}
    peer = Peer(args.shape)
    peer.serve(workloads.build("latency_b32", 9))
    workloads.measure_all([n for n in names if n != "throughput_1k"], peer.serve, args.shape, tags)
    if "throughput_1k" in names:
        whole = workloads.build("throughput_1k")
        part = dataclasses.replace(whole, requests=whole.requests[:SUBSET])
        start = time.perf_counter()
        peer.serve(part)
        seconds = (time.perf_counter() - start) * len(whole.requests) / SUBSET
        note = f"the first {SUBSET} requests in static batches of {BATCH}, one run, scaled"
        record = {**tags, "shape": args.shape, "workload": "throughput_1k", "median_s": round(seconds, 2), "note": note}
        workloads.emit(record)


if __name__ == "__main__":
    main()
