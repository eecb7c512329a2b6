"""Log lines of the server process: text for people, JSON for machines; and outputs that may fail without harm."""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from typing import Any

import msgspec


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return dict(getattr(record, "fields", {}))


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in _fields(record).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.getMessage()}{' ' + fields if fields else ''}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class _Output(io.TextIOBase):
    """A standard output whose disk may be full and whose reader may be gone: what cannot be written is lost.

    Nothing is kept for later, as Python's own would, which fails again when the process ends.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            pass
        return len(text)


def hold_outputs() -> None:
    """Standard outputs that are closed lead nowhere from now on, or a socket would get their numbers and be written to;
    errors of those that are open are passed over."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        try:
            ours = stream is None or stream.fileno() == descriptor
        except (OSError, ValueError):  # a test's or an embedding program's
            ours = False
        if ours and not isinstance(stream, _Output):
            setattr(sys, name, _Output(descriptor))


def set_up(log_format: str, level: str = "info") -> None:
    """Handlers of the process. Called by launch, not by whoever embeds the app."""
    hold_outputs()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    # a full disk or a closed pipe must not end requests
    logging.raiseExceptions = False
    root = logging.getLogger("backplane")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.WARNING)
        logger.propagate = False
