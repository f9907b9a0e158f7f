"""A cloud in a process of its own, to be killed: ingest and tunnel on an inherited socket.

Arguments: data folder, file descriptor of the listening socket.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from shoal.cloud.ingest import Ingest
from shoal.cloud.problems import Problem
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenClaims
from shoal.cloud.tunnel import TunnelParts, TunnelServer, tunnel_app
from shoal.wire.codes import ErrorCode
from shoal.wire.results import ResultBatch


def verify(token: str, _now_us: int) -> TokenClaims:
    """Tokens of the tests are "token-" and the device's id."""
    kind, _, device = token.partition("-")
    if kind != "token" or len(device) != 32:
        raise Problem(ErrorCode.UNAUTHENTICATED, "no such token")
    return TokenClaims(bytes.fromhex(device), 1, 1 << 60)


def application(tunnel: TunnelServer) -> Any:
    """Route the two endpoints of the tunnel."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] == "/v1/d/tunnel":
            await tunnel(scope, receive, send)
            return
        try:
            await tunnel.uplink(scope, receive, send)
        except Problem as problem:
            await send({"type": "http.response.start", "status": problem.status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return app


def config(app: Any) -> uvicorn.Config:
    """Settings as in ``shoal.cloud.http``."""
    return uvicorn.Config(
        app, http="httptools", ws="websockets-sansio", lifespan="off", log_config=None,
        access_log=False, ws_per_message_deflate=False, timeout_graceful_shutdown=1,
    )  # fmt: skip


def main(folder: Path, descriptor: int) -> None:
    """Serve until killed."""
    store = Store(f"sqlite:///{folder}/cloud.db")

    def count(device: bytes, batch: ResultBatch, _now_us: int) -> None:
        # What a release controller does: derive counts, in the batch's own transaction.
        key = f"seen.{device.hex()}"
        store.put(key, store.get(key, 0) + len(batch.results))

    ingest = Ingest(store, count)
    tunnel = tunnel_app(TunnelParts(ingest=ingest, verify=verify))
    server = uvicorn.Server(config(application(tunnel)))
    server.run(sockets=[socket.socket(fileno=descriptor)])
    ingest.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
