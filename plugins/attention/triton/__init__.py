"""FlashAttention and PagedAttention in Triton, for NVIDIA GPUs from Ampere on."""

from core.hookspecs import hookimpl


@hookimpl
def register_attention_backends(register) -> None:  # type: ignore[no-untyped-def]
    register("triton", "plugins.attention.triton.backend:TritonBackend", devices=("cuda",))
