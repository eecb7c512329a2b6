"""`engine chat`: a conversation in the terminal, with a model in this process or with a server.

Lines are edited and remembered by readline. Ctrl-C stops an answer, and what was said of it stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import click

SETTINGS: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "stop": str,
}
HISTORY_LINES = 1000
BLOCK = '"""'


@dataclass(slots=True)
class Piece:
    """Part of an answer as it comes."""

    text: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    """Tokens of the whole answer so far, when the source knows."""
    finish_reason: str | None = None


class Source(Protocol):
    name: str

    def answer(
        self, messages: list[dict[str, str]], settings: dict[str, Any], stopped: Callable[[], bool]
    ) -> Iterator[Piece]:
        """Pieces until the end, or until `stopped()`. Raises ClickException or BackplaneError."""

    def close(self) -> None: ...


class Local:
    """A model in this process."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from core import Engine

        self.name = model
        self._engine = Engine(**{**options, "model": model})

    def answer(
        self, messages: list[dict[str, str]], settings: dict[str, Any], stopped: Callable[[], bool]
    ) -> Iterator[Piece]:
        from core import SamplingParams

        num_tokens = 0
        stream = self._engine.chat(messages, SamplingParams(**settings), stream=True)
        try:
            for output in stream:
                (new,) = output.outputs
                num_tokens += len(new.token_ids)
                yield Piece(new.text, num_tokens=num_tokens, finish_reason=new.finish_reason)
                if stopped():
                    return
        finally:
            stream.close()

    def close(self) -> None:
        self._engine.shutdown()


class Remote:
    """A server with OpenAI's API."""

    def __init__(self, url: str, api_key: str, model: str | None) -> None:
        import httpx

        self._http = httpx
        base = url.rstrip("/")
        base = base if base.endswith("/v1") else base + "/v1"
        timeout = httpx.Timeout(None, connect=10)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=base, headers=headers, timeout=timeout)
        with self._named_errors():
            served = [m["id"] for m in self._checked(self._client.get("/models")).json()["data"]]
        if model is not None and model not in served:
            raise click.ClickException(f"{base} does not serve {model!r}; it serves {', '.join(served) or 'nothing'}")
        if not served:
            raise click.ClickException(f"{base} serves no model")
        self.name = model or served[0]

    def answer(
        self, messages: list[dict[str, str]], settings: dict[str, Any], stopped: Callable[[], bool]
    ) -> Iterator[Piece]:
        body = {"model": self.name, "messages": messages, "stream": True, **settings}
        body["stream_options"] = {"include_usage": True}
        with self._named_errors(), self._client.stream("POST", "/chat/completions", json=body) as response:
            self._checked(response)
            for line in response.iter_lines():
                if stopped():
                    return
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise click.ClickException(event["error"]["message"])
                usage = event.get("usage") or {}
                piece = Piece(num_tokens=usage.get("completion_tokens", 0))
                for choice in event["choices"]:
                    delta = choice["delta"]
                    piece.text += delta.get("content") or ""
                    piece.reasoning += delta.get("reasoning_content") or ""
                    piece.finish_reason = choice.get("finish_reason")
                yield piece

    def close(self) -> None:
        self._client.close()

    def _checked(self, response: Any) -> Any:
        if response.status_code == 200:
            return response
        response.read()
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:300] or response.reason_phrase
        hint = "; give --api-key" if response.status_code == 401 else ""
        raise click.ClickException(f"{response.status_code}: {message}{hint}")

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except self._http.HTTPError as error:
            raise click.ClickException(f"{self._client.base_url}: {error or type(error).__name__}") from error


