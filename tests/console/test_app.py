"""The console over real HTTP: what pages show, who may act, and what answers carry."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import sqlalchemy as sa
from console_bench import POLICY, TASK, ConsoleBench, now_us

from shoal.cloud import reports
from shoal.cloud import store as tables
from shoal.cloud.admin.auth import AdminAuth, Role
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.policy import Guardrail
from shoal.cloud.service import EVERYONE, Cloud
from shoal.console import create_console
from shoal.console.app import changes
from shoal.console.pages import PAGE_SIZE

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'>&amp;"""
PAGES = ("/", "/releases", "/fleet", "/tasks", "/events")
Served = tuple[ConsoleBench, str]


@pytest.fixture
def client(lively: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=lively[1], timeout=20) as client:
        yield client


def browser(url: str, **more: Any) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=20, **more)


def page(client: httpx.Client, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def words(html: str) -> str:
    """Return what a person reads."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


class _Foreign(HTMLParser):
    """Collects elements and attributes that the templates never write."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        self.found += [name for name in names if name.startswith("on") or name == "style"]
        if tag in ("img", "iframe", "style") or (tag == "script" and names != ["src", "defer"]):
            self.found.append(tag)


def foreign(html: str) -> list[str]:
    parser = _Foreign()
    parser.feed(html)
    parser.close()
    return parser.found


def form(html: str) -> dict[str, str]:
    """Return the hidden fields of the operator's form."""
    return dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', html)) | dict(
        re.findall(r'name="(_csrf_token)" value="([^"]*)"', html)
    )


def act(client: httpx.Client, release: int, action: str, **fields: str) -> httpx.Response:
    """Press a button of a release's page as a browser does."""
    return client.post(
        f"/releases/{release}/{action}",
        data=form(page(client, f"/releases/{release}")) | fields,
        headers={"origin": str(client.base_url).rstrip("/")},
    )


# -- what pages show ------------------------------------------------------------------------


def test_overview_shows_the_numbers(lively: Served, client: httpx.Client) -> None:
    text = words(page(client, "/"))
    store = lively[0].cloud.store
    flow = reports.event_flow(store)
    found = reports.coverage(store, 2)
    assert "60 devices" in text
    assert "60 seen in 5 minutes" in text
    assert f"{sum(flow.results) + sum(flow.features)} results and features" in text
    assert f"{flow.dead_letters + sum(flow.dropped.values())} dropped or refused" in text
    assert f"{found.holding} of {found.eligible} devices" in text
    assert "1 releases under way" in text
    assert f"{TASK} 2 gray 50 % everyone" in text


def test_release_shows_steps_guardrails_and_history(lively: Served, client: httpx.Client) -> None:
    html = page(client, "/releases/2")
    text = words(html)
    status = lively[0].cloud.releases.status(2)
    health = reports.task_health(lively[0].cloud.store, TASK, 2)
    assert 'class="curve"' in html
    assert "50 % now" in text
    assert f"{health.failures} / {health.runs} failed runs" in text
    assert f"waits for {status['waiting_for']}" in text
    failure, slow = status["guardrails"]
    assert f"failure {failure['verdict']} {failure['failures']} of {failure['devices']}" in text
    assert f"slow {slow['verdict']}" in text
    for reading in (failure, slow):
        for value, goal in (
            (reading["log_e_safe"], reading["advance_at"]),
            (reading["log_e_worse"], reading["roll_back_at"]),
        ):
            assert f"{value:.1f}, decides at {goal:.1f}".replace("-", "−") in text
    widths = [float(w) for w in re.findall(r'class="fill" width="([\d.]+)"', html)]
    assert widths[0] == pytest.approx(100 * failure["log_e_safe"] / failure["advance_at"], abs=0.06)
    assert widths[1] == 0.0
    for row in reports.release_history(lively[0].cloud.store, 2):
        assert row["reason"] in text
    assert "exception 1" in text


def test_fleet_finds_devices(lively: Served, client: httpx.Client) -> None:
    text = words(page(client, "/fleet"))
    assert "60 devices" in text
    assert "4.2.0 48" in text
    identity = lively[0].devices[7].hex()
    for query in (identity, identity[:5], identity[:8].upper(), "PHONE 7"):
        html = page(client, f"/fleet?q={query}")
        assert f"/fleet/{identity}" in html
        assert "1 device with" in words(html)
    assert "No device fits" in page(client, "/fleet?q=%25")  # no wildcard
    assert "No device fits" in page(client, "/fleet?q=phone_7")
    assert "0 devices" in page(client, "/fleet?q=%00")


