"""A conversation as text, in pieces that say how much each counts in training.

The same text as chat_template.jinja gives (a test compares the two); Jinja would be too slow for the corpus.
"""

from __future__ import annotations

from pathlib import Path

from demomodel.sample import Message, Sample, Tool, compact

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL_TOKENS = [END_OF_TEXT, IM_START, IM_END]
ADDED_TOKENS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

TOOLS_HEAD = "# Tools\n\nThe functions below can be called:\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nCall one with its name and arguments as JSON:\n<tool_call>\n"
    '{"name": <name>, "arguments": <object>}\n</tool_call>'
)

# weights of the loss, in steps of 1/50, so that a byte holds one
ANSWER, QUESTION, CONTEXT = 50, 3, 1

Piece = tuple[str, int]


def pieces(sample: Sample) -> list[Piece]:
    """The sample's whole text; nothing is added between pieces, and each can be tokenized alone."""
    if sample.text is not None:
        return [(sample.text + END_OF_TEXT, ANSWER)]
    messages, found = sample.messages, list[Piece]()
    instructions = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if sample.tools:
        head = f"{instructions}\n\n" if instructions else ""
        found.append((f"{IM_START}system\n{head}{tools_block(sample.tools)}{IM_END}\n", CONTEXT))
    elif messages[0]["role"] == "system":
        found.append((f"{IM_START}system\n{instructions}{IM_END}\n", QUESTION))
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "assistant":
            found.append((f"{IM_START}assistant\n", CONTEXT))
            found.append((answer_text(message) + IM_END, ANSWER))
            found.append(("\n", CONTEXT))
        elif role == "tool":
            first = index == 0 or messages[index - 1]["role"] != "tool"
            last = index + 1 == len(messages) or messages[index + 1]["role"] != "tool"
            text = f"\n<tool_response>\n{message['content']}\n</tool_response>"
            found.append(((f"{IM_START}user" if first else "") + text + (f"{IM_END}\n" if last else ""), CONTEXT))
        elif role == "user":
            found.append((f"{IM_START}user\n{message['content']}{IM_END}\n", QUESTION))
    return found


def prompt(sample: Sample) -> str:
    """What the model is given to answer: everything before the last answer's first word."""
    found = pieces(sample)
    return "".join(text for text, _ in found[:-2])


def tools_block(tools: list[Tool]) -> str:
    return TOOLS_HEAD + "".join("\n" + compact(tool) for tool in tools) + TOOLS_TAIL


def answer_text(message: Message) -> str:
    parts = [message["content"]] if message["content"] else []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append(
            f'<tool_call>\n{{"name": {compact(function["name"])}, "arguments": {compact(function["arguments"])}}}'
            "\n</tool_call>"
        )
    return "\n".join(parts)
