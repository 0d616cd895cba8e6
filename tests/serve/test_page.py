"""The chat page in a real browser: from opening it to a streamed answer and its stop."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.inference.test_talk import TEMPLATE
from tests.serve.conftest import LIMITS, gated, served
from tests.serve.test_abuse import idle
from zoo.hf.template import Template
from zoo.serve import app
from zoo.serve.model import start

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine: apt-get install chromium"
)
SHOTS = os.environ.get("ZOO_TEST_SHOTS")
"""A folder for screenshots, to look at."""

SAID = """# Tides

The **moon** pulls, *so does* the sun; see [NOAA](https://example.org/tides) or `tide(t)`.

1. Spring tides
   - at new moon
   - at full moon
2. Neap tides

> Time and tide wait for no man.

| port | metres |
|------|--------|
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
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 760})
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
    assert "12 tokens, " in page.locator(".note").inner_text()
    assert "tokens/s" in page.locator(".note").inner_text()
    assert page.locator("article.user .body").inner_text() == "Hello\nthere"
    assert page.locator("article.assistant h2").inner_text() == "tiny"
    assert "complete: 12 tokens" in page.get_by_role("status").inner_text()
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
    assert "answering" in page.get_by_role("status").inner_text()
    assert page.locator("article").last.get_attribute("aria-busy") == "true"
    shoot(page, "streaming")
    page.keyboard.press("Escape")
    page.wait_for_selector("article:last-child .note")
    assert page.locator("article:last-child .note").inner_text() == "stopped"
    assert page.locator("article:last-child .body").inner_text()
    assert page.get_by_role("button", name="Send").is_visible()
    engine.gate.set()
    assert idle(two)

    page.reload()
    assert page.locator("article").count() == 4
    page.get_by_label("Model", exact=True).select_option("other")
    page.get_by_role("button", name="New conversation").click()
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.get_by_role("button", name="Send").click()
    page.wait_for_selector(".note")
    assert page.locator("article.assistant h2").inner_text() == "other"
    assert page.locator("#list li").count() == 2
    assert page.complaints == []


def test_a_thought_is_folded_and_stays_as_it_is_put(two, page):
    page.goto(two.url)
    page.locator("#model option").nth(1).wait_for(state="attached")
    engine, encode = two.models["tiny"].runner.engine, two.models["tiny"].tokenizer.encode
    engine.script = (*encode("<think>\nHm, *so*.\n</think>\n\n**Yes.**").ids, 259)
    engine.left = len("<think>\nHm,")
    box = page.get_by_label("Message", exact=True)
    box.fill("Well?")
    box.press("Enter")
    answer = page.locator("article.assistant")
    summary = answer.locator("summary", has_text="Thinking…")
    summary.wait_for()
    assert "thinking" in page.get_by_role("status").inner_text()
    assert not answer.get_by_text("Hm,").is_visible()
    summary.click()
    assert answer.get_by_text("Hm,").is_visible()
    shoot(page, "thinking")
    engine.gate.set()
    page.wait_for_selector(".note")
    assert answer.locator("summary").inner_text() == "Thoughts"
    assert answer.locator(".thought em").inner_text() == "so"
    assert answer.locator(".body > p strong").inner_text() == "Yes."
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
        "ol > li >> nth=1": "Neap tides",
        "ol ul li >> nth=1": "at full moon",
        "blockquote": "Time and tide wait for no man.",
    }
    for selector, text in shown.items():
        assert body.locator(selector).inner_text() == text
    assert body.locator("pre").inner_text().startswith("def tide(t: float) -> float:\n    return")
    links = body.locator("a").evaluate_all("all => all.map(a => a.href)")
    assert links == ["https://example.org/tides"]
    assert "<img src=x" in body.inner_text()
    assert page.evaluate("window.broken") is None
    assert page.complaints == []
    shoot(page, "desktop")


def test_on_a_phone_nothing_is_cut_off(site, page):
    page.set_viewport_size({"width": 375, "height": 740})
    page.goto(site.url)
    fill_history(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    shoot(page, "phone")
    page.get_by_role("button", name="Conversations").click()
    assert page.get_by_role("button", name="New conversation").is_visible()
    shoot(page, "phone-menu")
    page.keyboard.press("Escape")
    assert not page.get_by_role("button", name="New conversation").is_visible()
    page.get_by_text("Settings").click()
    for name in ("Temperature", "API key, kept until the tab is closed"):
        place = page.get_by_label(name).bounding_box()
        assert 0 <= place["x"] <= place["x"] + place["width"] <= 375
    shoot(page, "phone-settings")
    page.emulate_media(color_scheme="dark")
    page.keyboard.press("Escape")
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
    assert "do not fit" in page.get_by_role("alert").inner_text()
    assert page.get_by_role("button", name="Send").is_visible()


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