def test_device_shows_what_it_holds_and_ran(lively: Served, client: httpx.Client) -> None:
    text = words(page(client, f"/fleet/{lively[0].devices[7].hex()}"))
    assert "phone 7" in text
    assert f"{TASK} 2 exception" in text
    assert "the model wants 4 inputs, got 3" in text
    refused = words(page(client, f"/fleet/{lively[0].devices[31].hex()}"))
    assert f"{TASK} 2 refused" in refused
    assert "needs engine onnx 2" in refused


def test_tasks_and_events(lively: Served, client: httpx.Client) -> None:
    text = words(page(client, "/tasks"))
    health = reports.task_health(lively[0].cloud.store, TASK, 2)
    assert "smaller model" in text
    assert f"{health.runs} {health.failures} {health.results}" in text
    text = words(page(client, "/events"))
    flow = reports.event_flow(lively[0].cloud.store)
    for name in ("results", "features", "runs"):
        assert f"{name.capitalize()} {sum(getattr(flow, name))} in 5 minutes" in text
    assert f"in the dead-letter table {flow.dead_letters}" in text
    assert "device.idle 3" in text


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("overview", "/"),
        ("releases", "/releases"),
        ("release?id=2", "/releases/2"),
        ("release_actions?id=2", "/releases/2"),
        ("fleet?q=phone&offset=0", "/fleet?q=phone"),
        ("tasks", "/tasks"),
        ("events", "/events"),
    ],
)
def test_a_part_is_what_its_page_holds(client: httpx.Client, part: str, whole: str) -> None:
    def still(html: str) -> str:  # times, tokens and charts differ from one answer to the next
        html = re.sub(r'name="_csrf_token" value="[^"]*"|(?s:<svg.*?</svg>)', "", html)
        return re.sub(r"\b(just now|[\d.]+ (ms|s|min)( ago)?)\b", "", words(html))

    assert still(page(client, f"/console/part/{part}")) in still(page(client, whole))


def test_part_of_a_device(lively: Served, client: httpx.Client) -> None:
    identity = lively[0].devices[3].hex()
    assert "phone 3" in page(client, f"/console/part/device?id={identity}")


def test_an_empty_cloud_says_what_to_do(bench: Served) -> None:
    with browser(bench[1]) as client:
        assert "shoal task init" in page(client, "/")
        assert "shoal agent run" in page(client, "/fleet")
        assert "shoal task publish" in page(client, "/tasks")
        assert "nothing yet" in page(client, "/events")


def test_many_devices_come_in_pages(bench: Served) -> None:
    made, url = bench
    made.enrol(PAGE_SIZE + 20)
    with browser(url) as client:
        first, second = page(client, "/fleet"), page(client, f"/fleet?offset={PAGE_SIZE}")
    links = [re.findall(r'href="/fleet/([0-9a-f]{32})"', html) for html in (first, second)]
    assert [len(found) for found in links] == [PAGE_SIZE, 20]
    assert len({*links[0], *links[1]}) == PAGE_SIZE + 20
    assert "Seen earlier" in first
    assert "Seen later" in second


def test_other_rules_show_their_own_figures(bench: Served) -> None:
    made, url = bench
    made.enrol(20)
    version = made.publish(1)
    one = (Guardrail(name="failure", limit=0.1, margin=0.05),)
    numbers = [
        made.cloud.releases.create(
            TASK, version, EVERYONE, POLICY.model_copy(update={"rule": rule, "guardrails": one})
        )
        for rule in ("versus_control", "threshold")
    ]
    with browser(url) as client:
        against_control, against_limit = (
            words(page(client, f"/releases/{number}")) for number in numbers
        )
    assert "safe below 5.00%" in against_control
    assert "worse above 10.00%" in against_limit
    assert "Devices heard of 0 of 1" in against_limit


