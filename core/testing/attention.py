"""check_attention_backend: a backend against attention without blocks, over cases that paging makes hard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.interfaces.attention import AttentionBackend, AttentionCapabilities, AttentionSpec
from core.testing.batches import Step, forward_batch, in_order, one_thread, scattered_table
from core.testing.plain_attention import dense_attention

TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""By which an output may differ, beside its own size and 1."""


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Requests that meet in one step, after earlier steps have put what they hold already into the cache."""

    name: str
    lengths: tuple[tuple[int, int], ...]
    """(new tokens, tokens before them) of each request, decodes first"""
    heads: tuple[int, int] = (4, 2)
    """Query heads, key and value heads."""
    head_dim: int = 16
    windows: tuple[int | None, ...] = (None,)
    """One layer each; the layers share a plan, as in a model that mixes them."""
    soft_cap: float | None = None
    alibi_slopes: tuple[float, ...] | None = None
    block_size: int = 16
    padding: int = 0
    """Rows that fill a captured graph up: one token, no key; only for backends with graph_capture."""
    common: int = 0
    """So many first tokens of every request (whole blocks) lie in the same blocks, and the step says so."""
    seed: int = 0

    def fits(self, capabilities: AttentionCapabilities) -> bool:
        """May the backend be asked for this?"""
        return (
            (capabilities.window or not any(self.windows))
            and (capabilities.soft_cap or self.soft_cap is None)
            and (capabilities.alibi or self.alibi_slopes is None)
            and (capabilities.graph_capture or not self.padding)
            and (capabilities.head_dims is None or self.head_dim in capabilities.head_dims)
            and (capabilities.block_sizes is None or self.block_size in capabilities.block_sizes)
        )


_DECODES = ((1, 0), (1, 15), (1, 16), (1, 40), (1, 6), (1, 31))
_MIXED = ((1, 30), (1, 3), (17, 0), (5, 20), (33, 0), (16, 16), (2, 0), (3, 46))
_SHARED = ((1, 48), (1, 50), (1, 63), (1, 90))

ATTENTION_CASES: tuple[AttentionCase, ...] = (
    AttentionCase("first token", ((1, 0),)),
    AttentionCase("one decode", ((1, 62),)),
    AttentionCase("decodes of many lengths", _DECODES),
    AttentionCase("a long decode beside short ones", ((1, 3), (1, 300), (1, 16))),
    AttentionCase("prompts", ((17, 0), (2, 0), (33, 0), (16, 0))),
    AttentionCase("chunks", ((7, 56), (33, 100), (16, 16))),
    AttentionCase("decodes and prompts", _MIXED),
    AttentionCase("a head each", _MIXED, heads=(3, 3)),
    AttentionCase("many heads share one", _MIXED, heads=(7, 1), head_dim=32),
    AttentionCase("large heads", _MIXED[:4], heads=(2, 1), head_dim=128),
    AttentionCase("heads of 64", _MIXED[:4], heads=(8, 2), head_dim=64),
    AttentionCase("head size 20", _MIXED[:4], head_dim=20),
    AttentionCase("blocks of 4", _MIXED[:5], block_size=4),
    AttentionCase("blocks of 64", _MIXED, block_size=64),
    AttentionCase("window", _MIXED, windows=(9,)),
    AttentionCase("window of one token", _DECODES[:3], windows=(1,)),
    AttentionCase("layers with and without a window", _MIXED, windows=(9, None, 20)),
    AttentionCase("soft cap", _MIXED[:4], soft_cap=1.5),
    AttentionCase("alibi", _MIXED[:4], alibi_slopes=(0.5, 0.25, 0.125, 0.06)),
    AttentionCase("rows of padding", _DECODES[:3], padding=2),
    AttentionCase("a prefix that all share", _SHARED, common=48),
    AttentionCase("a prefix that all share, rows of padding", _SHARED[:2], common=32, padding=1),
    AttentionCase("a prefix that all share, window", _SHARED, common=48, windows=(20,)),
)


def check_attention_backend(
    backend: Callable[[torch.device], AttentionBackend],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    cases: Iterable[AttentionCase] = ATTENTION_CASES,
    tolerance: float | None = None,
) -> list[str]:
    """Raise AssertionError unless the backend (its class) gives what plain attention gives, in every case it claims.

    Each case runs several steps: what requests hold already is written by the backend itself, in chunks, so its cache
    may have any layout. The pool and everything that forward() takes with torch.empty start as NaN; entries of the
    block table behind a request's end are stale; query, key and value are slices of one tensor; blocks that a step
    does not write must stay as they are.

    -> names of the cases that ran: those that `capabilities` promises.
    """
    made = backend(torch.device(device))
    claims = made.capabilities
    assert device in claims.devices, f"{made.name}: {device!r} is not in capabilities.devices {sorted(claims.devices)}"
    assert dtype in claims.dtypes, f"{made.name}: {dtype!r} is not in capabilities.dtypes {sorted(claims.dtypes)}"
    ran = []
    with one_thread():
        for case in cases:
            if case.fits(claims):
                _Run(case, made, torch.device(device), getattr(torch, dtype), tolerance or TOLERANCES[dtype]).check()
                ran.append(case.name)
    assert ran, f"{made.name}: its capabilities fit none of the cases, nothing was checked: {claims}"
    return ran


class _Run:
    """One case on one backend."""

    def __init__(
        self, case: AttentionCase, backend: AttentionBackend, device: torch.device, dtype: torch.dtype, tolerance: float
    ) -> None:
        self.case, self.backend, self.device, self.tolerance = case, backend, device, tolerance
        heads, kv_heads = case.heads
        spec = AttentionSpec(
            heads, kv_heads, case.head_dim, case.head_dim**-0.5, None, case.soft_cap, case.alibi_slopes
        )
        self.specs = [replace(spec, window=window) for window in case.windows]
        totals = [new + before for new, before in case.lengths]
        self.table, num_blocks = scattered_table(totals, case.block_size, case.seed, case.common)
        generator = torch.Generator().manual_seed(case.seed)
        # per layer and request: [length, query heads + key heads + value heads, head_dim]
        self.tokens = [
            [torch.randn(n, heads + 2 * kv_heads, case.head_dim, generator=generator).to(device, dtype) for n in totals]
            for _ in self.specs
        ]
        for layer in self.tokens:
            for request in layer[1:]:
                request[: case.common] = layer[0][: case.common]
        self.caches = [backend.allocate(s, num_blocks, case.block_size, dtype) for s in self.specs]
        for cache in self.caches:
            for tensor in cache:
                assert len(tensor) == num_blocks, (
                    f"{backend.name}: allocate({num_blocks} blocks) gave a tensor of shape {tuple(tensor.shape)}; "
                    "dimension 0 must be the block"
                )
                if tensor.is_floating_point():
                    tensor.fill_(float("nan"))
        self.done = [0] * len(totals)

    def check(self) -> None:
        steps = list(_earlier_steps(self.case))
        for number, step in enumerate(steps):
            self._step(step, f"earlier step {number + 1} of {len(steps)}", last=False)
        self._step([(i, new) for i, (new, _) in enumerate(self.case.lengths)], "the step", last=True)

    def _step(self, step: Step, label: str, *, last: bool) -> None:
        case = self.case
        step = in_order(step)
        for request, new in step:
            if case.common and request > 0 and self.done[request] < case.common:
                self.done[request] = case.common  # there already: the first request wrote it
            self.done[request] += new
        padding = case.padding if last else 0
        members = [request for request, _ in step]
        table = torch.cat([self.table[members], self.table[:1].expand(padding, -1)])
        batch = forward_batch(
            [new for _, new in step] + [1] * padding,
            [self.done[request] for request in members] + [0] * padding,
            table,
            case.block_size,
            device=self.device,
            common_prefix=case.common if last else 0,
        )
        written = torch.unique(batch.attention.slot_mapping // case.block_size).tolist()
        with _PoisonedMemory():
            self.backend.plan(batch)
        for index, spec in enumerate(self.specs):
            layer = f"{label}, layer {index + 1} (window {spec.window})" if len(self.specs) > 1 else label
            parts = [self.tokens[index][r][self.done[r] - new : self.done[r]] for r, new in step]
            pad = torch.randn(padding, *parts[0].shape[1:], dtype=parts[0].dtype, device=self.device)
            fused = torch.cat([*parts, pad])
            query, key, value = fused.split([spec.num_heads, spec.num_kv_heads, spec.num_kv_heads], 1)
            before = [t.clone() for t in self.caches[index]]
            with torch.inference_mode(), _PoisonedMemory():
                out = self.backend.forward(spec, query, key, value, self.caches[index], batch)
            self._compare(out, query, spec, index, step, layer)
            self._untouched(before, self.caches[index], written, layer)

    def _where(self, label: str) -> str:
        return f"{self.backend.name}: case {self.case.name!r}, {label}"

    def _compare(
        self, out: torch.Tensor, query: torch.Tensor, spec: AttentionSpec, index: int, step: Step, label: str
    ) -> None:
        assert out.shape == query.shape and out.dtype == query.dtype, (
            f"{self._where(label)}: the output is {out.dtype} {tuple(out.shape)}; "
            f"it must be as query is, {query.dtype} {tuple(query.shape)}"
        )
        start = 0
        for request, new in step:
            total = self.done[request]
            q, k, v = self.tokens[index][request][:total].split([spec.num_heads, *[spec.num_kv_heads] * 2], 1)
            wanted = dense_attention(spec, q[total - new :], k, v)
            got = out[start : start + new].float()
            start += new
            error = (got - wanted).abs() / (1 + wanted.abs())
            error = torch.where(error.isnan(), torch.inf, error)
            if float(error.max()) > self.tolerance:
                token, head, at = (int(i) for i in torch.unravel_index(error.argmax(), error.shape))
                raise AssertionError(
                    f"{self._where(label)}: request {request} ({new} new tokens, {total} in all), the token at position "
                    f"{total - new + token}, head {head}: {float(got[token, head, at]):.6g} instead of "
                    f"{float(wanted[token, head, at]):.6g}, off by {float(error.max()):.3g} (allowed "
                    f"{self.tolerance:g}); {int((error > self.tolerance).sum())} of {error.numel()} numbers of this "
                    "request are off"
                )

    def _untouched(
        self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], written: Sequence[int], label: str
    ) -> None:
        """Blocks that hold none of the step's tokens."""
        for old, new, which in zip(before, after, ("keys", "values"), strict=True):
            changed = (_bits(old) != _bits(new)).any(1).nonzero().flatten().tolist()
            stray = sorted(set(changed) - set(written))
            assert not stray, (
                f"{self._where(label)}: {which} of blocks {stray} changed, and the step writes blocks "
                f"{[b for b in written if b >= 0]} only"
            )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """[blocks, bytes of a block]: NaN compares as any other."""
    return tensor.contiguous().view(len(tensor), -1).view(torch.uint8)


def _earlier_steps(case: AttentionCase) -> Iterable[Step]:
    """What requests hold before the step, in two chunks and a decode; every other one a step later, so that decodes
    and prompts mix. With a shared prefix the first request goes ahead of all others."""
    queues: list[list[int]] = []
    for i, (_, before) in enumerate(case.lengths):
        own = before - case.common if case.common and i else before
        chunks = [n for n in (own * 2 // 3, own - own * 2 // 3 - 1, 1) if n > 0] if own else []
        late = [0] * (3 if case.common and i else i % 2)
        queues.append([*late, *chunks])
    for number in range(max(map(len, queues))):
        if step := [(i, q[number]) for i, q in enumerate(queues) if number < len(q) and q[number]]:
            yield step


class _PoisonedMemory(TorchDispatchMode):
    """Whatever is taken with torch.empty holds NaN, so that a number nobody wrote is seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func.overloadpacket in _EMPTY and made.is_floating_point():
            made.fill_(float("nan"))
        return made


_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.new_empty, torch.ops.aten.empty_strided}
