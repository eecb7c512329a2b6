"""Guided-decoding backends; `auto` asks them in the order of their rank."""

from core.hookspecs import hookimpl


@hookimpl
def register_guided_backends(register) -> None:  # type: ignore[no-untyped-def]
    register("llguidance", "plugins.guided.llguidance:LLGuidanceBackend", rank=0)
    register("outlines", "plugins.guided.outlines:OutlinesBackend", rank=10)
    register("xgrammar", "plugins.guided.xgrammar:XGrammarBackend", rank=20)