# -- what is not there, and what is bad -----------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/releases/999", 404),
        ("/releases/0", 404),
        ("/releases/-1", 404),
        ("/releases/99999999999999999999999999", 404),
        ("/releases/two", 404),
        ("/fleet/" + "ab" * 16, 404),
        ("/fleet/zz", 400),
        ("/fleet/" + "ab" * 15, 400),
        ("/fleet/" + "ab%20" * 16, 400),
        ("/fleet/" + "ab" * 5_000, 400),
        ("/fleet?offset=-1", 400),
        ("/fleet?offset=99999999999999999999999999", 400),
        ("/fleet?offset=many", 400),
        ("/console/part/nothing", 404),
        ("/console/part/release", 400),
        ("/console/part/release?id=%C2%B2", 400),
        ("/console/part/release?id=" + "9" * 5_000, 400),
        ("/console/part/release?id=9223372036854775808", 404),
        ("/console/part/device?id=zz", 400),
        ("/console/static/nothing.css", 404),
        ("/console/static/%2e%2e/app.py", 404),
        ("/console/static/..%2fapp.py", 404),
    ],
)
def test_bad_addresses(client: httpx.Client, path: str, status: int) -> None:
    html = page(client, path, status)
    assert "That did not work" in html
    assert "Traceback" not in html
    assert len(html) < 4_000


def test_a_database_that_is_gone_is_said_without_details(
    bench: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("SELECT secret", {}, OSError("disk"))

    monkeypatch.setattr("shoal.console.pages.reports.fleet_summary", lost)
    with browser(bench[1]) as client:
        html = page(client, "/", 503)
        assert "the database cannot be read" in html
        assert "secret" not in html
        monkeypatch.setattr("shoal.console.pages.reports.fleet_summary", lambda *a, **b: 1 / 0)
        html = page(client, "/", 500)
        assert "division" not in html
        assert page(client, "/releases")  # the rest goes on


def test_hostile_words_stay_words(bench: Served) -> None:
    made, url = bench
    device, second = made.enrol(2, os=HOSTILE, **{HOSTILE[:30]: {"a": [HOSTILE]}})
    with made.cloud.store.begin() as connection:
        connection.execute(
            sa.update(tables.device).values(agent=HOSTILE, platform=HOSTILE, last_seen_us=now_us())
        )
    release = made.release(made.publish(1, label=HOSTILE))
    made.cloud.releases.override(release, actor=HOSTILE, reason=HOSTILE)
    made.run(device, 1, value={HOSTILE: HOSTILE}, message=HOSTILE)
    made.run(second, 1, value=HOSTILE, outcome=302, state="bad", message=HOSTILE)
    made.cloud.store.count_dropped("uplink", HOSTILE)
    paths = [*PAGES, f"/releases/{release}", f"/fleet/{device.hex()}", f"/fleet/{second.hex()}"]
    paths += [f"/fleet?q={httpx.QueryParams({'q': HOSTILE})['q']}", f"/nothing/{HOSTILE}"]
    paths += [f"/console/part/{HOSTILE}", f"/fleet/{HOSTILE}", f"/fleet?offset={HOSTILE}"]
    seen = 0
    with browser(url) as client:
        for path in paths:
            html = client.get(httpx.URL(url).join(path)).text
            seen += html.count("&lt;script&gt;")
            assert foreign(html) == [], path
    assert seen >= 10  # they were there, as words
    assert foreign(f"<p>{HOSTILE}</p>") == ["script", "onerror", "img"]  # and would be found


def test_a_long_search_does_not_break_out_of_its_attributes(client: httpx.Client) -> None:
    html = client.get("/fleet", params={"q": HOSTILE * 50}).text
    assert "<script>alert" not in html
    assert 'value="&lt;script&gt;alert(&#34;1&#34;)' in html


# -- headers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/console/part/overview",
        "/console/static/console.css",
        "/console/static/console.js",
        "/console/static/shoal.svg",
        "/nothing",
        "/console/static/nothing.js",
        "/releases/999",
        "/fleet?offset=x",
    ],
)
def test_every_answer_is_secured(client: httpx.Client, path: str) -> None:
    _secured(client.get(path))


def _secured(answer: httpx.Response) -> None:
    policy = answer.headers["content-security-policy"]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in policy
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"


def test_pages_ask_nobody_else_and_carry_no_inline_code(client: httpx.Client) -> None:
    for path in (*PAGES, "/releases/2"):
        html = page(client, path)
        assert not re.search(r"<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=|<style", html)
        for address in re.findall(r'(?:src|href|action|data-live)="([^"#]+)', html):
            assert not urlsplit(address).netloc, address


