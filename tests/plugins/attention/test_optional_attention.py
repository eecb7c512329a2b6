"""The backends "flashinfer" and "flash_attn" without their libraries: what they hand over, by the libraries' rules.

The libraries' own kernels are compared in tests/gpu/test_optional_attention.py.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import plain_flash_attn
import plain_flashinfer
import pytest
import torch
from attention_cases import Case, build, spec

from core.errors import ConfigError
from core.kernels.references import rope_and_cache_reference
from core.testing import ATTENTION_CASES, check_attention_backend
from plugins.attention.flash_attn.backend import FlashAttnBackend
from plugins.attention.flash_attn.metadata import prompts_of
from plugins.attention.flashinfer import backend as flashinfer_backend
from plugins.attention.flashinfer.backend import FlashInferBackend
from plugins.attention.flashinfer.metadata import paged_requests
from plugins.attention.torch.reference import paged_attention_reference


def write(key, value, slots, keys, values) -> None:
    """In place of core.kernels.rope.write_cache, which needs a GPU: -1 writes nothing."""
    kept = slots >= 0
    for cache, new in ((keys, key), (values, value)):
        cache.view(-1, *cache.shape[2:])[slots[kept]] = new[kept].to(cache.dtype)


def rotate_and_write(qkv, cos_sin, positions, slots, keys, values, *rest) -> None:
    """In place of core.kernels.rope.rope_and_cache."""
    rope_and_cache_reference(qkv, cos_sin, positions, slots, keys, values, *rest)


class NoEvent:
    """The CPU has done what it was told."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


class PlainFlashInfer(FlashInferBackend):
    capabilities = replace(
        FlashInferBackend.capabilities,
        devices=frozenset({"cpu"}),
        dtypes=frozenset({"float32"}),
        head_dims=None,
    )
    _check_device = lambda self, device: None  # noqa: E731
    _import = lambda self: plain_flashinfer  # noqa: E731
    _event = lambda self: NoEvent()  # noqa: E731
    _write = staticmethod(write)
    _rotate_and_write = staticmethod(rotate_and_write)


