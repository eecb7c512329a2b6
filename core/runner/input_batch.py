"""The rows on the device, and the ForwardBatch of a step made from them by array operations."""

from __future__ import annotations

import numpy as np
import torch

from core.batch import AttentionMetadata, ForwardBatch, StepPlan


class InputBatch:
    """token_ids and block tables by row. A step gathers from them; nothing is sent that the device has already."""

    def __init__(self, num_rows: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.device = device
        self.block_size = block_size
        self.token_ids = torch.zeros(num_rows, max_model_len + 1, dtype=torch.int32, device=device)
        self.on_host = device.type == "cpu"
        # kernels are compiled for strides that 16 divides; on a CPU wider tables only cost
        self._table_step = 1 if self.on_host else 16
        num_blocks = self._table_width(max_model_len)
        self.block_table = torch.zeros(num_rows, num_blocks, dtype=torch.int32, device=device)
        if self.on_host:
            # the same memory: an assignment by numpy costs a tenth of torch's
            self._token_ids_host, self._block_table_host = self.token_ids.numpy(), self.block_table.numpy()

    def _table_width(self, num_tokens: int) -> int:
        """Columns of a block table that names the blocks of so many tokens."""
        return -(-num_tokens // (self.block_size * self._table_step)) * self._table_step

    def send(self, array: np.ndarray) -> torch.Tensor:
        """Host to device without waiting."""
        tensor = torch.from_numpy(array)
        if self.on_host:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def host_buffer(self, rows: int, width: int) -> np.ndarray:
        """int32 [rows, width], of any content, on the host: `send` of it or of a part copies nothing there."""
        return torch.empty((rows, width), dtype=torch.int32, pin_memory=not self.on_host).numpy()

    def send_together(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        """Several arrays as int64 in one copy. Each begins at 16 bytes: a kernel is compiled anew for one that does not."""
        starts = np.cumsum([0, *(len(a) + len(a) % 2 for a in arrays)])
        packed = np.zeros(starts[-1], np.int64)
        for start, array in zip(starts, arrays, strict=False):
            packed[start : start + len(array)] = array
        sent = self.send(packed)
        return [sent[start : start + len(array)] for start, array in zip(starts.tolist(), arrays, strict=False)]

    def apply(self, plan: StepPlan) -> None:
        """Take in what changed: new rows' tokens, tokens that were not sampled, and new blocks."""
        if self.on_host:
            self._apply_on_host(plan)
            return
        if len(plan.known_tokens):
            # before new rows: one of these may have been left since
            known = self.send(plan.known_tokens.astype(np.int64))
            self.token_ids[known[:, 0], known[:, 1]] = known[:, 2].int()
        if plan.new_rows:
            # one copy for all of them: places in the flattened rows, then tokens
            width = self.token_ids.shape[1]
            places = [np.arange(n.row * width, n.row * width + len(n.token_ids)) for n in plan.new_rows]
            packed = self.send(np.concatenate([*places, *(n.token_ids for n in plan.new_rows)]).astype(np.int64))
            where, tokens = packed.chunk(2)
            self.token_ids.view(-1).index_copy_(0, where, tokens.int())
        if len(plan.block_updates):
            updates = self.send(plan.block_updates.astype(np.int64))
            self.block_table[updates[:, 0], updates[:, 1]] = updates[:, 2].int()

    def _apply_on_host(self, plan: StepPlan) -> None:
        known, updates = plan.known_tokens, plan.block_updates
        if len(known):
            self._token_ids_host[known[:, 0], known[:, 1]] = known[:, 2]
        for new in plan.new_rows:
            self._token_ids_host[new.row, : len(new.token_ids)] = new.token_ids
        if len(updates):
            self._block_table_host[updates[:, 0], updates[:, 1]] = updates[:, 2]

    def forward_batch(self, plan: StepPlan, caches: list) -> ForwardBatch:
        counts, computed = plan.num_scheduled, plan.num_computed
        num_requests = len(plan.rows)
        num_decodes = int(np.searchsorted(counts > 1, True))
        num_tokens = int(counts.sum())
        seq_lens = computed + counts
        starts = np.zeros(num_requests + 1, np.int64)
        np.cumsum(counts, out=starts[1:])
        if num_decodes == num_requests:
            rows_of_tokens, positions = plan.rows.astype(np.int64), computed.astype(np.int64)
        else:
            rows_of_tokens = np.repeat(plan.rows.astype(np.int64), counts)
            positions = np.arange(num_tokens) - np.repeat(starts[:-1] - computed, counts)
        # one array, one copy: rows and positions of tokens, then per request rows, starts, lengths
        token_rows, token_positions, rows, starts_d, lengths_d = self.send_together(
            rows_of_tokens, positions, plan.rows, starts, seq_lens
        )
        longest = int(seq_lens.max())
        blocks = self._table_width(longest)
        block = self.block_table[token_rows, token_positions // self.block_size].long()
        attention = AttentionMetadata(
            query_start_loc=starts_d.int(),
            seq_lens=lengths_d.int(),
            block_table=self.block_table[:, :blocks].index_select(0, rows),
            slot_mapping=block * self.block_size + token_positions % self.block_size,
            num_requests=num_requests,
            num_decodes=num_decodes,
            num_tokens=num_tokens,
            max_query_len=int(counts.max()),
            max_seq_len=longest,
            query_lens_host=counts,
            seq_lens_host=seq_lens,
            block_size=self.block_size,
        )
        return ForwardBatch(self.token_ids[token_rows, token_positions].long(), token_positions, attention, caches)
