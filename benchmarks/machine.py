"""What a figure was measured with, and where figures are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?"
    )
    versions = {}
    for name in (
        "torch",
        "transformers",
        "numpy",
        "llama_cpp_python",
        "litestar",
        "uvicorn",
        "fastapi",
        "pydantic",
        "llguidance",
        "outlines_core",
        "xgrammar",
    ):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
    }


def write(name: str, figures: dict[str, Any]) -> None:
    record = {"machine": describe(), **figures}
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
