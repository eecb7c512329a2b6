"""Answers as they grow -> the events of their stream, whatever the API. Knows nothing of what the events say."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

from core.outputs import RequestOutput
from server.state import HttpRequest, ServerState, merge
from server.streaming import DirectOutlet, EventStream, start

Ask = Callable[[DirectOutlet], AsyncGenerator[RequestOutput, None]]
"""Asks the engine for the outputs of one prompt, deltas, but for those that its outlet gets."""


class Rendering(Protocol):
    """What one stream says, in the words of its API. Made for one stream; each output is rendered once, in order."""

    @property
    def over(self) -> bool:
        """The ends of all answers were rendered."""

    def render(self, output: RequestOutput, number: int = 0) -> bytes:
        """Events of what is new of prompt `number`; b"" if nothing has to be said. Quick: runs in a callback of the loop.

        Raises what the output ended with, if that is no answer.
        """

    def end(self) -> bytes:
        """What comes behind all of them."""

    def fail(self, error: BaseException) -> bytes:
        """What a stream that has begun says instead, when it cannot go on."""

    def rename(self, error: BaseException) -> None:
        """Give an error the parameters' names that the client knows; it is raised or shown then."""


async def stream(
    request: HttpRequest,
    state: ServerState,
    asks: Sequence[Ask],
    rendering: Rendering,
    headers: Mapping[str, str] | None = None,
) -> EventStream:
    """One request's stream, of a prompt or several. Raises what goes wrong before the first event."""
    outlets = [DirectOutlet(rendering.render, number) for number in range(len(asks))]
    sources = [ask(outlet) for ask, outlet in zip(asks, outlets, strict=True)]
    return await start(request, _events(state, sources, rendering), headers, outlets)


async def _events(
    state: ServerState, sources: list[AsyncGenerator[RequestOutput, None]], rendering: Rendering
) -> AsyncGenerator[bytes, None]:
    """All events but those that take the short way."""
    merged = merge(sources)
    begun = False
    last = b""
    try:
        with state.working():
            async for number, output in merged:
                piece = rendering.render(output, number)
                if rendering.over:
                    last = piece  # what follows is there already: one write for all of it
                elif piece:
                    begun = True
                    yield piece
            begun = True
            yield last + rendering.end()
    except Exception as error:
        await merged.aclose()  # no outlet of another prompt may say anything behind the error
        rendering.rename(error)
        if not begun:
            raise
        yield rendering.fail(error)
    finally:
        await merged.aclose()
