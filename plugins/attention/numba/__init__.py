"""Paged attention for CPUs, compiled by Numba (the extra `cpu`)."""

from core.hookspecs import hookimpl


@hookimpl
def register_attention_backends(register) -> None:  # type: ignore[no-untyped-def]
    needs = {"numba": "pip install 'backplane[cpu]'"}
    register("numba", "plugins.attention.numba.backend:NumbaBackend", devices=("cpu",), needs=needs)
