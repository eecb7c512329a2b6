"""The conformance kit: it passes what is right, and finds what is wrong: each check meets implementations with one mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import core.testing
from core.config import PluginConfig
from core.errors import ModelError
from core.interfaces.parser import Event, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd
from core.interfaces.quantization import LinearSpec, ParameterSpec
from core.registry import load_registry
from core.sampling_params import GuidedDecodingParams
from core.testing import (
    ATTENTION_CASES,
    AttentionCase,
    Call,
    GuidedCase,
    PlainBackend,
    Transcript,
    check_attention_backend,
    check_executor,
    check_guided_backend,
    check_model,
    check_model_source,
    check_parser,
    check_quantization,
    transformers_reference,
)


def test_names_are_there_and_loading_them_is_light():
    for name in core.testing.__all__:
        assert getattr(core.testing, name) is not None
    code = "import sys, core.testing; print('torch' in sys.modules or 'pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# ---- attention


class Captured(PlainBackend):
    """The plain backend with rows of padding too."""

    capabilities = replace(PlainBackend.capabilities, graph_capture=True)


def test_the_plain_backend_passes_every_case():
    assert check_attention_backend(Captured) == [c.name for c in ATTENTION_CASES]
    assert check_attention_backend(PlainBackend, dtype="bfloat16", cases=ATTENTION_CASES[:6])


class WrongMask(Captured):
    """Forgets the window."""

    def forward(self, spec, query, key, value, cache, batch):
        return super().forward(replace(spec, window=None), query, key, value, cache, batch)


class WindowOffByOne(Captured):
    def forward(self, spec, *arguments):
        return super().forward(replace(spec, window=spec.window and spec.window + 1), *arguments)


class SeesTheFuture(Captured):
    """The first token of a chunk attends to the second."""

    def forward(self, spec, query, key, value, cache, batch):
        out = super().forward(spec, query, key, value, cache, batch)
        ends = batch.attention.query_start_loc.tolist()
        for start, end in zip(ends, ends[1:], strict=False):
            if end - start > 1:
                out[start] = out[start + 1]
        return out


class ForgetsTheCache(Captured):
    """A prompt's later chunk attends to itself alone."""

    def forward(self, spec, query, key, value, cache, batch):
        out = super().forward(spec, query, key, value, cache, batch)
        meta = batch.attention
        alone = replace(meta, seq_lens=torch.minimum(meta.seq_lens, meta.query_start_loc.diff()))
        if meta.max_query_len > 1:
            keep = out.clone()
            other = super().forward(spec, query, key, value, cache, replace(batch, attention=alone))
            out = torch.where(torch.isfinite(other), other, keep)
        return out