@dataclass(slots=True)
class Chat:
    """The conversation and what the commands change of it."""

    source: Source
    settings: dict[str, Any]
    system: str | None = None
    messages: list[dict[str, str]] = field(default_factory=list)
    person: bool = True
    """Someone types at a terminal; else lines come from a pipe and nothing but answers is written."""
    done: bool = False

    # ---- commands: the first line of each docstring is its help, its name what is typed

    def do_help(self, _: str) -> None:
        """list the commands"""
        for name, command in COMMANDS.items():
            usage, named, text = (command.__doc__ or "").partition(": ")
            usage, text = (usage, text) if named else ("", usage)
            click.echo(f"  {f'/{name} {usage}'.strip():<24} {text}")
        click.echo(f"A line that ends in \\ goes on in the next one; {BLOCK} begins and ends a text of many lines.")
        click.echo("Ctrl-C stops an answer, Ctrl-D leaves.")

    def do_system(self, text: str) -> None:
        """[TEXT]: set the system message; without a text, show it; - removes it"""
        if text:
            self.system = None if text == "-" else text
        click.echo(f"system: {self.system}" if self.system else "no system message")

    def do_set(self, text: str) -> None:
        """[NAME [VALUE]]: set how tokens are chosen; without a value, back to the default; alone, show all"""
        name, _, value = text.partition(" ")
        if not name:
            for known in SETTINGS:
                click.echo(f"  {known:<20} {self.settings.get(known, 'default')}")
            return
        if name not in SETTINGS:
            from core.errors import nearest

            click.echo(f"no setting {name!r} ({', '.join(SETTINGS)}){nearest(name, list(SETTINGS))}", err=True)
            return
        changed = {k: v for k, v in self.settings.items() if k != name}
        if value.strip():
            try:
                changed[name] = SETTINGS[name](value.strip())
                _check(changed)
            except ValueError as error:
                click.echo(f"{name} stays as it was: {error}", err=True)
                return
        self.settings = changed
        click.echo(f"{name} = {changed.get(name, 'default')}")

    def do_show(self, _: str) -> None:
        """show the conversation"""
        click.echo(self.as_text(), nl=False)

    def do_retry(self, _: str) -> None:
        """answer the last message again"""
        while self.messages and self.messages[-1]["role"] != "user":
            self.messages.pop()
        if self.messages:
            self.answer()
        else:
            click.echo("nothing has been said yet", err=True)

    def do_undo(self, _: str) -> None:
        """take back the last message and its answer"""
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        click.echo(f"{len(self.messages)} messages")

    def do_clear(self, _: str) -> None:
        """forget the conversation; the system message and the settings stay"""
        self.messages.clear()
        click.echo("cleared")

    def do_save(self, text: str) -> None:
        """FILE: write the conversation: as JSON if the name ends so, else as text"""
        path = Path(text).expanduser()
        if not text:
            click.echo("/save wants the name of a file", err=True)
            return
        whole = {"model": self.source.name, "settings": self.settings, "messages": self.all_messages()}
        content = json.dumps(whole, indent=2, ensure_ascii=False) + "\n" if path.suffix == ".json" else self.as_text()
        try:
            path.write_text(content, encoding="utf-8")
        except OSError as error:
            click.echo(f"{path} cannot be written: {error.strerror or error}", err=True)
            return
        click.echo(f"{len(self.messages)} messages in {path}")

    def do_load(self, text: str) -> None:
        """FILE: go on with a conversation that /save wrote as JSON"""
        path = Path(text).expanduser()
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            messages = [{"role": str(m["role"]), "content": str(m["content"])} for m in found["messages"]]
            settings = {k: SETTINGS[k](v) for k, v in found.get("settings", {}).items() if k in SETTINGS}
            _check(settings)
        except OSError as error:
            click.echo(f"{path} cannot be read: {error.strerror or error}", err=True)
            return
        except (ValueError, KeyError, TypeError) as error:
            click.echo(f"{path} holds no conversation: {error}", err=True)
            return
        self.system = next((m["content"] for m in messages if m["role"] == "system"), None)
        self.messages = [m for m in messages if m["role"] != "system"]
        self.settings = settings
        click.echo(f"{len(self.messages)} messages from {path}")

    def do_quit(self, _: str) -> None:
        """leave"""
        self.done = True

    # ----

    def all_messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.messages]

    def as_text(self) -> str:
        return "".join(f"## {m['role']}\n\n{m['content']}\n\n" for m in self.all_messages())

    def take(self, text: str) -> None:
        """One input: a command, or something to say."""
        if not text.strip():
            return
        if not text.startswith("/"):
            self.messages.append({"role": "user", "content": text})
            if not self.answer():
                self.messages.pop()
            return
        name, _, rest = text[1:].partition(" ")
        command = COMMANDS.get(ALIASES.get(name, name))
        if command is None:
            from core.errors import nearest

            click.echo(f"no command /{name}{nearest(name, list(COMMANDS))}; /help lists them", err=True)
            return
        command(self, rest.strip())

    def answer(self) -> bool:
        """Write the answer to what has been said as it comes, and remember it. False: there is none."""
        from core.errors import BackplaneError

        text, num_tokens, reason, thinking = "", 0, None, False
        begun_s = time.monotonic()
        first_s = last_s = 0.0
        with _interrupts() as interrupted:
            try:
                for piece in self.source.answer(self.all_messages(), self.settings, lambda: bool(interrupted)):
                    if piece.text or piece.reasoning:
                        last_s = time.monotonic()
                        first_s = first_s or last_s
                    if piece.reasoning:
                        thinking = True
                        click.echo(self._dim(piece.reasoning), nl=False)
                    if piece.text:
                        if thinking:
                            click.echo("\n")
                            thinking = False
                        click.echo(piece.text, nl=False)
                    text += piece.text
                    num_tokens = piece.num_tokens or num_tokens
                    reason = piece.finish_reason or reason
            except (click.ClickException, BackplaneError) as error:
                if not self.person:
                    raise
                message = error.message if isinstance(error, click.ClickException) else str(error)
                click.echo(("\n" if text else "") + f"error: {message}", err=True)
                if not text:
                    return False
                reason = "error"
        if interrupted:
            reason = "stopped"
        click.echo()
        if text:
            self.messages.append({"role": "assistant", "content": text})
        if self.person:
            facts = [f"{num_tokens} tokens"] if num_tokens else []
            if num_tokens > 1 and last_s > first_s:
                facts.append(f"{(num_tokens - 1) / (last_s - first_s):.0f} tokens/s")
            if first_s:
                facts.append(f"first after {first_s - begun_s:.2f} s")
            if reason not in (None, "stop"):
                facts.append(reason)
            click.echo(self._dim(f"[{', '.join(facts)}]"))
        return bool(text)

    def _dim(self, text: str) -> str:
        return click.style(text, dim=True) if self.person and "NO_COLOR" not in os.environ else text


