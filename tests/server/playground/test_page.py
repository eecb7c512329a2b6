"""The page in a real browser, by hand and by keyboard, against a server with the demo model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--no-first-run"]
COUNTS = "() => ['free', 'cached', 'used', 'shared'].map(k => +document.getElementById(`k-${k}`).textContent.replace(',', ''))"
PIXELS = "() => document.getElementById('blocks').toDataURL()"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@pytest.fixture
def open_page(browser, start_server) -> Iterator:
    """open_page(url, **options of the browser context) -> a page of which nothing may complain, nor ask elsewhere.

    It needs start_server so that servers stop after the pages that read from them.
    """
    contexts, wrong = [], []

    def open_(url: str, *, ready: bool = True, expect_401: bool = False, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)

        def said(message) -> None:
            if message.type in ("error", "warning") and not (expect_401 and "401" in message.text):
                wrong.append(message.text)

        page.on("console", said)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(url) or wrong.append(f"asks {request.url}"))
        page.goto(url + "/")
        if ready:
            page.wait_for_selector("#state[data-state=live]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not wrong


def ask(page, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answered(page, count: int = 1):
    """The last answer, when `count` have ended."""
    page.wait_for_function("n => document.querySelectorAll('.message footer').length === n", arg=count)
    return page.locator(".message").last


def luminance(page) -> float:
    text = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(v) / 255 for v in text.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_answer_streams_in_both_themes(open_page, demo_server, scheme):
    page = open_page(demo_server.url, color_scheme=scheme)
    assert (luminance(page) > 0.8) if scheme == "light" else (luminance(page) < 0.1)
    page.evaluate("""() => {
      window.lengths = [];
      new MutationObserver(() => {
        const all = document.querySelectorAll('.message[data-role=assistant] .text');
        if (all.length) window.lengths.push(all[all.length - 1].textContent.length);
      }).observe(document.getElementById('log'), { childList: true, subtree: true, characterData: true });
    }""")
    page.fill("[name=temperature]", "0")
    ask(page, "What is block_size?")
    answer = answered(page)
    body = {"messages": [{"role": "user", "content": "What is block_size?"}], "temperature": 0}
    whole = httpx.post(demo_server.url + "/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert answer.locator(".text").inner_text() == whole and "block" in whole
    lengths = page.evaluate("window.lengths")
    assert lengths == sorted(lengths) and len(set(lengths)) >= 4, f"it came in one piece: {lengths}"
    footer = answer.locator("footer").inner_text()
    assert footer.startswith("stop · ") and "tok/s" in footer
    # the switch wins over the system, and is kept
    for wanted in ("light", "dark"):
        while wanted not in page.locator("#theme").inner_text():
            page.click("#theme")
        assert (luminance(page) > 0.8) == (wanted == "light")
        page.reload()
        assert (luminance(page) > 0.8) == (wanted == "light")


def test_the_block_map_moves_while_requests_run(open_page, demo_server):
    page = open_page(demo_server.url)
    page.wait_for_function("() => document.getElementById('k-free').textContent !== '–'")
    before, first = page.evaluate(PIXELS), page.evaluate(COUNTS)
    assert sum(first) == 1024 and first[2] == first[3] == 0
    # one before the others: prompts that come in one step do not find each other's blocks
    page.fill("#load-streams", "1")
    page.fill("#load-tokens", "4")
    page.click("#load-run")
    page.wait_for_function("() => document.getElementById('load-line').textContent.startsWith('4 tokens in')")
    page.fill("#load-streams", "8")
    page.fill("#load-tokens", "500")
    page.click("#load-run")
    seen, pictures, most_rows = [], set(), 0
    deadline = time.monotonic() + 60
    while "4,000 tokens in" not in page.locator("#load-line").inner_text() and time.monotonic() < deadline:
        seen.append(page.evaluate(COUNTS))
        pictures.add(page.evaluate(PIXELS))
        most_rows = max(most_rows, page.locator("#rows tbody tr").count())
        time.sleep(0.1)
    assert page.locator("#load-line").inner_text().startswith("4,000 tokens in")
    assert most_rows == 8
    assert max(used for _, _, used, _ in seen) > 16
    assert max(shared for *_, shared in seen) >= 4, "a prefix that eight prompts have in common is held once"
    assert len(pictures - {before}) >= 3
    page.wait_for_function("() => document.getElementById('f-running').textContent === '0'")
    page.wait_for_function("() => document.getElementById('k-used').textContent === '0'")
    free, cached, used, shared = page.evaluate(COUNTS)
    assert cached > first[1] and used == shared == 0 and free + cached == 1024
    assert page.locator("#plugins li").count() >= 4 and page.locator("#timeline li").count() >= 4
    assert "attention backend" in page.locator("#choices").inner_text()


def test_the_block_map_follows_an_engine_that_was_started_again(open_page, start_server, tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    options = {"model": str(folder), "num_blocks": None, "max_num_seqs": 2}
    running = start_server(engine=options, server={"restart_engine": True})
    page = open_page(running.url)
    state = httpx.get(running.url + "/backplane/state").json()
    many = state["engine"]["num_blocks"]
    page.wait_for_function(f"() => document.getElementById('pool').textContent.startsWith('{many} blocks')")
    page.focus("#blocks")
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    assert page.locator("#blocks-line").inner_text().startswith("block ")
    # the next engine finds a shorter model, and needs fewer blocks
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    (engine,) = [int(p) for p in _children(running.process.pid)]
    os.kill(engine, signal.SIGKILL)
    page.wait_for_function(
        f"() => !document.getElementById('pool').textContent.startsWith('{many} ')"
        " && document.getElementById('state').dataset.state === 'live'"
    )
    few = httpx.get(running.url + "/backplane/state").json()
    assert few["engine"]["num_blocks"] == sum(few["block_counts"]) == few["stats"]["num_blocks"] < many
    assert page.locator("#pool").inner_text().startswith(f"{few['engine']['num_blocks']} blocks")
    assert sum(page.evaluate(COUNTS)) == few["engine"]["num_blocks"]
    assert page.locator("#blocks-line").inner_text().startswith("Point at a cell")


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_stop_ends_the_request_in_the_engine(open_page, demo_server):
    page = open_page(demo_server.url)
    page.check("[name=format][value=regex]")
    page.fill("#regex", "[a-z ]{1500,}")
    ask(page, "Go on")
    page.wait_for_function(
        "() => (document.querySelector('.message[data-role=assistant] .text')?.textContent.length ?? 0) > 5"
    )
    page.click("#stop")
    answer = answered(page)
    assert answer.locator("footer").inner_text().startswith("stopped")
    demo_server.wait_idle()
    # Escape does the same, and Retry asks again
    page.click("#retry")
    page.wait_for_function("() => document.querySelectorAll('.message').length === 2")
    page.wait_for_function("() => document.querySelector('.message:last-child .text').textContent.length > 5")
    page.keyboard.press("Escape")
    assert answered(page).locator("footer").inner_text().startswith("stopped")
    demo_server.wait_idle()


def test_json_schema_and_what_is_wrong_with_one(open_page, demo_server):
    page = open_page(demo_server.url)
    page.fill("[name=temperature]", "0")
    page.check("[name=format][value=json_schema]")
    page.click("#schema-example")
    ask(page, "Mila is 44 years old and lives in Porto. Extract name, age and city as JSON.")
    assert json.loads(answered(page).locator(".text").inner_text()) == {"name": "Mila", "age": 44, "city": "Porto"}
    page.fill("#schema", '{"type": ')
    page.dispatch_event("#schema", "change")
    assert "JSON" in page.locator("#schema-error").inner_text()
    assert page.locator("#schema").get_attribute("aria-invalid") == "true"


def test_a_tool_call_is_shown_and_answered(open_page, demo_server):
    page = open_page(demo_server.url)
    page.fill("[name=temperature]", "0")
    page.click("#tools-example")
    ask(page, "What is the weather in Oslo?")
    call = answered(page).locator(".call")
    assert "get_weather()" in call.inner_text() and '"city": "Oslo"' in call.locator("pre").inner_text()
    page.get_by_label("Result of get_weather").fill('{"temperature": 7, "sky": "cloudy"}')
    call.get_by_role("button").click()
    answer = answered(page, 2)
    assert len(answer.locator(".text").inner_text()) > 5


def test_the_servers_words_are_shown_and_markup_stays_text(open_page, server):
    page = open_page(server.url)
    page.fill("[name=max_tokens]", "8")
    ask(page, "<img src=x onerror=alert(1)><b>hello</b>")
    answered(page)
    assert page.locator("#log img, #log .text b").count() == 0
    assert page.locator(".message[data-role=user] .text").inner_text() == "<img src=x onerror=alert(1)><b>hello</b>"


def test_a_key_is_asked_for_and_kept_in_the_tab(open_page, keyed_server):
    page = open_page(keyed_server.url, ready=False, expect_401=True)
    page.wait_for_selector("#key-dialog[open]")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('key-error').textContent.includes('not valid')")
    page.fill("#key-input", "secret")
    page.click("#key-ok")
    page.wait_for_selector("#state[data-state=live]")
    assert page.evaluate("Object.values(sessionStorage)") == ["secret"]
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.wait_for_selector("#state[data-state=live]")


@pytest.mark.parametrize("width", [320, 390, 800, 1440])
def test_nothing_scrolls_sideways(open_page, demo_server, width):
    page = open_page(demo_server.url, viewport={"width": width, "height": 740}, has_touch=width < 500)
    page.eval_on_selector("[name=max_tokens]", "e => { e.value = '20'; }")
    ask(page, "w" * 300)
    answered(page)
    for view in ("chat", "settings", "engine"):
        if width <= 1180:
            page.click(f"nav button[data-view={view}]")
        wide = page.evaluate("""() => [document.documentElement, ...document.querySelectorAll('main, main > section, #log')]
          .filter(e => e.scrollWidth > e.clientWidth && e.clientWidth).map(e => e.id || e.tagName)""")
        assert not wide, f"{view} at {width} px: {wide}"
        beyond = page.evaluate("""() => [...document.querySelectorAll('main *, header *')].filter(e => {
          const box = e.getBoundingClientRect();
          return box.width && box.right > innerWidth + 1 && !e.closest('.skip, .hidden');
        }).map(e => e.id || e.tagName)""")
        assert not beyond, f"{view} at {width} px: {beyond}"


def test_the_keyboard_reaches_everything(open_page, demo_server):
    page = open_page(demo_server.url)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skip to the message
    page.keyboard.type("What is 2 + 3?")
    page.keyboard.press("Enter")
    assert "5" in answered(page).locator(".text").inner_text()
    # a round of Tab visits every control, and each shows that it has the focus
    page.evaluate("document.activeElement.blur()")
    wanted = page.evaluate("""() => [...document.querySelectorAll('button, input, select, textarea, canvas[tabindex], #log')]
      .filter(e => e.checkVisibility() && !e.disabled && !(e.type === 'radio' && !e.checked))
      .map((e, i) => e.dataset.stop = String(i))""")
    visited = set()
    for _ in range(len(wanted) + 8):
        page.keyboard.press("Tab")
        stop, outline = page.evaluate("""() => {
          const e = document.activeElement, s = getComputedStyle(e);
          return [e.dataset.stop ?? null, s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1];
        }""")
        if stop is not None:
            assert outline, f"no visible focus on stop {stop}"
            visited.add(stop)
    assert visited == set(wanted)
    page.focus("#blocks")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#blocks-line").inner_text().startswith("block 1:")


def test_every_control_has_a_name(open_page, demo_server):
    page = open_page(demo_server.url)
    nameless = page.evaluate("""() => [...document.querySelectorAll('input, select, textarea, button, canvas')].filter(e =>
      !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)""")
    assert not nameless


def test_reduced_motion_is_honoured(open_page, demo_server):
    page = open_page(demo_server.url, reduced_motion="reduce")
    page.evaluate("""() => {
      document.getElementById('log').innerHTML = '<article class=message data-open><div class=text></div></article>';
    }""")
    name = page.evaluate("getComputedStyle(document.querySelector('.message .text'), '::after').animationName")
    assert name == "none"
