"""check_quantization: a method's linear layers against the same layers with dequantised weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from core.interfaces.quantization import LinearSpec, QuantizationMethod
from core.testing.batches import one_thread

Quantize = Callable[[torch.Tensor, LinearSpec], dict[str, torch.Tensor]]
"""A float32 weight [out, in] and its layer -> the tensors that a checkpoint stores for it."""
Dequantize = Callable[[dict[str, torch.Tensor], LinearSpec], torch.Tensor]
"""Those tensors -> the weight [out, in] that they stand for."""

TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""By which an output may differ, in units of the outputs' root mean square."""
SHAPES = ((128, (256,)), (256, (128, 64, 64)), (128, (192, 192)))
"""Input size, and sizes of the fused parts."""


def check_quantization(
    method: type[QuantizationMethod],
    config: Mapping[str, Any],
    quantize: Quantize,
    dequantize: Dequantize,
    *,
    others: Sequence[Mapping[str, Any]] = ({}, {"quant_method": "of-another-kind"}),
    shapes: Sequence[tuple[int, tuple[int, ...]]] = SHAPES,
    num_tokens: Sequence[int] = (1, 3, 16, 65),
    dtype: str = "float32",
    device: str = "cpu",
    tolerance: float | None = None,
) -> None:
    """Raise AssertionError unless every layer's output is x W^T + b with W the dequantised weight.

    `config` is a quantization_config that the method must take, `others` are some that it must leave. Every part of a
    fused layer is quantized by itself, as a checkpoint has it, and the tensors are joined along the `output_dim` that
    `parameters` names. A method that quantizes activations too needs a `tolerance` of its own.
    """
    assert method.matches(config), f"{method.__name__}.matches({dict(config)!r}) is False; it must take that config"
    for other in others:
        assert not method.matches(other), f"{method.__name__}.matches({dict(other)!r}) is True; it is another method's"
    made = method(config)
    with one_thread(), torch.inference_mode():
        for in_features, output_sizes in shapes:
            spec = LinearSpec("layer", in_features, output_sizes, getattr(torch, dtype), torch.device(device))
            _Layer(made, spec, quantize, dequantize).check(num_tokens, tolerance or TOLERANCES[dtype])


class _Layer:
    def __init__(
        self, method: QuantizationMethod, spec: LinearSpec, quantize: Quantize, dequantize: Dequantize
    ) -> None:
        self.spec = spec
        self.where = f"{method.name}: a layer of {spec.in_features} -> {' + '.join(map(str, spec.output_sizes))}"
        linear = method.linear(spec)
        assert linear is not None, f"{self.where}: linear() gave None, which leaves it unquantized"
        self.linear = linear
        generator = torch.Generator().manual_seed(0)
        parts: list[dict[str, torch.Tensor]] = []
        weights = []
        for size in spec.output_sizes:
            part = LinearSpec(spec.name, spec.in_features, (size,), spec.dtype, spec.device)
            # parts of different size show a scale that is taken from the wrong one
            weight = torch.randn(size, spec.in_features, generator=generator) * (1 + len(parts)) / spec.in_features**0.5
            stored = {k: t.to(spec.device) for k, t in quantize(weight, part).items()}
            self._fits(stored, part)
            parts.append(stored)
            dense = dequantize({k: t.clone() for k, t in stored.items()}, part)
            assert dense.shape == weight.shape, f"{self.where}: dequantize gave shape {tuple(dense.shape)}"
            weights.append(dense.float().to(spec.device))
        self.weight = torch.cat(weights)
        self.stored = self._join(parts)

    def _fits(self, stored: Mapping[str, torch.Tensor], spec: LinearSpec) -> None:
        """Does `parameters` describe what the checkpoint stores?"""
        named = self.linear.parameters(spec)
        assert set(named) == set(stored), (
            f"{self.where}: parameters() names {sorted(named)}, and the checkpoint stores {sorted(stored)}"
        )
        for name, parameter in named.items():
            tensor = stored[name]
            assert (tuple(parameter.shape), parameter.dtype) == (tuple(tensor.shape), tensor.dtype), (
                f"{self.where}: parameters() makes {name!r} {parameter.dtype} {tuple(parameter.shape)}, and the "
                f"checkpoint stores {tensor.dtype} {tuple(tensor.shape)}"
            )

    def _join(self, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        joined = {}
        for name, parameter in self.linear.parameters(self.spec).items():
            pieces = [p[name] for p in parts]
            if parameter.output_dim is None:
                assert all(torch.equal(pieces[0], p) for p in pieces), (
                    f"{self.where}: {name!r} has output_dim None, which means that fused parts share it; theirs differ"
                )
                joined[name] = pieces[0].clone()
            else:
                joined[name] = torch.cat(pieces, parameter.output_dim)
        self._fits(joined, self.spec)
        return joined

    def check(self, num_tokens: Sequence[int], tolerance: float) -> None:
        spec = self.spec
        params = self.linear.finish(spec, {k: t.clone() for k, t in self.stored.items()})
        generator = torch.Generator().manual_seed(1)
        for count in num_tokens:
            x = torch.randn(count, spec.in_features, generator=generator).to(spec.device, spec.dtype)
            for bias in (None, torch.randn(spec.out_features, generator=generator).to(spec.device, spec.dtype)):
                where = f"{self.where}, {count} tokens{'' if bias is None else ', bias'}"
                before = x.clone()
                got = self.linear.apply(params, x, bias)
                assert torch.equal(x, before), f"{where}: apply() changed its input"
                assert got.shape == (count, spec.out_features) and got.dtype == spec.dtype, (
                    f"{where}: the output is {got.dtype} {tuple(got.shape)}, "
                    f"not {spec.dtype} {(count, spec.out_features)}"
                )
                plain = x.float() @ self.weight.T
                wanted = plain if bias is None else plain + bias.float()
                error = (got.float() - wanted).abs() / plain.square().mean().sqrt()
                error = torch.where(error.isnan(), torch.inf, error)
                if float(error.max()) > tolerance:
                    row, column = (int(i) for i in torch.unravel_index(error.argmax(), error.shape))
                    raise AssertionError(
                        f"{where}: output {column} of token {row} (part {self._part(column)}) is "
                        f"{float(got[row, column]):.6g} instead of {float(wanted[row, column]):.6g}, off by "
                        f"{float(error.max()):.3g} of the outputs' size (allowed {tolerance:g})"
                    )

    def _part(self, column: int) -> int:
        for index, size in enumerate(self.spec.output_sizes):
            if column < size:
                return index
            column -= size
        raise AssertionError(column)
