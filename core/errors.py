"""Every exception that users of the engine can meet.

    BackplaneError
    ├── ConfigError (ValueError)        an option's value is off, or two options exclude each other
    ├── PluginError                     a plugin is unknown, broken, or in conflict with another
    ├── ModelError                      a checkpoint or its config cannot be served
    ├── RequestError (ValueError)       one request is wrong; nothing else is touched (HTTP 400)
    │   └── QueueFullError              too many requests wait (HTTP 429)
    ├── CapacityError                   the device's memory does not hold what was asked for
    ├── RequestAbortedError             the request was ended before it was done
    └── EngineDeadError                 the engine process is gone; requests in flight are lost (HTTP 503)

A message names the thing, its value, what is allowed, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BackplaneError(Exception):
    """Base of every error that Backplane raises on purpose."""


class ConfigError(BackplaneError, ValueError):
    """An option's value is not allowed."""


class PluginError(BackplaneError):
    """A plugin is unknown, broken, or in conflict with another."""


class ModelError(BackplaneError):
    """A checkpoint or its config cannot be served."""


class RequestError(BackplaneError, ValueError):
    """One request is wrong. `param` names the offending field, as the user spelled it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFullError(RequestError):
    """The waiting queue is at its limit; try again later."""


class CapacityError(BackplaneError):
    """The device's memory does not hold what was asked for."""


class RequestAbortedError(BackplaneError):
    """The request was ended before it was done."""


class EngineDeadError(BackplaneError):
    """The engine process is gone; whatever was in flight is lost."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest allowed name, or an empty string."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
