"""The checkpoint's folder, from whichever model source knows its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from core.config import ModelConfig
from core.errors import BackplaneError, ModelError, PluginError
from core.interfaces.source import ModelSource
from core.registry import Registry

log = logging.getLogger("backplane")


def find_model(config: ModelConfig, registry: Registry) -> tuple[str, Path]:
    """The source's name, and a folder. Raises ModelError if no source knows the model.

    Nobody selects a source, all are asked: one that is broken is named in a warning and left out.
    """
    left_out: list[str] = []
    sources = sorted(_sources(registry, left_out), key=lambda s: s[0].rank)
    for source, label in sources:
        try:
            matches = source.matches(config.model)
        except Exception as error:  # plugin
            _leave_out(label, error, left_out)
            continue
        if not matches:
            continue
        try:
            return source.name, Path(source.resolve(config))
        except BackplaneError:
            raise
        except Exception as error:  # plugin
            raise PluginError(
                f"{label} failed for model {config.model!r}; mend it, or leave its plugin out with --disable-plugin"
            ) from error
    also = f"; left out as broken: {', '.join(left_out)}" if left_out else ""
    raise ModelError(f"no source knows model {config.model!r}; give a folder, a Hugging Face name, or 'demo'{also}")


def _sources(registry: Registry, left_out: list[str]) -> Iterator[tuple[ModelSource, str]]:
    for name in registry.names("model_source"):
        entry = registry.entry("model_source", name)
        label = f"model_source {name!r} of {entry.distribution} {entry.version}"
        try:
            source = registry.get("model_source", name)()
            if not isinstance(source.rank, int | float) or not isinstance(source.name, str):
                raise TypeError(f"rank is {source.rank!r} and name {source.name!r}; a number and a text are needed")
        except Exception as error:  # plugin
            entry.state, entry.error = "broken", str(error).splitlines()[0] if str(error) else type(error).__name__
            _leave_out(label, error, left_out)
            continue
        yield source, label


def _leave_out(label: str, error: Exception, left_out: list[str]) -> None:
    left_out.append(label)
    log.warning("%s is broken and left out: %s: %s", label, type(error).__name__, error)
