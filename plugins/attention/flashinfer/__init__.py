"""Paged attention by FlashInfer (the extra `flashinfer`), for NVIDIA GPUs from Ampere on."""

from core.hookspecs import hookimpl


@hookimpl
def register_attention_backends(register) -> None:  # type: ignore[no-untyped-def]
    register(
        "flashinfer",
        "plugins.attention.flashinfer.backend:FlashInferBackend",
        devices=("cuda",),
        needs={"flashinfer": "pip install 'backplane[flashinfer]'", "triton": "pip install 'backplane[flashinfer]'"},
    )
