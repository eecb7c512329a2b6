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
    source, label, broken = _first_that_knows(config.model, registry)
    for name, error in broken:
        log.warning("%s is broken and left out: %s: %s", name, type(error).__name__, error)
    if source is None:
        also = f"; left out as broken: {', '.join(name for name, _ in broken)}" if broken else ""
        raise ModelError(f"no source knows model {config.model!r}; give a folder, a Hugging Face name, or 'demo'{also}")
    try:
        return source.name, Path(source.resolve(config))
    except BackplaneError:
        raise
    except Exception as error:  # plugin
        raise PluginError(
            f"{label} failed for model {config.model!r}; mend it, or leave its plugin out with --disable-plugin"
        ) from error


def find_local_model(config: ModelConfig, registry: Registry) -> Path | None:
    """The folder that `find_model` will find, if nothing has to be fetched for it. Tells of nothing that is wrong."""
    source, _, _ = _first_that_knows(config.model, registry)
    if not getattr(source, "local", False):
        return None
    assert source is not None
    try:
        return Path(source.resolve(config))
    except Exception:  # plugin, or no such folder
        return None


def _first_that_knows(model: str, registry: Registry) -> tuple[ModelSource | None, str, list[tuple[str, Exception]]]:
    """The source of the lowest rank that knows the model, its label, and those that could not be asked."""
    broken: list[tuple[str, Exception]] = []
    for source, label in sorted(_sources(registry, broken), key=lambda s: s[0].rank):
        try:
            if source.matches(model):
                return source, label, broken
        except Exception as error:  # plugin
            broken.append((label, error))
    return None, "", broken


def _sources(registry: Registry, broken: list[tuple[str, Exception]]) -> Iterator[tuple[ModelSource, str]]:
    for name in registry.names("model_source"):
        entry = registry.entry("model_source", name)
        label = f"model_source {name!r} of {entry.distribution} {entry.version}"
        try:
            source = registry.get("model_source", name)()
            if not isinstance(source.rank, int | float) or not isinstance(source.name, str):
                raise TypeError(f"rank is {source.rank!r} and name {source.name!r}; a number and a text are needed")
        except Exception as error:  # plugin
            entry.state, entry.error = "broken", str(error).splitlines()[0] if str(error) else type(error).__name__
            broken.append((label, error))
            continue
        yield source, label