class ReadsStaleBlocks(Captured):
    """Rounds lengths up to whole blocks and trusts what lies there."""

    def forward(self, spec, query, key, value, cache, batch):
        meta = batch.attention
        out = super().forward(spec, query, key, value, cache, batch)
        last = meta.block_table[0, (int(meta.seq_lens[0]) - 1) // meta.block_size]
        return out + 0 * cache[0][last].sum()


class WritesPadding(Captured):
    """Slot -1 counts from the end."""

    def forward(self, spec, query, key, value, cache, batch):
        out = super().forward(spec, query, key, value, cache, batch)
        for stored, new in zip(cache, (key, value), strict=True):
            stored.flatten(0, 1)[batch.attention.slot_mapping] = new
        return out


class WritesOneSlotLate(Captured):
    def forward(self, spec, query, key, value, cache, batch):
        meta = replace(batch.attention, slot_mapping=batch.attention.slot_mapping + 1)
        return super().forward(spec, query, key, value, cache, replace(batch, attention=meta))


class LeavesRowsUnwritten(Captured):
    """Gives memory that nobody wrote for the last token of a step."""

    def forward(self, spec, query, key, value, cache, batch):
        out = torch.empty_like(query)
        out[:-1] = super().forward(spec, query, key, value, cache, batch)[:-1]
        return out


class WrongHeads(Captured):
    """Deals query heads to key heads in turn instead of in groups."""

    def forward(self, spec, query, key, value, cache, batch):
        order = torch.arange(spec.num_heads).view(-1, spec.num_kv_heads).T.flatten()
        out = super().forward(spec, query[:, order], key, value, cache, batch)
        return out[:, order.argsort()]


class AssumesContiguous(Captured):
    """Reads the key at the stride it would have if it were a tensor of its own."""

    def forward(self, spec, query, key, value, cache, batch):
        flat = torch.as_strided(key, key.shape, (key.shape[1] * key.shape[2], key.shape[2], 1))
        return super().forward(spec, query, flat, value, cache, batch)


class PlansPerLayer(Captured):
    """Keeps the first layer's window for the layers behind it."""

    def plan(self, batch):
        self.window: Any = "unset"

    def forward(self, spec, *arguments):
        if self.window == "unset":
            self.window = spec.window
        return super().forward(replace(spec, window=self.window), *arguments)


class TrustsThePrefix(Captured):
    """Reads the shared prefix from the block after it."""

    def forward(self, spec, query, key, value, cache, batch):
        meta = batch.attention
        if meta.common_prefix is not None:
            table = meta.block_table.clone()
            table[:, 0] = table[:, 1]
            batch = replace(batch, attention=replace(meta, block_table=table))
        return super().forward(spec, query, key, value, cache, batch)


class WrongDtype(Captured):
    def forward(self, *arguments):
        return super().forward(*arguments).double()


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (WrongMask, "case 'window', .*request .*off by"),
        (WindowOffByOne, "case 'window', .*off by"),
        (SeesTheFuture, "head"),
        (ForgetsTheCache, "case 'chunks'|case 'one decode'|earlier step"),
        (ReadsStaleBlocks, "case 'first token', the step: request 0 .*nan instead"),
        (WritesPadding, "case 'rows of padding', the step: keys of blocks .* changed"),
        (WritesOneSlotLate, "nan instead"),
        (LeavesRowsUnwritten, "nan instead"),
        (WrongHeads, "case 'first token', .*head 2"),
        (AssumesContiguous, "off by"),
        (PlansPerLayer, "case 'layers with and without a window', .*layer 2"),
        (TrustsThePrefix, "case 'a prefix that all share', the step: request"),
        (WrongDtype, "torch.float64"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_broken_backend_is_found(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_attention_backend(broken)


def test_capabilities_are_held_to():
    with pytest.raises(AssertionError, match="'cuda' is not in capabilities.devices"):
        check_attention_backend(type("Cpu", (PlainBackend,), {"capabilities": replace(PlainBackend.capabilities, devices=frozenset({"cpu"}))}), device="cuda")  # fmt: skip
    narrow = type("Narrow", (WrongMask,), {"capabilities": replace(PlainBackend.capabilities, window=False)})
    assert "window" not in check_attention_backend(narrow)
    with pytest.raises(AssertionError, match="nothing was checked"):
        check_attention_backend(narrow, cases=[AttentionCase("w", ((1, 3),), windows=(2,))])


# ---- models


def llama() -> Any:
    return load_registry(PluginConfig()).get("model", "LlamaForCausalLM")


def altered(**members: Any) -> Any:
    return type("Altered", (llama(),), members)


def positions_off_by_one(self: Any, batch: Any) -> torch.Tensor:
    return llama().forward(self, replace(batch, positions=batch.positions + 1 * (batch.positions > 20)))


def chunks_dropped(self: Any, batch: Any) -> torch.Tensor:
    hidden = llama().forward(self, batch)
    if batch.wanted is None and len(batch.attention.query_lens_host) > 1:
        hidden[int(batch.attention.query_start_loc[1]) :] = 0
    return hidden


def wanted_in_disorder(self: Any, batch: Any) -> torch.Tensor:
    hidden = llama().forward(self, batch)
    return hidden if batch.wanted is None else hidden.flip(0)


def without_the_head(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return hidden


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"forward": positions_off_by_one}, "alone, step 1: prompt 5 .*after position 2[1-9].*standard deviations"),
        ({"forward": chunks_dropped}, "batched, step 1: prompt 1"),
        ({"forward": wanted_in_disorder}, "in chunks, the last token wanted"),
        ({"forward": lambda self, batch: llama().forward(self, batch)[:1]}, "forward gave shape"),
        ({"logits": without_the_head}, "logits have shape"),
        ({"cache_spec": property(lambda self: [], lambda self, value: None)}, "out of range|cache_spec is empty"),
    ],
    ids=["position", "chunk", "order", "rows", "head", "no cache"],
)
def test_a_broken_model_is_found(checkpoint: Callable[[str], Path], members: dict[str, Any], message: str):
    folder = checkpoint("llama")
    with pytest.raises((AssertionError, IndexError), match=message):
        check_model(altered(**members), folder, reference(folder))


