"""FlashInfer and flash-attn themselves, on a GPU, against the reference; each skipped where its package is missing.

FlashInfer compiles a kernel for every combination of number type, head size, window and soft cap that it has not seen,
for minutes each unless they are there ready (docs/plugins.md). BACKPLANE_TEST_READY=1 leaves cases out that would compile.

Where vLLM is installed, its build of FlashAttention 3 stands in for flash-attn once more ("flash_attn by vLLM"): other
kernels behind the same block tables, lengths, windows and soft caps. (These read the values behind a request's end, which
a cache that begins with zeros allows, so what is poison for the others is a large number for them.)
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parents[1] / "plugins" / "attention"))
from attention_cases import Case, build, spec  # noqa: E402

from core import Engine, SamplingParams  # noqa: E402
from core.testing import ATTENTION_CASES, check_attention_backend  # noqa: E402
from plugins.attention.torch.reference import paged_attention_reference  # noqa: E402

MODULES = {"flashinfer": "flashinfer", "flash_attn": "flash_attn"}
BLOCK_SIZE = {"flashinfer": 16, "flash_attn": 256}
EDGES = [(1, 0), (1, 14), (1, 15), (1, 16), (1, 255), (1, 256), (1, 511), (1, 512), (1, 513), (1, 1100)]
MIXED = [*EDGES[:5], (127, 0), (128, 0), (129, 0), (2, 0), (64, 33), (200, 500), (17, 16), (300, 1), (2, 254), (5, 600)]
LLAMA = dict(heads=32, kv_heads=8, dim=128)
ALIBI = tuple(2.0 ** (-i / 4) for i in range(32))
CASES = {
    "one decode": Case(spec(**LLAMA), [(1, 700)]),
    "decodes": Case(spec(**LLAMA), EDGES),
    "decodes, many": Case(spec(**LLAMA), EDGES * 24),
    "one long decode": Case(spec(**LLAMA), [(1, 9000)]),
    "decodes, padded rows": Case(spec(**LLAMA), EDGES, padding=6),
    "prompts": Case(spec(**LLAMA), [(1000, 0), (63, 0), (500, 0), (2, 0)]),
    "prompts with a prefix": Case(spec(**LLAMA), [(200, 500), (17, 16), (300, 1), (2, 254), (64, 448)]),
    "mixed": Case(spec(**LLAMA), MIXED),
    "mixed, a head each": Case(spec(8, 8, 128), MIXED),
    "mixed, group of 7": Case(spec(7, 1, 128), MIXED),
    "mixed, head_dim 64": Case(spec(8, 2, 64), MIXED),
    "mixed, head_dim 256": Case(spec(8, 2, 256), MIXED),
    "mixed, head_dim 80": Case(spec(8, 2, 80), MIXED),
    "mixed, window": Case(spec(**LLAMA, window=100), MIXED),
    "mixed, window of one": Case(spec(**LLAMA, window=1), MIXED),
    "mixed, soft cap": Case(spec(**LLAMA, soft_cap=20.0), MIXED),
    "mixed, alibi": Case(spec(**LLAMA, alibi_slopes=ALIBI), MIXED),
    "mixed, other blocks": Case(spec(**LLAMA), MIXED, block_size=64),
}


class VllmFlashAttention:
    """flash-attn's two functions by vLLM's varlen function, loaded without vLLM."""

    def __init__(self, folder: Path) -> None:
        package = ModuleType("vllm_flash_attn_alone")
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
        self._varlen = importlib.import_module(f"{package.__name__}.flash_attn_interface").flash_attn_varlen_func

    def flash_attn_with_kvcache(
        self, q: Any, k_cache: Any, v_cache: Any, *, cache_seqlens: Any, block_table: Any, alibi_slopes: Any, **how: Any
    ) -> torch.Tensor:
        starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
        longest = block_table.shape[1] * k_cache.shape[1]
        return self._varlen(
            q.squeeze(1), k_cache, v_cache, 1, starts, longest,
            seqused_k=cache_seqlens, block_table=block_table, fa_version=3, **how,
        ).unsqueeze(1)  # fmt: skip

    def flash_attn_varlen_func(
        self, q: Any, k: Any, v: Any, starts: Any, key_starts: Any, longest_query: int, longest: int, *,
        block_table: Any, alibi_slopes: Any, **how: Any,
    ) -> torch.Tensor:  # fmt: skip
        keys = {"cu_seqlens_k": key_starts} if block_table is None else {"seqused_k": key_starts.diff()}
        return self._varlen(
            q, k, v, longest_query, starts, longest, block_table=block_table, fa_version=3, **keys, **how
        )


def use_vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    from core import registry
    from plugins.attention.flash_attn.backend import FlashAttnBackend

    found = find_spec("vllm")
    folder = Path(str(found.origin)).parent / "vllm_flash_attn" if found else None
    if folder is None or not list(folder.glob("_vllm_fa3_C*.so")) or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("no vLLM with FlashAttention 3, or no Hopper")
    library = VllmFlashAttention(folder)
    can = replace(FlashAttnBackend.capabilities, alibi=False, head_dims=frozenset({64, 96, 128, 192, 256}))
    monkeypatch.setattr(FlashAttnBackend, "_import", lambda self: library)
    monkeypatch.setattr(FlashAttnBackend, "capabilities", can)
    monkeypatch.setattr(FlashAttnBackend, "reads_behind", True, raising=False)
    monkeypatch.setattr(registry, "find_spec", lambda name: True if name == "flash_attn" else find_spec(name))
    return FlashAttnBackend


@pytest.fixture(params=["flashinfer", "flashinfer fa2", "flash_attn", "flash_attn by vLLM"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The backend's class; "fa2": with FlashInfer's kernels for chips other than Hopper."""
    name, _, kernels = request.param.partition(" ")
    if kernels == "by vLLM":
        return use_vllm(monkeypatch)
    if find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    if name == "flashinfer":
        from plugins.attention.flashinfer.backend import FlashInferBackend

        if kernels:
            if torch.cuda.get_device_capability()[0] != 9:
                pytest.skip("they are used here anyway")
            monkeypatch.setattr(FlashInferBackend, "_is_hopper", lambda self: False)
        return FlashInferBackend
    from plugins.attention.flash_attn.backend import FlashAttnBackend

    return FlashAttnBackend


