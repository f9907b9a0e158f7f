"""The map page: what the server writes, who may see it, and what a browser makes of it."""

from __future__ import annotations

import html
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
import uvicorn
from litestar.testing import TestClient
from test_app import HOSTILE, foreign, words
from test_browser import Watched

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud
from shoal.console import create_console
from shoal.console.app import create_place_console
from shoal.spatial import SpatialKeywordIndex
from shoal.tasks.place_search import PlaceSearch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = Path("/usr/bin/chromium")
N = 400


def town() -> SpatialKeywordIndex:
    """Places in a square of two degrees; one of them has a hostile name and word."""
    rng = np.random.default_rng(5)
    lon, lat = rng.uniform(24, 26, N), rng.uniform(59, 61, N)
    kinds = ["cafe", "pizza", "museum", "harbour"]
    tags = [[kinds[i % 4], "place"] for i in range(N)]
    labels: list[str | None] = [f"Place {i}" for i in range(N)]
    lon[0], lat[0], tags[0], labels[0] = 25.0, 60.0, ["<b>bold</b>", HOSTILE], HOSTILE
    labels[3] = None
    return SpatialKeywordIndex.build(
        lon,
        lat,
        keywords=tags,
        attributes={"price": rng.integers(1, 5, N).astype(float), HOSTILE: rng.random(N) * 1e6},
        labels=labels,
        analyzer="exact",
    )


@pytest.fixture(scope="module")
def service() -> PlaceSearch:
    return PlaceSearch(town(), f"places of a town {HOSTILE}")


@pytest.fixture(scope="module")
def client(service: PlaceSearch) -> Iterator[TestClient[Any]]:
    with TestClient(create_place_console(service)) as client:
        yield client


def page(client: Any, path: str = "/places", status: int = 200, **params: Any) -> str:
    answer = client.get(path, params=params)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    text: str = answer.text
    assert foreign(text.replace('<link rel="stylesheet"', "<link")) == []
    return text


def value(text: str, name: str) -> str:
    """Return what a field of the form holds."""
    found = re.search(rf'name="{re.escape(name)}"[^>]*?value="([^"]*)"', text)
    if found is None:
        chosen = re.search(rf'<select name="{re.escape(name)}".*?</select>', text, re.DOTALL)
        assert chosen is not None, name
        found = re.search(r'value="([^"]*)" selected', chosen[0])
    return html.unescape(found[1]) if found else ""


def listed(text: str) -> list[int]:
    """Return the numbers of the places in the list, by their default names."""
    return [int(n) for n in re.findall(r"<b>Place (\d+)</b>", text)]


# -- what the server writes -----------------------------------------------------------------


def test_it_starts_at_the_page(client: TestClient[Any]) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "/places")
    text = words(page(client))
    assert "400 indexed" in text
    assert "Type some words or click the map" in text


def test_a_search_is_a_list(client: TestClient[Any], service: PlaceSearch) -> None:
    text = page(client, q="pizza", lon="25", lat="60", k="5", match="all", **{"w.space": "80"})
    found = service.search(
        {"q": "pizza", "point": "25,60", "k": "5", "match": "all", "decay": "linear:20"}
    )
    assert listed(text) == [result["id"] for result in found["results"]]
    first = found["results"][0]
    assert f'data-lon="{first["lon"]}" data-lat="{first["lat"]}"' in text
    assert f"{first['km']:.2f} km" in text
    assert "5 answers" in words(text)
    assert page(client, "/places/part", q="pizza").lstrip().startswith("<section")


