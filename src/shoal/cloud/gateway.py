"""The device endpoints below ``/v1/d/``, as one raw ASGI callable.

No framework stands in front of the check, because the check itself costs only a
few microseconds. Whatever touches the database or waits for a disk runs in a
thread (Walle sheet A.5).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from shoal.cloud.config import CloudConfig
from shoal.cloud.enrolment import Enrolment
from shoal.cloud.files import (
    Headers,
    Receive,
    Scope,
    Send,
    TruncatedFileError,
    send_file,
    send_response,
)
from shoal.cloud.fleet import Fleet
from shoal.cloud.middleware import ASGIApp
from shoal.cloud.plans import PlanTable
from shoal.cloud.problems import Problem, problem_of
from shoal.cloud.ratelimit import KeyedBuckets, TokenBucket
from shoal.cloud.tokens import TokenClaims, TokenMint
from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import MEDIA_TYPE, EnrolReply, EnrolRequest, ProfileReply
from shoal.wire.notices import format_notice_address, parse_notice_address
from shoal.wire.profile import NOTICE_HEADER, TaskProfile

__all__ = ["Gateway", "GatewayParts"]

_log = logging.getLogger(__name__)
_NOTICE = NOTICE_HEADER.lower().encode()
_NO_STORE: Final = (b"cache-control", b"no-store")
_MSGPACK: Final = (b"content-type", MEDIA_TYPE.encode())
_START_204: Final = {"type": "http.response.start", "status": 204, "headers": [_NO_STORE]}
_END: Final = {"type": "http.response.body", "body": b""}
_HEX64 = re.compile(r"[0-9a-f]{64}")
_METADATA = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_ENROL = msgspec.msgpack.Decoder(EnrolRequest)
_PROFILE = msgspec.msgpack.Decoder(TaskProfile)
_ENCODE = msgspec.msgpack.Encoder()
_Answer = TypeVar("_Answer")


class _Files(Protocol):
    """Where files lie by content; ``BlobStore`` is one."""

    def path(self, sha256: bytes) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class GatewayParts:
    """What the gateway speaks to; absent parts answer 404.

    Attributes
    ----------
    tokens, plans, fleet
        Needed by every request.
    enrolment : Enrolment, optional
        Admits devices and takes profiles.
    files : BlobStore, optional
        Shared files by hash.
    metadata : Path, optional
        Folder of the image repository's metadata.
    root : callable
        The TUF root metadata that enrolling devices pin.
    uplink : ASGI application, optional
        Takes ``POST /v1/d/uplink``, the fallback of the tunnel.
    simulation : callable, optional
        Takes a virtual device's report: (device, body).
    exclusive : callable, optional
        (claims, task, version) -> the encoded grant of a device's own files.
    exclusive_file : callable, optional
        (device, sha256) -> path of a file that only this device may read.
    admitted : callable, optional
        Called with (device, cohort set) when a device has enrolled or sent its
        profile, before its notice is looked up.
    pulled : callable, optional
        Called with (device, notice address) when a device fetches its notice.
    """

    tokens: TokenMint
    plans: PlanTable
    fleet: Fleet
    enrolment: Enrolment | None = None
    files: _Files | None = None
    metadata: Path | None = None
    root: Callable[[], bytes] = bytes
    uplink: ASGIApp | None = None
    simulation: Callable[[bytes, bytes], None] | None = None
    exclusive: Callable[[TokenClaims, str, int], bytes] | None = None
    exclusive_file: Callable[[bytes, bytes], Path] | None = None
    admitted: Callable[[bytes, int], None] | None = None
    pulled: Callable[[bytes, tuple[int, int, int]], None] | None = None


class Gateway:
    """ASGI application of the device endpoints (HTTP only; the tunnel stands beside it).

    Parameters
    ----------
    config : CloudConfig
        Limits and rates.
    parts : GatewayParts
        What it speaks to.
    clock : callable, optional
        Microseconds since 1970 (UTC).
    executor : Executor, optional
        Where blocking work runs; four own threads if absent.
    """

    def __init__(
        self,
        config: CloudConfig,
        parts: GatewayParts,
        *,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        executor: Executor | None = None,
    ) -> None:
        self._config = config
        self._parts = parts
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(4, thread_name_prefix="gateway")
        self._pulls = TokenBucket(config.pull_rate_limit)
        self._devices = KeyedBuckets(config.device_rate_limit)
        self._strangers = KeyedBuckets(config.device_rate_limit)
        #: Answers by kind, for the metrics: "check", "notice", "file", "refused_103", …
        self.counts: Counter[str] = Counter()
        self._routes: dict[
            str, tuple[str, Callable[[Scope, Receive, Send, str], Awaitable[None]]]
        ] = {
            "enrol": ("POST", self._enrol),
            "profile": ("POST", self._profile),
            "notices": ("GET", self._notices),
            "files": ("GET", self._files),
            "exclusive": ("GET", self._exclusive),
            "metadata": ("GET", self._metadata),
            "uplink": ("POST", self._uplink),
            "simulation": ("POST", self._simulation),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            if scope["path"] == "/v1/d/check":
                notice = self._check(scope)
                if notice is None:
                    await send(_START_204)
                    await send(_END)
                else:
                    await send_response(send, 200, [_NO_STORE, (_NOTICE, notice.encode())])
            else:
                await self._dispatch(scope, receive, send)
        except TruncatedFileError:
            raise  # the server cuts the connection: the length was promised
        except Exception as error:
            problem = problem_of(error)
            self.counts[f"refused_{int(problem.code)}"] += 1
            headers = [*problem.headers(), _NO_STORE]
            await send_response(send, problem.status, headers, problem.body())

    # -- the hot path ---------------------------------------------------------

    def check_headers(self, profile: bytes, token: bytes) -> str | None:
        """Answer the check for raw header values; the ``GatewayCheck`` of the middleware.

        Returns
        -------
        str or None
            The address of the notice to pull; ``None``: nothing to do.

        Raises
        ------
        Problem, InputError
            Unknown or revoked device, malformed headers.
        """
        parts = self._parts
        now = self._clock()
        device, cohort, _ = parts.tokens.verify(token, now)
        if device in parts.fleet.revoked:
            raise Problem(ErrorCode.DEVICE_REVOKED, "this device is locked out")
        parts.fleet.saw(device, now)
        self.counts["check"] += 1
        address = parts.plans.check(profile.decode("latin-1"), device.hex(), cohort)
        if address is None:
            return None
        self.counts["check_notice"] += 1
        return format_notice_address(*address)

    def _check(self, scope: Scope) -> str | None:
        if scope["method"] != "GET" and scope["method"] != "HEAD":
            raise _wrong_method("GET")
        profile = token = None
        for name, value in scope["headers"]:
            if name == b"shoal-profile":
                if profile is not None:
                    raise InputError("sent twice", field="Shoal-Profile")
                profile = value
            elif name == b"shoal-device":
                if token is not None:
                    raise InputError("sent twice", field="Shoal-Device")
                token = value
        if token is None:
            raise _no_token()
        if profile is None:
            raise InputError("header is missing", field="Shoal-Profile")
        return self.check_headers(profile, token)

    # -- the rest -------------------------------------------------------------

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, _, rest = scope["path"].removeprefix("/v1/d/").partition("/")
        method, handler = self._routes.get(kind, ("", None))
        if handler is None:
            raise _not_found(scope["path"])
        if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
            raise _wrong_method(method)
        self.counts[kind] += 1
        await handler(scope, receive, send, rest)

    async def _run(self, work: Callable[[], _Answer]) -> _Answer:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _claims(self, scope: Scope) -> TokenClaims:
        tokens = [value for name, value in scope["headers"] if name == b"shoal-device"]
        if len(tokens) != 1:
            raise _no_token()
        now = self._clock()
        claims = self._parts.tokens.verify(tokens[0], now)
        if claims.device in self._parts.fleet.revoked:
            raise Problem(ErrorCode.DEVICE_REVOKED, "this device is locked out")
        self._parts.fleet.saw(claims.device, now)
        return claims

    async def _enrol(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        enrolment = self._parts.enrolment
        if enrolment is None or rest:
            raise _not_found(scope["path"])
        client = scope.get("client") or ("", 0)
        _limit(self._strangers.take(client[0]))
        body = await _read_body(scope, receive, self._config.limits.notice)
        request = _ENROL.decode(body)
        cohort = await self._run(lambda: enrolment.enrol(request))
        await self._admitted(request.profile.device, cohort)
        now = self._clock()
        reply = EnrolReply(
            device=request.profile.device,
            token=self._parts.tokens.mint(request.profile.device, cohort, now),
            cohort=cohort,
            epoch=self._parts.plans.epoch,
            root=await self._run(self._parts.root),
            server_time_us=now,
        )
        await send_response(send, 200, [_MSGPACK, _NO_STORE], _ENCODE.encode(reply))

    async def _profile(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        enrolment = self._parts.enrolment
        if enrolment is None or rest:
            raise _not_found(scope["path"])
        claims = self._claims(scope)
        _limit(self._devices.take(claims.device))
        body = await _read_body(scope, receive, self._config.limits.notice)
        profile = _PROFILE.decode(body)
        if profile.device != claims.device:
            raise Problem(
                ErrorCode.NOT_ENTITLED, "the profile speaks of another device than the token"
            )
        cohort = await self._run(lambda: enrolment.update(profile))
        await self._admitted(claims.device, cohort)
        now = self._clock()
        address = self._parts.plans.address(cohort, claims.device.hex())
        reply = ProfileReply(
            token=self._parts.tokens.mint(claims.device, cohort, now),
            cohort=cohort,
            epoch=address[0] or self._parts.plans.epoch,
            notice=format_notice_address(*address) if address[1] else None,
            server_time_us=now,
        )
        await send_response(send, 200, [_MSGPACK, _NO_STORE], _ENCODE.encode(reply))

    async def _admitted(self, device: bytes, cohort: int) -> None:
        admitted = self._parts.admitted
        if admitted is not None:
            await self._run(lambda: admitted(device, cohort))

    async def _notices(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        epoch, cohort, mask = parse_notice_address(rest)
        plans, pulled = self._parts.plans, self._parts.pulled
        device = None
        if not self._config.public_notices:
            claims = self._claims(scope)
            present = plans.address(claims.cohort, claims.device.hex())
            if present != (epoch, cohort, mask):
                if cohort == claims.cohort and (present[0] != epoch or present[1] == 0):
                    raise Problem(
                        ErrorCode.STALE_EPOCH, "not in force any more", hint="check again"
                    )
                raise Problem(ErrorCode.NOT_ENTITLED, "this notice is not for this device")
            device = claims.device
        _limit(self._pulls.take())
        try:
            body = await self._run(lambda: plans.notice(epoch, cohort, mask))
        except NotFoundError as error:
            raise Problem(ErrorCode.STALE_EPOCH, error.message, hint="check again") from error
        if device is not None and pulled is not None:
            puller, note = device, pulled
            await self._run(lambda: note(puller, (epoch, cohort, mask)))
        # A notice is signed again when half its life is over; caches keep it less long.
        scope_ = "public" if self._config.public_notices else "private"
        age = max(1, int(self._config.notice_ttl_s / 4))
        cache = f"{scope_}, max-age={age}".encode()
        await send_response(send, 200, [_MSGPACK, (b"cache-control", cache)], body)

    async def _files(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        if _HEX64.fullmatch(rest) is None or self._parts.files is None:
            raise _not_found(scope["path"])
        _limit(self._pulls.take())
        cache: Headers = [
            (b"content-type", b"application/octet-stream"),
            (b"cache-control", b"public, max-age=31536000, immutable"),
        ]
        try:
            path = self._parts.files.path(bytes.fromhex(rest))
        except NotFoundError:
            if self._parts.exclusive_file is None:
                raise
            device = self._claims(scope).device
            path = self._parts.exclusive_file(device, bytes.fromhex(rest))
            cache[1] = (b"cache-control", b"private, no-store")
        _, sent = await send_file(scope, send, path, etag=rest, headers=cache)
        self.counts["file_bytes"] += sent

    async def _exclusive(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        task, _, version = rest.partition("/")
        exclusive = self._parts.exclusive
        if exclusive is None or not (version.isascii() and version.isdigit()):
            raise _not_found(scope["path"])
        claims = self._claims(scope)
        body = await self._run(lambda: exclusive(claims, task, int(version)))
        await send_response(send, 200, [_MSGPACK, _NO_STORE], body)

    async def _metadata(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        folder = self._parts.metadata
        if folder is None or _METADATA.fullmatch(rest) is None:
            raise _not_found(scope["path"])
        try:
            body = await self._run((folder / rest).read_bytes)
        except (FileNotFoundError, IsADirectoryError):
            raise _not_found(scope["path"]) from None
        headers: Headers = [(b"content-type", b"application/json"), _NO_STORE]
        if scope["method"] == "HEAD":
            body = b""
        await send_response(send, 200, headers, body)

    async def _uplink(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        if self._parts.uplink is None or rest:
            raise _not_found(scope["path"])
        # The HELLO in the body says who it is; the header, where it is sent, only
        # keeps devices behind one address apart.
        named = next((value for name, value in scope["headers"] if name == b"shoal-device"), None)
        client = scope.get("client") or ("", 0)
        _limit(self._devices.take(named if named is not None else client[0]))
        await self._parts.uplink(scope, receive, send)

    async def _simulation(self, scope: Scope, receive: Receive, send: Send, rest: str) -> None:
        simulation = self._parts.simulation
        if simulation is None or rest:
            raise _not_found(scope["path"])
        claims = self._claims(scope)
        _limit(self._devices.take(claims.device))
        body = await _read_body(scope, receive, self._config.limits.frame)
        await self._run(lambda: simulation(claims.device, body))
        await send_response(send, 202, [_NO_STORE])


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Read a request's body, refusing it as soon as it is longer than ``limit``."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:18]) > limit:
            raise LimitError(f"a body has at most {limit} bytes", field="body", value=int(value))
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputError("the connection closed before the body was whole", field="body")
        body += message.get("body", b"")
        if len(body) > limit:
            raise LimitError(f"a body has at most {limit} bytes", field="body", value=len(body))
        if not message.get("more_body", False):
            return bytes(body)


def _limit(wait_s: float) -> None:
    if wait_s > 0:
        raise Problem(
            ErrorCode.RATE_LIMITED, "too many requests", retry_after_s=wait_s, hint="wait"
        )


def _no_token() -> Problem:
    return Problem(ErrorCode.UNAUTHENTICATED, "one Shoal-Device token is needed", hint="enrol")


def _not_found(path: str) -> Problem:
    return Problem(ErrorCode.BAD_FRAME, f"nothing at {path[:120]}", status=404)


def _wrong_method(allowed: str) -> Problem:
    return Problem(ErrorCode.BAD_FRAME, f"use {allowed}", status=405)
