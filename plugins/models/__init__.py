"""Model architectures. A family is one file here and one line below."""

from core.hookspecs import hookimpl


@hookimpl
def register_models(register) -> None:  # type: ignore[no-untyped-def]
    register("LlamaForCausalLM", "plugins.models.llama:LlamaForCausalLM")
    register("MistralForCausalLM", "plugins.models.mistral:MistralForCausalLM")
    register("Qwen2ForCausalLM", "plugins.models.qwen2:Qwen2ForCausalLM")
    register("Qwen3ForCausalLM", "plugins.models.qwen3:Qwen3ForCausalLM")
    for family in ("Llama", "Mistral", "Qwen2", "Qwen3"):
        register(f"{family}Model", f"plugins.models.headless:{family}Model")
