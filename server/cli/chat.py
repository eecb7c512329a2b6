"""`engine chat`: a conversation in the terminal, with a local model or a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

COMMANDS = """/new       forget the conversation
/system X  set the system message
/retry     answer the last message again
/quit      leave (also Ctrl-D)
A line that ends in \\ goes on in the next one."""


def run_chat(values: dict[str, Any]) -> None:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() gets history and editing from it)
    answer = _remote(values) if values.get("url") else _local(values)
    system = values.get("system")
    history: list[dict[str, str]] = []
    click.echo("Type a message; /help lists the commands.")
    while True:
        try:
            line = input("> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + input(". ")
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/help":
            click.echo(COMMANDS)
            continue
        if command == "/new":
            history.clear()
            continue
        if command == "/system":
            system = rest or None
            continue
        if command == "/retry":
            while history and history[-1]["role"] != "user":
                history.pop()
            if not history:
                continue
        elif command.startswith("/"):
            click.echo(f"no command {command}; /help lists them")
            continue
        elif not line.strip():
            continue
        else:
            history.append({"role": "user", "content": line})
        messages = [{"role": "system", "content": system}] if system else []
        text = ""
        try:
            for piece in answer([*messages, *history]):
                text += piece
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False)
        click.echo()
        history.append({"role": "assistant", "content": text})


def _local(values: dict[str, Any]) -> Any:
    from core import Engine, SamplingParams
    from core.config import option_owners
    from server.cli.options import given

    options = given(values, option_owners())
    engine = Engine(**{**options, "model": values["model"]})
    params = SamplingParams(temperature=values["temperature"], max_tokens=values["max_tokens"])

    def answer(messages: list[dict[str, str]]) -> Iterator[str]:
        for output in engine.chat(messages, params, stream=True):
            yield output.outputs[0].text

    return answer


def _remote(values: dict[str, Any]) -> Any:
    import httpx

    client = httpx.Client(
        base_url=values["url"].rstrip("/"), headers={"Authorization": f"Bearer {values['api_key']}"}, timeout=None
    )

    def answer(messages: list[dict[str, str]]) -> Iterator[str]:
        body = {
            "messages": messages,
            "stream": True,
            "temperature": values["temperature"],
            "max_tokens": values["max_tokens"],
        }
        if values["model"] != "demo":
            body["model"] = values["model"]
        with client.stream("POST", "/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                raise click.ClickException(f"{response.status_code}: {response.text}")
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise click.ClickException(event["error"]["message"])
                if event["choices"]:
                    yield event["choices"][0]["delta"].get("content") or ""

    return answer
