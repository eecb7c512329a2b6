"""`engine bench`: latency and throughput of the engine alone, and of any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from core.progress import ProgressLine
from server.cli.floor import Work, floor_figures
from server.cli.options import EngineCommand, with_engine_options

VLLM = {"num-iters": "runs", "output-json": "json", "random-input-len": "input-len", "random-output-len": "output-len"}
"""vLLM's spellings, of latency and throughput."""


@click.group()
def bench() -> None:
    """Measure: latency, throughput, serve."""


def sizes(function: Any) -> Any:
    function = click.option("--input-len", type=int, default=128, show_default=True, help="Tokens of a prompt.")(
        function
    )
    function = click.option("--output-len", type=int, default=128, show_default=True, help="New tokens of a request.")(
        function
    )
    function = click.option("--seed-of-prompts", type=int, default=0, show_default=True, help="Draws the prompts.")(
        function
    )
    return click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")(
        function
    )


def summary(values: Sequence[float]) -> dict[str, float]:
    """mean, median, p99 and max; of nothing, zeros."""
    if not values:
        return {"mean": 0.0, "median": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(values)
    p99 = ordered[math.ceil(len(ordered) * 0.99) - 1]
    return {"mean": statistics.fmean(ordered), "median": statistics.median(ordered), "p99": p99, "max": ordered[-1]}


def report(figures: dict[str, Any], json_path: Path | None) -> None:
    """A table on a terminal, plain lines in a pipe, and JSON where asked."""
    single = {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in figures.items() if not isinstance(v, dict)}
    spread = {k: v for k, v in figures.items() if isinstance(v, dict)}
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False)
        for name, value in single.items():
            table.add_row(name, value)
        console = Console()
        console.print(table)
        if spread:
            table = Table("", "mean", "median", "p99", "max")
            for name, values in spread.items():
                table.add_row(name, *(f"{values[k]:.2f}" for k in ("mean", "median", "p99", "max")))
            console.print(table)
    else:
        for name, text in single.items():
            click.echo(f"{name:<28} {text}")
        for name, values in spread.items():
            click.echo(f"{name:<28} " + "  ".join(f"{k} {v:.2f}" for k, v in values.items()))
    if json_path:
        json_path.write_text(json.dumps(figures, indent=1) + "\n")


def _engine(model: str, values: dict[str, Any]) -> Any:
    from core import Engine
    from core.config import option_owners
    from server.cli.options import given

    return Engine(model=model, **given(values, option_owners()))


def _prompts(engine: Any, count: int, length: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(engine.ready.vocab_size) for _ in range(length)] for _ in range(count)]


@bench.command(cls=EngineCommand, names=VLLM)
@click.option("--model", default="demo", show_default=True, help="A folder, a Hugging Face name, or demo.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Requests at once.")
@click.option("--runs", type=int, default=5, show_default=True, help="Timed runs, after one that warms up.")
@sizes
@with_engine_options
def latency(
    model: str,
    batch_size: int,
    runs: int,
    input_len: int,
    output_len: int,
    seed_of_prompts: int,
    json_path: Path | None,
    **values: Any,
) -> None:
    """Seconds from a batch's start to its end, and the share of the device's floor that they reach."""
    from core import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    with _engine(model, values) as engine:
        seconds = []
        for run in range(runs + 1):
            prompts = _prompts(engine, batch_size, input_len, seed_of_prompts + run)
            begun = time.perf_counter()
            engine.generate(prompts, params, use_tqdm=False)
            seconds.append(time.perf_counter() - begun)
        seconds = seconds[1:]
        median = statistics.median(seconds)
        floor = floor_figures(engine, Work(batch_size, input_len, output_len), median)
    figures = {
        "batch": batch_size,
        "latency_s": summary(seconds),
        "ms_per_token": median / output_len * 1e3,
        **floor,
    }
    report(figures, json_path)


