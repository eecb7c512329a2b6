"""`engine chat` at a real pseudo-terminal, typed at key by key, with a model of its own and with a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pexpect = pytest.importorskip("pexpect")

COMMAND = [sys.executable, "-m", "server.cli.main", "chat"]
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"
SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


class Terminal:
    def __init__(self, *args: str, home: Path) -> None:
        env = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
        self.child = pexpect.spawn(
            COMMAND[0], [*COMMAND[1:], *args], env=env, encoding="utf-8", codec_errors="replace", timeout=40,
            # tests that a shell runs in the background ignore Ctrl-C, and what they start would too
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.child.setwinsize(40, 200)

    def ready(self) -> str:
        """Wait for the prompt -> what was written before it."""
        self.child.expect(r"(?:^|\n)(?:\x1b\[\?2004h)?> ")
        return SEQUENCES.sub("", self.child.before)

    def say(self, text: str) -> str:
        """Type a line -> what came until the next prompt, without the echo."""
        self.child.sendline(text)
        return self.ready().removeprefix(text).strip()

    def answer(self, text: str) -> str:
        """`say`, and of that the answer without the line of figures below it."""
        said, _, figures = self.say(text).rpartition("\n")
        assert re.fullmatch(r"\[.*first after [\d.]+ s.*\]", figures), figures
        return said.strip()

    def leave(self) -> int:
        self.child.send(CTRL_D)
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator:
    """terminal(*arguments) -> an `engine chat` that has shown its first prompt."""
    opened: list[Terminal] = []

    def open_(*args: str, ready: bool = True) -> Terminal:
        opened.append(Terminal(*args, home=tmp_path / "state"))
        if ready:
            assert "/help lists the commands" in opened[-1].ready()
        return opened[-1]

    yield open_
    for one in opened:
        one.child.close(force=True)


def test_a_conversation_with_a_model_of_its_own(terminal, tmp_path):
    chat = terminal("--temperature", "0", "--num-threads", "1")
    assert chat.answer("What is 2 + 3?") == "2 + 3 = 5"
    # many lines, both ways
    chat.child.sendline("What is \\")
    chat.child.expect(r"\. ")
    assert chat.say("4 + 4?").splitlines()[0] == "4 + 4 = 8"
    chat.child.sendline('"""What is')
    chat.child.expect(r"\. ")
    chat.answer('1 + 6?"""')
    assert "## user\n\nWhat is\n1 + 6?\n" in chat.say("/show")
    assert chat.say("/undo") == "4 messages"
    # the commands
    help_text = chat.say("/help")
    for name in ("system", "set", "show", "retry", "undo", "clear", "save", "load", "quit"):
        assert f"/{name}" in help_text
    assert chat.say("/system Be brief.") == "system: Be brief."
    assert chat.say("/set top_k 5") == "top_k = 5"
    assert "top_p=7" in chat.say("/set top_p 7") and re.search(r"top_p +default", chat.say("/set"))
    assert "did you mean" in chat.say("/set temprature 1")
    assert "max_tokens stays as it was" in chat.say("/set max_tokens many")
    assert "no command /sytem" in chat.say("/sytem x")
    assert chat.answer("/retry")
    target = tmp_path / "talk.json"
    assert f"messages in {target}" in chat.say(f"/save {target}")
    saved = json.loads(target.read_text())
    assert saved["settings"] == {"temperature": 0.0, "max_tokens": 512, "top_k": 5}
    roles = [m["role"] for m in saved["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert saved["messages"][1:3] == [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "2 + 3 = 5"},
    ]
    assert saved["messages"][3]["content"] == "What is \n4 + 4?"
    assert chat.say("/clear") == "cleared"
    assert "nothing has been said" in chat.say("/retry")
    assert "cannot be read" in chat.say("/load /nowhere.json")
    assert chat.say(f"/load {target}") == f"4 messages from {target}"
    shown = chat.say("/show")
    assert "## system\n\nBe brief." in shown and "2 + 3 = 5" in shown
    assert chat.say(f"/save {tmp_path}/talk.md") and (tmp_path / "talk.md").read_text().startswith("## system")
    assert "cannot be written" in chat.say("/save /nowhere/talk.md")
    assert chat.leave() == 0


def test_lines_are_remembered_and_completed(terminal, demo_server, tmp_path):
    first = terminal("--url", demo_server.url, "--temperature", "0")
    first.answer("What is 3 + 3?")
    first.child.sendline("/quit")
    first.child.expect(pexpect.EOF)
    assert (tmp_path / "state" / "backplane" / "chat_history").stat().st_mode & 0o077 == 0
    again = terminal("--url", demo_server.url, "--temperature", "0")
    again.child.send(UP + UP + "\r")  # over /quit to the line before it
    assert "3 + 3 = 6" in again.ready()
    again.child.send("/sys\tBe kind.\r")
    assert "system: Be kind." in again.ready()
    again.child.send("/set temp\t0.25\r")
    assert "temperature = 0.25" in again.ready()
    assert again.leave() == 0


@pytest.fixture
def endless_model(tiny_model, tmp_path: Path) -> Path:
    """The tiny model without a token that ends its answers: only the limit does, after seconds, or who stops it."""
    folder = shutil.copytree(tiny_model, tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        settings |= {"eos_token_id": None, "max_position_embeddings": 32_768}
        (folder / name).write_text(json.dumps(settings))
    return folder


def stop_answer(chat: Terminal) -> None:
    """Ctrl-C while the answer comes: nobody reads it then, and it is longer than what a terminal takes unread."""
    chat.child.sendline("go")
    chat.child.expect("go\r\n")
    chat.child.expect(r"\S{3}")
    chat.child.send(CTRL_C)
    chat.child.expect(r"\[[^\[\n]*stopped\]")
    chat.ready()


def test_ctrl_c_stops_an_answer_and_the_model_goes_on(terminal, endless_model):
    options = ("--load-format", "dummy", "--num-blocks", "2048", "--num-threads", "1")
    chat = terminal("--model", str(endless_model), *options, "--max-tokens", "30000")
    stop_answer(chat)
    assert chat.say("/set max_tokens 5") == "max_tokens = 5"
    assert "[5 tokens" in chat.say("again")
    # at the prompt it forgets the line
    chat.child.send("half a li")
    chat.child.expect("half a li")  # Python forgets a signal that comes before it waits for keys
    chat.child.send(CTRL_C)
    chat.ready()
    assert "half a li" not in chat.say("/show")
    assert chat.leave() == 0


def test_a_conversation_with_a_server(terminal, demo_server, tmp_path):
    chat = terminal("--url", demo_server.url, "--temperature", "0", "--system", "Be brief.")
    assert chat.answer("What is 6 + 1?") == "6 + 1 = 7"
    # what the server refuses is said in its words, and takes nothing from the conversation
    long = tmp_path / "long.json"
    long.write_text(json.dumps({"messages": [{"role": "user", "content": "word " * 4000}]}))
    chat.say(f"/load {long}")
    assert "error: 400:" in chat.say("What is 6 + 2?")
    assert chat.say("/undo") == "0 messages"
    assert chat.answer("What is 6 + 2?") == "6 + 2 = 8"
    assert chat.leave() == 0


def test_ctrl_c_ends_the_request_at_the_server(terminal, start_server, endless_model):
    server = start_server({"model": str(endless_model)})
    chat = terminal("--url", server.url + "/v1", "--max-tokens", "30000")
    stop_answer(chat)
    server.wait_idle()
    assert (
        'request_success_total{finished_reason="abort",model_name="tiny"} 1.0'
        in httpx.get(server.url + "/metrics").text
    )
    assert chat.leave() == 0


def test_servers_that_cannot_be_talked_to_are_named(terminal, keyed_server):
    locked = keyed_server
    cases = [
        (["--url", "http://127.0.0.1:9"], r"127\.0\.0\.1:9/v1/: .*refused"),
        (["--url", locked.url], r"401: .*give --api-key"),
        (["--url", locked.url, "--api-key", "secret", "--model", "other"], r"does not serve 'other'; it serves tiny"),
    ]
    for args, message in cases:
        refused = terminal(*args, ready=False)
        refused.child.expect(message)
        refused.child.expect(pexpect.EOF)
        refused.child.close()
        assert refused.child.exitstatus == 1
    chat = terminal("--url", locked.url, "--api-key", "secret", "--max-tokens", "1")
    assert "[1 tokens" in chat.say("hello")
    assert chat.leave() == 0


def test_from_a_pipe_only_answers_are_written(demo_server):
    lines = "What is 2 + 2?\n/set temperature 0.0\nWhat is 2 + 5?\n"
    command = [*COMMAND, "--url", demo_server.url, "--temperature", "0"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 + 2 = 4\ntemperature = 0.0\n2 + 5 = 7\n"