def skip_what_compiles(backend: Any, of: Any, dtype: torch.dtype, cache_dtype: torch.dtype | None = None) -> None:
    """Skip if FlashInfer has no kernel ready for such layers."""
    if backend.name != "flashinfer" or not os.environ.get("BACKPLANE_TEST_READY"):
        return
    from flashinfer.jit.attention.modules import gen_batch_prefill_module

    stored = cache_dtype or dtype
    is_hopper = backend._is_hopper(SimpleNamespace(device=torch.device("cuda")))
    for kind in ("fa2", "fa3") if is_hopper and stored.itemsize == 2 else ("fa2",):
        flags = (0, of.window is not None, of.soft_cap is not None, False)
        ready = gen_batch_prefill_module(
            kind, dtype, stored, dtype, torch.int32, of.head_dim, of.head_dim, *flags
        ).is_compiled
        if not ready:
            pytest.skip(f"flashinfer has no kernel ready ({kind}, {dtype}, {stored}, head_dim {of.head_dim}, {flags})")


def refit(case: Case, backend: Any) -> Case:
    """With blocks that the backend takes; skip if it does not take the layer."""
    can, of = backend.capabilities, case.spec
    if of.head_dim not in can.head_dims or (of.alibi_slopes and not can.alibi):
        pytest.skip(f"{backend.name} does not take this layer")
    if case.padding and not can.graph_capture:
        pytest.skip(f"{backend.name} is not captured, so it meets no padding")
    wide = {16: 256, 64: 512} if backend.name == "flash_attn" else {}
    return replace(case, block_size=wide.get(case.block_size, case.block_size))


def built_for(case: Case, backend: Any, dtype: torch.dtype) -> Any:
    built = build(case, "cuda", dtype)
    if hasattr(backend, "reads_behind"):
        for tensor in (*built.cache, *built.filled):
            tensor.nan_to_num_(nan=1e4)
    return built


def poison() -> None:
    """What torch.empty hands out next is NaN."""
    torch.full((64 << 20,), float("nan"), device="cuda")


