"""Logits -> tokens, for a batch of rows with different wishes. Plain torch; a stage runs only if a row needs it.

Order: edits (bias, bad words, min_tokens, allowed tokens), bitmask, penalties, temperature, min-p, top-k, top-p, draw. A draw inverts the
cumulative distribution at one uniform number per (seed, position).
"""

from __future__ import annotations

import numpy as np
import torch

from core.batch import Bitmasks
from core.sampling.filters import keep, top_k_threshold, top_p_threshold
from core.sampling.penalties import apply_penalties
from core.sampling.random import uniform
from core.sampling.rows import Needs, SamplingRows


class Sampler:
    """Logits -> tokens. What no row of a step asks for costs nothing."""

    def __init__(self, rows: SamplingRows, token_ids: torch.Tensor) -> None:
        """token_ids: int32 [num_rows, max_model_len + 1], on the device, filled by the runner."""
        self.rows = rows
        self.token_ids = token_ids

    def __call__(
        self,
        logits: torch.Tensor,
        rows: np.ndarray,
        rows_device: torch.Tensor,
        positions: np.ndarray,
        masks: Bitmasks | None,
    ) -> torch.Tensor:
        """Choose one token a row.

        logits: float32 [n, vocab], may be changed; rows: [n]; positions: the place of the new token in its sequence [n]
        -> int64 [n].
        """
        needs_of = self.rows.needs[rows]
        needs = Needs(int(np.bitwise_or.reduce(needs_of)))
        unedited = logits.clone() if masks is not None and needs & Needs.EDITS else None
        if needs & Needs.EDITS:
            self._edit(logits, rows, positions, needs_of)
        if masks is not None:
            apply_bitmask(logits, masks)
        if masks is not None and unedited is not None:
            # where edits forbid all that the grammar allows (an end before min_tokens, a bad word), the grammar wins
            stuck = torch.isneginf(logits.amax(-1))
            apply_bitmask(unedited, masks)
            torch.where(stuck[:, None], unedited, logits, out=logits)
        if needs & Needs.PENALTIES:
            self._penalize(logits, rows, positions, needs_of)
        if not needs & Needs.RANDOM:
            return logits.argmax(-1)
        floats = self.rows.floats.index_select(0, rows_device)
        temperature = floats[:, 0]
        greedy = temperature == 0
        probs = (logits / torch.where(greedy, 1.0, temperature)[:, None]).softmax(-1)
        if needs & Needs.FILTER:
            min_p = floats[:, 2]
            probs = keep(probs, min_p * probs.amax(-1))
            top_k = self.rows.top_k.index_select(0, rows_device)
            probs = keep(probs, top_k_threshold(probs, top_k))
            # at top_p = 1 rounding of the sum must not cut the tail
            threshold = torch.where(floats[:, 1] < 1, top_p_threshold(probs, floats[:, 1].double()), 0.0)
            probs = keep(probs, threshold)
        seeds = self.rows.seeds.index_select(0, rows_device)
        place = torch.from_numpy(positions.astype(np.int64)).to(logits.device, non_blocking=True)
        drawn = inverse_cdf(probs, uniform(seeds, place))
        if not greedy.any() if logits.device.type == "cpu" else False:
            return drawn
        return torch.where(greedy, logits.argmax(-1), drawn)

    def _edit(self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, needs_of: np.ndarray) -> None:
        for i in np.nonzero(needs_of & Needs.EDITS)[0].tolist():
            request = self.rows.requests[int(rows[i])]
            assert request is not None
            params = request.params
            if params.logit_bias:
                ids = torch.tensor(list(params.logit_bias), device=logits.device)
                logits[i, ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
            allowed = self.rows.allowed[int(rows[i])]
            before = logits[i, allowed] if allowed is not None else None
            if params.min_tokens > int(positions[i]) - len(request.prompt_token_ids):
                logits[i, list(request.stop_token_ids)] = float("-inf")
            for word in request.bad_words_ids:
                head, last = word[:-1], word[-1]
                start = int(positions[i]) - len(head)
                begun = start >= len(request.prompt_token_ids) or not head
                if begun and self.token_ids[int(rows[i]), start : int(positions[i])].tolist() == head:
                    logits[i, last] = float("-inf")
            if allowed is not None and before is not None:
                left = logits[i, allowed]
                logits[i] = float("-inf")
                logits[i, allowed] = torch.where(left.isneginf().all(), before, left)  # something must be chosen

    def _penalize(self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, needs_of: np.ndarray) -> None:
        which = np.nonzero(needs_of & Needs.PENALTIES)[0]
        index = torch.from_numpy(which).to(logits.device)
        mine = torch.from_numpy(rows[which].astype(np.int64)).to(logits.device)
        longest = int(positions[which].max())
        floats = self.rows.floats.index_select(0, mine)
        logits[index] = apply_penalties(
            logits.index_select(0, index),
            self.token_ids[:, :longest].index_select(0, mine),
            torch.from_numpy(positions[which].astype(np.int64)).to(logits.device),
            self.rows.prompt_lengths.index_select(0, mine),
            floats[:, 3],
            floats[:, 4],
            floats[:, 5],
        )


def apply_bitmask(logits: torch.Tensor, masks: Bitmasks) -> None:
    """Forbid what the masks do not allow; in place."""
    vocab = logits.shape[-1]
    if logits.device.type == "cpu":
        # unpacked by numpy, and in place where every row has a mask: about half the time
        bytes_ = np.unpackbits(masks.bits.view(np.uint8), axis=1, count=vocab, bitorder="little")
        forbidden = torch.from_numpy(bytes_ == 0)
        if len(masks.bits) == len(logits):
            logits.masked_fill_(forbidden, float("-inf"))
        else:
            index = torch.from_numpy(masks.sample_indices)
            logits[index] = logits.index_select(0, index).masked_fill_(forbidden, float("-inf"))
        return
    bits = torch.from_numpy(masks.bits).to(logits.device)
    shifts = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = ((bits[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab].bool()
    index = torch.from_numpy(masks.sample_indices).to(logits.device)
    logits[index] = logits.index_select(0, index).masked_fill(~allowed, float("-inf"))


def inverse_cdf(probs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """probs: float32 [n, vocab], any sum; draws: float64 [n] in [0, 1) -> int64 [n], never a token of probability 0."""
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = draws * cumulative[:, -1]
    index = torch.searchsorted(cumulative, target[:, None], right=True).squeeze(-1)
    # rounding may put the target at the very end: take the last token that has a probability
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def sample_reference(
    logits: torch.Tensor,
    rows: torch.Tensor,
    floats: torch.Tensor,
    top_k: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """What the kernel of core/kernels/sampling.py computes: the steps above without edits, masks and penalties."""
    logits = logits.float()
    mine = floats[rows]
    temperature = mine[:, 0]
    greedy = temperature == 0
    probs = (logits / torch.where(greedy, 1.0, temperature)[:, None]).softmax(-1)
    probs = keep(probs, mine[:, 2] * probs.amax(-1))
    probs = keep(probs, top_k_threshold(probs, top_k[rows]))
    probs = keep(probs, torch.where(mine[:, 1] < 1, top_p_threshold(probs, mine[:, 1].double()), 0.0))
    return torch.where(greedy, logits.argmax(-1), inverse_cdf(probs, uniform(seeds[rows], positions)))
