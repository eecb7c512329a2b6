"""Muon for the layers' matrices, Adam for the embedding and the norms.

Source: Muon, K. Jordan, 2024 (the coefficients of the iteration); its scale by shape, arXiv:2502.16982.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import nn

_A, _B, _C = 3.4445, -4.775, 2.0315


def orthogonal(updates: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[count, rows, columns] -> the nearest matrices whose singular values are all about one."""
    wide = updates.shape[1] <= updates.shape[2]
    x = updates if wide else updates.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return x if wide else x.mT


class Muon:
    """Matrices of one shape are stacked, so that a step is a few large products."""

    def __init__(self, parameters: list[nn.Parameter], momentum: float = 0.95, decay: float = 0.05) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            groups[parameter.shape].append(parameter)
        self.groups = list(groups.values())
        self.buffers = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, buffer in zip(self.groups, self.buffers, strict=True):
            gradients = torch.stack([p.grad for p in group if p.grad is not None])
            buffer.lerp_(gradients, 1 - self.momentum)
            update = gradients.lerp(buffer, self.momentum)
            work = torch.bfloat16 if update.is_cuda else torch.float32
            update = orthogonal(update.to(work)).float() * 0.2 * max(group[0].shape) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-rate)


class Optimizer:
    def __init__(self, network: nn.Module, matrix_rate: float, other_rate: float) -> None:
        matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in network.named_parameters() if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(
            others, lr=other_rate, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=others[0].is_cuda
        )
        self.parameters = [*matrices, *others]
        self.matrix_rate, self.other_rate = matrix_rate, other_rate

    def step(self, share: float) -> None:
        """`share` of the peak learning rates; gradients are cleared afterwards."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        self.muon.step(self.matrix_rate * share)
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * share
        self.adam.step()
        for parameter in self.parameters:
            parameter.grad = None
