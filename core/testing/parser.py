"""check_parser: a tool-call or reasoning parser over transcripts, each cut in every way."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.interfaces.parser import Event, OutputParser, Reasoning, Text, ToolCallArguments, ToolCallBegin, ToolCallEnd


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that a transcript holds."""

    name: str
    arguments: Any
    """What the JSON of its arguments means; text, if the call breaks off: then exactly what must have come out."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What a model wrote, and what a parser must make of it."""

    text: str
    content: str = ""
    reasoning: str = ""
    calls: Sequence[Call] = ()


def check_parser(
    parser: Callable[[Sequence[Mapping[str, Any]]], OutputParser],
    transcripts: Iterable[Transcript],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    num_random: int = 20,
) -> None:
    """Raise AssertionError unless every transcript gives its content, reasoning and calls, however it is cut.

    parser: the class; it is made anew, with `tools`, for each replay. Cuts: none, one at every place, one after every
    character, and `num_random` random ones; besides, every beginning of a transcript must end without an exception,
    and two parsers fed in turn must not disturb each other.
    """
    checked = 0
    for transcript in transcripts:
        _check(parser, transcript, tools, num_random)
        checked += 1
    assert checked, "no transcripts were given, nothing was checked"


def _check(parser: Any, transcript: Transcript, tools: Any, num_random: int) -> None:
    text = transcript.text
    whole = _replay(parser, [text], tools)
    _compare(transcript, whole)
    wanted = _joined(whole)
    rng = random.Random(7)
    cuts = [[text[:i], text[i:]] for i in range(len(text) + 1)]
    cuts.append(list(text))
    for _ in range(num_random):
        at = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(1, 12))))
        cuts.append([text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
    for pieces in cuts:
        got = _joined(_replay(parser, pieces, tools))
        assert got == wanted, (
            f"transcript {_short(text)} in the pieces {pieces!r} gives\n  {got}\nand in one piece\n  {wanted}"
        )
    for end in range(len(text)):
        _replay(parser, [text[:end]], tools)
    _check_two(parser, text, tools, wanted)


def _check_two(parser: Any, text: str, tools: Any, wanted: Any) -> None:
    pair: list[tuple[OutputParser, list[Event]]] = [(parser(tools), []), (parser(tools), [])]
    for char in text:
        for made, events in pair:
            events += made.feed(char)
    for made, events in pair:
        events += made.finish()
        got = _joined(events)
        assert got == wanted, (
            f"transcript {_short(text)}: fed in turn with a second parser, it gives\n  {got}\ninstead of\n  {wanted}\n"
            "parsers share something that each must have for itself"
        )


def _replay(parser: Any, pieces: list[str], tools: Any) -> list[Event]:
    made: OutputParser = parser(tools)
    events: list[Event] = []
    try:
        for piece in pieces:
            events += made.feed(piece)
        events += made.finish()
    except Exception as error:
        raise AssertionError(
            f"the pieces {pieces!r} raise {type(error).__name__}: {error} after the events {events}"
        ) from error
    return events


def _joined(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Events with neighbouring pieces of one kind joined: what does not depend on the cuts."""
    found: list[tuple[Any, ...]] = []
    for event in events:
        key: tuple[Any, ...]
        value: str | None
        match event:
            case Text(text):
                key, value = ("text",), text
            case Reasoning(text):
                key, value = ("reasoning",), text
            case ToolCallArguments(index, text):
                key, value = ("arguments", index), text
            case ToolCallBegin(index, name, call_id):
                key, value = ("begin", index, name, call_id), None
            case ToolCallEnd(index):
                key, value = ("end", index), None
            case _:
                raise AssertionError(f"{event!r} is no event; see core/interfaces/parser.py")
        assert value != "", f"an event without text: {event!r}"
        if found and found[-1][0] == key and value is not None:
            found[-1] = (key, found[-1][1] + value)
        else:
            found.append((key, value))
    return found


def _compare(transcript: Transcript, events: list[Event]) -> None:
    where = f"transcript {_short(transcript.text)}"
    content = "".join(e.text for e in events if isinstance(e, Text))
    reasoning = "".join(e.text for e in events if isinstance(e, Reasoning))
    assert content == transcript.content, f"{where}: content is {content!r} instead of {transcript.content!r}"
    assert reasoning == transcript.reasoning, f"{where}: reasoning is {reasoning!r} instead of {transcript.reasoning!r}"
    begun = [e for e in events if isinstance(e, ToolCallBegin)]
    names = [c.name for c in transcript.calls]
    assert [e.name for e in begun] == names, f"{where}: calls are {[e.name for e in begun]} instead of {names}"
    indices = [e.index for e in begun]
    assert indices == list(range(len(begun))), f"{where}: calls have the indices {indices}; they count from 0"
    open_call, ended = None, set()
    for event in events:
        if isinstance(event, ToolCallBegin):
            open_call = event.index
        elif isinstance(event, ToolCallArguments | ToolCallEnd):
            assert event.index == open_call, f"{where}: {event!r} belongs to no call that is open"
            if isinstance(event, ToolCallEnd):
                ended.add(event.index)
                open_call = None
    for index, call in enumerate(transcript.calls):
        arguments = "".join(e.json for e in events if isinstance(e, ToolCallArguments) and e.index == index)
        if index not in ended:
            assert arguments == call.arguments, (
                f"{where}: call {index} breaks off with arguments {arguments!r} instead of {call.arguments!r}"
            )
            continue
        try:
            value = json.loads(arguments)
        except ValueError as error:
            raise AssertionError(f"{where}: arguments of call {index} are no JSON, {arguments!r}: {error}") from error
        wanted = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
        assert value == wanted, f"{where}: arguments of call {index} are {value!r} instead of {wanted!r}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "...")
