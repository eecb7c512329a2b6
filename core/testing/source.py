"""check_model_source: names that a source knows, and names that it must leave to others or refuse clearly."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from core.config import ModelConfig
from core.errors import ModelError
from core.executor.model_config import read_model_config
from core.interfaces.source import ModelSource


def check_model_source(
    source: Callable[[], ModelSource],
    found: Iterable[str | ModelConfig],
    *,
    missing: Iterable[str | ModelConfig] = (),
    others: Iterable[str] = ("demo", "./folder", "/a/folder", "owner/name"),
) -> None:
    """Raise AssertionError unless every name in `found` becomes a folder with config.json and weights.

    `missing` are names that the source claims and does not have: resolve() must raise ModelError that says the name.
    `others` belong to other sources: matches() must be False for them, or this source takes them away by its rank.
    """
    made = source()
    assert isinstance(made.rank, int), f"{made.name}: rank is {made.rank!r}, not a whole number"
    checked = 0
    for config in map(_config, found):
        name = config.model
        assert made.matches(name), f"{made.name}: matches({name!r}) is False, and it should be found here"
        folder = made.resolve(config)
        assert folder.is_dir(), f"{made.name}: {name!r} became {folder}, which is no folder"
        read_model_config(folder, {})
        assert list(folder.glob("*.safetensors")), f"{made.name}: {folder}, which {name!r} became, has no *.safetensors"
        checked += 1
    for config in map(_config, missing):
        name = config.model
        assert made.matches(name), f"{made.name}: matches({name!r}) is False; the message for a wrong name is another's"
        try:
            folder = made.resolve(config)
        except ModelError as error:
            assert name in str(error), f"{made.name}: the error for {name!r} does not say the name: {error}"
        except Exception as error:
            raise AssertionError(
                f"{made.name}: {name!r} raises {type(error).__name__}: {error}; raise core.errors.ModelError"
            ) from error
        else:
            raise AssertionError(f"{made.name}: {name!r} became {folder}, and there should be no such model")
        checked += 1
    for name in others:
        assert not made.matches(name), f"{made.name}: matches({name!r}) is True, and that name is another source's"
    assert checked, f"{made.name}: no names were given, nothing was checked"


def _config(name: str | ModelConfig) -> ModelConfig:
    return name if isinstance(name, ModelConfig) else ModelConfig(model=name)
