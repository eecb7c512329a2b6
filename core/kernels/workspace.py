"""Scratch memory that kernels of one stream share: partial results, and counters of who has arrived."""

from __future__ import annotations

import torch

_workspaces: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}


def workspace(device: torch.device, floats: int, counters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Partial sums and arrival counters. Kernels of one stream take turns with it; the counters end as zeros."""
    have = _workspaces.get(device)
    if have is None or have[0].numel() < floats or have[1].numel() < counters:
        # a capture keeps using what it was captured with, so the old one must stay alive: both are kept by graphs
        made = (
            torch.empty(max(floats, 1 << 23), dtype=torch.float32, device=device),
            torch.zeros(max(counters, 1 << 14), dtype=torch.int32, device=device),
        )
        if have is not None:
            _retired.append(have)
        _workspaces[device] = have = made
    return have


_retired: list[tuple[torch.Tensor, torch.Tensor]] = []