def test_a_right_model_passes(checkpoint: Callable[[str], Path]):
    check_model(llama(), checkpoint("llama"), reference(checkpoint("llama")))


def test_a_reference_of_the_wrong_shape_is_named(checkpoint: Callable[[str], Path]):
    with pytest.raises(AssertionError, match="the reference gave logits of shape"):
        check_model(llama(), checkpoint("llama"), lambda ids: torch.zeros(3, 4))


MADE: dict[Path, Any] = {}


def reference(folder: Path) -> Any:
    if folder not in MADE:
        MADE[folder] = transformers_reference(folder)
    return MADE[folder]


# ---- quantization: int8, a scale for every row


class Int8Linear:
    output_dim: int | None = 0

    def parameters(self, spec: LinearSpec) -> dict[str, ParameterSpec]:
        return {
            "weight": ParameterSpec((spec.out_features, spec.in_features), torch.int8),
            "scale": ParameterSpec((spec.out_features,), torch.float32, self.output_dim),
        }

    def finish(self, spec: LinearSpec, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return params

    def apply(self, params: dict[str, torch.Tensor], x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        weight = params["weight"].to(x.dtype) * params["scale"][:, None].to(x.dtype)
        return torch.nn.functional.linear(x, weight, bias)


class Int8:
    name = "int8"
    linear_class: Any = Int8Linear

    def __init__(self, config: Mapping[str, Any]) -> None:
        pass

    @staticmethod
    def matches(config: Mapping[str, Any]) -> bool:
        return config.get("quant_method") == "int8"

    def linear(self, spec: LinearSpec) -> Any:
        return self.linear_class()


def quantize(weight: torch.Tensor, spec: LinearSpec) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax(1) / 127
    return {"weight": (weight / scale[:, None]).round().to(torch.int8), "scale": scale}


def dequantize(stored: dict[str, torch.Tensor], spec: LinearSpec) -> torch.Tensor:
    return stored["weight"].float() * stored["scale"][:, None]


class OneScale(Int8Linear):
    """One scale for all fused parts."""

    def apply(self, params, x, bias):
        return super().apply({**params, "scale": params["scale"][:1].expand_as(params["scale"])}, x, bias)


class NoBias(Int8Linear):
    def apply(self, params, x, bias):
        return super().apply(params, x, None)


class InPlace(Int8Linear):
    def apply(self, params, x, bias):
        return super().apply(params, x.mul_(2), bias) / 2


class Transposed(Int8Linear):
    def parameters(self, spec):
        found = super().parameters(spec)
        return {**found, "weight": ParameterSpec((spec.in_features, spec.out_features), torch.int8, 1)}


class Renamed(Int8Linear):
    def parameters(self, spec):
        return {"qweight": super().parameters(spec)["weight"]}


class Shared(Int8Linear):
    output_dim = None


class DropsARow(Int8Linear):
    """Tokens beyond 64 are left out, as by a kernel that forgets its second tile."""

    def apply(self, params, x, bias):
        out = super().apply(params, x, bias)
        out[64:] = 0
        return out


def method(linear_class: type) -> Any:
    return type("Altered", (Int8,), {"linear_class": linear_class})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_method_passes(dtype: str):
    check_quantization(Int8, {"quant_method": "int8"}, quantize, dequantize, dtype=dtype)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (method(OneScale), r"a layer of 128 -> 256, 1 tokens: output \d+ of token 0 .*off by"),
        (method(NoBias), "1 tokens, bias: output"),
        (method(InPlace), "changed its input"),
        (method(Transposed), r"parameters\(\) makes 'weight' .* and the checkpoint stores"),
        (method(Renamed), r"names \['qweight'\]"),
        (method(Shared), "output_dim None, which means that fused parts share it"),
        (method(DropsARow), "65 tokens: output .*token 64"),
        (type("Never", (Int8,), {"matches": staticmethod(lambda config: False)}), "it must take that config"),
        (type("Always", (Int8,), {"matches": staticmethod(lambda config: True)}), "it is another method's"),
        (type("NoLayer", (Int8,), {"linear": lambda self, spec: None}), "leaves it unquantized"),
    ],
    ids=["scale", "bias", "in place", "transposed", "renamed", "shared", "row", "never", "always", "none"],
)
def test_a_broken_method_is_found(broken: Any, message: str):
    with pytest.raises(AssertionError, match=message):
        check_quantization(broken, {"quant_method": "int8"}, quantize, dequantize)


