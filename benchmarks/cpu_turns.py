"""One workload on a CPU by several engines that stay loaded and take turns call by call: for machines that are never quiet.

    python benchmarks/cpu_turns.py --llama-python /tmp/llama/bin/python [--before FOLDER] [--work "1 stream"] [--seconds 20]

A call is one workload of cpu_peers.py over the demo model or --model. Beside each call stands which share of the cores other programs (and the
hypervisor) had meanwhile; medians are of the calls in which that was at most --quiet. --before: another checkout of this
repository, for a comparison with what was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cpu_peers import ENGINES, WORKLOADS

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "plugins" / "sources" / "demo" / "data" / "chat"


def busy_s() -> float:
    """Of all cores, all programs', since the machine started."""
    user, nice, system, _, _, interrupts, soft, stolen = (
        int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def take_turns(engine: str, folder: Path, work: str) -> None:
    """The process of one engine: a call for every line that comes, and a line for every call."""
    serve = ENGINES[engine](folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    rng, lengths = random.Random(1), [n for _, n in WORKLOADS[work]]
    serve([[rng.randrange(300, vocab_size) for _ in range(16)]], [4])
    print("ready", flush=True)
    for _ in sys.stdin:
        prompts = [[rng.randrange(300, vocab_size) for _ in range(n)] for n, _ in WORKLOADS[work]]
        start, used = time.perf_counter(), time.process_time()
        serve(prompts, lengths)
        print(json.dumps([time.perf_counter() - start, time.process_time() - used]), flush=True)


def compare(commands: dict[str, tuple[list[str], Path]], work: str, seconds: float, quiet: float) -> dict[str, Any]:
    """commands: engine -> how to start it, and over which checkout"""
    running = {}
    for name, (command, root) in commands.items():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
        running[name] = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    for name, process in running.items():
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{name} did not start: {' '.join(commands[name][0])}")
    calls: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    tokens, until = sum(n for _, n in WORKLOADS[work]), time.monotonic() + seconds
    while time.monotonic() < until:
        for name, process in running.items():
            assert process.stdin is not None and process.stdout is not None
            start, busy = time.perf_counter(), busy_s()
            process.stdin.write("go\n")
            process.stdin.flush()
            took_s, used_s = json.loads(process.stdout.readline())
            others = (busy_s() - busy - used_s) / ((time.perf_counter() - start) * (os.cpu_count() or 1))
            calls[name].append((round(max(0.0, others), 3), round(tokens / took_s, 1)))
    for process in running.values():
        process.communicate()
    counted = {name: [speed for others, speed in made if others <= quiet] for name, made in calls.items()}
    return {
        "calls": {name: len(made) for name, made in calls.items()},
        "quiet_calls": {name: len(made) for name, made in counted.items()},
        "tokens_per_s": {name: statistics.median(made) if made else None for name, made in counted.items()},
        "every_call": {name: made for name, made in calls.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--llama-python", help="an interpreter that has llama-cpp-python and gguf")
    parser.add_argument("--before", type=Path, help="another checkout of this repository")
    parser.add_argument("--model", type=Path, default=DEMO, help="a Llama checkpoint")
    parser.add_argument("--work", choices=WORKLOADS, action="append", help="unset: 1 stream and 16 streams")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument(
        "--quiet", type=float, default=0.1, help="the share of the cores that others may have in a call"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu_turns.json")
    parser.add_argument("--only", choices=ENGINES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        take_turns(options.only, options.model, options.work[0])
        return
    from machine import describe  # not for llama.cpp's interpreter

    report: dict[str, Any] = {"machine": describe(), "quiet": options.quiet, "work": {}}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = scratch
        for work in options.work or ["1 stream", "16 streams"]:
            end = [str(Path(__file__).resolve()), "--model", str(options.model), "--work", work, "--only"]
            commands = {"backplane": ([sys.executable, *end, "backplane"], HERE.parent)}
            if options.before:
                commands["before"] = ([sys.executable, *end, "backplane"], options.before.resolve())
            if options.llama_python:
                commands["llama_cpp"] = ([options.llama_python, *end, "llama_cpp"], HERE.parent)
            report["work"][work] = found = compare(commands, work, options.seconds, options.quiet)
            print(work, json.dumps({k: v for k, v in found.items() if k != "every_call"}))
    options.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