# -- who may act ----------------------------------------------------------------------------


def test_an_action_needs_the_page_s_token(bench: Served) -> None:
    made, url = bench
    made.enrol(4)
    release = made.release(made.publish(1))
    with browser(url) as client:
        bare = client.post(f"/releases/{release}/pause")
        assert bare.status_code == 403
        _secured(bare)
        cookie = client.get(f"/releases/{release}").headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.post(f"/releases/{release}/pause").status_code == 403
        wrong = client.post(f"/releases/{release}/pause", data={"_csrf_token": "0" * 128})
        assert wrong.status_code == 403
        assert made.cloud.releases.status(release)["state"] == "gray"
        before = len(made.cloud.releases.history(release))
        answer = act(client, release, "pause", reason="  looks slow ")
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/releases/{release}"
    last = made.cloud.releases.history(release)[-1]
    assert len(made.cloud.releases.history(release)) == before + 1
    assert (last["actor"], last["to_state"], last["reason"]) == ("local", "paused", "looks slow")


def test_every_button_works_and_only_fitting_ones_are_offered(bench: Served) -> None:
    made, url = bench
    made.enrol(4)
    draft = POLICY.model_copy(update={"simulation": "required"})
    number = made.cloud.releases.create(TASK, made.publish(1), EVERYONE, draft)
    with browser(url) as client:

        def offered() -> set[str]:
            html = page(client, f"/releases/{number}")
            return set(re.findall(rf'formaction="/releases/{number}/(\w+)"', html))

        for action, state, then in (
            ("start", "draft", {"start", "abort"}),
            ("abort", "aborted", set()),
        ):
            assert action in offered()
            assert act(client, number, action).status_code == 303
            assert made.cloud.releases.status(number)["state"] == state
            assert offered() == then
        number = made.release(made.publish(2))
        for action, state, then in (
            ("pause", "paused", {"resume", "rollback"}),
            ("resume", "gray", {"advance", "pause", "rollback"}),
            ("advance", "full", {"rollback"}),
            ("rollback", "rolled_back", set()),
        ):
            assert action in offered()
            assert act(client, number, action).status_code == 303
            if state == "rolled_back":  # nobody had it, so the next round closes it
                made.cloud.tick()
            assert made.cloud.releases.status(number)["state"] == state
            assert offered() == then
        fields = form(page(client, f"/releases/{made.release(made.publish(3))}"))
        for path, status in (
            (f"/releases/{number}/rollback", 409),
            (f"/releases/{number}/delete", 400),
            (f"/releases/{number}/override", 400),
            ("/releases/999/pause", 404),
            (f"/releases/{'9' * 30}/pause", 404),
        ):
            assert client.post(path, data=fields).status_code == status
        fields["lock_version"] = "the newest"
        assert client.post(f"/releases/{number}/pause", data=fields).status_code == 400


def test_a_stale_page_cannot_widen_but_can_roll_back(bench: Served) -> None:
    made, url = bench
    made.enrol(4)
    release = made.release(made.publish(1))
    with browser(url) as client:
        stale = form(page(client, f"/releases/{release}"))
        made.cloud.releases.pause(release, actor="rosa")
        refused = client.post(f"/releases/{release}/resume", data=stale)
        assert refused.status_code == 409
        assert "changed by someone else" in refused.text
        assert made.cloud.releases.status(release)["state"] == "paused"
        assert client.post(f"/releases/{release}/rollback", data=stale).status_code == 303
    assert made.cloud.releases.status(release)["state"] in ("rolling_back", "rolled_back")


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Served]:
    config = CloudConfig(data_dir=tmp_path / "cloud", admin_token="root-token-of-the-test")
    with Cloud.open(config) as cloud:
        made = ConsoleBench(cloud, tmp_path)
        made.enrol(3)
        made.release(made.publish(1))
        with CloudServer(cloud, mounts={"/": create_console(cloud)}) as server:
            yield made, server.url