def test_the_form_keeps_what_was_asked(client: TestClient[Any]) -> None:
    asked = {
        "q": 'pizza "x" <y>',
        "match": "any",
        "lon": "25",
        "lat": "60.5",
        "k": "7",
        "max_km": "50",
        "decay": "gauss:3",
        "w.space": "80",
        "w.text": "5",
        "p.price": "min",
        "where": "price<=2",
        "why": "3",
    }
    text = page(client, **asked)
    assert {name: value(text, name) for name in asked} == asked
    assert "<details open>" in text
    assert "<details>" in page(client, q="pizza")
    assert value(page(client, point="25,60"), "lat") == "60"
    assert value(page(client, keywords="pizza"), "q") == "pizza"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"lon": "east", "lat": "60"}, "lon"),
        ({"lon": "25"}, "lat"),
        ({"k": "many"}, "k"),
        ({"k": "501"}, "k"),
        ({"max_km": "5"}, "max_km"),
        ({"decay": "steep"}, "decay"),
        ({"where": "colour<1"}, "where"),
        ({"where": "price<x"}, "where"),
        ({"match": "most"}, "match"),
        ({"p.price": "up"}, None),
        ({"w.space": "x", "lon": "25", "lat": "60"}, None),
        ({"colour": "red"}, None),
    ],
)
def test_a_mistake_is_said_in_the_page(
    client: TestClient[Any], wrong: dict[str, str], field: str | None
) -> None:
    text = page(client, status=400, q="pizza", **wrong)
    assert 'role="alert"' in text
    assert "Traceback" not in text
    assert value(text, "q") == "pizza"
    for name in set(wrong) & {"lon", "lat", "k", "max_km", "decay", "where"}:
        assert value(text, name) == wrong[name]
    marked = re.findall(r'<(?:input|select) name="([^"]+)"[^>]*aria-invalid="true"', text)
    assert marked == ([field] if field else [])
    # The script puts the same words into the page.
    assert 'role="alert"' in page(client, "/places/part", q="pizza", **wrong)


def test_why_not(client: TestClient[Any]) -> None:
    text = words(page(client, q="pizza", lon="25", lat="60", k="1", why="2"))
    assert "Place 2: not among the answers" in text
    assert "It has none of the keywords" in text
    best = listed(page(client, q="pizza", k="1"))[0]
    assert f"Place {best}: rank 1" in words(page(client, q="pizza", why=str(best)))
    lost = page(client, status=404, q="pizza", why="<i>nobody</i>")
    assert "No such place" in lost
    assert len(listed(lost)) == 20  # the answers are there all the same


def test_sliders_of_what_is_not_asked_mean_nothing(client: TestClient[Any]) -> None:
    form = {"w.space": "50", "w.text": "50", "w.attributes": "50"}
    assert listed(page(client, q="pizza", **form)) == listed(page(client, q="pizza"))
    assert len(listed(page(client, **form))) >= 18
    zero = dict.fromkeys(form, "0")
    assert len(listed(page(client, q="pizza", **zero))) == 20


def test_preferences_and_weights_change_the_order(client: TestClient[Any]) -> None:
    here = {"q": "place", "lon": "25", "lat": "60", "p.price": "min"}
    near = listed(page(client, **here, **{"w.space": "100", "w.attributes": "0"}))
    cheap = listed(page(client, **here, **{"w.space": "0", "w.attributes": "100"}))
    assert near != cheap


def test_a_slider_that_was_not_sent_stands_in_the_middle(client: TestClient[Any]) -> None:
    here = {"q": "pizza", "lon": "25", "lat": "60", "w.text": "50"}
    one, other = page(client, **here), page(client, **here, **{"w.space": "50"})
    assert value(one, "w.space") == "50"
    assert listed(one) == listed(other)
    assert one.count('class="fill space"') == 20


def test_the_link_to_json_gives_the_same_answers(client: TestClient[Any]) -> None:
    text = page(client, q="pizza", lon="25", lat="60", **{"p.price": "max", "w.text": "30"})
    link = html.unescape(re.search(r'href="(/places/api/search[^"]*)"', text)[1])  # type: ignore[index]
    assert [result["id"] for result in client.get(link).json()["results"]] == listed(text)
    assert parse_qs(urlsplit(link).query)["decay"] == ["linear:20"]
    refused = client.get("/places/api/search", params={"k": "0"})
    assert refused.headers["content-type"].startswith("application/problem+json")
    assert client.get("/places/api/nothing").status_code == 404


def test_hostile_words_stay_words(client: TestClient[Any]) -> None:
    for params in (
        {"q": HOSTILE, "match": "all"},
        {"q": "pizza", "why": HOSTILE},
        {"q": "pizza", "lon": HOSTILE, "lat": HOSTILE},
        {"q": "pizza", "where": HOSTILE},
        {HOSTILE: HOSTILE},
        {"p." + HOSTILE: "min"},
        {"lon": "25", "lat": "60", "k": "1"},
    ):
        answer = client.get("/places", params=params)
        assert answer.status_code in {200, 400, 404}
        assert foreign(answer.text) == []
        assert "<b>bold" not in answer.text
    shown = page(client, lon="25", lat="60", k="1", why="0")
    assert html.escape(HOSTILE).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in shown


