"""Which steps of a model are captured in CUDA graphs: padded sizes, in requests for decodes and in tokens for mixed steps."""

from __future__ import annotations

import torch

MIXED_SIZES = (16, 32, 64, 128, 192, 256, 384, 512)
"""For every model. Above them launching kernel by kernel may be as good: see `tokens_worth_capturing`."""
LAUNCH_S = 0.5e-3
"""What the host takes to launch a layer's kernels one by one, on that of an H100: 0.47 ms in a step."""


def decode_sizes(most: int) -> list[int]:
    """Padded batch sizes, ascending. `most` is always one of them.

    Rows of padding cost next to nothing but in the matrices, and there tiles are filled to 32, 64, 128 and 256 rows.
    """
    sizes = {1, 2, 4, 8, 16, 24, 32, 64, 128, 160, 192, 256, *range(320, 1025, 64)}
    return sorted({s for s in sizes if s < most} | {most})


def mixed_sizes(most: int) -> list[int]:
    """Padded sizes in tokens, ascending: beyond MIXED_SIZES two an octave, and `most`."""
    large = [step << shift for shift in range(8, 20) for step in (3, 4)]
    return sorted({s for s in (*MIXED_SIZES, *large) if s <= most} | ({most} if most > MIXED_SIZES[-1] else set()))


def peak_flops(device: torch.device) -> float:
    """Of matrices in 16 bits, a second. A multiprocessor of Hopper: 6.0e12, measured on an H100; older ones
    are taken for half of it, as the A100's data sheet has it (not measured)."""
    if device.type != "cuda":
        return 0.0
    rate = 6.0e12 if torch.cuda.get_device_capability(device) >= (9, 0) else 3.0e12
    return rate * torch.cuda.get_device_properties(device).multi_processor_count


def tokens_worth_capturing(model: torch.nn.Module, num_layers: int, vocab_size: int, flops: float) -> int:
    """Tokens whose matrices take the device as long as the host takes to launch the step: below, the host holds it up.

    flops: what the device computes in a second at best. Weights that are packed in integers are taken for large ones.
    """
    count = 0
    for weight in model.parameters():
        if not weight.is_floating_point():
            return MIXED_SIZES[-1]
        if weight.dim() > 1 and weight.shape[0] != vocab_size:
            count += weight.numel()
    return max(MIXED_SIZES[-1], int(LAUNCH_S * num_layers * flops / (2 * max(1, count))))


def largest_step(worth: int, budget: int) -> int:
    """Tokens of the largest step to capture. Where a step of the whole budget costs the host much too, it is that."""
    if worth <= MIXED_SIZES[-1]:
        return min(MIXED_SIZES[-1], budget)
    return budget if budget <= 2 * worth else max(s for s in mixed_sizes(budget) if s <= worth)
