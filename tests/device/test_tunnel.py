"""The device's tunnel on real sockets: it connects, resumes, gives way, and never loses."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import uvicorn
from websockets.sync.server import ServerConnection, serve

from shoal.cloud import store as tables
from shoal.cloud.bus import Bus
from shoal.cloud.ingest import Ingest
from shoal.cloud.problems import Problem
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenMint
from shoal.cloud.tunnel import TunnelParts, TunnelServer, tunnel_app
from shoal.core.errors import ConflictError, InputError
from shoal.device.link import Link
from shoal.device.store import DeviceStore
from shoal.device.tunnel import HttpUplink, Tunnel
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.frames import Ack, Ping, encode_frame
from shoal.wire.manifest import OutputSpec
from shoal.wire.results import ResultRecord

DEVICE = b"tunnel-device-01"
FAST = (0.02, 0.1)


def wait(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait until something is so; fails the test when it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


class Cloud:
    """Ingest and tunnel behind a real uvicorn, which can stop and come back on its port."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder}/cloud.db")
        self.ingest = Ingest(self.store)
        self.bus = Bus()
        self.mint = TokenMint([bytes(32)])
        self.revoked: set[bytes] = set()
        self.tunnel: TunnelServer = tunnel_app(
            TunnelParts(
                ingest=self.ingest,
                verify=self.mint.verify,
                revoked=self.revoked.__contains__,
                bus=self.bus,
                address=lambda cohort, _device: (7, cohort, 3),
                window=4,
            )
        )
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start(listener)

    def start(self, listener: socket.socket | None = None) -> None:
        if listener is None:
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
        config = uvicorn.Config(
            self._app, interface="asgi3", ws="websockets-sansio", lifespan="off", log_config=None,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        wait(lambda: self.server.started)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/v1/d/tunnel":
            await self.tunnel(scope, receive, send)
            return
        try:
            await self.tunnel.uplink(scope, receive, send)
        except (Problem, InputError) as error:
            status = error.status if isinstance(error, Problem) else 400
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(15)

    def token(self) -> str:
        return self.mint.mint(DEVICE, 5)

    def stored(self) -> list[int]:
        with self.store.read() as connection:
            return sorted(connection.execute(sa.select(tables.result.c.value)).scalars())

    def close(self) -> None:
        self.stop()
        self.ingest.close()
        self.store.close()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "cloud")
    yield made
    made.close()


@pytest.fixture
def uplink(tmp_path: Path) -> Iterator[Uplink]:
    with DeviceStore(tmp_path / "device") as store:
        made = Uplink(store, DEVICE, close_after_us=20_000)
        made.declare_outputs("t", 1, [OutputSpec(name="now", uplink="now"),
                                      OutputSpec(name="idle", uplink="idle")])  # fmt: skip
        yield made


def put(uplink: Uplink, *numbers: int, name: str = "now") -> None:
    with uplink.store.transaction() as cursor:
        for number in numbers:
            record = ResultRecord(number.to_bytes(16, "big"), "t", 1, name, 1, number)
            assert uplink.put_results(cursor, [record]) == 1


def open_link(kind: type[Link], cloud: Cloud, uplink: Uplink, **options: Any) -> Any:
    token = options.pop("token", cloud.token)
    url = options.pop("url", cloud.url)
    return kind(url, token, DEVICE, uplink, backoff_s=FAST, **options)  # type: ignore[misc,call-arg,arg-type]


KINDS = pytest.mark.parametrize("kind", [Tunnel, HttpUplink])


@KINDS
def test_everything_put_is_stored_and_acknowledged(
    cloud: Cloud, uplink: Uplink, kind: type[Link]
) -> None:
    put(uplink, 1, 2)  # before there is a connection
    with open_link(kind, cloud, uplink) as link:
        wait(lambda: link.connected)
        for number in range(3, 40):
            put(uplink, number)
        put(uplink, 40, 41, name="idle")
        assert link.flush(20)
        assert cloud.stored() == list(range(1, 42))
        assert uplink.unacknowledged == 0
    assert not link.connected


@KINDS
def test_a_cloud_that_goes_and_comes_back_gets_the_rest(
    cloud: Cloud, uplink: Uplink, kind: type[Link]
) -> None:
    with open_link(kind, cloud, uplink) as link:
        put(uplink, 1)
        assert link.flush(20)
        cloud.stop()
        wait(lambda: not link.connected or kind is HttpUplink)
        put(uplink, 2, 3)
        assert not link.flush(0.1)
        wait(lambda: link.last_error)
        assert not link.connected
        cloud.start()
        assert link.flush(20)
        assert link.last_error == ""
        assert link.counts["opened"] >= 2
    assert cloud.stored() == [1, 2, 3]


