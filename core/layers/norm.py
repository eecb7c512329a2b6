"""RMS norm, alone and with the residual addition in front of it. Source: arXiv:1910.07467."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from core.kernels import dispatch


class RMSNorm(nn.Module):
    """Root mean square norm. Source: arXiv:1910.07467."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dtype=dtype, device=device), requires_grad=False)
        self.eps = eps
        self._scaled: torch.Tensor | None = None
        # x / sqrt(mean(x^2) + eps) = x sqrt(size) / hypot(|x|, sqrt(size eps)): four operations instead of seven
        self._floor = torch.tensor((size * eps) ** 0.5, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> the same; the mean is taken in float32."""
        if dispatch.has_kernels(x):
            return dispatch.rms_norm(x, self.weight, self.eps)
        if x.dtype == torch.float32 and x.device.type == "cpu":
            if self._scaled is None:
                self._scaled = self.weight * self.weight.numel() ** 0.5
            length = torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), self._floor)
            return x.div(length).mul_(self._scaled)
        if x.dtype == torch.float32:
            return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight

    def add(self, x: torch.Tensor | None, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm(x + residual), x + residual); where there is a kernel the sum is written over `residual`.

        x None: it is in the residual already (Linear.onto)
        """
        if x is None:
            return self.forward(residual), residual
        if dispatch.has_kernels(x):
            return dispatch.add_rms_norm(x, residual, self.weight, self.eps)
        total = x + residual
        return self.forward(total), total
