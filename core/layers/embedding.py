"""Token ids -> hidden states."""

from __future__ import annotations

import torch
from torch import nn

from core.kernels import dispatch


class Embedding(nn.Module):
    """Token ids -> vectors; the weight may be the output's too."""

    def __init__(self, vocab_size: int, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(vocab_size, hidden_size, dtype=dtype, device=device), requires_grad=False
        )

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [num_tokens] -> [num_tokens, hidden]"""
        return dispatch.embedding(token_ids, self.weight)
