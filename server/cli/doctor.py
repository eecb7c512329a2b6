"""`engine doctor`: what this machine has and what would be chosen."""

from __future__ import annotations

import importlib.metadata
import os
import platform

import click


@click.command()
@click.option("--run", is_flag=True, help="Also answer one prompt with the demo model.")
def doctor(run: bool) -> None:
    """Say what this machine has and what would be chosen."""
    import torch

    from core.config import PluginConfig
    from core.registry import load_registry

    click.echo(f"python        {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in ("backplane", "torch", "transformers", "tokenizers", "triton", "litestar", "pyzmq"):
        try:
            click.echo(f"{name:<13} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            click.echo(f"{name:<13} not installed{' (only GPUs need it)' if name == 'triton' else ''}")
    click.echo(f"cores         {len(os.sched_getaffinity(0))}")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            click.echo(f"gpu {i}         {p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}")
    else:
        click.echo("gpu           none that torch sees; the model runs on the CPU")
    registry = load_registry(PluginConfig())
    click.echo(f"plugins       {len(registry.entries)} names ready, {len(registry.broken)} plugins broken")
    for b in registry.broken:
        click.echo(f"              {b.plugin} of {b.distribution}: {b.error}")
    if run:
        from core import Engine, SamplingParams

        with Engine() as engine:
            for name, choice in engine.ready.choices.items():
                click.echo(f"{name:<13} {choice}")
            (output,) = engine.chat(
                [{"role": "user", "content": "Hello!"}], SamplingParams(temperature=0, max_tokens=32)
            )
            click.echo(f"answer        {output.outputs[0].text}")
