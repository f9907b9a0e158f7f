"""The console in a real browser: live, by keyboard, on a phone, in the dark."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from console_bench import TASK, ConsoleBench

from shoal.cloud import reports

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.browser
Served = tuple[ConsoleBench, str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Watched:
    """A page, what its console said, and whom it asked."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.asked: set[str] = set()
        self.page.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type != "log" else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(request.url))

    def number(self, selector: str) -> int:
        return int((self.page.text_content(selector) or "").replace(",", "").split("/")[0])


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    made: list[Watched] = []

    def make(**options: Any) -> Watched:
        made.append(Watched(browser, **options))
        return made[-1]

    yield make
    for watched in made:
        watched.context.close()
        assert watched.errors == []


def shows(page: Page, selector: str, text: str) -> None:
    """Wait until an element says so (not in the page itself, whose policy forbids eval)."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_have_text(text, timeout=15_000)


def test_every_page_opens_clean(lively: Served, open_page: Any) -> None:
    made, url = lively
    watched = open_page()
    watched.page.add_init_script(
        "addEventListener('securitypolicyviolation',"
        " event => console.error('CSP', event.violatedDirective, event.blockedURI))"
    )
    device = made.devices[7].hex()
    for path in (
        "/",
        "/releases",
        "/releases/2",
        "/fleet",
        f"/fleet/{device}",
        "/tasks",
        "/events",
    ):
        watched.page.goto(url + path)
        watched.page.wait_for_selector(".live.on")
    assert all(asked.startswith(url) for asked in watched.asked)
    assert url + "/console/stream" in watched.asked


def test_a_violation_would_be_seen(lively: Served, browser: Browser) -> None:
    """The negative control of the test above it."""
    watched = Watched(browser)
    watched.page.goto(lively[1])
    watched.page.evaluate("document.body.appendChild(document.createElement('script')).text='1'")
    watched.page.wait_for_timeout(200)
    watched.context.close()
    assert any("Content Security Policy" in error for error in watched.errors)


def test_numbers_change_without_a_reload(bench: Served, open_page: Any) -> None:
    made, url = bench
    made.enrol(3)
    version = made.publish(1)
    watched = open_page()
    page = watched.page
    page.goto(url)
    page.wait_for_selector(".live.on")
    page.evaluate("window.stayed = true")
    assert watched.number("#received") == 0
    made.run(made.devices[0], version, value={"score": 1})
    shows(page, "#received", "2")
    made.run(made.devices[1], version, value={"score": "<b>two</b>"})
    shows(page, "#received", "4")
    assert "<b>two</b>" in (page.text_content("main") or "")
    made.enrol(2)
    made.cloud.bus.publish("fleet", {})
    shows(page, "#devices", "5")
    assert page.evaluate("window.stayed") is True


def test_focus_and_words_survive_a_refresh(bench: Served, open_page: Any) -> None:
    made, url = bench
    made.enrol(3)
    release = made.release(made.publish(1))
    watched = open_page()
    page = watched.page
    page.goto(url)
    page.wait_for_selector(".live.on")
    link = f"td a[href='/releases/{release}']"
    page.focus(link)
    made.run(made.devices[0], 1, value=1)
    shows(page, "#received", "2")
    assert page.evaluate(f'document.activeElement === document.querySelector("{link}")')

    page.goto(f"{url}/releases/{release}")
    page.wait_for_selector(".live.on")
    page.fill("input[name=reason]", "not yet")
    made.run(made.devices[1], 1, value=1)
    shows(page, "#holding", "2 / 3")
    assert page.input_value("input[name=reason]") == "not yet"
    page.keyboard.press("Enter")  # presses no button by itself
    page.wait_for_timeout(200)
    assert made.cloud.releases.status(release)["state"] == "gray"


def test_a_release_shows_its_curve(lively: Served, open_page: Any) -> None:
    made, url = lively
    watched = open_page(java_script_enabled=False)  # nothing is swapped while it is measured
    watched.page.goto(f"{url}/releases/2")
    box = watched.page.locator("path.curve").bounding_box()
    assert box is not None
    assert box["width"] > 200
    assert box["height"] > 20
    found = reports.coverage(made.cloud.store, 2)
    dot = watched.page.locator("circle.dot").get_attribute("cy")
    assert float(dot) == pytest.approx(12 + (220 - 12 - 34) * (1 - found.points[-1][1]), abs=0.1)
    assert watched.page.locator("svg.meter").count() == 4
    green = watched.page.locator("svg.meter.safe .fill").nth(1)
    assert float(green.get_attribute("width")) == 100.0


def test_the_roll_back_button_rolls_back(bench: Served, open_page: Any) -> None:
    made, url = bench
    made.enrol(3)
    release = made.release(made.publish(1))
    watched = open_page()
    page = watched.page
    page.goto(f"{url}/releases/{release}")
    page.fill("input[name=reason]", "the numbers look wrong")
    page.click("button:has-text('Roll back')")
    page.wait_for_url(f"**/releases/{release}")
    page.wait_for_selector(".state.rolling_back, .state.rolled_back")
    last = [row for row in made.cloud.releases.history(release) if row["actor"] == "local"][-1]
    assert last["reason"] == "the numbers look wrong"
    assert "the numbers look wrong" in (page.text_content("main") or "")


def test_it_works_without_javascript(bench: Served, open_page: Any) -> None:
    made, url = bench
    made.enrol(3)
    release = made.release(made.publish(1))
    page = open_page(java_script_enabled=False).page
    page.goto(url)
    page.click("nav >> text=Releases")
    page.click(f"td >> text={TASK} 1")
    page.click("button:has-text('Pause')")
    page.wait_for_selector("button:has-text('Resume')")
    assert made.cloud.releases.status(release)["state"] == "paused"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scroll(lively: Served, open_page: Any, scheme: str) -> None:
    made, url = lively
    page = open_page(viewport={"width": 390, "height": 800}, color_scheme=scheme).page
    device = made.devices[7].hex()
    for path in (
        "/",
        "/releases",
        "/releases/2",
        "/fleet",
        f"/fleet/{device}",
        "/tasks",
        "/events",
    ):
        page.goto(url + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        hidden = page.evaluate(
            "[...document.querySelectorAll('.scroll')]"
            ".filter(box => box.scrollWidth > box.clientWidth + 1).length"
        )
        assert hidden == 0, path


def test_the_keyboard_reaches_everything_and_shows_where(lively: Served, open_page: Any) -> None:
    page = open_page().page
    page.goto(f"{lively[1]}/releases/2")
    reached = []
    while True:
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break  # past the last one
        name, style, width = page.evaluate(
            "(e => [e.textContent.trim() || e.name, getComputedStyle(e).outlineStyle,"
            " parseFloat(getComputedStyle(e).outlineWidth)])(document.activeElement)"
        )
        reached.append(name)
        assert style == "solid", name
        assert width >= 2, name
    assert reached[0] == "Skip to the content"
    assert {"Overview", "Fleet", "reason", "Pause", "Roll back"} <= set(reached)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(lively: Served, open_page: Any, scheme: str) -> None:
    """Every text has the contrast of WCAG 2 AA, 4.5 to 1, on what lies behind it."""
    page = open_page(color_scheme=scheme).page
    script = (Path(__file__).parent / "contrast.js").read_text()
    for path in ("/", "/releases/2", "/fleet", f"/fleet/{lively[0].devices[7].hex()}", "/events"):
        page.goto(lively[1] + path)
        found = page.evaluate(script)
        assert len(found) > 20
        bad = {text: ratio for text, ratio in found if ratio < 4.5}
        assert not bad, (path, bad)


def test_the_lamp_tells_when_the_cloud_is_gone(tmp_path: Path, browser: Browser) -> None:
    from shoal.cloud.config import CloudConfig
    from shoal.cloud.http import CloudServer
    from shoal.cloud.service import Cloud
    from shoal.console import create_console

    watched = Watched(browser)
    with Cloud.open(CloudConfig(data_dir=tmp_path)) as cloud:
        server = CloudServer(cloud, mounts={"/": create_console(cloud)})
        watched.page.goto(server.url)
        watched.page.wait_for_selector(".live.on")
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 14  # an open page does not hold the server up
        watched.page.wait_for_selector(".live:not(.on)")
    watched.context.close()
