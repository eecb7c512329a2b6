"""Paged attention in plain torch: for CPUs, and the reference elsewhere."""

from core.hookspecs import hookimpl


@hookimpl
def register_attention_backends(register) -> None:  # type: ignore[no-untyped-def]
    register("torch", "plugins.attention.torch.backend:TorchBackend", devices=("cpu", "cuda"))