@bench.command(cls=EngineCommand, names=VLLM)
@click.option("--model", default="demo", show_default=True, help="A folder, a Hugging Face name, or demo.")
@click.option("--num-prompts", type=int, default=100, show_default=True, help="Requests, all sent at once.")
@sizes
@with_engine_options
def throughput(
    model: str,
    num_prompts: int,
    input_len: int,
    output_len: int,
    seed_of_prompts: int,
    json_path: Path | None,
    **values: Any,
) -> None:
    """Tokens a second of many requests at once, and the share of the device's floor that they reach."""
    from core import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    with _engine(model, values) as engine:
        engine.generate(_prompts(engine, 2, input_len, seed_of_prompts - 1), params, use_tqdm=False)
        prompts = _prompts(engine, num_prompts, input_len, seed_of_prompts)
        begun = time.perf_counter()
        engine.generate(prompts, params)
        seconds = time.perf_counter() - begun
        together = min(num_prompts, engine.config.scheduler.max_num_seqs)
        work = Work(together, input_len, output_len, num_prompts / together)
        floor = floor_figures(engine, work, seconds)
    figures = {
        "requests": num_prompts,
        "seconds": seconds,
        "requests_per_s": num_prompts / seconds,
        "output_tokens_per_s": num_prompts * output_len / seconds,
        "total_tokens_per_s": num_prompts * (input_len + output_len) / seconds,
        **floor,
    }
    report(figures, json_path)


@bench.command(
    cls=EngineCommand,
    names={
        "base-url": "url",
        "random-input-len": "input-len",
        "random-output-len": "output-len",
        "output-json": "json",
        "result-filename": "json",
        "seed": "seed-of-prompts",
    },
)
@click.option("--url", default="http://127.0.0.1:8000/v1", show_default=True, help="Base of the API.")
@click.option("--model", help="Name to send; unset: the first that the server lists.")
@click.option("--api-key", default="none", help="Key to send.")
@click.option("--num-prompts", type=int, default=100, show_default=True, help="Requests in all.")
@click.option("--request-rate", type=float, help="Requests a second, at random gaps; unset: all at once.")
@click.option("--max-concurrency", type=int, default=64, show_default=True, help="Most requests at once.")
@click.option(
    "--prompts",
    type=click.Choice(["ids", "words"]),
    default="ids",
    show_default=True,
    help="Random token ids (exact lengths), or random words for servers that take text alone.",
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the latencies as an SVG picture.")
@sizes
def serve(json_path: Path | None, plot: Path | None, seed_of_prompts: int, **options: Any) -> None:
    """Drive a server with streamed completions: TTFT, TPOT, ITL, end to end, in ms."""
    import httpx

    from server.cli.load import Load, base_of, drive

    load = Load(seed=seed_of_prompts, **options)
    try:
        with ProgressLine("requests") as progress:
            samples = asyncio.run(drive(load, progress))
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        raise click.ClickException(
            f"{base_of(load.url)}/models does not answer as an OpenAI-compatible server does "
            f"({type(error).__name__}: {error}); is the server up, is --url its base with /v1, and is --api-key right?"
        ) from None
    for text in samples.errors[:3]:
        click.echo(f"failed: {text}", err=True)
    failed, seconds = len(samples.errors), samples.seconds
    figures: dict[str, Any] = {
        "requests": load.num_prompts,
        "failed": failed,
        "seconds": seconds,
        "output_tokens": samples.num_tokens,
        "output_tokens_per_s": samples.num_tokens / seconds,
        "requests_per_s": (load.num_prompts - failed) / seconds,
    }
    report(figures | {name: summary(values) for name, values in samples.latencies().items()}, json_path)
    if plot:
        from server.cli.latency_picture import latency_picture

        caption = (
            f"{load.num_prompts} requests, {load.input_len} tokens in and {load.output_len} out, at most "
            f"{load.max_concurrency} at once: {figures['output_tokens_per_s']:.0f} tokens/s"
        )
        plot.write_text(latency_picture(samples.latencies(), caption))
    if failed:
        raise SystemExit(1)
