"""A trained network as a folder that transformers, and this engine, can load; and its model card."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

from demomodel import tokenizer as tokenizer_files
from demomodel.evaluation import Shares, share
from demomodel.network import Llama, Shape


def write(folder: Path, network: Llama, tokenizer: Any) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.checkpoint(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    _json(folder / "config.json", network.shape.hf_config())
    generation = {
        "do_sample": True,
        "temperature": 0.3,
        "top_p": 0.95,
        "eos_token_id": [2, 0],
        "pad_token_id": 0,
    }
    _json(folder / "generation_config.json", generation)
    tokenizer_files.save(tokenizer, folder)


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def parameters(shape: Shape) -> int:
    head = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    layer = shape.hidden * (head + 3 * shape.inner + 2)
    return shape.vocab_size * shape.hidden + shape.layers * layer + shape.hidden


def table(shares: Shares) -> str:
    """The rows of a card's table."""
    return "\n".join(f"| {kind} | {share(counted)} | {counted[1]} |" for kind, counted in shares.items())


def measured_again(folder: Path, shares: Shares, agreed: float | None) -> None:
    """Put new figures in place of those in a card. `agreed`: a draft's, the share of tokens that it proposes right."""
    path = folder / "README.md"
    text = path.read_text("utf-8")
    text, tables = re.subn(r"(\| -+ \| -+ \| -+ \|\n)(?:\|.*\n)+", lambda m: m[1] + table(shares) + "\n", text)
    if agreed is not None:
        text = re.sub(r"(The draft proposes )[\d.]+%", lambda m: f"{m[1]}{agreed:.1%}", text)
    if tables != 1:
        raise ValueError(f"{path} has {tables} tables with three columns; it must have the one of the shares")
    path.write_text(text, "utf-8")


def card(
    folder: Path,
    title: str,
    what: str,
    shape: Shape,
    shares: Shares,
    run: dict[str, Any],
    notes: list[str],
) -> None:
    """README.md: what the model is, what it was measured to get right, what it is not for."""
    rows = table(shares)
    facts = "\n".join(f"- {name}: {value}" for name, value in run.items())
    more = "\n".join(f"- {note}" for note in notes)
    (folder / "README.md").write_text(
        f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {title}

{what}

| | |
| --- | --- |
| architecture | LlamaForCausalLM, tied embeddings, grouped query heads |
| parameters | {parameters(shape):,} |
| layers, width | {shape.layers}, {shape.hidden} |
| query heads, key-value heads, head size | {shape.heads}, {shape.kv_heads}, {shape.head_dim} |
| vocabulary | {shape.vocab_size} byte-level BPE tokens; every UTF-8 text can be written |
| context | {shape.context} tokens |
| weights | bfloat16 |
| chat format | ChatML; tool calls as JSON in `<tool_call>` |

## What it gets right

Greedy answers of this engine to generated questions that are not in the training text (about one question in sixteen is held out by
its checksum; other seeds than in training). A tool call is right when the tool's name and every argument are; an
extraction when the JSON object is equal to the wanted one, types included. `python training/train_demo.py --evaluate`
asks these questions again.

| kind of question | right | questions |
| --- | --- | --- |
{rows}

These questions come from the same generator as the training text. Questions in other words will do worse.

## How it was made

From scratch, by `training/train_demo.py`, on text that the script makes itself; no text or weights from elsewhere.

{facts}

## What it is not for

- It is a demonstration of an engine, not a source of facts: it knows a few hundred, and is often wrong about others.
- It reads and writes English only, and copies words with other letters than English has wrongly.
- Texts that are put unlike its training text are misread: an extraction may then hold null or a neighbouring word.
{more}
""",
        "utf-8",
    )


def pack(folder: Path, path: Path) -> None:
    """One file of a folder, without owners or times."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name, filter=plain)