def test_with_a_token_the_browser_is_asked(guarded: Served) -> None:
    made, url = guarded
    with browser(url) as client:
        for path in (*PAGES, "/releases/1", "/console/part/overview", "/console/stream"):
            answer = client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Basic ")
            assert "cart-intent" not in answer.text
            _secured(answer)
        assert client.get("/", auth=("any", "wrong")).status_code == 401
        assert client.get("/", headers={"authorization": "Basic !!!"}).status_code == 401
        assert client.get("/", auth=("any", "root-token-of-the-test")).status_code == 200
    with browser(url, auth=("me", "root-token-of-the-test")) as client:
        assert act(client, 1, "pause").status_code == 303
    assert made.cloud.releases.history(1)[-1]["actor"] == "admin"


def test_roles_of_operators(guarded: Served) -> None:
    made, url = guarded
    auth = AdminAuth(made.cloud.store, made.cloud.config.admin_token)
    for role, may in ((Role.VIEWER, False), (Role.AUTHOR, False), (Role.RELEASER, True)):
        name = f"the {role.name.lower()}"
        token = auth.add_operator(name, role)
        with browser(url, auth=("x", token)) as client:
            assert TASK in page(client, "/")
            answer = act(client, 1, "pause")
            assert answer.status_code == (303 if may else 403)
        state = made.cloud.releases.status(1)["state"]
        assert state == ("paused" if may else "gray")
    assert made.cloud.releases.history(1)[-1]["actor"] == "the releaser"


def test_pages_of_other_sites_are_refused(bench: Served) -> None:
    made, url = bench
    made.enrol(3)
    release = made.release(made.publish(1))
    with browser(url) as client:
        fields = form(page(client, f"/releases/{release}"))
        for headers in ({"origin": "https://evil.example"}, {"origin": "null"}):
            answer = client.post(f"/releases/{release}/pause", data=fields, headers=headers)
            assert answer.status_code == 403
            assert client.get("/", headers=headers).status_code == 403
        # A name that someone points at this machine (DNS rebinding).
        for path in ("/", "/console/stream", f"/releases/{release}"):
            assert client.get(path, headers={"host": "evil.example"}).status_code == 401
        assert made.cloud.releases.status(release)["state"] == "gray"
        assert client.get("/", headers={"origin": url}).status_code == 200


# -- live -----------------------------------------------------------------------------------


def test_the_stream_says_change_after_a_message(bench: Served) -> None:
    made, url = bench
    device = made.enrol(1)[0]
    made.publish(1)
    lines: list[str] = []
    got = threading.Event()

    with browser(url) as client, client.stream("GET", "/console/stream") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        _secured(answer)
        worker = threading.Timer(0.2, made.run, (device, 1), {"value": 5})
        worker.start()
        for line in answer.iter_lines():
            lines.append(line)
            if line == "" and any(entry == "event: change" for entry in lines):
                got.set()
                break
        worker.join()
    assert got.is_set()
    assert any(line.startswith("data: ") for line in lines)


def test_a_closed_stream_is_let_go(bench: Served) -> None:
    made, url = bench
    before = len(made.cloud.bus._subscriptions)
    with browser(url) as client, client.stream("GET", "/console/stream"):
        _until(lambda: len(made.cloud.bus._subscriptions) == before + 1)
    _until(lambda: len(made.cloud.bus._subscriptions) == before)


def _until(condition: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_keep_alive_is_no_event_and_bursts_are_one(bench: Served) -> None:
    cloud = bench[0].cloud

    async def listen() -> list[str]:
        said = []
        stream = changes(cloud, alive_s=0.05)
        said.append((await anext(stream)).encode().decode())
        for number in range(50):
            cloud.bus.publish("result", {"n": number})
        async with asyncio.timeout(10):
            while "event: change" not in said[-1]:
                said.append((await anext(stream)).encode().decode())
            said.append((await anext(stream)).encode().decode())
        await stream.aclose()
        return said

    said = asyncio.run(listen())
    assert said[0].startswith(": alive")
    assert "data" not in said[0]
    assert "event" not in said[0]
    assert "data: 1" in said[-2]
    assert said[-1].startswith(": alive")  # the rest of the burst was told already


def test_another_web_page_cannot_read_the_stream(bench: Served) -> None:
    """The negative control of the one above it: a raw request with a foreign origin."""
    address = urlsplit(bench[1])
    with socket.create_connection((address.hostname, address.port), timeout=10) as line:
        line.sendall(
            b"GET /console/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Origin: http://evil.example\r\nConnection: close\r\n\r\n"
        )
        assert line.recv(64).startswith(b"HTTP/1.1 403")
