"""Gateway part: what the release check costs on top of bare HTTP, and beside FastAPI.

Four servers answer ``GET /v1/d/check`` with the same bytes (204, no body), each
uvicorn with httptools in a process of its own:

``bare``     a raw ASGI callable that answers at once: the floor of this server;
``ours``     the real gateway: token, revocation, last-seen, plan table with three
             gray releases and a device that holds 40 tasks;
``new``      the same, but every request brings a token not seen before (a device's
             first request after the gateway's start), so that its MAC is computed;
``fastapi``  a FastAPI route that reads the two headers and does the very same
             check as ``ours``.

One client process sends the same raw keep-alive requests to each in turn, in
short slices, interleaved and in an order drawn anew each round, so that whatever
else the machine does hits all of them. What is compared is the *CPU time of the server
process* per request (user + system, from ``resource.getrusage`` inside it); wall
time is reported beside it and decides nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_TASKS = 40
_GRAY = 3
_KINDS = ("bare", "ours", "new", "fastapi")


def _world(folder: Path) -> tuple[Any, list[tuple[bytes, bytes]]]:
    """Return the real gateway and the headers of 64 settled devices with 40 tasks each."""
    from shoal.cloud.config import CloudConfig
    from shoal.cloud.fleet import Fleet
    from shoal.cloud.gateway import Gateway, GatewayParts
    from shoal.cloud.plans import CohortPlan, GrayEntry, PlanTable, desired_tasks
    from shoal.cloud.store import Store
    from shoal.cloud.tokens import TokenMint
    from shoal.wire.notices import DesiredTask, FileRef
    from shoal.wire.profile import format_profile_header, profile_digest

    ref = FileRef(sha256=bytes(32), size=1, path="p")

    def desired(number: int, version: int) -> DesiredTask:
        return DesiredTask(task=f"task.number-{number:03d}", version=version, package=ref)

    plan = CohortPlan(
        cohort=7,
        epoch=1234,
        base=[desired(n, 3) for n in range(_TASKS)],
        gray=[
            GrayEntry(release_id=n, salt=f"salt{n}", threshold=2000 + n, desired=desired(n, 4))
            for n in range(_GRAY)
        ],
    )
    plans = PlanTable()
    plans.rebuild([plan], 1234)
    config = CloudConfig(data_dir=folder)
    tokens = TokenMint([bytes(32)])
    fleet = Fleet(Store(config.resolved_database_url))
    gateway = Gateway(config, GatewayParts(tokens=tokens, plans=plans, fleet=fleet))
    headers = []
    for number in range(64):
        device = (number * 0x9E3779B97F4A7C15).to_bytes(16, "big")
        mask = plans.address(7, device.hex())[2]
        digest = profile_digest((t.task, t.version) for t in desired_tasks(plan, mask))
        headers.append(
            (format_profile_header(1234, 7, digest).encode(), tokens.mint(device, 7).encode())
        )
    return gateway, headers


def _application(kind: str, gateway: Any) -> Any:
    start = {
        "type": "http.response.start",
        "status": 204,
        "headers": [(b"cache-control", b"no-store")],
    }
    end = {"type": "http.response.body", "body": b""}
    if kind == "ours":
        return gateway
    if kind == "new":
        tokens = gateway._parts.tokens

        async def forgetful(scope: Any, receive: Any, send: Any) -> None:
            tokens._verified.clear()
            await gateway(scope, receive, send)

        return forgetful
    if kind == "bare":

        async def bare(scope: Any, receive: Any, send: Any) -> None:
            await send(start)
            await send(end)

        return bare

    from fastapi import FastAPI, Header, Response

    app = FastAPI(openapi_url=None)

    @app.get("/v1/d/check")
    async def check(shoal_profile: str = Header(), shoal_device: str = Header()) -> Response:
        notice = gateway.check_headers(shoal_profile.encode(), shoal_device.encode())
        headers = {"cache-control": "no-store"}
        if notice is None:
            return Response(status_code=204, headers=headers)
        return Response(status_code=200, headers={**headers, "shoal-notice": notice})

    return app


def _serve(kind: str, folder: str, pipe: Connection) -> None:
    """Run one server; answer each message on the pipe with the CPU seconds used so far."""
    import threading

    import uvicorn

    gateway, _ = _world(Path(folder))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    server = uvicorn.Server(
        uvicorn.Config(
            _application(kind, gateway),
            http="httptools",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
        )
    )

    def answer() -> None:
        while True:
            try:
                stop = pipe.recv()
            except EOFError:
                stop = True
            if stop:
                server.should_exit = True
                return
            used = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send(used.ru_utime + used.ru_stime)

    threading.Thread(target=answer, daemon=True).start()
    pipe.send(listener.getsockname()[1])
    server.run(sockets=[listener])


class _Client:
    """One keep-alive connection that sends prepared requests, one at a time."""

    def __init__(self, port: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = [
            b"GET /v1/d/check HTTP/1.1\r\nHost: cloud\r\nShoal-Profile: "
            + profile
            + b"\r\nShoal-Device: "
            + token
            + b"\r\n\r\n"
            for profile, token in headers
        ]

    def send(self, number: int) -> bytes:
        """Send ``number`` requests and return the last answer; any but 204 is an error."""
        answer = b""
        for place in range(number):
            self._socket.sendall(self._requests[place % len(self._requests)])
            answer = self._socket.recv(65536)
            while not answer.endswith(b"\r\n\r\n"):
                more = self._socket.recv(65536)
                if not more:
                    raise RuntimeError("the server closed the connection")
                answer += more
            if not answer.startswith(b"HTTP/1.1 204"):
                raise RuntimeError(f"unexpected answer {answer[:200]!r}")
        return answer

    def close(self) -> None:
        self._socket.close()


def _body_of(answer: bytes) -> set[bytes]:
    return {line for line in answer.split(b"\r\n") if not line.lower().startswith(b"date")}


def run(quick: bool, seed: int) -> dict[str, Any]:
    """Measure; see the module's text.

    Returns
    -------
    dict
        ``gateway_ratio_bare`` (ours / bare, bar <= 1.3), ``gateway_ratio_fastapi``
        (ours / FastAPI, bar <= 0.6), ``gateway_ratio_bare_new_token`` (new / bare),
        microseconds of server CPU and of wall time per request of each, and
        ``gateway_check_us``: the check alone.
    """
    rounds, slice_ = (15, 400) if quick else (40, 1000)
    context = multiprocessing.get_context("spawn")
    rng = random.Random(seed)
    servers: dict[str, tuple[Any, Connection, _Client]] = {}
    with tempfile.TemporaryDirectory() as name:
        gateway, headers = _world_in(Path(name) / "client")
        try:
            for kind in _KINDS:
                here, there = context.Pipe()
                folder = Path(name) / kind
                folder.mkdir()
                process = context.Process(
                    target=_serve, args=(kind, str(folder), there), daemon=True
                )
                process.start()
                if not here.poll(60):
                    raise RuntimeError(f"server {kind} did not start")
                servers[kind] = (process, here, _Client(here.recv(), headers))
            answers = {kind: client.send(200) for kind, (_, _, client) in servers.items()}
            same = [_body_of(answer) for answer in answers.values()]
            if any(lines != same[0] for lines in same):
                raise RuntimeError(f"the servers answer differently: {answers}")
            cpu: dict[str, list[float]] = {kind: [] for kind in _KINDS}
            wall: dict[str, list[float]] = {kind: [] for kind in _KINDS}
            for _ in range(rounds):
                for kind in rng.sample(_KINDS, len(_KINDS)):
                    _, pipe, client = servers[kind]
                    pipe.send(False)
                    before, started = pipe.recv(), time.perf_counter()
                    client.send(slice_)
                    wall[kind].append((time.perf_counter() - started) / slice_ * 1e6)
                    pipe.send(False)
                    cpu[kind].append((pipe.recv() - before) / slice_ * 1e6)
            check_us = _check_alone(gateway, headers, 2_000 if quick else 20_000)
        finally:
            for process, pipe, client in servers.values():
                client.close()
                pipe.send(True)
                process.join(timeout=10)
                if process.is_alive():
                    process.kill()
    # Ratios within a round: what disturbs a round disturbs all of it.
    bare = [a / b for a, b in zip(cpu["ours"], cpu["bare"], strict=True)]
    fastapi = [a / b for a, b in zip(cpu["ours"], cpu["fastapi"], strict=True)]
    new = [a / b for a, b in zip(cpu["new"], cpu["bare"], strict=True)]
    return {
        "gateway_ratio_bare": round(statistics.median(bare), 3),
        "gateway_ratio_fastapi": round(statistics.median(fastapi), 3),
        "gateway_ratio_bare_new_token": round(statistics.median(new), 3),
        "gateway_cpu_us": {k: round(statistics.median(v), 1) for k, v in cpu.items()},
        "gateway_wall_us": {k: round(statistics.median(v), 1) for k, v in wall.items()},
        "gateway_check_us": round(check_us, 2),
        "gateway_requests": rounds * slice_ * len(_KINDS),
    }


def _world_in(folder: Path) -> tuple[Any, list[tuple[bytes, bytes]]]:
    folder.mkdir()
    return _world(folder)


def _check_alone(gateway: Any, headers: list[tuple[bytes, bytes]], number: int) -> float:
    """Return CPU microseconds of one ``check_headers``, without HTTP: the median of nine."""
    found = []
    for _ in range(9):
        started = time.process_time()
        for place in range(number):
            gateway.check_headers(*headers[place % len(headers)])
        found.append((time.process_time() - started) / number * 1e6)
    return statistics.median(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.quick, arguments.seed)))
