"""The device's HTTP conversation with the cloud, over urllib3 (which python-tuf brings)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec
import urllib3

from shoal.core.errors import InputError, LimitError, NotFoundError, ShoalError, UnavailableError
from shoal.device.clock import ServerClock
from shoal.wire.enrolment import MEDIA_TYPE, EnrolReply, EnrolRequest, ProfileReply
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.profile import DEVICE_HEADER, NOTICE_HEADER, PROFILE_HEADER, TaskProfile

__all__ = ["CloudLink", "RefusedError"]

_Reply = TypeVar("_Reply", EnrolReply, ProfileReply)

_CHUNK = 1 << 16
_HTTP_ERROR, _NOT_FOUND, _SERVER_ERROR = 400, 404, 500


class RefusedError(ShoalError):
    """The cloud answered with a problem; ``code`` is its error code."""

    def __init__(self, code: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class CloudLink:
    """Requests of one device.

    Parameters
    ----------
    url : str
        Address of the cloud.
    token : callable
        Returns the device's present token.
    clock : ServerClock
        Told the server's time with every answer.
    timeout_s : float
        Of connecting and of each read.

    Raises
    ------
    InputError
        ``url`` is not an http(s) address.
    """

    def __init__(
        self,
        url: str,
        token: Callable[[], str],
        *,
        clock: ServerClock | None = None,
        timeout_s: float = 10.0,
        ssl_context: ssl.SSLContext | None = None,
        limits: WireLimits = DEFAULT_LIMITS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("expected http(s)://host", field="server_url", value=url)
        self._url = url.rstrip("/")
        self._token = token
        self._clock = clock or ServerClock()
        self._limits = limits
        self._pool = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(connect=timeout_s, read=timeout_s),
            maxsize=2,
            ssl_context=ssl_context,
        )

    def enrol(self, request: EnrolRequest) -> EnrolReply:
        """Enrol, or renew the token of a device that is known."""
        sent_us = _mono_us()
        body = msgspec.msgpack.encode(request)
        answer = self._request("POST", "/v1/d/enrol", body=body, signed=False)
        reply = _decode(answer.body, EnrolReply)
        self._clock.sample(reply.server_time_us, sent_us, _mono_us())
        return reply

    def profile(self, profile: TaskProfile) -> ProfileReply:
        """Send the full profile."""
        sent_us = _mono_us()
        answer = self._request("POST", "/v1/d/profile", body=msgspec.msgpack.encode(profile))
        reply = _decode(answer.body, ProfileReply)
        self._clock.sample(reply.server_time_us, sent_us, _mono_us())
        return reply

    def check(self, header: str) -> str | None:
        """Ask whether anything changed; return the notice's address if so."""
        answer = self._request("GET", "/v1/d/check", headers={PROFILE_HEADER: header})
        return answer.headers.get(NOTICE_HEADER)

    def notice(self, address: str) -> bytes:
        """Pull a notice."""
        path = f"/v1/d/notices/{address}"
        return self._request("GET", path, largest=self._limits.notice).body

    def exclusive(self, task: str, version: int) -> bytes:
        """Pull the grant of this device's own files of a task."""
        path = f"/v1/d/exclusive/{task}/{version}"
        return self._request("GET", path, largest=self._limits.notice).body

    def metadata(self, name: str, largest: int) -> bytes:
        """Fetch a file of the image repository's metadata.

        Raises
        ------
        NotFoundError
            There is no such file.
        UnavailableError
            The cloud cannot be reached, or refuses for now.
        """
        try:
            path = f"/v1/d/metadata/{name}"
            return self._request("GET", path, signed=False, largest=largest).body
        except RefusedError as error:
            raise UnavailableError(f"the cloud does not give {name}: {error}") from error

    def simulation(self, body: bytes) -> None:
        """Send a simulation report."""
        self._request("POST", "/v1/d/simulation", body=body)

    def download(self, address: str, offset: int = 0) -> Iterator[bytes]:
        """Yield a file's bytes from ``offset`` on.

        Parameters
        ----------
        address : str
            A path on the cloud, or a whole address (a CDN's, from a notice).
        offset : int
            Bytes that are there already; asked for by a Range.

        Raises
        ------
        UnavailableError
            The connection failed, at the start or midway.
        RefusedError, NotFoundError
            As the server says.
        """
        own = address.startswith("/")
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if own and self._token():
            headers[DEVICE_HEADER] = self._token()
        try:
            response = self._pool.request(
                "GET",
                self._url + address if own else address,
                headers=headers,
                preload_content=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"the download failed: {_reason(error)}") from error
        try:
            if response.status >= _HTTP_ERROR:
                body = response.read(self._limits.notice, decode_content=False)
                raise _refusal(_Answer(response.status, response.headers, body))
            skip = offset if response.status != 206 else 0  # the server ignored the Range
            for chunk in response.stream(_CHUNK, decode_content=False):
                if skip >= len(chunk):
                    skip -= len(chunk)
                    continue
                yield chunk[skip:]
                skip = 0
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"the download broke off: {_reason(error)}") from error
        finally:
            response.release_conn()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        signed: bool = True,
        largest: int | None = None,
    ) -> _Answer:
        sent = dict(headers or {})
        if signed:
            sent[DEVICE_HEADER] = self._token()
        if body is not None:
            sent["Content-Type"] = MEDIA_TYPE
        limit = self._limits.metadata if largest is None else largest
        sent_us = _mono_us()
        try:
            response = self._pool.request(
                method,
                self._url + path,
                body=body,
                headers=sent,
                preload_content=False,
                redirect=False,
            )
            content = response.read(limit + 1, decode_content=False)
            response.drain_conn()
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(f"the cloud cannot be reached: {_reason(error)}") from error
        if len(content) > limit:
            raise LimitError("the answer is too long", field=path, value=len(content))
        answer = _Answer(response.status, response.headers, content)
        # An answer with an age comes from a cache; its date is not the present.
        date = None if "Age" in answer.headers else answer.headers.get("Date")
        if date is not None:
            self._clock.sample_date(date, sent_us, _mono_us())
        if answer.status >= _HTTP_ERROR:
            raise _refusal(answer)
        return answer


def _mono_us() -> int:
    return time.monotonic_ns() // 1000


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).splitlines()[0][:200]


def _decode(body: bytes, kind: type[_Reply]) -> _Reply:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"the cloud's answer does not decode: {error}") from error


def _refusal(answer: _Answer) -> ShoalError:
    """Turn an answer with an error status into an error."""
    code, text = 0, ""
    try:
        problem = msgspec.json.decode(answer.body)
        code = int(problem.get("code", 0))
        text = str(problem.get("detail") or problem.get("title") or "")
    except (msgspec.DecodeError, AttributeError, TypeError, ValueError, UnicodeDecodeError):
        text = ""
    text = (text or f"the cloud answered {answer.status}")[:300]
    try:
        wait = float(answer.headers.get("Retry-After", 0))
    except ValueError:
        wait = 0.0
    if answer.status == _NOT_FOUND:
        return NotFoundError(text)
    if code == 0 or answer.status >= _SERVER_ERROR:
        return UnavailableError(text)
    return RefusedError(code, text, wait)
