"""Takes docs/images/playground.png: python docs/make_picture.py (needs the extra `browser` and a Chromium)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

TARGET = Path(__file__).parent / "images" / "playground.png"


def main() -> None:
    command = [sys.executable, "-m", "server.cli.main", "serve", "--port", "0", "--num-blocks", "640"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        url = next(m[1] for line in server.stdout if (m := re.search(r"^serving .* on (\S+)", line)))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1060}, color_scheme="light")
        page.goto(url)
        page.wait_for_selector("#state[data-state=live]")
        page.fill("[name=temperature]", "0")
        for count, text in enumerate(("What is block_size?", "What is 17 + 25?"), start=1):
            page.fill("#prompt", text)
            page.press("#prompt", "Enter")
            page.wait_for_function("n => document.querySelectorAll('.message footer').length === n", arg=count)
        page.fill("#load-streams", "8")
        for tokens in ("60", "400"):
            page.fill("#load-tokens", tokens)
            page.evaluate("document.getElementById('load').requestSubmit()")
            if tokens == "60":
                page.wait_for_function("() => document.getElementById('load-line').textContent.includes('tok/s')")
        page.wait_for_function("() => +document.getElementById('k-used').textContent > 40")
        page.fill("#prompt", "Tell me a story.")
        page.press("#prompt", "Enter")
        page.wait_for_function("() => document.querySelector('.message:last-child .text').textContent.length > 60")
        page.evaluate("document.getElementById('engine').scrollTop = 0")
        TARGET.parent.mkdir(exist_ok=True)
        page.screenshot(path=TARGET)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
