"""Training by the clock: rows of about the same length together, a learning rate that reaches zero when time is up."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from demomodel.corpus import Shard
from demomodel.network import Llama, Shape, loss_sum
from demomodel.optimizer import Optimizer


@dataclass(slots=True)
class Bucket:
    """Samples of about one length, padded to it on the right."""

    length: int
    tokens: torch.Tensor
    """[count, length + 1], int16."""
    weights: torch.Tensor
    """[count, length + 1], uint8; 0 is padding."""
    rows: int
    """Rows of a step."""
    order: torch.Tensor
    position: int = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, targets and weights of this bucket's part of a step; every sample once before any twice."""
        if self.position + self.rows > len(self.order):
            self.order, self.position = torch.randperm(len(self.order), device=self.order.device), 0
        chosen = self.order[self.position : self.position + self.rows]
        self.position += self.rows
        tokens, weights = self.tokens[chosen].long(), self.weights[chosen].float() / 50
        return tokens[:, :-1], tokens[:, 1:], weights[:, 1:]


def buckets(shard: Shard, bounds: list[int], step_tokens: int, device: str) -> list[Bucket]:
    """Each bucket's part of a step is its part of the text, so all of them come to an end together."""
    ends = np.cumsum(shard.lengths)
    starts = ends - shard.lengths
    parts, total = [], 0
    for low, high in zip([0, *bounds], bounds, strict=False):
        (chosen,) = np.nonzero((shard.lengths > low) & (shard.lengths <= high))
        if len(chosen):
            parts.append((high, chosen))
            total += high * len(chosen)
    found = []
    for length, chosen in parts:
        # where each row's tokens lie in the shard; what lies beyond a row's end is padding
        within = np.arange(length + 1)
        tokens = np.zeros((len(chosen), length + 1), np.int16)
        weights = np.zeros((len(chosen), length + 1), np.uint8)
        for at in range(0, len(chosen), 65536):
            some = chosen[at : at + 65536]
            index = starts[some, None] + within
            inside = within < shard.lengths[some, None]
            index = np.minimum(index, len(shard.tokens) - 1)
            tokens[at : at + len(some)] = np.where(inside, shard.tokens[index], 0)
            weights[at : at + len(some)] = np.where(inside, shard.weights[index], 0)
        rows = max(1, round(len(chosen) * step_tokens / total))
        rows = min(rows, len(chosen))
        found.append(
            Bucket(
                length,
                torch.from_numpy(tokens).to(device),
                torch.from_numpy(weights).to(device),
                rows,
                torch.randperm(len(chosen), device=device),
            )
        )
    return found


def train(
    shape: Shape,
    parts: list[Bucket],
    seconds: float,
    device: str,
    rates: tuple[float, float],
    seed: int,
    log_every: int = 100,
) -> Llama:
    """`seconds` of steps; compiling comes on top."""
    torch.manual_seed(seed)
    network = Llama(shape).to(device)
    optimizer = Optimizer(network, *rates)
    embedding = network.embed_tokens.weight
    loss_of = loss_sum
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        # one layer is compiled, once, for rows of every length
        for layer in network.layers:
            layer.compile(dynamic=True)
        loss_of = torch.compile(loss_sum, dynamic=True)
    scale = sum(float(b.weights[:4096].float().sum()) / 50 / min(4096, len(b.weights)) * b.rows for b in parts)

    def backward() -> torch.Tensor:
        total = torch.zeros((), device=device)
        for part in parts:
            tokens, targets, weights = part.next()
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = loss_of(network(tokens), embedding, targets, weights) / scale
            loss.backward()
            total += loss.detach()
        return total

    begin = time.monotonic()
    try:
        backward()
    except Exception as error:  # slower is better than not at all
        print(f"  not compiled: {error}", flush=True)
        torch.compiler.set_stance("force_eager")
        backward()
    network.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.synchronize()
    per_step = sum(b.rows * b.length for b in parts)
    print(
        f"  {sum(p.numel() for p in network.parameters()):,} parameters; {per_step:,} tokens a step in "
        f"{[(b.rows, b.length) for b in parts]}; compiled in {time.monotonic() - begin:.0f} s",
        flush=True,
    )

    begin, step, done, seen = time.monotonic(), 0, 0.0, torch.zeros((), device=device)
    while done < 1:
        loss = backward()
        seen += loss
        # a short rise, a plateau, and then down to zero as time runs out
        optimizer.step(min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.7))
        step += 1
        if step % log_every == 0:
            print(
                f"  step {step:6d}  {done:6.1%}  loss {seen.item() / log_every:.4f}  "
                f"{step * per_step / (time.monotonic() - begin) / 1e6:.2f} M tokens/s",
                flush=True,
            )
            seen.zero_()
        elif device == "cuda" and step % 10 == 0:
            torch.cuda.synchronize()  # the clock must not run ahead of the device
        done = (time.monotonic() - begin) / seconds
    epochs = parts[-1].rows * step / len(parts[-1].order)
    print(f"  {step} steps, {step * per_step / 1e6:.0f} M tokens with padding, {epochs:.2f} times the text", flush=True)
    return network
