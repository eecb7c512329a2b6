"""`engine doctor`: what this machine has, what would be chosen here, and what stands in the way."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from core.errors import BackplaneError

PACKAGES = (
    "backplane",
    "torch",
    "transformers",
    "tokenizers",
    "triton",
    "numba",
    "outlines-core",
    "llguidance",
    "litestar",
    "pyzmq",
)
NOT_INSTALLED = {
    "triton": " (only GPUs need it)",
    "numba": ' (makes CPUs faster, GPUs do not need it: pip install "backplane[cpu]")',
}
LOW_DISK_BYTES = 1 << 30
Finding = tuple[str, str]
"""(name, text); a name that begins with ! is a problem, with the way out"""


@click.command()
@click.option("--run", is_flag=True, help="Also answer one prompt with the demo model.")
def doctor(run: bool) -> None:
    """Say what this machine has and what would be chosen."""
    problems = 0
    for part in (_packages, _machine, _plugins, lambda: _engine(run)):
        for name, text in part():
            wrong = name.startswith("!")
            problems += wrong
            click.echo(click.style(name.lstrip("!").ljust(18), fg="red" if wrong else "cyan") + text)
    if problems:
        click.secho(f"{problems} problem{'s' * (problems > 1)} found", fg="red")
        raise SystemExit(1)
    click.secho("all is well", fg="green")


def _packages() -> Iterator[Finding]:
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, f"not installed{NOT_INSTALLED.get(name, '')}"


def _machine() -> Iterator[Finding]:
    import torch

    yield "cores", str(len(os.sched_getaffinity(0)))
    try:
        pages, free = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_AVPHYS_PAGES")
        size = os.sysconf("SC_PAGE_SIZE")
        yield "memory", f"{pages * size / 2**30:.1f} GiB, {free * size / 2**30:.1f} GiB free"
    except (ValueError, OSError):  # not on every system
        pass
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folder = next(p for p in (cache, *cache.parents) if p.exists())
    free_bytes = shutil.disk_usage(folder).free
    yield (
        ("!disk" if free_bytes < LOW_DISK_BYTES else "disk"),
        f"{free_bytes / 2**30:.1f} GiB free for downloads in {cache}"
        + ("; set --download-dir or HF_HOME to a larger disk" if free_bytes < LOW_DISK_BYTES else ""),
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            free, total = torch.cuda.mem_get_info(i)
            yield f"gpu {i}", f"{p.name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} GiB free, sm_{p.major}{p.minor}"
        try:
            importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            yield "!triton", 'is missing, and without it a GPU is slow; pip install "backplane[gpu]"'
    elif Path("/dev/nvidia0").exists() and torch.version.cuda is None:
        yield (
            "!gpu",
            f"there is one, and torch {torch.__version__} was built without CUDA; install a CUDA build of torch",
        )
    elif Path("/dev/nvidia0").exists():
        yield "!gpu", f"there is one, and torch (CUDA {torch.version.cuda}) does not see it; is the driver new enough?"
    else:
        yield "gpu", "none that torch sees; models run on the CPU"


def _plugins() -> Iterator[Finding]:
    from core.config import PluginConfig
    from core.errors import PluginError
    from core.registry import load_registry

    registry = load_registry(PluginConfig())
    yield "plugins", f"{len(registry.entries)} names of {len(registry.plugins)} plugins are ready"
    for b in registry.broken:
        yield "!plugin", f"{b.plugin} of {b.distribution} is broken: {b.error}; mend or remove it"
    for kind, name in sorted({(e.kind, e.name) for e in registry.entries}):
        try:
            registry.entry(kind, name)
        except PluginError as error:
            yield "!plugin", str(error)


def _engine(run: bool) -> Iterator[Finding]:
    """Start the demo model here and say what it chose."""
    from core import Engine, SamplingParams

    try:
        with Engine("demo") as engine:
            yield from engine.ready.choices.items()
            yield "start-up", ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in engine.ready.timeline)
            if run:
                hello = [{"role": "user", "content": "Hello!"}]
                (output,) = engine.chat(hello, SamplingParams(temperature=0, max_tokens=32))
                yield "answer", output.outputs[0].text
    except BackplaneError as error:
        yield "!engine", str(error)
