"""Load on an OpenAI-compatible server: streamed completions, and when their tokens came. Knows no engine."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he")
"""Each is one token in most vocabularies."""
VOCABULARY = (10, 4000)
"""Random token ids are drawn from here: every vocabulary has them, and few are special."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is sent."""

    url: str
    model: str | None
    api_key: str
    num_prompts: int
    request_rate: float | None
    """Requests a second, at random gaps; None or infinite: all at once."""
    max_concurrency: int
    input_len: int
    output_len: int
    seed: int
    prompts: str
    """ids or words"""


@dataclass(slots=True)
class Samples:
    """Milliseconds, one entry a request (`itl_ms`: one a piece of a stream)."""

    ttft_ms: list[float] = field(default_factory=list)
    tpot_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)
    e2e_ms: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def latencies(self) -> dict[str, list[float]]:
        """By name."""
        return {name: getattr(self, name) for name in ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")}


def base_of(url: str) -> str:
    """The base of the API; vLLM's clients leave /v1 out."""
    url = url.rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


async def drive(load: Load, progress: Callable[[int, int], None]) -> Samples:
    """Send everything, wait for all of it. Raises httpx.HTTPError or ValueError if the server lists no models."""
    import httpx

    rng = random.Random(load.seed)
    limits = httpx.Limits(max_connections=load.max_concurrency, max_keepalive_connections=load.max_concurrency)
    samples = Samples()
    gate = asyncio.Semaphore(load.max_concurrency)
    headers = {"Authorization": f"Bearer {load.api_key}"}
    done = 0
    async with httpx.AsyncClient(base_url=base_of(load.url), headers=headers, timeout=None, limits=limits) as client:
        model = load.model or await _first_model(client)

        async def one(body: dict[str, Any]) -> None:
            nonlocal done
            async with gate:
                await _stream(client, body, samples)
            done += 1
            progress(done, load.num_prompts)

        tasks: list[Awaitable[None]] = []
        begun = time.perf_counter()
        for _ in range(load.num_prompts):
            tasks.append(asyncio.create_task(one(_body(load, model, rng))))
            if load.request_rate and math.isfinite(load.request_rate):
                await asyncio.sleep(rng.expovariate(load.request_rate))
        await asyncio.gather(*tasks)
        samples.seconds = time.perf_counter() - begun
    return samples


async def _first_model(client: Any) -> str:
    answer = await client.get("/models")
    answer.raise_for_status()
    return str(answer.json()["data"][0]["id"])


def _body(load: Load, model: str, rng: random.Random) -> dict[str, Any]:
    prompt: list[int] | str = [rng.randrange(*VOCABULARY) for _ in range(load.input_len)]
    if load.prompts == "words":
        prompt = " ".join(rng.choice(WORDS) for _ in range(load.input_len))
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": load.output_len,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }


async def _stream(client: Any, body: dict[str, Any], samples: Samples) -> None:
    """One request, into the samples."""
    import httpx

    begun = last = time.perf_counter()
    first = None
    tokens = pieces = 0
    try:
        async with client.stream("POST", "/completions", json=body) as response:
            if response.status_code != 200:
                samples.errors.append(f"{response.status_code}: {(await response.aread())[:200]!r}")
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    samples.errors.append(event["error"]["message"])
                    return
                now = time.perf_counter()
                if event.get("choices"):
                    if first is None:
                        first = now
                        samples.ttft_ms.append((now - begun) * 1e3)
                    else:
                        samples.itl_ms.append((now - last) * 1e3)
                    last = now
                    pieces += 1
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
    except httpx.HTTPError as error:
        samples.errors.append(f"{type(error).__name__}: {error}")
        return
    tokens = tokens or pieces  # a server that reports no usage sends a token a piece, as a rule
    samples.num_tokens += tokens
    samples.e2e_ms.append((last - begun) * 1e3)
    if first is not None and tokens > 1:
        samples.tpot_ms.append((last - first) / (tokens - 1) * 1e3)