class PlainFlashAttn(FlashAttnBackend):
    capabilities = replace(
        FlashAttnBackend.capabilities, devices=frozenset({"cpu"}), dtypes=frozenset({"float32"}), head_dims=None
    )
    _check_device = lambda self, device: None  # noqa: E731
    _import = lambda self: plain_flash_attn  # noqa: E731
    _write = staticmethod(write)
    _rotate_and_write = staticmethod(rotate_and_write)


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch):
    """A small workspace, and one thread: the pieces are so short that threads would wait for each other."""
    monkeypatch.setattr(flashinfer_backend, "WORKSPACE_BYTES", 1 << 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MIXED = [(1, 30), (1, 3), (1, 15), (17, 0), (5, 20), (33, 0), (16, 16), (2, 0), (1, 0)]
LONG = [(1, 254), (1, 255), (1, 256), (1, 600), (255, 0), (256, 0), (3, 255), (40, 490), (257, 300)]
ALIBI = (0.5, 0.25, 0.125, 0.06)
CASES = {
    "decodes": Case(spec(), MIXED[:3]),
    "prompts": Case(spec(), [(17, 0), (2, 0), (33, 0)]),
    "chunks": Case(spec(), [(5, 20), (16, 16), (7, 56)]),
    "mixed": Case(spec(), MIXED[:-1]),
    "long": Case(spec(), LONG),
    "long, window": Case(spec(window=100), LONG),
    "window of one": Case(spec(window=1), MIXED[:-1]),
    "soft cap": Case(spec(soft_cap=5.0), MIXED[:-1]),
    "a group of 7": Case(spec(7, 1, 32), MIXED[:-1]),
    "alibi": Case(spec(alibi_slopes=ALIBI), MIXED[:-1]),
    "padded rows": Case(spec(), MIXED[:3], padding=3),
}


@pytest.mark.parametrize("block_size", [4, 16, 64, 256])
@pytest.mark.parametrize("name", [n for n in CASES if n != "alibi"])
def test_the_page_table_leads_to_the_keys(name: str, block_size: int) -> None:
    """Attention over exactly these arrays, by the library's definition of them, is that of the reference."""
    case = replace(CASES[name], block_size=block_size)
    built = build(case)
    meta = built.batch.attention
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    n, end = meta.num_decodes, meta.num_requests
    for first, last in ((0, n), (n, end)):
        if first == last:
            continue
        pages = paged_requests(meta, first, last)
        mine = slice(int(meta.query_start_loc[first]), int(meta.query_start_loc[last]))
        query, wanted = built.query[mine], expected[mine]
        starts = pages.query_indptr.tolist()
        requests = plain_flashinfer.segments(pages.block_indptr, pages.blocks, pages.last_block_len, block_size)
        assert [length for _, length in requests] == meta.seq_lens[first:last].tolist()
        for i, (blocks, length) in enumerate(requests):
            if length == 0:
                continue
            k, v = (c[blocks].flatten(0, 1)[:length] for c in built.filled)
            window = -1 if case.spec.window is None else case.spec.window - 1
            q = query[starts[i] : starts[i + 1]]
            got = plain_flashinfer.attend(q, k, v, True, window, case.spec.soft_cap or 0.0, case.spec.scale)
            torch.testing.assert_close(got, wanted[starts[i] : starts[i + 1]], rtol=1e-4, atol=1e-5)


def test_arrays_of_a_small_step_by_hand() -> None:
    built = build(Case(spec(), [(1, 15), (1, 16), (3, 0), (2, 31)], block_size=16))
    meta = built.batch.attention
    table = meta.block_table
    decodes, prompts = paged_requests(meta, 0, 2), paged_requests(meta, 2, 4)
    assert decodes.block_indptr.tolist() == [0, 1, 3] and decodes.last_block_len.tolist() == [16, 1]
    assert decodes.blocks.tolist() == [int(table[0, 0]), int(table[1, 0]), int(table[1, 1])]
    assert prompts.query_indptr.tolist() == [0, 3, 5] and prompts.block_indptr.tolist() == [0, 1, 4]
    assert prompts.last_block_len.tolist() == [3, 1]
    assert prompts.blocks.tolist() == [int(table[2, 0]), *table[3, :3].tolist()]
    found = prompts_of(meta)
    assert found is not None and found.block_table is not None
    assert found.query_starts.tolist() == [0, 3, 5] and found.key_starts.tolist() == [0, 3, 36]
    assert (found.max_query_len, found.max_seq_len) == (3, 33)
    assert found.block_table.tolist() == table[2:].tolist()
    fresh = prompts_of(build(Case(spec(), [(1, 3), (3, 0), (5, 0)])).batch.attention)
    assert fresh is not None and fresh.block_table is None and fresh.key_starts.tolist() == [0, 3, 8]
    assert prompts_of(build(Case(spec(), [(1, 3), (1, 7)])).batch.attention) is None


@pytest.mark.parametrize(
    ("backend", "name"),
    [(b, n) for b in (PlainFlashInfer, PlainFlashAttn) for n in CASES if b.capabilities.alibi or n != "alibi"],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_step_equals_the_reference(backend, name: str) -> None:
    case = replace(CASES[name], block_size=16 if backend is PlainFlashInfer else 256)
    built = build(case)
    made = backend(torch.device("cpu"))
    made.plan(built.batch)
    out = made.forward(case.spec, built.query, built.key, built.value, built.cache, built.batch)
    expected = paged_attention_reference(case.spec, built.query, *built.filled, built.batch)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(built.cache, built.filled, strict=True):
        torch.testing.assert_close(got, wanted, equal_nan=True)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("backend", [PlainFlashInfer, PlainFlashAttn], ids=lambda b: b.name)
def test_from_the_projection(backend, norm: bool) -> None:
    case = replace(CASES["long"], block_size=16 if backend is PlainFlashInfer else 256)
    built = build(case)
    g = torch.Generator().manual_seed(1)
    qkv = torch.cat([built.query, built.key, built.value], 1).flatten(1)
    cos_sin = torch.randn(700, 16, generator=g)
    weights = (torch.randn(16, generator=g), torch.randn(16, generator=g)) if norm else (None, None)
    rotated, cache = qkv.clone(), tuple(c.clone() for c in built.cache)
    meta = built.batch.attention
    rope_and_cache_reference(rotated, cos_sin, built.batch.positions, meta.slot_mapping, *cache, 4, *weights, 1e-6)
    expected = paged_attention_reference(case.spec, rotated.view(-1, 8, 16)[:, :4], *cache, built.batch)
    made = backend(torch.device("cpu"))
    made.plan(built.batch)
    out = made.forward_rope(case.spec, qkv, cos_sin, built.cache, built.batch, *weights, 1e-6)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_the_conformance_kit() -> None:
    ran = check_attention_backend(PlainFlashInfer)
    assert {"decodes and prompts", "layers with and without a window", "blocks of 64", "soft cap"} <= set(ran)
    assert "alibi" not in ran and "rows of padding" not in ran
    wide = [replace(case, block_size=256, common=0) for case in ATTENTION_CASES]
    ran = check_attention_backend(PlainFlashAttn, cases=wide)
    assert {"decodes and prompts", "layers with and without a window", "alibi", "rows of padding"} <= set(ran)
    with pytest.raises(AssertionError, match="fit none of the cases"):
        check_attention_backend(PlainFlashAttn)  # blocks of 16


def test_a_kind_of_layer_plans_once_in_a_step() -> None:
    built = build(CASES["mixed"])
    made = PlainFlashInfer(torch.device("cpu"))
    windowed = replace(built_spec := CASES["mixed"].spec, window=9)
    last: set[int] = set()
    for step in range(4):
        before = plain_flashinfer._Wrapper.plans
        made.plan(built.batch)
        for layer in (built_spec, windowed, built_spec, windowed):
            made.forward(layer, built.query, built.key, built.value, built.cache, built.batch)
        # two kinds, decodes and prompts; at first each kind is tried, whatever the step holds
        assert plain_flashinfer._Wrapper.plans - before == (8 if step == 0 else 4), step
        used = {id(w) for w in built.batch.attention.state.planned.values()}
        assert used.isdisjoint(last), "its pinned memory may not have been copied yet"
        last = used


def test_on_a_cpu_the_way_out_is_named() -> None:
    for backend in (FlashInferBackend, FlashAttnBackend):
        with pytest.raises(ConfigError, match=f"{backend.name}.*device is cpu; use --attention-backend auto"):
            backend(torch.device("cpu"))


def test_no_compiler_and_no_compiled_kernels(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="takes nvcc and ninja, and nvcc is not here.*flashinfer-jit-cache"):
        flashinfer_backend._check_compiler(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    with pytest.raises(ConfigError, match="and ninja is not here"):
        flashinfer_backend._check_compiler(tmp_path)
    ready = tmp_path / "data" / "aot" / "batch_prefill_x"
    ready.mkdir(parents=True)
    (ready / "batch_prefill_x.so").touch()
    flashinfer_backend._check_compiler(tmp_path)


def test_a_first_prompt_makes_the_kernel_of_decodes_ready() -> None:
    built = build(CASES["prompts"])
    made = PlainFlashInfer(torch.device("cpu"))
    made.plan(built.batch)
    made.forward(CASES["prompts"].spec, built.query, built.key, built.value, built.cache, built.batch)
    assert {kind[0] for kind in made._pairs} == {"decode", "prompt"}
    assert all(pair.wrappers[0].library.requests for pair in made._pairs.values())  # planned


def test_a_kernel_that_cannot_be_made_ready(monkeypatch) -> None:
    built = build(CASES["decodes"])
    made = PlainFlashInfer(torch.device("cpu"))
    made.plan(built.batch)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("Could not find nvcc")

    with monkeypatch.context() as patched:
        patched.setattr(plain_flashinfer.BatchDecodeWithPagedKVCacheWrapper, "plan", fails)
        with pytest.raises(ConfigError, match="kernel for heads of 16, window None.*Could not find nvcc; see docs"):
            made.forward(CASES["decodes"].spec, built.query, built.key, built.value, built.cache, built.batch)


@pytest.mark.parametrize(
    ("version", "release"), [("0.6.14", (0, 6)), ("0.5.3+cu129", (0, 5)), ("0.7.2.post1", (0, 7)), ("1", (1, 0))]
)
def test_versions(version: str, release: tuple[int, int]) -> None:
    assert flashinfer_backend._release(version) == release


def test_the_stand_ins_take_what_the_library_takes() -> None:
    """Every argument of a stand-in is the library's, where that is installed (it needs no GPU to be imported)."""
    library = pytest.importorskip("flashinfer")
    how = {"window_left", "logits_soft_cap", "sm_scale", "q_data_type", "kv_data_type"}
    for name, more in (
        ("BatchDecodeWithPagedKVCacheWrapper", {"use_tensor_cores"}),
        ("BatchPrefillWithPagedKVCacheWrapper", set()),
    ):
        real, plain = getattr(library, name), getattr(plain_flashinfer, name)
        assert {"float_workspace_buffer", "kv_layout", "backend"} | more <= set(inspect.signature(real).parameters)
        in_order = [p for p in inspect.signature(plain.plan).parameters if p != "how"]
        assert list(inspect.signature(real.plan).parameters)[: len(in_order)] == in_order, name
        # 0.7 takes the rest as keywords, and says which behind plan()
        keywords = {
            p for f in (real.plan, getattr(real, "_plan_impl", real.plan)) for p in inspect.signature(f).parameters
        }
        assert how | ({"causal"} if "Prefill" in name else set()) <= keywords, name
        assert list(inspect.signature(real.run).parameters)[:3] == ["self", "q", "paged_kv_cache"]
        assert "out" in inspect.signature(real.run).parameters
