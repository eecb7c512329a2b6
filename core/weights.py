"""safetensors -> named tensors -> parameters, by a model's WeightMap. Streamed: one tensor at a time, memory mapped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from core.errors import ModelError
from core.interfaces.model import WeightMap
from core.layers.linear import Linear


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, single or sharded."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            held = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
            raise ModelError(f"{index} is not a safetensors index: {error!r}; download it again") from error
        # an index comes from strangers: it may name files beside it, and no others
        bad = [n for n in held if not isinstance(n, str) or Path(n).name != n]
        if bad or not held:
            what = f"names {bad[0]!r}, which is no file beside it" if bad else "names no files"
            raise ModelError(f"{index} {what}; download it again")
        names = sorted(set(held))
        missing = [n for n in names if not (folder / n).exists()]
        if missing:
            raise ModelError(f"{index} names {missing[0]}, which is not there; download the checkpoint again")
        return [folder / n for n in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"{folder} holds no *.safetensors; convert the checkpoint to safetensors, or use load_format='dummy'"
        )
    return files


def read_tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """(name, tensor, file) of every tensor, one at a time."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    yield name, file.get_tensor(name), path
        except (SafetensorError, OSError) as error:
            if _is_lfs_pointer(path):
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
                ) from error
            raise ModelError(f"{path} cannot be read ({error}); it may be cut off: download it again") from error


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(24) == b"version https://git-lfs."


def load_weights(
    model: nn.Module, weight_map: WeightMap, files: list[Path], progress: Callable[[int, int], None] | None = None
) -> None:
    """Fill every parameter of `model`. Raises ModelError for tensors missing, left over or of another shape.

    progress(bytes done, bytes of all files) is called after every tensor.
    """
    done, total = 0, sum(path.stat().st_size for path in files if path.exists())
    parameters = dict(model.named_parameters())
    fused: dict[str, tuple[str, int]] = {}
    for target, sources in weight_map.fused.items():
        for i, source in enumerate(sources):
            fused[source] = (target, i)
    missing: dict[str, set[int]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            for key, _ in module.named_parameters(recurse=False):
                sizes[f"{name}.{key}"] = module.spec.output_sizes
    for name in parameters:
        parts = next((len(s) for t, s in weight_map.fused.items() if name.endswith("." + t)), 1)
        missing[name] = set(range(parts))
    for stored_name, tensor, path in read_tensors(files):
        done += tensor.numel() * tensor.element_size()
        if progress is not None:
            progress(done, total)
        name = stored_name
        for old, new in weight_map.renames:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        if any(name.endswith(suffix) for suffix in weight_map.ignored):
            continue
        target, part = name, 0
        for source, (suffix, index) in fused.items():
            if name.endswith("." + source):
                target, part = name[: -len(source)] + suffix, index
                break
        parameter = parameters.get(target)
        if parameter is None:
            raise ModelError(f"{path} holds {stored_name!r}, which this architecture has no place for")
        destination = parameter.data
        if len(missing[target] | {part}) > 1 or target != name:
            rows = sizes[target]
            destination = destination.narrow(0, sum(rows[:part]), rows[part])
        if destination.shape != tensor.shape:
            raise ModelError(
                f"{stored_name!r} in {path} has shape {tuple(tensor.shape)} and config.json makes it "
                f"{tuple(destination.shape)}; config and weights do not belong together"
            )
        if not tensor.is_floating_point() and destination.is_floating_point():
            raise ModelError(f"{stored_name!r} in {path} is {tensor.dtype}, not a float type; is it quantized?")
        destination.copy_(tensor)
        missing[target].discard(part)
    lacking = sorted(_stored_name(n, part, weight_map) for n, parts in missing.items() for part in parts)
    if lacking:
        raise ModelError(
            f"{files[0].parent} lacks {len(lacking)} tensors, the first is {lacking[0]!r}; download it again"
        )


def _stored_name(name: str, part: int, weight_map: WeightMap) -> str:
    """What a checkpoint calls the `part`-th piece of a parameter."""
    for target, sources in weight_map.fused.items():
        if name.endswith("." + target):
            return name[: -len(target)] + sources[part]
    return name


def fill_dummy(model: nn.Module, seed: int) -> None:
    """Seeded random weights, small enough that activations stay finite."""
    for i, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator(parameter.device).manual_seed(seed * 100_003 + i)
        if parameter.is_floating_point() and parameter.element_size() >= 2:
            if "norm" in name:
                parameter.data.fill_(1.0)
            else:
                parameter.data.normal_(0, 0.02, generator=generator)
        else:
            parameter.data.view(torch.uint8).random_(0, 64, generator=generator)


def finish_linears(model: nn.Module) -> None:
    """Let every linear layer repack what was loaded."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.finish()
