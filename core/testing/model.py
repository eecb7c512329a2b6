"""check_model: an architecture against a reference's logits, whatever the batch and wherever the prompt is cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from core.executor.model_config import read_model_config
from core.interfaces.attention import AttentionBackend
from core.interfaces.model import Model, ModelContext
from core.interfaces.quantization import QuantizationMethod
from core.testing.batches import Step, forward_batch, in_order, one_thread, scattered_table
from core.testing.plain_attention import PlainBackend
from core.weights import checkpoint_files, finish_linears, load_weights

Reference = Callable[[list[int]], torch.Tensor]
"""Token ids of one sequence -> logits [length, vocab]."""

TOLERANCES = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 2e-1}
"""By which a logit may differ, in standard deviations of the reference's logits."""


def check_model(
    model: Callable[[ModelContext], Model],
    folder: str | Path,
    reference: Reference,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    attention: Callable[[torch.device], AttentionBackend] = PlainBackend,
    quantization: QuantizationMethod | None = None,
    prompts: Sequence[list[int]] | None = None,
    block_size: int = 16,
    tolerance: float | None = None,
) -> None:
    """Raise AssertionError unless the model gives the reference's logits at every position.

    folder: a checkpoint (config.json and safetensors); small random ones show as much as real ones, if norms and
    biases are random too. Each prompt (random ones of 1 to 65 tokens, if none are given) runs alone, with all others
    in one step, and in pieces that mix with decodes of others; then once more with only its last token asked for, as
    most steps do.
    """
    target = torch.device(device)
    config = read_model_config(Path(folder), {})
    backend = attention(target)
    longest = int(config.get("max_position_embeddings") or 2048)
    if prompts is None:
        prompts = _prompts(int(config["vocab_size"]), min(65, longest))
    with one_thread(), torch.inference_mode():
        context = ModelContext(config, getattr(torch, dtype), target, backend, quantization, longest)
        made: Any = model(context)
        load_weights(made, made.weight_map, checkpoint_files(Path(folder)))
        finish_linears(made)
        run = _Run(made, backend, list(prompts), block_size, target, getattr(torch, dtype), int(config["vocab_size"]))
        wanted = [reference(list(p)).detach().float().to(device) for p in prompts]
        for prompt, logits in zip(prompts, wanted, strict=True):
            shape = (len(prompt), run.vocab_size)
            assert logits.shape == shape, f"the reference gave logits of shape {tuple(logits.shape)}, not {shape}"
        everyone = range(len(prompts))
        allowed = tolerance or TOLERANCES[dtype]
        for i in everyone:
            run.check("alone", [[(i, len(prompts[i]))]], wanted, allowed)
        run.check("batched", [[(i, len(prompts[i])) for i in everyone]], wanted, allowed)
        run.check("in chunks", list(_chunks([len(p) for p in prompts])), wanted, allowed)
        run.check(
            "in chunks, the last token wanted", list(_chunks([len(p) for p in prompts])), wanted, allowed, last=True
        )


def transformers_reference(folder: str | Path) -> Reference:
    """What transformers computes for the checkpoint, in float32 on the CPU."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()

    def logits(token_ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
        return found

    return logits


def _prompts(vocab_size: int, longest: int) -> list[list[int]]:
    rng = random.Random(0)
    lengths = sorted({min(n, longest) for n in (1, 2, 15, 16, 17, 40, 65)})
    return [[rng.randrange(vocab_size) for _ in range(n)] for n in lengths]


def _chunks(lengths: Sequence[int]) -> Iterator[Step]:
    """Pieces of 7 tokens, then single ones to the end of a prompt; every other prompt begins two steps later."""
    done = [0] * len(lengths)
    number = 0
    while any(d < n for d, n in zip(done, lengths, strict=True)):
        step: Step = []
        for i, length in enumerate(lengths):
            if done[i] < length and number >= 2 * (i % 2):
                new = 7 if length - done[i] > 10 else 1
                step.append((i, new))
                done[i] += new
        number += 1
        if step:
            yield step


class _Run:
    """A model with its cache, fed step by step."""

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        prompts: list[list[int]],
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
        vocab_size: int,
    ) -> None:
        self.model, self.backend, self.prompts = model, backend, prompts
        self.block_size, self.device, self.vocab_size = block_size, device, vocab_size
        self.table, num_blocks = scattered_table([len(p) for p in prompts], block_size, 0)
        assert model.cache_spec, "cache_spec is empty; it has one AttentionSpec a layer that has a cache"
        self.caches = [backend.allocate(spec, num_blocks, block_size, dtype) for spec in model.cache_spec]

    def check(
        self, label: str, steps: Iterable[Step], wanted: list[torch.Tensor], tolerance: float, *, last: bool = False
    ) -> None:
        done = [0] * len(self.prompts)
        for number, step in enumerate(map(in_order, steps)):
            where = f"{label}, step {number + 1}"
            logits = self._step(step, done, where, last=last)
            start = 0
            for i, new in step:
                done[i] += new
                count = 1 if last else new
                self._compare(
                    f"{where}: prompt {i} ({len(self.prompts[i])} tokens)",
                    logits[start : start + count],
                    wanted[i],
                    done[i] - count,
                    tolerance,
                )
                start += count

    def _step(self, step: Step, done: list[int], where: str, *, last: bool) -> torch.Tensor:
        counts = [new for _, new in step]
        batch = forward_batch(
            counts,
            [done[i] + new for i, new in step],
            self.table[[i for i, _ in step]],
            self.block_size,
            input_ids=[t for i, new in step for t in self.prompts[i][done[i] : done[i] + new]],
            device=self.device,
        )
        batch.caches = self.caches
        total = sum(counts)
        ends = torch.tensor(counts).cumsum(0) - 1
        if last:
            batch.wanted = ends.to(self.device)
        self.backend.plan(batch)
        hidden = self.model.forward(batch)
        rows = len(step) if last else total
        allowed = {rows, total}
        assert hidden.dim() == 2 and hidden.shape[0] in allowed, (
            f"{where}: forward gave shape {tuple(hidden.shape)}; "
            f"[{' or '.join(map(str, sorted(allowed)))}, hidden] was expected"
        )
        if last and hidden.shape[0] != rows:
            hidden = hidden.index_select(0, ends.to(self.device))
        logits = self.model.logits(hidden)
        assert logits.shape == (rows, self.vocab_size), (
            f"{where}: logits have shape {tuple(logits.shape)}, not {(rows, self.vocab_size)}"
        )
        return logits.float()

    def _compare(self, where: str, got: torch.Tensor, reference: torch.Tensor, first: int, tolerance: float) -> None:
        wanted = reference[first : first + len(got)]
        error = (got - wanted).abs() / reference.std()
        error = torch.where(error.isnan(), torch.inf, error)
        if float(error.max()) > tolerance:
            at, token = (int(i) for i in torch.unravel_index(error.argmax(), error.shape))
            raise AssertionError(
                f"{where}: the logit of token {token} after position {first + at} is {float(got[at, token]):.6g} "
                f"instead of {float(wanted[at, token]):.6g}, off by {float(error.max()):.3g} standard deviations "
                f"(allowed {tolerance:g}); {int((error.amax(1) > tolerance).sum())} of its {len(got)} positions in "
                "this step are off"
            )
