"""Which parsers read a model's answers: named by the options, or found by what the chat template says."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core.errors import PluginError, nearest

if TYPE_CHECKING:
    from core.registry import Registry
    from server.state import ServerState

log = logging.getLogger("backplane.server")


@dataclass(slots=True)
class ParserChoice:
    """A parser, by name, with what it looks for in the text."""

    name: str
    factory: Any
    markers: tuple[str, ...]


def choose_parser(registry: Registry, kind: str, wanted: str, template: str | None) -> ParserChoice | None:
    """The parser named, or for "auto" the first one all of whose markers stand in the chat template."""
    if wanted == "none":
        return None
    entries = [e for e in registry.entries if e.kind == kind]
    if wanted != "auto":
        for entry in entries:
            if entry.name == wanted:
                return _load(registry, entry, kind)
        names = [e.name for e in entries]
        raise PluginError(f"{kind} {wanted!r} is not registered ({', '.join(names) or 'none'}){nearest(wanted, names)}")
    for entry in entries:
        markers = tuple((entry.info or {}).get("markers", ()))
        if markers and template and all(m in template for m in markers):
            try:
                return _load(registry, entry, kind)
            except PluginError as error:
                log.warning("%s %r fits the chat template but does not load: %s", kind, entry.name, error)
    return None


def _load(registry: Registry, entry: Any, kind: str) -> ParserChoice:
    return ParserChoice(entry.name, registry.get(kind, entry.name), tuple((entry.info or {}).get("markers", ())))


class Parsers:
    """The model's parsers, chosen once when the app is made."""

    def __init__(self, state: ServerState) -> None:
        engine = state.engine
        template = getattr(engine.chat_template, "source", engine.chat_template)
        plugins = engine.config.plugins
        self.tools = choose_parser(engine.registry, "tool_parser", plugins.tool_call_parser, template)
        self.reasoning = choose_parser(engine.registry, "reasoning_parser", plugins.reasoning_parser, template)
        self._tokenizer = engine.tokenizer
        self.show_special = {p.name for p in (self.tools, self.reasoning) if p and self._has_special_marker(p)}

    def _has_special_marker(self, parser: ParserChoice) -> bool:
        """Its markers would be lost if special tokens were left out of the text."""
        if self._tokenizer is None:
            return False
        for marker in parser.markers:
            ids = self._tokenizer.encode(marker, add_special_tokens=False)
            if len(ids) == 1 and ids[0] in self._tokenizer.special_ids:
                return True
        return False