# ---- parsers: <f>{...}</f> is a call of f, [..] is reasoning


class Whole:
    """Right, and lazy: everything comes out at the end."""

    def __init__(self, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self.text = ""

    def feed(self, text: str, token_ids: Sequence[int] = ()) -> list[Event]:
        self.text += text
        return []

    def finish(self) -> list[Event]:
        events: list[Event] = []
        at, count = 0, 0
        for match in re.finditer(r"<f>(.*?)</f>|\[(.*?)\]", self.text):
            events += [Text(self.text[at : match.start()])] if match.start() > at else []
            if match[2] is not None:
                events += [Reasoning(match[2])] if match[2] else []
            else:
                events += [ToolCallBegin(count, "f"), ToolCallArguments(count, match[1]), ToolCallEnd(count)]
                count += 1
            at = match.end()
        return events + ([Text(self.text[at:])] if at < len(self.text) else [])


TRANSCRIPTS = [
    Transcript('a<f>{"x": "<é>"}</f>b<f>{}</f>', "ab", calls=[Call("f", {"x": "<é>"}), Call("f", {})]),
    Transcript("[why]because", "because", "why"),
    Transcript("<f>{", "<f>{"),
]


class Eager(Whole):
    """Parses every piece for itself."""

    def feed(self, text, token_ids=()):
        self.text = text
        return super().finish()

    def finish(self):
        return []


class EatsTheTail(Whole):
    """What was held back and became no call is gone."""

    def finish(self):
        return [e for e in super().finish() if not (isinstance(e, Text) and e.text.startswith("<"))]


class Shares(Whole):
    """Keeps the text in the class."""

    shared = ""

    def feed(self, text, token_ids=()):
        type(self).shared += text
        return []

    def finish(self):
        self.text, type(self).shared = self.shared, ""
        return super().finish()


class EmptyPieces(Whole):
    def feed(self, text, token_ids=()):
        return [*super().feed(text), Text("")]


class Raises(Whole):
    def finish(self):
        if self.text.endswith("<f"):
            raise IndexError("string index out of range")
        return super().finish()


class WrongIndex(Whole):
    """Counts calls from 1."""

    def finish(self):
        return [msgspec.structs.replace(e, index=e.index + 1) if hasattr(e, "index") else e for e in super().finish()]


class NeverEnds(Whole):
    def finish(self):
        return [e for e in super().finish() if not isinstance(e, ToolCallEnd)]


class Cuts(Whole):
    """Loses the last character of arguments."""

    def finish(self):
        return [
            ToolCallArguments(e.index, e.json[:-1]) if isinstance(e, ToolCallArguments) else e for e in super().finish()
        ]


def test_a_right_parser_passes():
    check_parser(Whole, TRANSCRIPTS)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Eager, "in the pieces .* gives"),
        (EatsTheTail, "content is '' instead of '<f>{'"),
        (Shares, "fed in turn with a second parser"),
        (EmptyPieces, "an event without text"),
        (Raises, "raise IndexError: string index out of range"),
        (WrongIndex, "they count from 0"),
        (NeverEnds, "breaks off with arguments"),
        (Cuts, "are no JSON"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_broken_parser_is_found(broken: Any, message: str):
    with pytest.raises(AssertionError, match=message):
        check_parser(broken, TRANSCRIPTS)


@pytest.mark.parametrize(
    ("transcript", "message"),
    [
        (Transcript("a", "b"), "content is 'a' instead of 'b'"),
        (Transcript("[a]", "", "b"), "reasoning is 'a'"),
        (Transcript("<f>1</f>", calls=[Call("g", 1)]), "calls are"),
        (Transcript("<f>1</f>", calls=[Call("f", 2)]), "are 1 instead of 2"),
    ],
    ids=["content", "reasoning", "name", "arguments"],
)
def test_a_transcript_that_is_read_otherwise_is_named(transcript: Transcript, message: str):
    with pytest.raises(AssertionError, match=message):
        check_parser(Whole, [transcript])


# ---- guided decoding: choices, walked byte by byte


class ChoiceMatcher:
    def __init__(self, tokens: Sequence[bytes], texts: list[bytes], size: int) -> None:
        self.tokens, self.texts, self.size, self.taken = tokens, texts, size, [b""]
        self.ended = False

    def _allowed(self, token: int) -> bool:
        if token == 0:
            return self.taken[-1] in self.texts
        piece = self.tokens[token] if token < len(self.tokens) else b""
        return bool(piece) and any(t.startswith(self.taken[-1] + piece) for t in self.texts)

    def fill(self, bitmask_row: np.ndarray) -> None:
        bits = np.zeros(len(bitmask_row) * 32, np.uint8)
        bits[: self.size] = [self._allowed(t) for t in range(self.size)]
        bitmask_row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token_id: int) -> bool:
        if not self._allowed(token_id):
            return False
        self.taken.append(self.taken[-1] + self.tokens[token_id])
        self.ended = token_id == 0
        return True

    def rollback(self, num_tokens: int) -> None:
        del self.taken[-num_tokens:]
        self.ended = False

    def forced(self) -> list[int]:
        found = [t for t in range(len(self.tokens)) if self._allowed(t)]
        return found if len(found) == 1 and found != [0] else []

    def finished(self) -> bool:
        return self.ended

    def error(self) -> str | None:
        return None


