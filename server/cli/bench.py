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

from server.cli.options import EngineCommand, with_engine_options

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he")
"""Each is one token in most vocabularies."""


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


@bench.command(cls=EngineCommand)
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
    """Seconds from a batch's start to its end."""
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
    figures = {
        "batch": batch_size,
        "latency_s": summary(seconds),
        "ms_per_token": statistics.median(seconds) / output_len * 1e3,
    }
    report(figures, json_path)


@bench.command(cls=EngineCommand)
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
    """Tokens a second of many requests at once."""
    from core import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True, detokenize=False)
    with _engine(model, values) as engine:
        engine.generate(_prompts(engine, 2, input_len, seed_of_prompts - 1), params, use_tqdm=False)
        prompts = _prompts(engine, num_prompts, input_len, seed_of_prompts)
        begun = time.perf_counter()
        engine.generate(prompts, params)
        seconds = time.perf_counter() - begun
    figures = {
        "requests": num_prompts,
        "seconds": seconds,
        "requests_per_s": num_prompts / seconds,
        "output_tokens_per_s": num_prompts * output_len / seconds,
        "total_tokens_per_s": num_prompts * (input_len + output_len) / seconds,
    }
    report(figures, json_path)


@bench.command()
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
def serve(**options: Any) -> None:
    """Drive a server with streamed completions: TTFT, TPOT, ITL, end to end, in ms."""
    import httpx

    drive = _drive(**{k: v for k, v in options.items() if k not in ("json_path", "plot")})
    try:
        figures, samples = asyncio.run(drive)
    except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
        url = f"{options['url'].rstrip('/')}/models"
        raise click.ClickException(
            f"{url} does not answer as an OpenAI-compatible server does ({type(error).__name__}: {error}); "
            "is the server up, is --url its base with /v1, and is --api-key right?"
        ) from None
    report(figures, options["json_path"])
    if options["plot"]:
        options["plot"].write_text(_picture(samples))
    if figures["failed"]:
        raise SystemExit(1)


async def _drive(
    url: str,
    model: str | None,
    api_key: str,
    num_prompts: int,
    request_rate: float | None,
    max_concurrency: int,
    input_len: int,
    output_len: int,
    seed_of_prompts: int,
    prompts: str,
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    import httpx

    rng = random.Random(seed_of_prompts)
    limits = httpx.Limits(max_connections=max_concurrency, max_keepalive_connections=max_concurrency)
    samples: dict[str, list[float]] = {"ttft_ms": [], "tpot_ms": [], "itl_ms": [], "e2e_ms": []}
    made, errors = 0, []
    gate = asyncio.Semaphore(max_concurrency)
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=None, limits=limits) as client:
        if model is None:
            answer = await client.get("/models")
            answer.raise_for_status()
            model = answer.json()["data"][0]["id"]

        async def one(prompt: list[int] | str) -> None:
            nonlocal made
            body = {
                "model": model,
                "prompt": prompt,
                "max_tokens": output_len,
                "temperature": 0,
                "stream": True,
                "ignore_eos": True,
                "stream_options": {"include_usage": True},
            }
            async with gate:
                begun = last = time.perf_counter()
                first = None
                tokens = pieces = 0
                try:
                    async with client.stream("POST", "/completions", json=body) as response:
                        if response.status_code != 200:
                            errors.append(f"{response.status_code}: {(await response.aread())[:200]!r}")
                            return
                        async for line in response.aiter_lines():
                            if not line.startswith("data: {"):
                                continue
                            event = json.loads(line[6:])
                            if "error" in event:
                                errors.append(event["error"]["message"])
                                return
                            now = time.perf_counter()
                            if event.get("choices"):
                                if first is None:
                                    first = now
                                    samples["ttft_ms"].append((now - begun) * 1e3)
                                else:
                                    samples["itl_ms"].append((now - last) * 1e3)
                                last = now
                                pieces += 1
                            if event.get("usage"):
                                tokens = event["usage"]["completion_tokens"]
                except httpx.HTTPError as error:
                    errors.append(f"{type(error).__name__}: {error}")
                    return
                tokens = tokens or pieces  # a server that reports no usage sends a token a piece, as a rule
                made += tokens
                samples["e2e_ms"].append((last - begun) * 1e3)
                if first is not None and tokens > 1:
                    samples["tpot_ms"].append((last - first) / (tokens - 1) * 1e3)

        tasks = []
        begun = time.perf_counter()
        for _ in range(num_prompts):
            prompt: list[int] | str = [rng.randrange(10, 4000) for _ in range(input_len)]
            if prompts == "words":
                prompt = " ".join(rng.choice(WORDS) for _ in range(input_len))
            tasks.append(asyncio.create_task(one(prompt)))
            if request_rate:
                await asyncio.sleep(rng.expovariate(request_rate))
        await asyncio.gather(*tasks)
        seconds = time.perf_counter() - begun
    for error in errors[:3]:
        click.echo(f"failed: {error}", err=True)
    figures: dict[str, Any] = {
        "requests": num_prompts,
        "failed": len(errors),
        "seconds": seconds,
        "output_tokens": made,
        "output_tokens_per_s": made / seconds,
        "requests_per_s": (num_prompts - len(errors)) / seconds,
    }
    figures |= {name: summary(values) for name, values in samples.items()}
    return figures, samples


def _picture(samples: dict[str, list[float]]) -> str:
    """Each latency's sorted values as a curve, from the fastest request to the slowest."""
    width, height, parts = 640, 150, []
    for i, (name, values) in enumerate(samples.items()):
        top = i * height
        ordered = sorted(values) or [0.0]
        high = ordered[-1] or 1.0
        points = " ".join(
            f"{60 + (width - 80) * j / max(1, len(ordered) - 1):.1f},{top + height - 25 - (height - 50) * v / high:.1f}"
            for j, v in enumerate(ordered)
        )
        parts.append(f'<text x="60" y="{top + 16}">{name}, sorted; highest {high:.1f}</text>')
        parts.append(f'<polyline points="{points}" fill="none" stroke="#3366cc" stroke-width="2"/>')
    body = "\n".join(parts)
    size = f'width="{width}" height="{height * len(samples)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">\n{body}\n</svg>\n'