@KINDS
@pytest.mark.parametrize("reason", ["forged", "revoked"])
def test_a_refused_device_hears_why_and_keeps_its_data(
    cloud: Cloud, uplink: Uplink, kind: type[Link], reason: str
) -> None:
    heard: list[int] = []
    token = cloud.token
    if reason == "revoked":
        cloud.revoked.add(DEVICE)
    else:
        token = TokenMint([b"x" * 32]).mint(DEVICE, 5).__str__
    put(uplink, 1)
    link = open_link(
        kind, cloud, uplink, token=token, on_refused=lambda code, _text: heard.append(code)
    )
    with link:
        wait(lambda: heard)
        assert not link.connected
    code = ErrorCode.DEVICE_REVOKED if reason == "revoked" else ErrorCode.UNAUTHENTICATED
    assert heard[0] == code
    assert uplink.unacknowledged == 1
    assert cloud.stored() == []


def test_a_new_epoch_is_told_to_the_cohorts_it_concerns(cloud: Cloud, uplink: Uplink) -> None:
    heard: list[tuple[int, int, int]] = []
    with open_link(Tunnel, cloud, uplink, on_notice=lambda *address: heard.append(address)) as link:
        wait(lambda: link.connected and cloud.tunnel.connected == 1)
        cloud.bus.publish("epoch", {"epoch": 6, "cohorts": [1, 2]})
        cloud.bus.publish("release", {"epoch": 6})
        cloud.bus.publish("epoch", {"epoch": 7, "cohorts": [5]})
        wait(lambda: heard)
    assert heard == [(7, 5, 3)]
    wait(lambda: cloud.tunnel.connected == 0)


def test_a_second_connection_of_a_device_takes_over(cloud: Cloud, uplink: Uplink) -> None:
    with open_link(Tunnel, cloud, uplink) as first:
        wait(lambda: first.connected)
        first._backoff_s = (60.0, 60.0)
        with open_link(Tunnel, cloud, uplink) as second:
            wait(lambda: second.connected and cloud.tunnel.counts["replaced"])
            wait(lambda: not first.connected)
            assert cloud.tunnel.connected == 1
            put(uplink, 1)
            assert second.flush(20)
    assert cloud.stored() == [1]


def test_put_during_the_connection_leaves_without_a_flush(cloud: Cloud, uplink: Uplink) -> None:
    with open_link(Tunnel, cloud, uplink) as link:
        wait(lambda: link.connected)
        put(uplink, 1)
        wait(lambda: cloud.stored() == [1] and not uplink.has_work)


def test_no_server_at_all(uplink: Uplink) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    put(uplink, 1)
    for kind in (Tunnel, HttpUplink):
        with kind(url, lambda: "t", DEVICE, uplink, backoff_s=FAST) as link:
            wait(lambda link=link: sum(link.counts.values()) > 2)
            assert not link.connected
            assert link.last_error
    assert uplink.unacknowledged == 1


@contextmanager
def impostor(handler: Callable[[ServerConnection], None]) -> Iterator[str]:
    with serve(handler, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "say", [b"", b"\xff\xff", "text", encode_frame(Ack(1)), os.urandom(300), b"\x02" * 300_000]
)
def test_a_server_that_speaks_nonsense_is_left(uplink: Uplink, say: bytes | str) -> None:
    def handler(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(encode_frame(Ping(1)))
        connection.recv()  # the PONG
        connection.send(say)
        for _ in connection:
            pass

    put(uplink, 1)
    with (
        impostor(handler) as url,
        Tunnel(url, lambda: "t", DEVICE, uplink, backoff_s=FAST) as link,
    ):
        wait(lambda: sum(link.counts.values()) >= 2)
        assert not link.connected
    assert uplink.unacknowledged == 1


def test_a_token_that_cannot_be_had_is_only_a_delay(cloud: Cloud, uplink: Uplink) -> None:
    tries = []

    def token() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise KeyError("not enrolled yet")
        return cloud.token()

    put(uplink, 1)
    with open_link(Tunnel, cloud, uplink, token=token) as link:
        assert link.flush(20)
        assert link.counts["KeyError"] == 2


@pytest.mark.parametrize("url", ["", "host:80", "ftp://host", "http://", "/path"])
def test_bad_addresses_are_refused(uplink: Uplink, url: str) -> None:
    for kind in (Tunnel, HttpUplink):
        with pytest.raises(InputError, match="url"):
            kind(url, lambda: "t", DEVICE, uplink)


def test_a_link_starts_once_and_closes_at_once(uplink: Uplink) -> None:
    link = Tunnel("http://127.0.0.1:9/own/path", lambda: "t", DEVICE, uplink)
    link.close()  # never started
    assert link._url == "ws://127.0.0.1:9/own/path"
    other = Tunnel("http://127.0.0.1:9", lambda: "t", DEVICE, uplink)
    other.start()
    with pytest.raises(ConflictError):
        other.start()
    other.close()
    assert other._thread is not None
    assert not other._thread.is_alive()