class ChoiceBackend:
    name = "choices"
    matcher_class: Any = ChoiceMatcher

    def __init__(self, vocabulary: Any) -> None:
        self.vocabulary = vocabulary

    def unsupported(self, constraint: GuidedDecodingParams) -> list[str]:
        return [] if constraint.choice is not None else ["everything but choice"]

    def compile(self, constraint: GuidedDecodingParams) -> Any:
        texts = [c.encode() for c in constraint.choice or ()]
        backend, vocabulary = self, self.vocabulary

        class Grammar:
            def matcher(self) -> Any:
                return backend.matcher_class(vocabulary.tokens, texts, vocabulary.size)

        return Grammar()


GUIDED = [GuidedCase(GuidedDecodingParams(choice=("yes", "yesterday", "日本")), ["yes", "yesterday", "日本"], ["no", "y", "yesx", ""])]  # fmt: skip
REFUSED = [GuidedDecodingParams(regex="a")]


def guided(**members: Any) -> Any:
    return type("Altered", (ChoiceBackend,), {"matcher_class": type("Altered", (ChoiceMatcher,), members)})


def keeps_bits(self: Any, row: np.ndarray) -> None:
    new = row.copy()
    ChoiceMatcher.fill(self, new)
    row |= new


def allows_padding(self: Any, row: np.ndarray) -> None:
    ChoiceMatcher.fill(self, row)
    row[-1] = -1


def rolls_back_one(self: Any, num_tokens: int) -> None:
    ChoiceMatcher.rollback(self, 1)


def no_eos(self: Any, token: int) -> bool:
    return token != 0 and ChoiceMatcher._allowed(self, token)


def any_prefix_ends(self: Any, token: int) -> bool:
    return token == 0 or ChoiceMatcher._allowed(self, token)


def single_bytes_only(self: Any, token: int) -> bool:
    return (token >= len(self.tokens) or len(self.tokens[token]) < 2) and ChoiceMatcher._allowed(self, token)


def takes_anything_at_the_start(self: Any, token: int) -> bool:
    if self.taken == [b""] and not self._allowed(token):
        self.taken.append(b"?")
        return True
    return ChoiceMatcher.accept(self, token)


def shared_place(self: Any, tokens: Any, texts: list[bytes], size: int, _places: list[Any] = [[b""]]) -> None:  # noqa: B006
    ChoiceMatcher.__init__(self, tokens, texts, size)
    self.taken = _places[0]


