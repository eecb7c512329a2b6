"""The whole comparison by one command: ceilings, then each engine on the same workloads, on the same GPU, in turn.

    python benchmarks/gpu/compare.py --out benchmarks/results/my-gpu [--peers vllm,transformers] [--shapes llama-3.1-8b]

A peer runs in an environment of its own, made by pip under ~/.cache/backplane-peers on first use (vLLM: 10 GB), or in one
that is given: --vllm "/opt/vllm/bin/python" (any command that python's arguments can follow). Backplane runs with this
interpreter. Writes results.jsonl and table.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import table  # noqa: E402
import workloads  # noqa: E402

HERE = Path(__file__).parent
PACKAGES = {"vllm": ["vllm==0.26.0"], "transformers": ["torch", "transformers>=5.17,<6", "accelerate"]}
SMALL_SHAPE_WORKLOADS = "ttft_b1,latency_b1,latency_b32,throughput_1k,mixed_256"
"""Of shapes other than the first: where the host is the limit."""


def environment(peer: str) -> list[str]:
    """The command of the peer's interpreter, in an environment made for it."""
    folder = Path.home() / ".cache" / "backplane-peers" / "-".join(PACKAGES[peer]).replace(">", "").replace("<", "")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making {folder} with {' '.join(PACKAGES[peer])}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[peer]], check=True)
        (folder / "ready").touch()
    return ["env", "-u", "PYTHONPATH", str(python)]  # what this interpreter was lent is not the peer's


def stage(name: str, command: list[str], out: Path, limit_s: float) -> bool:
    """Run one script; its terminal goes to a log. False: it failed, and the log's end is shown."""
    begin = time.monotonic()
    log = out / f"{name}.log"
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "OUT": str(out)}, timeout=limit_s
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    took = f"{time.monotonic() - begin:.0f} s"
    if status == 0:
        print(f"{name}: done in {took}", flush=True)
        return True
    why = f"stopped after {limit_s:g} s" if status == -1 else f"exit {status} after {took}"
    print(f"{name}: {why}; {log} ends with\n" + "\n".join(log.read_text().splitlines()[-15:]), flush=True)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for results.jsonl, table.md and logs")
    parser.add_argument("--peers", default="vllm,transformers", help="comma-separated; empty: ours alone")
    parser.add_argument("--shapes", default="llama-3.1-8b", help=f"comma-separated, of {', '.join(workloads.SHAPES)}")
    parser.add_argument("--workloads", help="comma-separated; default: all, fewer for the small shapes")
    parser.add_argument("--vllm", help="command of a Python that has vLLM")
    parser.add_argument("--transformers", help="command of a Python that has transformers and torch")
    parser.add_argument("--limit-s", type=float, default=1800, help="seconds that one engine has for one shape")
    parser.add_argument("--options", default="{}", help="more options of our engine, as JSON")
    args = parser.parse_args()
    shapes = args.shapes.split(",")
    for shape in shapes:
        if shape not in workloads.SHAPES:
            parser.error(f"no shape {shape!r}; there are {', '.join(workloads.SHAPES)}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    runs = {"backplane": [sys.executable]}
    for peer in filter(None, args.peers.split(",")):
        if peer not in PACKAGES:
            parser.error(f"no peer {peer!r}; there are {', '.join(PACKAGES)}")
        given = getattr(args, peer)
        runs[peer] = shlex.split(given) if given else environment(peer)
    ok = stage("ceilings", [sys.executable, str(HERE / "ceilings.py")], out, 300)
    for number, shape in enumerate(shapes):
        names = args.workloads or (None if number == 0 else SMALL_SHAPE_WORKLOADS)
        for engine, python in runs.items():
            command = [*python, str(HERE / f"run_{engine}.py"), "--shape", shape]
            command += ["--workloads", names] if names else []
            command += ["--options", args.options] if engine == "backplane" else []
            ok &= stage(f"{engine}-{shape}", command, out, args.limit_s)
    text = table.make((out / "results.jsonl").read_text())
    (out / "table.md").write_text(text + "\n")
    print(text)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
