"""The chat page in a real browser: from opening it to a streamed answer and its stop."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_abuse import idle
from tests.waiting import LONG
from zoo.hf.template import Template
from zoo.serve import app
from zoo.serve.model import start


def runs(command: str) -> bool:
    """Some are but a line that tells how to install one."""
    return subprocess.run([command, "--version"], capture_output=True).returncode == 0


NAMES = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
BROWSER = next(filter(runs, NAMES), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"
)
MOST = 1000 * LONG
"""Milliseconds that a browser may take for anything."""
expect.set_options(timeout=MOST)
SHOTS = os.environ.get("ZOO_TEST_SHOTS")
"""A folder for screenshots, to look at."""

SAID = """# Tides

The **moon** pulls, *so does* the sun; see [NOAA](https://example.org/tides) or `tide(t)`,
or https://example.org/a.b?c=1,2.

1. Spring tides
   - at new moon
   - at full moon
2. Neap tides

   ```sh
   tide --neap

   ls
   ```

> Time and tide wait for no man.

| port | metres |
|------|-------:|
| Brest | 4.3 |
| Bay of Fundy | 11.7 |

```python
def tide(t: float) -> float:
    return 2.1 * cos(t / 12.42) + 0.7 * cos(t / 12.0)  # the moon, then the sun, in metres
```

<img src=x onerror="window.broken = true"> <script>window.broken = true</script>
[no](javascript:window.broken=true)"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"], timeout=MOST
        )
        yield made
        made.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    context.set_default_timeout(MOST)
    made = context.new_page()
    complaints: list[str] = []
    made.on("pageerror", lambda e: complaints.append(str(e)))
    made.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    made.complaints = complaints
    yield made
    context.close()


def shoot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png")


@pytest.fixture(scope="module")
def two(parts):
    """Two models, the first of which a test can hold, and which may think."""
    limits = dataclasses.replace(LIMITS, embed_tokens=0)
    marked = {"default": Template(Path("t"), TEMPLATE + "{# </think> #}")}
    chat = dataclasses.replace(parts.chat, templates=marked)
    tiny = gated(dataclasses.replace(parts, chat=chat), limits)
    models = {"tiny": tiny, "other": start("other", parts, limits)}
    with served(models, limits) as site:
        yield site
        models["tiny"].runner.engine.gate.set()


def test_from_opening_to_an_answer_to_stop(two, page):
    page.goto(two.url)
    box = page.get_by_label("Message", exact=True)
    assert box.evaluate("e => e === document.activeElement")
    page.locator("#model option").nth(1).wait_for(state="attached")

    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Most tokens").fill("12")
    page.keyboard.press("Escape")
    box.fill("Hello\nthere")
    box.press("Enter")
    page.wait_for_selector(".note")
    expect(page.locator(".note")).to_contain_text("12 tokens, ")
    expect(page.locator(".note")).to_contain_text("tokens/s")
    assert page.locator("article.user .body").inner_text() == "Hello\nthere"
    expect(page.locator("article.assistant h2")).to_have_text("tiny")
    expect(page.get_by_role("status")).to_contain_text("complete: 12 tokens")
    want = two.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hello\nthere"}], temperature=0,
        max_tokens=12,
    )  # fmt: skip
    kept = page.evaluate("JSON.parse(localStorage['zoo.chats'])[0].messages[1].content")
    assert kept == want.choices[0].message.content

    page.get_by_text("Settings").click()
    page.get_by_label("Most tokens").fill("")
    page.keyboard.press("Escape")
    engine = two.models["tiny"].runner.engine
    engine.left = 8
    box.fill("And a long one")
    box.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.locator("article:last-child .body", has_text=re.compile(".")).wait_for()
    expect(page.get_by_role("status")).to_contain_text("answering")
    expect(page.locator("article").last).to_have_attribute("aria-busy", "true")
    shoot(page, "streaming")
    page.keyboard.press("Escape")
    page.wait_for_selector("article:last-child .note")
    expect(page.locator("article:last-child .note")).to_have_text("stopped")
    assert page.locator("article:last-child .body").inner_text()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    engine.gate.set()
    assert idle(two)

    page.reload()
    expect(page.locator("article")).to_have_count(4)
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".note")
    expect(page.locator("article.assistant h2")).to_have_text("other")
    expect(page.locator("#list li")).to_have_count(2)
    assert page.complaints == []


def test_a_thought_is_folded_and_stays_as_it_is_put(two, page):
    page.goto(two.url)
    page.locator("#model option").nth(1).wait_for(state="attached")
    engine, encode = two.models["tiny"].runner.engine, two.models["tiny"].tokenizer.encode
    engine.script = (*encode("<think>\nHm, *so*.\n</think>\n\n**Yes.**").ids, 259)
    engine.left = len("<think>\nHm") - 1  # a first step makes two tokens
    box = page.get_by_label("Message", exact=True)
    box.fill("Well?")
    box.press("Enter")
    answer = page.locator("article.assistant")
    summary = answer.locator("summary", has_text="Thinking…")
    summary.wait_for()
    expect(page.get_by_role("status")).to_contain_text("thinking")
    expect(answer.locator(".thought p")).to_have_text("Hm")
    expect(answer.get_by_text("Hm")).to_be_hidden()
    summary.hover()
    page.mouse.down()
    engine.left = 1
    engine.gate.set()
    expect(answer.locator(".thought p")).to_have_text("Hm,")
    page.mouse.up()  # the fold was not replaced meanwhile
    expect(answer.get_by_text("Hm,")).to_be_visible()
    shoot(page, "thinking")
    engine.gate.set()
    page.wait_for_selector(".note")
    expect(answer.locator("summary")).to_have_text("Thoughts")
    expect(answer.locator(".thought em")).to_have_text("so")
    expect(answer.locator(".body > p strong")).to_have_text("Yes.")
    shoot(page, "thoughts")
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json))
    box.fill("Sure?")
    box.press("Enter")
    page.locator("article:last-child .note").wait_for()
    engine.script = ()
    assert asked[0]["messages"][1] == {
        "role": "assistant", "content": "**Yes.**", "reasoning_content": "Hm, *so*."
    }  # fmt: skip


