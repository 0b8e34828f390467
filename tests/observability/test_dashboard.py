"""The page at `/` in a real browser, through what an operator goes through with it."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from ryzanstein_client import Client

from .conftest import INFERENCE_KEY, OPERATIONS_KEY, Prometheus, Watched
from .verdicts import VERDICTS

playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
QUESTION = "What is 347 + 285?"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]
    with (
        playwright.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=arguments) as running,
    ):
        yield running


class Page:
    """The dashboard in a window of its own, with all that it asked for and complained of."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.window = browser.new_page(**settings)
        self.address = address
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.window.on("request", lambda request: self.asked.append(request.url))
        self.window.on("console", lambda line: self.complaints.append(line.text))
        self.window.on("pageerror", lambda error: self.complaints.append(f"uncaught {error}"))
        self.window.goto(address + "/")

    def sees(self, selector: str, text: str | re.Pattern[str], timeout_s: float = 20.0) -> None:
        playwright.expect(self.window.locator(selector)).to_contain_text(text, timeout=timeout_s * 1000)

    def text(self, selector: str) -> str:
        found: str = self.window.locator(selector).inner_text()
        return found

    def unlock(self) -> None:
        self.window.get_by_label("asks for an API key").fill(OPERATIONS_KEY)
        self.window.keyboard.press("Enter")
        self.sees("#verdict-title", "Serving")


def test_the_page_through_keys_prompts_a_dead_coordinator_and_a_dead_worker(
    watched: Watched, prometheus: Prometheus | None, browser: Any
) -> None:
    page = Page(browser, watched.cluster.http, viewport={"width": 1280, "height": 900}, color_scheme="light")
    window = page.window
    with Client(watched.cluster.grpc, api_key=INFERENCE_KEY) as client:
        expected = client.chat([{"role": "user", "content": QUESTION}], temperature=0.0, max_tokens=200).text

    # A stranger sees that a key is needed, and nothing of the cluster.
    page.sees("#verdict-title", "Locked")
    window.get_by_label("asks for an API key").fill("a-key-that-nobody-knows")
    window.keyboard.press("Enter")
    page.sees("#locked-why", "refused")
    assert page.text("#worker-rows") == ""
    page.unlock()

    # It shows what /cluster tells.
    playwright.expect(window.locator("#worker-rows .worker")).to_have_count(3)
    for worker in watched.snapshot()["workers"]:
        page.sees("#worker-rows", worker["id"])
        page.sees("#worker-rows", f"process {worker['pid']}")
    page.sees("#facts", "2 of 2")
    structure = window.locator("main").aria_snapshot()
    for part in ('heading "Serving"', 'table "Workers"', 'textbox "Prompt"', 'columnheader "Heartbeat"'):
        assert part in structure
    for _ in range(3):  # the heartbeat ticks
        shown = page.text("#worker-rows .worker:first-child .age")
        playwright.expect(window.locator("#worker-rows .worker:first-child .age")).not_to_have_text(shown)

    # The key for looking is none for asking; the right one is kept for this tab only.
    window.get_by_label("Temperature").fill("0")
    window.get_by_role("textbox", name="Prompt").fill(QUESTION)
    window.keyboard.press("Control+Enter")
    page.sees("#measured", "role")
    window.get_by_label("API key", exact=True).fill(INFERENCE_KEY)
    window.keyboard.press("Enter")
    page.sees("#measured", re.compile(r"\d+ tokens, first after .* seed \d+"))
    assert page.text("#answer") == expected
    assert window.evaluate("localStorage.length + document.cookie.length") == 0

    # The coordinator dies in mid-answer: the page says so, and goes on with the answer where it was.
    watched.failpoints.arm("request.recorded", "coordinator", "kill 12")
    window.evaluate(
        "new MutationObserver(() => document.documentElement.classList.add(document.getElementById('link-text')"
        ".textContent)).observe(document.getElementById('link'), {subtree: true, childList: true})"
    )
    window.get_by_role("button", name="Send").click()
    page.sees("#measured", re.compile(r"\d+ tokens, first after"), timeout_s=40)
    assert watched.failpoints.taken("request.recorded", "coordinator")
    assert page.text("#answer") == expected
    page.sees("#link-text", "live")
    assert "disconnected" in window.evaluate("document.documentElement.className")
    page.sees("#verdict-title", "Serving")

    # A worker dies: who, why, and how long it took.
    victim = next(worker for worker in watched.snapshot()["workers"] if worker["rank"] == 1)
    psutil.Process(victim["pid"]).kill()
    page.sees("#epochs", f"{victim['id']} (rank 1): its process died")
    page.sees("#verdict-detail", f"{victim['id']} (rank 1), its process died. Back after")
    window.locator("#epochs summary").first.focus()
    window.keyboard.press("Enter")
    page.sees("#epochs .more >> nth=0", f"process {victim['pid']}")

    # Nothing came from anywhere else, and the policy had nothing to refuse.
    assert all(url.startswith(watched.cluster.http) for url in page.asked)
    lost = ("401", "403", "503", "ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY")
    assert [line for line in page.complaints if not any(word in line for word in lost)] == []
    window.close()


def test_the_first_line_says_whether_it_serves_and_who_is_to_blame(watched: Watched, browser: Any) -> None:
    page = Page(browser, watched.cluster.http)
    ask = """async ([snapshot, state]) => {
        const { verdict } = await import("/dashboard/verdict.js");
        return verdict(snapshot, { state, since: new Date() });
    }"""
    for case, (snapshot, link, level, title, rest) in VERDICTS.items():
        said = page.window.evaluate(ask, [snapshot, link])
        assert (said["level"], said["title"]) == (level, title), case
        assert rest in f"{said['detail']} {said['blame']}", case
    page.window.close()


def test_it_fits_a_phone_and_the_dark(watched: Watched, browser: Any) -> None:
    colors = set()
    for width, scheme in itertools.product((375, 760), ("light", "dark")):
        page = Page(
            browser, watched.cluster.http, viewport={"width": width, "height": 812}, color_scheme=scheme
        )
        page.unlock()
        page.sees("#worker-rows", "active")
        assert page.window.evaluate("document.documentElement.scrollWidth") <= width
        colors.add(page.window.evaluate("getComputedStyle(document.documentElement).backgroundColor"))
        page.window.close()
    assert len(colors) == 2
