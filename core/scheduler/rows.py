"""The running requests as arrays, one row each: what every step reads and writes. Knows neither blocks nor policy.

A step touches the arrays by whole batches; a single row is touched when it enters, leaves, or may have ended.
"""

from __future__ import annotations

import numpy as np

from core.request import Request, RequestState

STOP_FILTER_SIZE = 8192
"""Slots of the filter for stop ids; a power of two. A false alarm costs one row the slow path, nothing else."""


class Rows:
    """The state of running requests in arrays, one row each."""

    def __init__(self, num_rows: int, max_model_len: int) -> None:
        self.request_of: list[Request | None] = [None] * num_rows
        self.handle_of = np.full(num_rows, -1, np.int64)
        self.epoch = np.zeros(num_rows, np.int64)
        """Changes with the tenant, so that a late result is told from the new tenant's."""
        self.free = list(range(num_rows - 1, -1, -1))
        self.running: list[int] = []
        """Oldest admission first."""
        self.token_ids = np.zeros((num_rows, max_model_len + 1), np.int32)
        self.known = np.zeros(num_rows, np.int32)
        """Tokens in token_ids."""
        self.num_tokens = np.zeros(num_rows, np.int32)
        """With those still being sampled."""
        self.num_computed = np.zeros(num_rows, np.int32)
        self.prompt_len = np.zeros(num_rows, np.int32)
        self.max_total = np.zeros(num_rows, np.int32)
        self.stream = np.zeros(num_rows, bool)
        self.pools = np.zeros(num_rows, bool)
        self.num_pooling = 0
        """Running rows that pool: their last token samples nothing."""
        self._order: np.ndarray | None = None
        self._flat_tokens = self.token_ids.reshape(-1)
        # how many rows stop at an id with these low bits
        self._stops = np.zeros(STOP_FILTER_SIZE, np.int32)

    @property
    def order(self) -> np.ndarray:
        """int64: `running` as an array. Not to be written."""
        if self._order is None:
            self._order = np.array(self.running, np.int64)
        return self._order

    def enter(self, request: Request, tokens: np.ndarray, num_computed: int) -> int:
        """Give `request` a row; `tokens` are its prompt and outputs so far."""
        row = self.free.pop()
        self.request_of[row] = request
        self.handle_of[row] = request.handle
        self.epoch[row] += 1
        self.token_ids[row, : len(tokens)] = tokens
        self.known[row] = self.num_tokens[row] = len(tokens)
        self.num_computed[row] = num_computed
        self.prompt_len[row] = len(request.prompt_token_ids)
        self.max_total[row] = request.max_total_tokens
        self.stream[row] = request.stream
        self.pools[row] = request.pooling is not None
        self.num_pooling += int(self.pools[row])
        for token in request.stop_token_ids:
            self._stops[token % STOP_FILTER_SIZE] += 1
        self.running.append(row)
        self._order = None
        request.row, request.state = row, RequestState.RUNNING
        return row

    def leave(self, request: Request) -> None:
        """Take the row back; what is known of the output moves to the request."""
        row = request.row
        request.output_token_ids = self.token_ids[row, self.prompt_len[row] : self.known[row]].tolist()
        for token in request.stop_token_ids:
            self._stops[token % STOP_FILTER_SIZE] -= 1
        self.num_pooling -= int(self.pools[row])
        self.request_of[row] = None
        self.handle_of[row] = -1
        self.epoch[row] += 1
        self.running.remove(row)
        self._order = None
        self.free.append(row)
        request.row = -1

    def append(self, row: int, token_ids: list[int]) -> np.ndarray:
        """Put tokens that need no sampling after the row's last, which may still be being sampled.

        -> int32 [k, 3] of (row, position, token), for the device. `known` counts them when `reveal` says so.
        """
        start = int(self.num_tokens[row])
        end = start + len(token_ids)
        assert end < self.max_total[row], "the last token of a row is sampled"
        self.token_ids[row, start:end] = token_ids
        self.num_tokens[row] = end
        return np.stack([np.full(len(token_ids), row), np.arange(start, end), np.array(token_ids)], 1).astype(np.int32)

    def reveal(self, row: int, count: int) -> None:
        """So many tokens that were appended follow the known ones without a gap."""
        self.known[row] += count

    def write(self, rows: np.ndarray, positions: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
        """Put one sampled token into each row. Returns the indices (into `rows`) of those that may end with it."""
        self._flat_tokens[rows * self.token_ids.shape[1] + positions] = token_ids
        known = positions + 1
        self.known[rows] = known
        may_stop = self._stops.take(token_ids & (STOP_FILTER_SIZE - 1)) > 0
        return np.nonzero(may_stop | (known >= self.max_total.take(rows)))[0]