COMMANDS: dict[str, Callable[[Chat, str], None]] = {
    name.removeprefix("do_"): method for name, method in vars(Chat).items() if name.startswith("do_")
}
ALIASES = {"new": "clear", "exit": "quit", "q": "quit", "?": "help"}


def _check(settings: dict[str, Any]) -> None:
    """Raises RequestError, a ValueError, that names the setting."""
    from core import SamplingParams

    SamplingParams(**settings)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C fills the list instead of raising: an exception in the middle of a step would end the engine.

    The second one raises: whoever presses it again wants out.
    """
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if len(pressed) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _line_editing() -> Iterator[None]:
    """readline, with a history that outlives the command and Tab for commands and settings."""
    try:
        import readline
    except ImportError:  # not on every platform
        yield
        return
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "backplane" / "chat_history"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)

    def complete(text: str, state: int) -> str | None:
        begun = readline.get_line_buffer()[: readline.get_begidx()]
        names = SETTINGS if begun.strip() == "/set" else {} if begun.strip() else {f"/{n}": None for n in COMMANDS}
        found = [f"{name} " for name in names if name.startswith(text)]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            readline.write_history_file(path)


def read_input(read: Callable[[str], str], prompt: str, more: str) -> str:
    """One input, of many lines if it says so. `read` takes a prompt and raises EOFError at the end."""
    line = read(prompt)
    if line.lstrip().startswith(BLOCK):
        lines = [line.lstrip().removeprefix(BLOCK)]
        while not lines[-1].rstrip().endswith(BLOCK):
            lines.append(read(more))
        lines[-1] = lines[-1].rstrip().removesuffix(BLOCK)
        return "\n".join(lines).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read(more))
    return "\n".join(lines)


def run_chat(values: dict[str, Any]) -> None:
    settings = {"temperature": values["temperature"], "max_tokens": values["max_tokens"]}
    _check(settings)
    source: Source
    if values.get("url"):
        # "demo" is what --model says when nobody gave it
        model = None if values["model"] == "demo" else values["model"]
        source = Remote(values["url"], values["api_key"], model)
    else:
        from core.config import option_owners
        from server.cli.options import given

        source = Local(values["model"], given(values, option_owners()))
    person = sys.stdin.isatty() and sys.stdout.isatty()
    chat = Chat(source, settings, values.get("system"), person=person)
    prompt, more = ("> ", ". ") if person else ("", "")
    with contextlib.closing(source), _line_editing() if person else contextlib.nullcontext():
        if person:
            click.echo(f"Talking to {source.name}. /help lists the commands.")
        while not chat.done:
            try:
                text = read_input(input, prompt, more)
            except EOFError:
                if person:
                    click.echo()
                return
            except KeyboardInterrupt:  # forget the line
                click.echo()
                continue
            chat.take(text)
