"""Paged attention by flash-attn (FlashAttention 2, the extra `flash-attn`), for NVIDIA GPUs from Ampere on."""

from core.hookspecs import hookimpl


@hookimpl
def register_attention_backends(register) -> None:  # type: ignore[no-untyped-def]
    how = "pip install --no-build-isolation 'backplane[flash-attn]'"
    register(
        "flash_attn",
        "plugins.attention.flash_attn.backend:FlashAttnBackend",
        devices=("cuda",),
        needs={"flash_attn": how, "triton": how},
    )
