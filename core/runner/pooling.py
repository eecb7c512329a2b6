"""Hidden states -> one vector a sequence, for rows that pool. Knows neither norms nor dimensions: see core/pooling.py.

A prompt may be computed in chunks, so a mean is a sum by row that grows until the last one. Nothing is kept before the
first row that needs it, and nothing is done in steps without such rows.
"""

from __future__ import annotations

import numpy as np
import torch

from core.batch import StepPlan
from core.request import Request
from core.runner.input_batch import InputBatch


class Pooler:
    """Hidden states of prompts -> one vector each, over as many steps as a prompt takes."""

    def __init__(self, batch: InputBatch) -> None:
        self._batch = batch
        self._sums: torch.Tensor | None = None
        """float32 [num_rows, hidden]"""

    def pool(
        self, plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray, pooled: list[tuple[int, Request]]
    ) -> tuple[list[int], torch.Tensor | None]:
        """Take in one step's states. hidden: [num_tokens, hidden]; pooled: (index in the plan, request).

        -> rows whose prompt ended, and their vectors, float32 [len(rows), hidden], on the device
        """
        done = [(i, r) for i, r in pooled if plan.num_computed[i] + plan.num_scheduled[i] == len(r.prompt_token_ids)]
        means = [i for i, r in pooled if r.pooling == "mean"]
        if means:
            self._add(plan, hidden, ends, np.array(means))
        if not done:
            return [], None
        rows = plan.rows[[i for i, _ in done]]
        vectors = hidden.index_select(0, self._batch.send(ends[[i for i, _ in done]] - 1)).float()
        ended = [(at, r) for at, (_, r) in enumerate(done) if r.pooling == "mean"]
        if ended:
            assert self._sums is not None
            places = self._batch.send(np.array([at for at, _ in ended]))
            lengths = self._batch.send(np.array([[len(r.prompt_token_ids)] for _, r in ended], np.float32))
            whose = self._batch.send(rows[[at for at, _ in ended]].astype(np.int64))
            vectors.index_copy_(0, places, self._sums.index_select(0, whose) / lengths)
        return rows.tolist(), vectors

    def _add(self, plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray, indices: np.ndarray) -> None:
        """Add this step's states to the sums of these rows; the first chunk of a prompt begins the sum anew."""
        if self._sums is None:
            rows = self._batch.token_ids.shape[0]
            self._sums = torch.zeros(rows, hidden.shape[1], dtype=torch.float32, device=hidden.device)
        counts = plan.num_scheduled[indices].astype(np.int64)
        tokens = np.concatenate([np.arange(e - n, e) for e, n in zip(ends[indices].tolist(), counts, strict=True)])
        states = hidden.index_select(0, self._batch.send(tokens)).float()
        new = torch.segment_reduce(states, "sum", lengths=self._batch.send(counts), axis=0)
        rows_device = self._batch.send(plan.rows[indices].astype(np.int64))
        goes_on = self._batch.send((plan.num_computed[indices] > 0)[:, None])
        old = self._sums.index_select(0, rows_device)
        self._sums.index_copy_(0, rows_device, torch.where(goes_on, old + new, new))