def compare(out: torch.Tensor, expected: torch.Tensor, batch: Any) -> None:
    real = int(batch.attention.query_lens_host[batch.attention.seq_lens_host > 0].sum())  # padding comes last
    error = ((out[:real].float() - expected[:real]).norm() / expected.norm()).item()
    assert error < 1e-2, error
    for i in range(batch.attention.num_requests):  # a wrong short request must not hide behind long ones
        a, b = batch.attention.query_start_loc[i : i + 2].tolist()
        if batch.attention.seq_lens_host[i] == 0:
            assert out[a:b].isfinite().all(), i
            continue
        mine = ((out[a:b].float() - expected[a:b]).norm() / expected[a:b].norm().clamp(min=1e-3)).item()
        assert mine < 2e-2, (i, mine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_forward(name: str, dtype: torch.dtype, backend: Any) -> None:
    case = refit(CASES[name], backend)
    skip_what_compiles(backend, case.spec, dtype)
    built = built_for(case, backend, dtype)
    made = backend(torch.device("cuda"))
    made.plan(built.batch)
    poison()
    out = made.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    compare(out, paged_attention_reference(case.spec, built.query.float(), *built.filled, built.batch), built.batch)
    for got, wanted in zip(built.cache, built.filled, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=0, atol=0)


def test_slices_of_a_fused_projection(backend: Any) -> None:
    case = refit(CASES["mixed"], backend)
    skip_what_compiles(backend, case.spec, torch.bfloat16)
    built = built_for(case, backend, torch.bfloat16)
    fused = torch.cat([built.query, built.key, built.value], 1)
    query, key, value = fused.split([32, 8, 8], 1)
    made = backend(torch.device("cuda"))
    made.plan(built.batch)
    out = made.forward(case.spec, query, key, value, built.cache, built.batch)
    compare(out, paged_attention_reference(case.spec, built.query.float(), *built.filled, built.batch), built.batch)


@pytest.mark.parametrize("norm", [False, True])
def test_from_the_projection(norm: bool, backend: Any) -> None:
    from core.kernels.references import rope_and_cache_reference

    case = refit(CASES["mixed"], backend)
    skip_what_compiles(backend, case.spec, torch.bfloat16)
    built = built_for(case, backend, torch.bfloat16)
    qkv = torch.cat([built.query, built.key, built.value], 1).flatten(1)
    angle = torch.randn(1200, 64, device="cuda")
    cos_sin = torch.cat([angle.cos(), angle.sin()], 1)
    weights = tuple(torch.rand(128, device="cuda").bfloat16() + 0.5 for _ in range(2)) if norm else (None, None)
    rotated, cache = qkv.clone(), tuple(c.clone() for c in built.cache)
    meta = built.batch.attention
    rope_and_cache_reference(rotated, cos_sin, built.batch.positions, meta.slot_mapping, *cache, 32, *weights, 1e-6)
    query = rotated.view(-1, 48, 128)[:, :32].contiguous()
    expected = paged_attention_reference(case.spec, query.float(), *cache, built.batch)
    made = backend(torch.device("cuda"))
    made.plan(built.batch)
    out = made.forward_rope(case.spec, qkv, cos_sin, built.cache, built.batch, *weights, 1e-6)
    compare(out, expected, built.batch)


def test_steps_that_are_queued_faster_than_they_run(backend: Any) -> None:
    """The host is steps ahead of the device: what one step planned must not be another's."""
    made = backend(torch.device("cuda"))
    skip_what_compiles(backend, spec(**LLAMA), torch.bfloat16)
    steps = []
    for seed in range(8):
        lengths = [(1, 37 * (seed + 1) * (i + 1) % 900) for i in range(24)] + [(40 + seed, 11 * seed), (9, 300)]
        case = refit(Case(spec(**LLAMA), lengths, seed=seed), backend)
        steps.append((case, built_for(case, backend, torch.bfloat16)))
    made.plan(steps[0][1].batch)  # kernels are compiled and loaded before the race
    made.forward(spec(**LLAMA), *_inputs(steps[0][1]))
    torch.cuda.synchronize()
    outs = []
    torch.cuda._sleep(200_000_000)  # about 0.1 s: everything below is queued behind it
    for case, built in steps:
        made.plan(built.batch)
        outs.append(made.forward(case.spec, *_inputs(built)))
    torch.cuda.synchronize()
    for (case, built), out in zip(steps, outs, strict=True):
        compare(out, paged_attention_reference(case.spec, built.query.float(), *built.filled, built.batch), built.batch)


def _inputs(built: Any) -> tuple[Any, ...]:
    return built.query, built.key, built.value, built.cache, built.batch


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=["e4m3", "e5m2"])
def test_fp8_cache(kind: torch.dtype, backend: Any) -> None:
    if "fp8_e4m3" not in (backend.capabilities.cache_dtypes or ()):
        pytest.skip(f"{backend.name} has no fp8 cache")
    case = refit(Case(spec(**LLAMA), MIXED), backend)
    skip_what_compiles(backend, case.spec, torch.bfloat16, kind)
    built = built_for(case, backend, torch.bfloat16)
    cache = tuple(c.to(kind) for c in built.cache)
    filled = tuple(c.to(kind).to(torch.bfloat16) for c in built.filled)
    made = backend(torch.device("cuda"))
    made.plan(built.batch)
    out = made.forward(case.spec, built.query, built.key, built.value, cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query.float(), *filled, built.batch)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2


def test_the_conformance_kit(backend: Any) -> None:
    if hasattr(backend, "reads_behind"):
        pytest.skip("the kit poisons what lies behind a request's end")
    size = BLOCK_SIZE[backend.name]
    cases = [replace(c, head_dim=128, block_size=size, common=0) for c in ATTENTION_CASES]
    if os.environ.get("BACKPLANE_TEST_READY"):
        skip_what_compiles(backend, spec(**LLAMA), torch.bfloat16)
        cases = [c for c in cases if c.windows == (None,) and c.soft_cap is None]
    ran = check_attention_backend(backend, device="cuda", dtype="bfloat16", cases=cases)
    assert {"decodes and prompts", "chunks", "decodes of many lengths"} <= set(ran)


