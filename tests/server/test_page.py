"""The page at ``/`` in a real Chromium, against a real server with the built-in model."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grit_mlx import GritLM
from grit_mlx.model import hub
from grit_mlx.rag.store import Store
from grit_mlx.server import app
from grit_mlx.server import page as served_page

Server = Any  # of conftest

_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", _MAC))), None)

# Left out in each test: the page's files are tested in any case.
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
KEEL = "The keel of the boat was painted red by Frank in May."
NOTES = {
    "boat.md": "# The boat\n\n"
    + "".join(f"Entry {n} of the log says nothing new.\n\n" for n in range(40))
    + KEEL
    + "\n",
    "bread.md": "# Bread\n\nRye bread is baked for two hours.\n\nIts dough rests overnight.\n",
    "hostile.md": f"# Mail\n\nThe invoice of the plumber {HOSTILE} is due in July.\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, text in NOTES.items():
        (folder / name).write_text(text, encoding="utf-8")
    store = Store(folder / "store", GritLM(hub.embedded_model()), passage_tokens=64)
    store.index([folder / name for name in NOTES])
    return folder


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], folder: Path, tiny_model: Path) -> Server:
    models = {"grit-tiny": hub.embedded_model(), "endless": tiny_model}
    return start(stores={"notes": str(folder / "store")}, models=models)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="needs playwright")
    from playwright.sync_api import sync_playwright

    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses root otherwise
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Any]]:
    """``visit(path="", **context)``: the page; fails if a script fails or another address is asked."""
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(path: str = "", at: Server = server, **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1100, "height": 750}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda one: problems.extend([] if one.url.startswith((at.url, "data:")) else [one.url]))
        page.goto(f"{at.url}/{path}")
        page.wait_for_selector("body[data-mode], dialog[open]", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def _send(page: Any, text: str) -> None:
    page.fill("#input", text)
    page.keyboard.press("Enter")


def _until(page: Any, expression: str) -> None:
    """Wait until an expression holds; playwright's own waiting is eval, which the page's policy forbids."""
    deadline = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def test_the_page_needs_no_key_and_allows_nothing_foreign(start: Callable[..., Server], folder: Path) -> None:
    guarded = start(keys=["secret"])
    for path in served_page.PATHS:
        status, headers, content = guarded.request("GET", path)
        assert status == 200
        assert content
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", content), f"{path} names another address"
        assert b"innerHTML" not in content
    assert guarded.request("GET", "/v1/models")[0] == 401
    assert guarded.request("GET", "/page/__init__.py")[0] == 404


@needs_browser
def test_a_search_opens_the_file_at_the_passage(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    page.keyboard.type("who painted the keel")
    page.keyboard.press("Enter")
    page.wait_for_selector(".result")
    assert "painted red by Frank" in page.locator(".result").first.inner_text()
    assert page.locator(".result mark").first.inner_text().lower() in {"painted", "the", "keel"}
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".row.here")
    line = NOTES["boat.md"].splitlines().index(KEEL) + 1
    row = page.locator(f".row[data-line='{line}']")
    assert KEEL in row.inner_text()
    assert "here" in row.get_attribute("class")
    shown, panel = page.locator(".row.here").first.bounding_box(), page.locator("#panel-text").bounding_box()
    assert panel["y"] <= shown["y"] < panel["y"] + panel["height"]
    page.keyboard.press("ArrowDown")  # to the next result, and its file
    _until(page, "document.querySelectorAll('[aria-current=true] .number')[0].textContent === '2'")
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()
    assert page.evaluate("document.activeElement.className") == "result"


@needs_browser
def test_a_question_is_answered_with_sources(visit: Callable[..., Any]) -> None:
    page = visit("#ask")
    _send(page, "Who painted the keel?")
    page.wait_for_selector("#view-ask .result")
    answer = page.locator("#view-ask .answer").inner_text()
    assert answer.strip()
    assert "Sources:" not in answer  # they are a list below
    page.locator("#view-ask .result").first.click()
    page.wait_for_selector(".row.here")
    assert page.locator("#panel-name").inner_text() in NOTES


@needs_browser
def test_texts_of_documents_are_never_markup(visit: Callable[..., Any]) -> None:
    page = visit("#search")
    _send(page, "the invoice of the plumber")
    page.wait_for_selector(".result")
    assert HOSTILE in page.locator(".result").first.text_content()
    page.locator(".result").first.click()
    page.wait_for_selector(".row.here")
    assert HOSTILE in page.locator("#panel-text").text_content()
    page.wait_for_timeout(200)
    assert page.title() == "grit"
    assert page.locator("main img, aside img, main script").count() == 0
    # Even a fault in the page could not make markup of a text.
    assert page.evaluate(
        "() => { try { document.body.innerHTML = '<b>'; return 'made'; } catch { return 'refused'; } }"
    )


@needs_browser
def test_an_answer_is_stopped_in_the_middle(visit: Callable[..., Any], server: Server) -> None:
    page = visit("#chat")
    page.select_option("#model", "endless")
    _send(page, "Tell me everything.")
    _until(page, "document.querySelector('.answer')?.textContent.length > 20")
    assert page.locator("#stop").is_visible()
    page.keyboard.press("Escape")
    page.wait_for_selector(".stopped")
    assert page.locator(".stopped").inner_text() == "Stopped."
    assert page.locator("#go").is_visible()
    server.settle()  # its place is free
    held = page.locator(".answer").first.inner_text()
    _send(page, "And then?")
    _until(page, "document.querySelectorAll('.answer')[1]?.textContent.length > 20")
    page.click("#stop")
    _until(page, "!document.querySelector('.answer.running')")
    assert page.locator(".answer").first.inner_text() == held
    assert page.locator(".turn.user").all_inner_texts() == ["Tell me everything.", "And then?"]
    page.click("text=New chat")
    assert page.locator(".turn").count() == 0


@needs_browser
def test_a_stopped_answer_has_its_sources(
    visit: Callable[..., Any], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit("#ask")
    # Never at an end, whatever the model writes.
    monkeypatch.setattr(app, "_chat_events", _slowly(app._chat_events))
    _send(page, "Who painted the keel of the boat?")
    _until(page, "document.querySelector('.answer')?.textContent.length > 3")
    page.keyboard.press("Escape")
    page.wait_for_selector(".stopped")
    page.wait_for_selector("text=Sources")
    assert "boat.md" in page.locator(".result").first.inner_text()
    server.settle()


def _slowly(events: Callable[..., Any]) -> Callable[..., Any]:
    async def slow(*arguments: Any, **options: Any) -> Any:
        async for one in events(*arguments, **options):
            yield one
            await asyncio.sleep(0.2)

    return slow


@needs_browser
def test_errors_are_sentences(visit: Callable[..., Any], start: Callable[..., Server]) -> None:
    page = visit("#ask")
    _send(page, "why " * 9000)
    page.wait_for_selector("#error:not([hidden])")
    assert re.search(r"tokens", page.locator("#error").inner_text())
    page.click("#tab-compare")
    assert page.locator("#error").is_hidden()
    page.fill("#input", "only one text")
    page.click("#go")
    assert page.locator("#error").inner_text() == "Write at least two texts, one per line."

    gone = start()
    page = visit("#chat", at=gone)
    gone.stop()
    _send(page, "Anyone there?")
    page.wait_for_selector("#error:not([hidden])")
    assert page.locator("#error").inner_text() == "The server does not answer. Is 'grit serve' still running?"
    assert page.locator("#input").input_value() == "Anyone there?"  # nothing that was typed is lost


@needs_browser
def test_without_a_store_the_page_says_how_to_get_one(visit: Callable[..., Any], start: Callable[..., Server]) -> None:
    page = visit("#search", at=start())
    assert "grit rag index" in page.locator("#view-search").inner_text()
    page.fill("#input", "anything")
    assert page.locator("#go").is_disabled()


@needs_browser
def test_texts_are_compared(visit: Callable[..., Any], server: Server) -> None:
    texts = ["A boat on the water", "A ship at sea", "The price of bread"]
    page = visit("#compare")
    page.fill("#input", "\n".join(texts))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("td")
    shown = [float(cell) for cell in page.locator("td").all_inner_texts()]
    vectors = server.host.models["grit-tiny"].lane().model.encode(texts, role="similarity")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert shown == pytest.approx((unit @ unit.T).ravel().tolist(), abs=0.006)


@needs_browser
def test_a_narrow_window(visit: Callable[..., Any]) -> None:
    page = visit("#search")
    page.set_viewport_size({"width": 340, "height": 640})
    _send(page, "who painted the keel")
    page.wait_for_selector(".result")
    assert page.evaluate("document.documentElement.scrollWidth") <= 340
    page.locator(".result").first.click()
    page.wait_for_selector(".row.here")
    box = page.locator("#panel").bounding_box()
    assert (box["x"], box["width"]) == (0, 340)
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_hidden()


def _brightness(page: Any) -> float:
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3


@needs_browser
def test_light_and_dark(visit: Callable[..., Any]) -> None:
    assert _brightness(visit(color_scheme="light")) > 200
    page = visit(color_scheme="dark")
    assert _brightness(page) < 60
    page.click("#theme")  # light, whatever the system says
    assert _brightness(page) > 200
    page.reload()
    assert _brightness(page) > 200


@needs_browser
def test_a_key_is_asked_for_and_kept_for_the_tab(
    visit: Callable[..., Any], start: Callable[..., Server], tmp_path: Path
) -> None:
    page = visit(at=start(keys=["secret"]))
    page.wait_for_selector("dialog[open]")
    page.fill("#key-input", "wrong")
    page.keyboard.press("Enter")
    _until(page, "document.querySelector('#error').textContent.includes('wrong')")
    page.fill("#key-input", "secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("#error").is_hidden()
    assert page.locator("dialog").is_hidden()
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    assert page.locator("dialog").is_hidden()
