"""The check rides on ordinary requests and never harms them."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import httpx
import pytest

from shoal.core.errors import InputError
from shoal.device.transport import AsyncShoalTransport, ShoalTransport

PROFILE = "1.5.1.AAAAAAAAAAAAAAAAAAAAAA"


class FakeAgent:
    config = SimpleNamespace(server_url="https://shop.example")

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        self.sent = {"Shoal-Profile": PROFILE, "Shoal-Device": "token"} | (headers or {})
        self.answers: list[tuple[int, int, int]] = []

    def headers(self) -> dict[str, str]:
        return self.sent

    def on_notice(self, address: tuple[int, int, int]) -> None:
        self.answers.append(address)


class HalfBrokenAgent(FakeAgent):
    def on_notice(self, address: tuple[int, int, int]) -> None:
        raise RuntimeError("the agent's store is gone")


class BrokenAgent(HalfBrokenAgent):
    def headers(self) -> dict[str, str]:
        raise RuntimeError("the agent's store is gone")


class Service:
    """A business service; remembers what it was asked and answers with ``notice``."""

    def __init__(self, notice: str | None = None, **headers: str) -> None:
        self.headers = dict(headers) | ({} if notice is None else {"Shoal-Notice": notice})
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        if request.url.path == "/away":
            return httpx.Response(302, headers={"Location": "https://elsewhere.example/x"})
        return httpx.Response(200, headers=self.headers, text="the shop's answer")


def client(agent: FakeAgent, service: Service, **options: object) -> httpx.Client:
    wrapped = httpx.MockTransport(service)
    transport = ShoalTransport(agent, wrapped, origins=["https://shop.example"])
    return httpx.Client(transport=transport, **options)  # type: ignore[arg-type]


def test_requests_to_our_origin_carry_profile_and_token():
    agent, service = FakeAgent(), Service()
    with client(agent, service) as shop:
        assert shop.get("https://shop.example/cart").text == "the shop's answer"
    assert service.seen[0].headers["Shoal-Profile"] == PROFILE
    assert service.seen[0].headers["Shoal-Device"] == "token"
    assert agent.answers == []


def test_the_cloud_s_own_origin_is_the_default():
    agent, service = FakeAgent(), Service(notice="7.2.1")
    transport = ShoalTransport(agent, httpx.MockTransport(service))
    with httpx.Client(transport=transport) as shop:
        shop.get("https://shop.example/cart")
        shop.get("https://elsewhere.example/")
    assert agent.answers == [(7, 2, 1)]
    assert transport.counts == {"carried": 1, "notices": 1}


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/",
        "http://shop.example/",  # another scheme is another origin
        "https://shop.example:8443/",
        "https://shop.example.evil.example/",
    ],
)
def test_the_token_goes_to_no_other_origin(url):
    agent, service = FakeAgent(), Service(notice="1.1.1")
    with client(agent, service) as shop:
        shop.get(url)
    assert "Shoal-Device" not in service.seen[0].headers
    assert "Shoal-Profile" not in service.seen[0].headers
    assert agent.answers == []  # and what a stranger says is not listened to


def test_a_redirect_does_not_carry_the_token_away():
    agent, service = FakeAgent(), Service()
    with client(agent, service, follow_redirects=True) as shop:
        shop.get("https://shop.example/away")
    assert service.seen[1].url.host == "elsewhere.example"
    assert service.seen[0].headers["Shoal-Device"] == "token"
    assert "Shoal-Device" not in service.seen[1].headers


def test_a_notice_reaches_the_agent():
    agent, service = FakeAgent(), Service(notice="7.2.1")
    with client(agent, service) as shop:
        shop.get("https://shop.example:443/")
    assert agent.answers == [(7, 2, 1)]


@pytest.mark.parametrize("text", ["", "1.2", "a.b.c", "-1.2.3", "1.2.3." * 100])
def test_a_broken_notice_breaks_nothing(text):
    agent, service = FakeAgent(), Service(notice=text)
    with client(agent, service) as shop:
        assert shop.get("https://shop.example/").status_code == 200
        assert shop._transport.counts["InputError"] == 1  # type: ignore[attr-defined]
    assert agent.answers == []


@pytest.mark.parametrize("agent", [BrokenAgent(), HalfBrokenAgent()])
def test_a_broken_agent_breaks_nothing(agent):
    service = Service(notice="1.1.1")
    with client(agent, service) as shop:
        assert shop.get("https://shop.example/").text == "the shop's answer"
        assert shop._transport.counts["RuntimeError"] == 1  # type: ignore[attr-defined]


def test_before_enrolment_nothing_is_added():
    agent, service = FakeAgent(), Service()
    agent.sent = {}
    with client(agent, service) as shop:
        shop.get("https://shop.example/")
    assert "Shoal-Profile" not in service.seen[0].headers


def test_the_service_s_own_failure_stays_its_own():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("down", request=request)

    agent = FakeAgent()
    transport = ShoalTransport(agent, httpx.MockTransport(refuse))
    with httpx.Client(transport=transport) as shop, pytest.raises(httpx.ConnectError):
        shop.get("https://shop.example/")
    assert agent.answers == []


@pytest.mark.parametrize("origins", [["shop.example"], ["ftp://shop.example"]])
def test_origins_have_to_be_named(origins):
    with pytest.raises(InputError, match="origins"):
        ShoalTransport(FakeAgent(), origins=origins)


def test_the_asynchronous_twin_does_the_same():
    agent, service = FakeAgent(), Service(notice="7.2.1")

    async def ask() -> str:
        transport = AsyncShoalTransport(agent, httpx.MockTransport(service))
        async with httpx.AsyncClient(transport=transport) as shop:
            await shop.get("https://elsewhere.example/")
            return (await shop.get("https://shop.example/")).text

    assert asyncio.run(ask()) == "the shop's answer"
    assert agent.answers == [(7, 2, 1)]
    assert "Shoal-Device" not in service.seen[0].headers
    assert service.seen[1].headers["Shoal-Device"] == "token"


def test_many_threads_share_a_client():
    agent, service = FakeAgent(), Service(notice="7.2.1")
    with client(agent, service) as shop:
        threads = [
            threading.Thread(target=shop.get, args=("https://shop.example/",)) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(agent.answers) == 8
