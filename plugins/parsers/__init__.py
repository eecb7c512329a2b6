"""Parsers of tool calls and reasoning, one file a wire format. `auto` takes the first whose markers are all in the
model's chat template, so what is more specific stands first."""

from core.hookspecs import hookimpl


@hookimpl
def register_tool_parsers(register) -> None:  # type: ignore[no-untyped-def]
    def add(name: str, target: str, *markers: str) -> None:
        register(name, f"plugins.parsers.{target}", markers=markers)

    add("gpt_oss", "gpt_oss:GptOssParser", "<|channel|>", "<|message|>", "<|call|>")
    add("kimi_k2", "kimi_k2:KimiK2Parser", "<|tool_calls_section_begin|>")
    add("deepseek_v3", "deepseek_v3:DeepSeekV3Parser", "<｜tool▁calls▁begin｜>")
    add("mistral", "mistral:MistralParser", "[TOOL_CALLS]")
    add("granite", "granite:GraniteParser", "<|tool_call|>")
    add("qwen3_coder", "qwen3_coder:Qwen3CoderParser", "<tool_call>", "<function=")
    add("glm4", "glm4:Glm4Parser", "<tool_call>", "<arg_key>")
    add("hermes", "hermes:HermesParser", "<tool_call>")
    add("pythonic", "pythonic:PythonicParser", "<|python_start|>")
    add("llama3_json", "llama3_json:Llama3JsonParser", '{"name": function name, "parameters":')


@hookimpl
def register_reasoning_parsers(register) -> None:  # type: ignore[no-untyped-def]
    def add(name: str, target: str, *markers: str) -> None:
        module = "" if ":" in target else "reasoning:"
        register(name, f"plugins.parsers.{module}{target}", markers=markers)

    add("gpt_oss", "gpt_oss:GptOssReasoning", "<|channel|>", "<|message|>", "analysis")
    add("magistral", "MagistralReasoning", "[THINK]")
    add("granite", "GraniteReasoning", "Here is my thought process:", "Here is my response:")
    add("deepseek_r1", "DeepSeekR1Reasoning", "<think>", "<｜Assistant｜>")
    add("qwen3", "Qwen3Reasoning", "<think>", "</think>")
