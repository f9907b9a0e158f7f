"""The cloud's tunnel against clients that are slow, rude, hostile or many; no sockets needed."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.bus import Bus
from shoal.cloud.ingest import Ingest
from shoal.cloud.problems import Problem
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenMint
from shoal.cloud.tunnel import TunnelParts, TunnelServer, tunnel_app
from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.codes import ErrorCode
from shoal.wire.compression import BodyCodec
from shoal.wire.exchange import join_frames, split_frames
from shoal.wire.frames import (
    Ack,
    Batch,
    Bye,
    Codec,
    Frame,
    Hello,
    Nack,
    Notice,
    Pause,
    Ping,
    Pong,
    Welcome,
    decode_frame,
    encode_frame,
)
from shoal.wire.results import ResultBatch, ResultRecord

DEVICE = b"d" * 16
MINT = TokenMint([bytes(32)])
DAY_US = 86_400_000_000


def token(device: bytes = DEVICE, cohort: int = 5) -> str:
    return MINT.mint(device, cohort)


def hello(device: bytes = DEVICE, **fields: Any) -> Hello:
    values = {"protocol": 1, "token": token(device), "agent": "test", "resume_seq": 0}
    return Hello(**{**values, "device": device, **fields})  # type: ignore[arg-type]


def batch(seq: int, device: bytes = DEVICE) -> Batch:
    record = ResultRecord(device[:8] + seq.to_bytes(8, "big"), "t", 1, "late", 1, seq)
    raw = msgspec.msgpack.encode(ResultBatch(1, device, seq, [record]))
    return Batch(seq, 2, *BodyCodec().pack(raw))


class Client:
    """One websocket connection to the ASGI application."""

    def __init__(self, server: TunnelServer) -> None:
        self._up: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._down: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self._up.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(server({"type": "websocket"}, self._up.get, self._send))

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        self._down.put_nowait(dict(message))

    def say(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            data = frame if isinstance(frame, bytes) else encode_frame(frame)
            self._up.put_nowait({"type": "websocket.receive", "bytes": data})

    def raw(self, **message: Any) -> None:
        self._up.put_nowait(message)

    async def hear(self) -> Frame | int:
        """Return the next frame, or the code that the socket was closed with."""
        while True:
            message = await asyncio.wait_for(self._down.get(), 20)
            if message["type"] == "websocket.send":
                return decode_frame(message["bytes"])
            if message["type"] == "websocket.close":
                return int(message["code"])

    async def hang_up(self) -> None:
        self.raw(type="websocket.disconnect", code=1006)
        await asyncio.wait_for(self.task, 20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(f"sqlite:///{tmp_path}/cloud.db")
    yield made
    made.close()


Test = Callable[[TunnelServer], Awaitable[None]]


@pytest.fixture
def run(store: Store) -> Callable[..., TunnelServer]:
    """Run a coroutine function against a fresh tunnel, in an event loop."""

    def runner(test: Test, ingest: Ingest | None = None, **options: Any) -> TunnelServer:
        with ingest or Ingest(store) as opened:
            parts = TunnelParts(ingest=opened, verify=MINT.verify, **options)
            server = tunnel_app(parts)
            asyncio.run(asyncio.wait_for(test(server), 60))
        assert server.connected == 0
        return server

    return runner


def stored(store: Store) -> int:
    with store.read() as connection:
        query = sa.select(sa.func.count()).select_from(tables.result)
        return int(connection.execute(query).scalar_one())


async def welcomed(server: TunnelServer, greeting: Hello | None = None) -> Client:
    client = Client(server)
    client.say(greeting or hello())
    assert isinstance(await client.hear(), Welcome)
    return client


def test_a_conversation(run: Any, store: Store) -> None:
    async def test(server: TunnelServer) -> None:
        client = Client(server)
        client.say(hello(codecs=[0], resume_seq=0))
        welcome = await client.hear()
        assert isinstance(welcome, Welcome)
        assert (welcome.ack_seq, welcome.window, welcome.codec) == (0, 8, Codec.RAW)
        assert abs(welcome.server_time_us) > 1_600_000_000_000_000
        client.say(batch(1), batch(2), batch(3), Ping(9))
        heard: list[Any] = []
        while Ack(3) not in heard or Pong(9) not in heard:
            heard.append(await client.hear())
        acks = [frame.seq for frame in heard if isinstance(frame, Ack)]
        assert acks == sorted(acks)
        client.say(batch(5))
        answer = await client.hear()
        assert isinstance(answer, Nack)
        assert (answer.code, answer.retry_ms) == (ErrorCode.WINDOW_EXCEEDED, 0)
        client.say(Bye(0, "done"))
        assert await client.hear() == 1000
        await client.task

    run(test)
    assert stored(store) == 3


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (Ping(1), ErrorCode.BAD_FRAME),
        (batch(1), ErrorCode.BAD_FRAME),
        (b"\xff noise", ErrorCode.BAD_FRAME),
        (b"", ErrorCode.BAD_FRAME),
        (b"\x01" + bytes(300_000), ErrorCode.TOO_LARGE),
        (hello(protocol=9), ErrorCode.UNSUPPORTED_PROTOCOL),
        (hello(protocol=0), ErrorCode.UNSUPPORTED_PROTOCOL),
        (hello(token="nonsense"), ErrorCode.UNAUTHENTICATED),
        (hello(token=token(b"x" * 16)), ErrorCode.UNAUTHENTICATED),
        (hello(token=MINT.mint(DEVICE, 1, now_us=DAY_US)), ErrorCode.UNAUTHENTICATED),
        (hello(b"r" * 16), ErrorCode.DEVICE_REVOKED),
        (hello(resume_seq=-1), ErrorCode.BAD_FRAME),
        (hello(resume_seq=1 << 60), ErrorCode.BAD_FRAME),
        (hello(agent="a" * 5000), ErrorCode.TOO_LARGE),
    ],
)
def test_a_bad_greeting_ends_with_bye(run: Any, first: Any, code: ErrorCode) -> None:
    async def test(server: TunnelServer) -> None:
        client = Client(server)
        client.say(first)
        answer = await client.hear()
        assert isinstance(answer, Bye)
        assert answer.code == code
        assert await client.hear() == 1008
        await client.task

    run(test, revoked=lambda device: device == b"r" * 16)


@pytest.mark.parametrize("reason", ["revoked", "expired"])
def test_a_right_that_ends_during_the_connection_ends_it(run: Any, reason: str) -> None:
    revoked: set[bytes] = set()
    late_us = [0]

    async def test(server: TunnelServer) -> None:
        client = await welcomed(server)
        client.say(batch(1))
        assert await client.hear() == Ack(1)
        if reason == "revoked":
            revoked.add(DEVICE)
        else:
            late_us[0] = 8 * DAY_US
        client.say(batch(2))
        answer = await client.hear()
        assert isinstance(answer, Bye)
        wanted = {"revoked": ErrorCode.DEVICE_REVOKED, "expired": ErrorCode.UNAUTHENTICATED}
        assert answer.code == wanted[reason]
        assert await client.hear() == 1008
        await client.task

    def clock() -> int:
        return time.time_ns() // 1000 + late_us[0]

    run(test, revoked=revoked.__contains__, clock=clock)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.receive", "text": "hello"},
        {"type": "websocket.receive", "bytes": b"\x63"},
        {"type": "websocket.receive", "bytes": encode_frame(Ack(3))},
        {"type": "websocket.receive", "bytes": encode_frame(hello())},
        {"type": "websocket.receive", "bytes": bytes(300_000)},
    ],
)
def test_nonsense_later_ends_the_connection_and_no_other(run: Any, message: Any) -> None:
    async def test(server: TunnelServer) -> None:
        other = await welcomed(server, hello(b"o" * 16))
        client = await welcomed(server)
        client.raw(**message)
        assert isinstance(await client.hear(), Bye)
        assert await client.hear() == 1008
        other.say(batch(1, b"o" * 16))
        assert await other.hear() == Ack(1)
        await other.hang_up()

    assert run(test).counts["bad_frame"] == 1


def test_a_silent_caller_and_a_silent_device_are_let_go(run: Any) -> None:
    async def test(server: TunnelServer) -> None:
        client = Client(server)
        assert isinstance(await client.hear(), Bye)  # said no HELLO
        assert await client.hear() == 1000
        client = await welcomed(server)
        ping = await client.hear()
        assert isinstance(ping, Ping)
        client.say(Pong(ping.mono_us))  # still there
        assert isinstance(await client.hear(), Ping)
        assert isinstance(await client.hear(), Bye)  # not any more
        await client.task

    assert run(test, hello_timeout_s=0.05, silence_s=0.1).counts["silent"] == 2


def test_a_device_that_hangs_up_at_any_moment_leaves_nothing_behind(run: Any, store: Store) -> None:
    async def test(server: TunnelServer) -> None:
        client = Client(server)
        await client.hang_up()
        client = await welcomed(server)
        client.say(batch(1), batch(2))
        await client.hang_up()
        client = await welcomed(server)  # what it sent is durable all the same
        client.say(batch(2), batch(3))
        heard = []
        while Ack(3) not in heard:
            heard.append(await client.hear())
        await client.hang_up()

    run(test)
    assert stored(store) == 3


def test_more_than_the_window_is_refused_but_not_lost(run: Any, store: Store) -> None:
    gate = threading.Event()

    async def test(server: TunnelServer) -> None:
        client = await welcomed(server)
        client.say(*(batch(seq) for seq in range(1, 8)))
        refused = []
        for _ in range(4):
            answer = await client.hear()
            assert isinstance(answer, Nack)
            assert answer.code == ErrorCode.WINDOW_EXCEEDED
            refused.append(answer.seq)
        assert refused == [4, 5, 6, 7]
        gate.set()
        heard: list[Any] = []
        while Ack(3) not in heard:
            heard.append(await client.hear())
        await client.hang_up()

    run(test, Ingest(store, lambda *_: gate.wait(30) and None), window=3)
    assert stored(store) == 3


def test_a_full_queue_makes_devices_pause_in_the_stated_order(run: Any, store: Store) -> None:
    gate = threading.Event()
    size = 64 + len(batch(1).body)

    async def test(server: TunnelServer) -> None:
        client = await welcomed(server)
        client.say(*(batch(seq) for seq in range(1, 11)))  # the writer is held at the first
        answers: list[Any] = []
        while not any(isinstance(a, Pause) for a in answers):
            answers.append(await client.hear())
        scopes = [a.scope for a in answers if isinstance(a, Pause)]
        assert scopes == ["idle"]
        while server._reception.pause() != Pause(1000, "all"):
            await asyncio.sleep(0.001)
        gate.set()
        await client.hang_up()

    run(
        test,
        Ingest(store, lambda *_: gate.wait(30) and None, max_waiting_bytes=10 * size + 40),
        window=16,
    )


def test_a_reader_that_does_not_read_is_bounded(run: Any) -> None:
    async def test(server: TunnelServer) -> None:
        client = await welcomed(server)
        client.reads.clear()
        client.say(*(Ping(number) for number in range(500)))
        await asyncio.sleep(0.05)
        client.reads.set()
        heard: list[Any] = [await client.hear()]
        while not isinstance(heard[-1], int):
            heard.append(await client.hear())
        assert len(heard) < 120
        assert isinstance(heard[-2], Bye)
        await client.task

    assert run(test).counts["refused_106"] == 1


def test_a_newer_connection_takes_over(run: Any) -> None:
    async def test(server: TunnelServer) -> None:
        older = await welcomed(server)
        newer = await welcomed(server)
        assert isinstance(await older.hear(), Bye)
        assert await older.hear() == 1000
        await older.task
        assert server.connected == 1
        newer.say(batch(1))
        assert await newer.hear() == Ack(1)
        await newer.hang_up()

    assert run(test).counts["replaced"] == 1


def test_notices_go_to_the_cohorts_that_changed_and_only_the_newest_waits(run: Any) -> None:
    bus = Bus()
    epochs = iter(range(1, 100))

    def address(cohort: int, device: str) -> tuple[int, int, int] | None:
        if device.startswith("77"):
            raise NotFoundError("no plan")
        return None if device.startswith("78") else (next(epochs), cohort, 1)

    async def test(server: TunnelServer) -> None:
        mine = await welcomed(server)
        noplan = await welcomed(server, hello(b"w" * 16))
        nothing = await welcomed(server, hello(b"x" * 16))
        other = await welcomed(server, hello(b"o" * 16, token=token(b"o" * 16, cohort=6)))
        mine.reads.clear()
        mine.say(Ping(1))
        await asyncio.sleep(0.01)
        for _ in range(5):
            bus.publish("epoch", {"epoch": 1, "cohorts": [5]})
            await asyncio.sleep(0.005)
        mine.reads.set()
        assert await mine.hear() == Pong(1)
        assert await mine.hear() == Notice(5, 5, 1)
        bus.publish("epoch", {"epoch": 2})  # no cohorts named: everyone
        notice = await other.hear()
        assert isinstance(notice, Notice)
        assert notice.cohort == 6
        assert isinstance(await mine.hear(), Notice)
        for client in (mine, noplan, nothing, other):
            await client.hang_up()
        assert not bus._subscriptions

    counts = run(test, bus=bus, address=address).counts
    assert counts["no_address"] == 6
    bus.publish("epoch", {"epoch": 3})  # nobody listens, the loop has ended


def test_many_devices_at_once(run: Any, store: Store) -> None:
    async def device(server: TunnelServer) -> None:
        name = os.urandom(16)
        client = await welcomed(server, hello(name))
        for start in range(1, 41, 8):
            client.say(*(batch(seq, name) for seq in range(start, start + 8)))
            while (answer := await client.hear()) != Ack(start + 7):
                assert isinstance(answer, Ack)
        await client.hang_up()

    async def test(server: TunnelServer) -> None:
        await asyncio.gather(*(device(server) for _ in range(25)))

    run(test)
    assert stored(store) == 1000


def test_a_store_that_is_away_says_come_back(run: Any, store: Store) -> None:
    ingest = Ingest(store)
    ingest.close()

    async def test(server: TunnelServer) -> None:
        client = Client(server)
        client.say(hello())
        answer = await client.hear()
        assert isinstance(answer, Bye)
        assert answer.code == ErrorCode.RATE_LIMITED
        assert await client.hear() == 1001
        await client.task

    run(test, ingest)


# -- the fallback -----------------------------------------------------------------------------


def test_an_exchange_carries_the_same_frames(run: Any, store: Store) -> None:
    async def test(server: TunnelServer) -> None:
        (welcome,) = split_frames(await server.exchange(join_frames([hello()])))
        assert isinstance(welcome, Welcome)
        frames: list[Frame] = [hello(), batch(1), batch(2), batch(4)]
        answers = split_frames(await server.exchange(join_frames(frames)))
        assert answers[1:3] == [Ack(1), Ack(2)]
        assert isinstance(answers[3], Nack)

    run(test)
    assert stored(store) == 2


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", InputError),
        (b"\0\0", InputError),
        (join_frames([batch(1)]), Problem),
        (join_frames([hello(token="x")]), Problem),
        (join_frames([hello(), Ping(1)]), InputError),
        (join_frames([hello()] + [batch(1)] * 64), LimitError),
    ],
    ids=["empty", "short", "no-hello", "bad-token", "not-a-device-frame", "too-many"],
)
def test_bad_exchanges_are_refused(run: Any, body: bytes, error: type[Exception]) -> None:
    async def test(server: TunnelServer) -> None:
        with pytest.raises(error):
            await server.exchange(body)

    run(test)


def test_a_body_without_end_is_cut_off(run: Any) -> None:
    async def endless() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(100_000), "more_body": True}

    async def gone() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def test(server: TunnelServer) -> None:
        async def send(_message: Any) -> None:
            raise AssertionError("nothing to say")

        with pytest.raises(LimitError):
            await server.uplink({"type": "http"}, endless, send)
        with pytest.raises(InputError, match="closed"):
            await server.uplink({"type": "http"}, gone, send)
        with pytest.raises(Problem):
            await server({"type": "http"}, gone, send)

    run(test)
