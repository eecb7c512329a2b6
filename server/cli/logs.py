"""How log lines look: coloured on a terminal, plain in a pipe."""

from __future__ import annotations

import logging
import sys


def set_up_logs(level: str) -> None:
    logger = logging.getLogger("backplane")
    logger.setLevel(level.upper())
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