def test_a_right_backend_passes():
    check_guided_backend(ChoiceBackend, GUIDED, unsupported=REFUSED)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (guided(fill=keeps_bits), "must overwrite the row"),
        (guided(fill=allows_padding), "columns that are no token"),
        (guided(rollback=rolls_back_one), "the mask is not what it was there|the mask is another"),
        (guided(_allowed=no_eos), "the mask does not allow EOS"),
        (guided(_allowed=any_prefix_ends), "'no'|'y' is accepted, and must not be"),
        (guided(_allowed=single_bytes_only), "the mask does not allow b'yes'"),
        (guided(__init__=shared_place), "moved when another|does not allow"),
        (guided(accept=lambda self, token: True), "the mask does not allow b.e."),
        (guided(accept=lambda self, token: False), "is False, and the mask allows it"),
        (guided(fill=lambda self, row: row.fill(0), _allowed=any_prefix_ends), "the mask does not allow"),
        (guided(accept=takes_anything_at_the_start), "'no', token 0 of 2: the mask refuses it and accept.. takes it"),
        (guided(forced=lambda self: [5]), "forced.. begins with token 5"),
        (guided(finished=lambda self: True), "finished.. before"),
        (guided(error=lambda self: "limit"), "error.. is 'limit'"),
        (type("Takes", (ChoiceBackend,), {"unsupported": lambda self, constraint: []}), "was taken; it must be named"),
        (type("Names", (ChoiceBackend,), {"unsupported": lambda self, constraint: ["choice"]}), "names .'choice'."),
    ],
    ids=["bits", "padding", "rollback", "no eos", "eos", "bytes", "shared", "accept", "refuse", "empty", "start", "forced", "finished", "error", "takes", "names"],
)  # fmt: skip
def test_a_broken_guided_backend_is_found(broken: Any, message: str):
    with pytest.raises(AssertionError, match=message):
        check_guided_backend(broken, GUIDED, unsupported=REFUSED)


class Batched(ChoiceBackend):
    def fill_many(self, matchers: Any, bits: np.ndarray) -> None:
        for matcher, row in matchers:
            matcher.fill(bits[row])


def test_masks_of_many_are_compared():
    check_guided_backend(Batched, GUIDED)
    inverted = type("Inverted", (Batched,), {"fill_many": lambda self, matchers, bits: bits.fill(-1)})
    with pytest.raises(AssertionError, match="rows that it was not given"):
        check_guided_backend(inverted, GUIDED)


# ---- sources and executors


class FixedSource:
    name, rank = "fixed", 5
    folder: Path

    def matches(self, model: str) -> bool:
        return model.startswith("fixed:")

    def resolve(self, config: Any) -> Path:
        if config.model != "fixed:one":
            raise ModelError(f"{config.model!r} is not there")
        return self.folder


def test_model_sources(checkpoint: Callable[[str], Path], tmp_path: Path):
    right = type("Right", (FixedSource,), {"folder": checkpoint("qwen2")})
    check_model_source(right, ["fixed:one"], missing=["fixed:two"])
    with pytest.raises(AssertionError, match="has no .*safetensors|no config.json"):
        (tmp_path / "config.json").write_text((checkpoint("qwen2") / "config.json").read_text())
        check_model_source(type("Empty", (FixedSource,), {"folder": tmp_path}), ["fixed:one"])
    with pytest.raises(AssertionError, match="that name is another source's"):
        check_model_source(type("Greedy", (right,), {"matches": lambda self, model: True}), ["fixed:one"])
    with pytest.raises(AssertionError, match="there should be no such model"):
        check_model_source(right, [], missing=["fixed:one"])

    def lookup(self: Any, config: Any) -> Path:
        raise KeyError(config.model)

    with pytest.raises(AssertionError, match="raises KeyError"):
        check_model_source(type("Raises", (right,), {"resolve": lookup}), [], missing=["fixed:two"])


def test_executors():
    check_executor("in_process", num_threads=1)


def test_an_executor_that_pools_nothing(monkeypatch):
    monkeypatch.setattr("core.runner.pooling.Pooler.pool", lambda *_: ([], None))
    with pytest.raises(AssertionError, match="'in_process' gives no embeddings"):
        check_executor("in_process", num_threads=1)
