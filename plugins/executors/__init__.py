"""Executors. The one-device executor lives in core; it is registered here as any other."""

from core.hookspecs import hookimpl


@hookimpl
def register_executors(register) -> None:  # type: ignore[no-untyped-def]
    register("in_process", "core.executor.start:in_process")