def test_a_captured_graph_serves_other_lengths(backend: Any) -> None:
    if not backend.capabilities.graph_capture:
        pytest.skip(f"{backend.name} is not captured")
    case = refit(Case(spec(**LLAMA), [(1, 2000)] * 3 + [(1, 100)], padding=4), backend)
    built = built_for(case, backend, torch.bfloat16)
    made = backend(torch.device("cuda"))
    made.plan(built.batch)
    run = lambda: made.forward(case.spec, *_inputs(built))  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    lengths = [(1, 5), (1, 1999), (1, 16), (1, 1030)]
    other = built_for(refit(Case(spec(**LLAMA), lengths, padding=4, seed=9), backend), backend, torch.bfloat16)
    meta, new = built.batch.attention, other.batch.attention
    for target, source in (
        (meta.seq_lens, new.seq_lens), (meta.slot_mapping, new.slot_mapping),
        (built.query, other.query), (built.key, other.key), (built.value, other.value),
    ):  # fmt: skip
        target.copy_(source)
    width = min(new.block_table.shape[1], meta.block_table.shape[1])
    meta.block_table.zero_()
    meta.block_table[:, :width] = new.block_table[:, :width]
    blocks = other.cache[0].shape[0]
    assert blocks <= built.cache[0].shape[0]
    for mine, theirs in zip(built.cache, other.cache, strict=True):
        mine[:blocks] = theirs
    out.fill_(float("nan"))
    graph.replay()
    expected = paged_attention_reference(case.spec, other.query.float(), *other.filled, other.batch)
    assert ((out.float() - expected).norm() / expected.norm()).item() < 1e-2
    assert out[4:].isfinite().all()


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """make(window) -> a tiny random model with heads of 128."""
    import transformers

    made: dict[int | None, Path] = {}

    def make(window: int | None) -> Path:
        if window not in made:
            torch.manual_seed(7)
            family = "Llama" if window is None else "Mistral"
            config = getattr(transformers, f"{family}Config")(
                vocab_size=384, hidden_size=256, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, head_dim=128, max_position_embeddings=1024, initializer_range=0.2,
                bos_token_id=None, eos_token_id=0, pad_token_id=None,
                **({} if window is None else {"sliding_window": window}),
            )  # fmt: skip
            made[window] = tmp_path_factory.mktemp(f"wide-{window}")
            getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(made[window])
        return made[window]

    return make


@pytest.mark.parametrize("window", [None, 48], ids=["plain", "window"])
@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 64}, {"enforce_eager": True}], ids=str)
def test_greedy_tokens_end_to_end(wide_checkpoint: Any, window: int | None, options: dict, backend: Any) -> None:
    """The engine's tokens, log probabilities beside them, as with the backend "torch"; where two tokens are within
    rounding of each other a sequence may go another way, so it is compared to there."""
    skip_what_compiles(backend, spec(4, 2, 128, window=window), torch.bfloat16)
    rng = random.Random(3)
    head = [rng.randrange(1, 384) for _ in range(520)]  # two blocks of 256, and a piece
    prompts = [[rng.randrange(1, 384) for _ in range(n)] for n in (1, 15, 16, 17, 40, 100, 255, 256, 257)]
    prompts += [head + [5 + i] for i in range(3)]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
    fixed = dict(skip_tokenizer_init=True, dtype="bfloat16", max_num_seqs=16, kv_cache_memory_bytes=256 << 20)
    size = BLOCK_SIZE[backend.name]
    found = {}
    for name in ("torch", backend.name):
        with Engine(
            str(wide_checkpoint(window)), attention_backend=name, block_size=size, **{**fixed, **options}
        ) as engine:
            found[name] = [engine.generate(prompts, params) for _ in range(2)]
            cached = [o.num_cached_tokens for o in found[name][1]]
            assert cached[-1] >= 512, cached  # the second time over, prompts are read from the prefix cache
    for mine, theirs in zip(found[backend.name], found["torch"], strict=True):
        compared = 0
        for a, b in zip(mine, theirs, strict=True):
            for i, (x, y) in enumerate(zip(a.outputs[0].token_ids, b.outputs[0].token_ids, strict=True)):
                compared += 1
                if x != y:
                    top = sorted((p.logprob for p in b.outputs[0].logprobs[i]), reverse=True)
                    assert top[0] - top[1] < 0.1, f"token {i}: {x} instead of {y}, {top}"
                    break
        assert compared > 6 * len(prompts), compared  # random weights: ties are frequent
