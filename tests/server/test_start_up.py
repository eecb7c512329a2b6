"""What `engine serve` says while it starts: plain in a pipe, coloured on a terminal, a bar while weights load."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pexpect

SERVE = ["-m", "server", "--port", "0", "--num-threads", "1"]
ESCAPE = "\x1b["


def test_in_a_pipe_lines_are_plain():
    process = subprocess.Popen([sys.executable, *SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("serving"):
            break
    process.send_signal(signal.SIGTERM)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and not rest and errors == ""
    text = "\n".join(lines)
    assert ESCAPE not in text and "\r" not in text
    assert "attention_backend: numba (on a CPU)" in lines and "device: cpu (1 thread)" in text
    assert re.search(
        r"^start-up: import [\d.]+ s, .*load weights [\d.]+ s, .*allocate cache [\d.]+ s, compile kernels [\d.]+ s$",
        text,
        re.M,
    )
    assert re.search(r"^memory: weights [\d.]+ MiB, kv_cache [\d.,]+ MiB$", text, re.M)
    assert re.search(r"^KV cache: [\d,]+ blocks of 16 tokens, ", text, re.M)
    assert re.search(r"^serving demo on http://127.0.0.1:\d+ \(OpenAI API: .*/v1\), ready after [\d.]+ s$", text, re.M)


def test_on_a_terminal_there_are_columns_colours_and_bars():
    env = {**os.environ, "TERM": "xterm-256color"}
    child = pexpect.spawn(sys.executable, SERVE, env=env, encoding="utf-8", dimensions=(40, 120), timeout=60)
    child.expect(r"serving demo on [^\r\n]*\r\n")
    shown = child.before + child.after
    child.kill(signal.SIGTERM)
    child.expect(pexpect.EOF)
    child.close()
    assert f"{ESCAPE}36mattention_backend" in shown and f"{ESCAPE}32m" in shown
    assert re.search(r"load weights +\x1b\[34m *━+ *\x1b\[0m +[\d.]+ s", shown)
    assert re.search(r"memory +\x1b\[0mweights [\d.]+ MiB", shown)


def test_a_bar_shows_what_is_slow_and_is_gone_afterwards():
    code = (
        "import time\nfrom core import progress\nprogress.SHOWN_AFTER_S = progress.EVERY_S = 0.01\n"
        "with progress.ProgressLine('loading weights') as line:\n"
        "    for i in range(1, 11):\n        time.sleep(0.02); line(i, 10)\n"
        "print('done')\n"
    )
    child = pexpect.spawn(sys.executable, ["-c", code], encoding="utf-8", timeout=30)
    child.expect(pexpect.EOF)
    shown = [piece for piece in child.before.split("\r") if piece.strip()]
    assert "loading weights ███░░░░░░░░░░░░░░░░░░░░░░░░░░░  10 %" in shown[0] or " 20 %" in shown[0]
    assert any("100 %" in piece for piece in shown) and shown[-1].startswith(f"{ESCAPE}Kdone")
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("done\n", "")