def fill_history(page) -> None:
    """A conversation as if it had been held, which the random model cannot."""
    answer = {
        "role": "assistant",
        "content": SAID,
        "thought": "The *moon*, surely.",
        "model": "tiny",
        "note": "96 tokens, 41.0 tokens/s",
    }
    talks = [{"id": "1", "messages": [{"role": "user", "content": "What is a tide?"}, answer]}]
    page.evaluate("talks => { localStorage['zoo.chats'] = JSON.stringify(talks) }", talks)
    page.reload()
    page.wait_for_selector("#model option", state="attached")


def test_markdown_becomes_elements_and_never_markup(site, page):
    page.goto(site.url)
    fill_history(page)
    body = page.locator("article.assistant .body")
    shown = {
        "summary": "Thoughts",
        "h3": "Tides",
        "strong": "moon",
        "p > em >> nth=1": "so does",
        "p code": "tide(t)",
        "td >> nth=3": "11.7",
        "ol > li > p >> nth=1": "Neap tides",
        "ol ul li >> nth=1": "at full moon",
        "blockquote": "Time and tide wait for no man.",
    }
    for selector, text in shown.items():
        assert body.locator(selector).inner_text() == text
    assert body.locator("ol > li pre").inner_text() == "tide --neap\n\nls"
    sides = [body.locator(f"td >> nth={i}").evaluate("e => e.style.textAlign") for i in (2, 3)]
    assert sides == ["", "right"]
    assert (
        body.locator("pre").last.inner_text().startswith("def tide(t: float) -> float:\n    return")
    )
    links = body.locator("a").evaluate_all("all => all.map(a => a.href)")
    assert links == ["https://example.org/tides", "https://example.org/a.b?c=1,2"]
    assert "<img src=x" in body.inner_text()
    assert page.evaluate("window.broken") is None
    assert page.complaints == []
    shoot(page, "desktop")
    page.emulate_media(color_scheme="dark")
    page.get_by_text("Settings").click()
    shoot(page, "desktop-dark")


def test_on_a_phone_nothing_is_cut_off(site, page):
    page.set_viewport_size({"width": 375, "height": 740})
    page.goto(site.url)
    fill_history(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    shoot(page, "phone")
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("button", name="New conversation")).to_be_visible()
    shoot(page, "phone-menu")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="New conversation")).to_be_hidden()
    page.get_by_role("button", name="Conversations").click()
    page.mouse.click(360, 400)
    expect(page.get_by_role("button", name="New conversation")).to_be_hidden()
    page.get_by_text("Settings").click()
    for name in ("Temperature", "API key, kept until the tab is closed"):
        place = page.get_by_label(name).bounding_box()
        assert 0 <= place["x"] <= place["x"] + place["width"] <= 375
    shoot(page, "phone-settings")
    page.emulate_media(color_scheme="dark")
    page.mouse.click(180, 600)
    expect(page.get_by_label("Temperature")).to_be_hidden()
    shoot(page, "phone-dark")


def test_everything_has_a_name_and_a_place_in_the_order_of_keys(site, page):
    page.goto(site.url)
    fill_history(page)
    page.get_by_text("Settings").click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, textarea, summary')]
            .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    reached = []
    page.locator("#skip").focus()
    for _ in range(40):
        reached.append(
            page.evaluate("document.activeElement.id || document.activeElement.className")
        )
        page.keyboard.press("Tab")
    for name in ("skip", "new", "open", "model", "temperature", "key", "text", "send"):
        assert name in reached


def test_errors_are_told_where_the_answer_would_be(two, page):
    page.goto(two.url)
    page.wait_for_selector("#model option", state="attached")
    page.get_by_label("Message", exact=True).fill("x" * 300)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("do not fit")
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json))
    page.get_by_label("Message", exact=True).fill("Shorter")
    page.keyboard.press("Enter")
    page.locator("article:last-child .note").wait_for()
    assert [message["content"] for message in asked[0]["messages"]] == ["Shorter"]
    page.route("**/completions", lambda route: route.abort())
    page.get_by_label("Message", exact=True).fill("Again?")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert").last).to_contain_text("cannot be reached")
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_label("Message", exact=True)).to_have_value("Again?")
    expect(page.locator("article")).to_have_count(4)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_a_page_with_a_key_lists_the_models(parts, page):
    limits = dataclasses.replace(LIMITS, keys=("sesame",), embed_tokens=0)
    with served({"tiny": start("tiny", parts, limits)}, limits) as site:
        page.goto(site.url)
        key = page.get_by_label("API key, kept until the tab is closed")
        key.fill("sesame")
        key.press("Tab")
        page.wait_for_selector("#model option", state="attached")
        assert page.evaluate("Object.keys(localStorage).join()").find("key") < 0


def test_the_page_asks_nobody_else(site, page):
    asked = []
    page.on("request", lambda r: asked.append(r.url))
    page.goto(site.url)
    page.wait_for_selector("#model option", state="attached")
    assert asked
    assert all(url.startswith(site.url) for url in asked if not url.startswith("data:"))
    assert "http" not in app.PAGE.partition("<script>")[0]