def test_the_policy_is_the_consoles(client: TestClient[Any]) -> None:
    for path in ("/places", "/places/part", "/places/backdrop", "/places/api/about", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    text = page(client)
    assert "<style" not in text
    assert " style=" not in text
    assert re.findall(r"<script(?! src=\"/console/static/places.js\" defer>)", text) == []


def test_the_backdrop_is_the_places(client: TestClient[Any], service: PlaceSearch) -> None:
    raw = np.frombuffer(client.get("/places/backdrop").content, "<f4").reshape(-1, 2)
    np.testing.assert_allclose(raw, service.backdrop(), rtol=1e-6)


def test_an_empty_index_has_a_page() -> None:
    index = SpatialKeywordIndex.build([], [])
    with TestClient(create_place_console(PlaceSearch(index, "nothing yet"))) as client:
        text = page(client, q="pizza", lon="1", lat="2")
        assert "0 answers" in words(text)
        assert "Preferences" not in text
        assert 'data-bounds="null"' in text
        assert client.get("/places/backdrop").content == b""


# -- inside the console of a cloud -------------------------------------------------------------


@pytest.mark.parametrize("has_places", [True, False])
def test_the_console_has_a_section_of_places(
    tmp_path: Path, service: PlaceSearch, has_places: bool
) -> None:
    with (
        Cloud.open(CloudConfig(data_dir=tmp_path)) as cloud,
        CloudServer(
            cloud, mounts={"/": create_console(cloud, places=service if has_places else None)}
        ) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        assert ('href="/places"' in page(client, "/")) == has_places
        if not has_places:
            assert client.get("/places").status_code == 404
            return
        text = page(client, q="pizza")
        assert re.search(r'href="/places" aria-current="page"', text)
        assert all(name in text for name in ("Overview", "Releases", "Events"))
        assert client.get("/places/api/about").json()["places"] == N
        one, other = (client.get(path).headers for path in ("/", "/places"))
        assert one["content-security-policy"] == other["content-security-policy"]


def test_the_console_guards_its_places(tmp_path: Path, service: PlaceSearch) -> None:
    config = CloudConfig(data_dir=tmp_path, admin_token="of-the-administrator")
    with (
        Cloud.open(config) as cloud,
        CloudServer(cloud, mounts={"/": create_console(cloud, places=service)}) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        paths = ("/places", "/places/part", "/places/backdrop", "/places/api/search")
        for path in paths:
            assert client.get(path).status_code == 401, path
        assert "www-authenticate" in client.get("/places").headers
        for path in paths:
            answer = client.get(path, auth=("anyone", "of-the-administrator"))
            assert answer.status_code == 200, path


# -- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(service: PlaceSearch) -> Iterator[str]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_place_console(service), log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    made: list[Watched] = []

    def make(**options: Any) -> Page:
        made.append(Watched(browser, **options))
        return made[-1].page

    yield make
    for watched in made:
        watched.context.close()
        assert watched.errors == []


def drawn(page: Page) -> dict[str, int]:
    """Count the pixels of the map by colour."""
    counts: dict[str, int] = page.evaluate(
        """() => {
          const map = document.querySelector("canvas.map");
          const copy = Object.assign(document.createElement("canvas"),
                                     { width: map.width, height: map.height });
          const ink = copy.getContext("2d", { willReadFrequently: true });
          ink.drawImage(map, 0, 0);
          const raw = ink.getImageData(0, 0, map.width, map.height).data, counts = {};
          for (let i = 0; i < raw.length; i += 4) {
            const key = [raw[i], raw[i + 1], raw[i + 2]].join(",");
            counts[key] = (counts[key] || 0) + 1;
          }
          return counts;
        }"""
    )
    return counts


SEA, BAD, WARN = "11,107,124", "180,34,34", "150,73,10"
EDGE = "125,144,153"


@pytest.mark.browser
def test_the_map_is_drawn_and_a_click_sets_the_point(url: str, open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    page.goto(url + "/places")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(200)
    before = drawn(page)
    assert before.get(EDGE, 0) > N / 2  # dots of the places
    assert SEA not in before
    box = page.locator("canvas.map").bounding_box()
    middle = {"x": box["width"] / 2, "y": box["height"] / 2}
    page.locator("canvas.map").click(position=middle)
    page.wait_for_selector("ol.places li:nth-child(20)")
    lon, lat = (float(page.input_value(f"input[name={name}]")) for name in ("lon", "lat"))
    assert (lon, lat) == pytest.approx((25.0, 60.0), abs=0.02)  # the map shows its places' middle
    assert f"lon={lon:.5f}" in page.url
    page.wait_for_timeout(200)
    after = drawn(page)
    assert after.get(SEA, 0) > 500  # marks of the answers
    assert after.get(BAD, 0) > 20  # the point
    page.hover("ol.places li:nth-child(1)")
    page.wait_for_timeout(200)
    assert drawn(page).get(WARN, 0) > 100
    assert "20 answers" in page.text_content("#said")


@pytest.mark.browser
def test_dragging_and_zooming_set_no_point(url: str, open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    page.goto(url + "/places")
    page.wait_for_load_state("networkidle")
    dots = drawn(page).get(EDGE, 0)
    box = page.locator("canvas.map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y + 40, steps=4)
    page.mouse.up()
    page.mouse.wheel(0, -800)
    page.click("[data-zoom='1']")
    page.wait_for_timeout(200)
    assert page.input_value("input[name=lon]") == ""
    assert drawn(page).get(EDGE, 0) != dots
    assert page.url == url + "/places"


@pytest.mark.browser
def test_the_keyboard_is_enough(url: str, open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    page.goto(url + "/places")
    page.wait_for_load_state("networkidle")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, style = page.evaluate(
            "(e => [e.name || (e.matches('.map') ? 'map' : e.textContent.trim()),"
            " getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        if name == "map":
            break
        reached.append(name)
        assert style == "solid", name
    assert {"Skip to the content", "q", "match", "w.space", "p.price", "Search"} <= set(reached)
    for key in ("+", "ArrowRight", "ArrowUp", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("ol.places li")
    assert float(page.input_value("input[name=lon]")) > 25.0
    assert float(page.input_value("input[name=lat]")) > 60.0
    page.fill("input[name=q]", "museum")
    page.keyboard.press("Enter")
    page.wait_for_function("document.getElementById('said').textContent.includes('answers')")
    page.wait_for_url("**q=museum**")


@pytest.mark.browser
def test_a_mistake_is_marked_and_the_next_answer_clears_it(url: str, open_page: Any) -> None:
    page = open_page(viewport={"width": 1280, "height": 900})
    page.goto(url + "/places?q=pizza")
    page.wait_for_load_state("networkidle")
    page.fill("input[name=k]", "many")
    page.press("input[name=k]", "Enter")
    page.wait_for_selector("[role=alert]")
    assert page.get_attribute("input[name=k]", "aria-invalid") == "true"
    page.fill("input[name=k]", "3")
    page.press("input[name=k]", "Enter")
    page.wait_for_selector("ol.places li:nth-child(3)")
    assert page.get_attribute("input[name=k]", "aria-invalid") is None
    page.select_option("select[name='p.price']", "min")
    page.wait_for_selector("dl.parts .fill.attributes")
    assert "p.price=min" in page.url


@pytest.mark.browser
def test_hostile_words_run_nothing(url: str, open_page: Any) -> None:
    page = open_page()
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.goto(url + "/places?lon=25&lat=60&k=1&why=0")
    page.wait_for_load_state("networkidle")
    assert "<script>alert" in page.text_content("ol.places")
    page.hover("ol.places li")
    page.fill("input[name=q]", HOSTILE)
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert page.locator("main img").count() == 0


@pytest.mark.browser
def test_without_javascript(url: str, open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    page.goto(url + "/places")
    page.fill("input[name=q]", "pizza")
    page.click("button:has-text('Search')")
    assert page.locator("ol.places li").count() == 20
    assert page.input_value("input[name=q]") == "pizza"
    page.click("summary")
    page.fill("input[name=k]", "3")
    page.click("button:has-text('Search')")
    assert page.locator("ol.places li").count() == 3
    assert page.locator("canvas.map").is_hidden()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(url: str, open_page: Any, scheme: str, width: int) -> None:
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    script = (Path(__file__).parent / "contrast.js").read_text()
    for query in ("", "?q=pizza+zxqv&lon=25&lat=60&p.price=min&why=2", "?q=zxqv&match=all"):
        page.goto(url + "/places" + query)
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, query
        found = page.evaluate(script)
        assert len(found) > 12
        bad = {text: ratio for text, ratio in found if ratio < 4.5}
        assert not bad, (query, bad)
