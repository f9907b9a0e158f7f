"""The agent's conversation with the cloud: who we are, whether anything changed, what to pull.

One step at a time, so that a slow or absent server holds up nothing else: the
agent calls :meth:`Conversation.step`, and a group of agents calls it from a
thread (Walle sheet A.5, A.8, A.9).
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Final

import shoal
from shoal.core.errors import NotFoundError, ShoalError, UnavailableError
from shoal.device.clock import ServerClock
from shoal.device.cloudlink import CloudLink, RefusedError
from shoal.device.config import AgentConfig
from shoal.device.identity import Identity
from shoal.device.link import Link
from shoal.device.store import DeviceStore
from shoal.device.sync import Sync
from shoal.device.trust import TrustStore
from shoal.device.tunnel import HttpUplink, Tunnel
from shoal.device.uplink import Uplink
from shoal.wire.codes import ErrorCode
from shoal.wire.notices import format_notice_address, parse_notice_address
from shoal.wire.profile import DEVICE_HEADER, PROFILE_HEADER, TaskProfile

__all__ = ["AGENT_NAME", "Conversation"]

#: Name and version that the agent goes by.
AGENT_NAME: Final = f"shoal/{shoal.__version__}"

_SEND_PROFILE: Final = (0, 0, 0)
_LONGEST_WAIT_S: Final = 300.0
_UNSURE_S: Final = 0.2  # between two looks at a clock that is far off

Address = tuple[int, int, int]


class Conversation:
    """Token, checks, notices and the tunnel of one agent.

    Parameters
    ----------
    config : AgentConfig
    identity, store, clock, link, uplink, sync
        The agent's parts.
    profile : callable
        Makes the full profile.
    survive : callable
        ``(kind, error)``: takes note of what went wrong and was survived.
    wake : callable
        Called, from any thread, when there is something to do.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        identity: Identity,
        store: DeviceStore,
        clock: ServerClock,
        uplink: Uplink,
        profile: Callable[[], TaskProfile],
        survive: Callable[[str, Exception], None],
        wake: Callable[[], None],
    ) -> None:
        self._config = config
        self._identity = identity
        self._store = store
        self._clock = clock
        self._uplink = uplink
        self._profile = profile
        self._survive = survive
        self._wake = wake
        self._ssl = None
        if config.ca_file is not None:
            self._ssl = ssl.create_default_context(cafile=str(config.ca_file))
        self.link = CloudLink(
            config.server_url,
            lambda: self._token,
            clock=clock,
            timeout_s=config.timeout_s,
            ssl_context=self._ssl,
        )
        self._token = str(store.meta_get("token", ""))
        self._cohort = int(store.meta_get("cohort", 0))
        self._tunnel: Link | None = None
        self._needs_enrolment = not self._token
        self._needs_profile = False
        self._skew_told = False
        self._lock = threading.Lock()
        self._address: Address | None = None
        self._next = 0.0
        self._work_at = 0.0
        self._jittered = -1
        self._jitter_s = 0.0
        self._retry_s = 1.0

    def attach(self, sync: Sync) -> None:
        """Take the part that follows notices (it needs our link to be made)."""
        self._sync = sync
        self._open_trust()

    def _open_trust(self) -> None:
        root = self._store.meta_get("root", b"")
        if root and self._sync.trust is None:
            self._sync.trust = TrustStore(
                self._config.data_dir / "trust",
                root=root,
                fetch=self.link.metadata,
                clock=self._clock.now_us,
            )

    # -- what others see ---------------------------------------------------------------------

    @property
    def enrolled(self) -> bool:
        """Whether the cloud has given this device a token."""
        return bool(self._token)

    @property
    def cohort(self) -> int:
        """The cohort set that the token names; 0 if unknown."""
        return self._cohort

    @property
    def connected(self) -> bool:
        """Whether the tunnel stands."""
        return self._tunnel is not None and self._tunnel.connected

    def headers(self) -> dict[str, str]:
        """Return the two headers that an ordinary request carries; none before enrolment."""
        if not self._token:
            return {}
        return {PROFILE_HEADER: self._sync.header(self._cohort), DEVICE_HEADER: self._token}

    def heard(self, address: Address) -> None:
        """Take note that a notice may concern this device; any thread may call it."""
        with self._lock:
            self._address = address
            self._next = 0.0
        self._wake()

    def _check_soon(self, *_: object) -> None:
        """The tunnel says that something has changed; which notice is ours, the check tells."""
        # A fleet is told at one moment: spread its answers as the last notice asked.
        with self._lock:
            soon = time.monotonic() + random.uniform(0.0, min(self._jitter_s, 5.0))  # noqa: S311
            self._next = min(self._next, soon)
        self._wake()

    # -- one step ----------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether :meth:`step` has something to do."""
        if self._sync.working:
            return now >= self._work_at
        return now >= self._next

    def step(self) -> bool:
        """Make one request, or download one piece; returns whether anything was done.

        What a device must live with is survived and noted, never raised.
        """
        if not self.is_due(time.monotonic()):
            return False
        try:
            self._step()
        except RefusedError as error:
            self._refused(error)
        except (UnavailableError, NotFoundError) as error:
            self._survive("unavailable", error)
            self._wait_longer()
        except (ShoalError, OSError) as error:
            self._survive(type(error).__name__, error)
            self._wait_longer()
        return True

    def _step(self) -> None:
        if self._sync.working:
            whole = self._sync.work()
            if whole is not None:
                self._followed(whole)
            return
        if self._needs_enrolment:
            self._enrol()
        if self._needs_profile:
            self._send_profile()
        self._start_tunnel()
        with self._lock:
            address, self._address = self._address, None
            self._next = time.monotonic() + self._spread(self._config.check_every_s)
        if address is None or (address != _SEND_PROFILE and address[1] != self._cohort):
            text = self.link.check(self._sync.header(self._cohort))
            address = None if text is None else parse_notice_address(text)
        if address == _SEND_PROFILE:
            self._send_profile()
        elif address is None:
            self._followed(True)
        elif not self._clock.trusted:
            # One answer could come from a cache that was filled long ago; ask again.
            self._next = time.monotonic() + _UNSURE_S
        else:
            self._pull(address)

    def _pull(self, address: Address) -> None:
        jitter_s = self._sync.accept(
            self.link.notice(format_notice_address(*address)), cohort=self._cohort
        )
        if jitter_s is None:
            self._followed(False)
            return
        self._jitter_s = jitter_s
        self._work_at = 0.0
        if self._jittered != self._sync.epoch:  # not again when it is followed once more
            self._jittered = self._sync.epoch
            self._work_at = time.monotonic() + random.uniform(0.0, jitter_s)  # noqa: S311

    def _followed(self, whole: bool) -> None:
        if not whole:
            self._survive("not_settled", UnavailableError(self._sync.last_error or "not yet"))
            self._wait_longer()
            return
        self._retry_s = 1.0
        self._survive("", UnavailableError(""))

    @staticmethod
    def _spread(seconds: float) -> float:
        return seconds * random.uniform(0.9, 1.0)  # noqa: S311 - no secret: agents drift apart

    def _refused(self, error: RefusedError) -> None:
        self._survive(f"refused_{error.code}", error)
        if error.code == ErrorCode.UNAUTHENTICATED:
            if self._needs_enrolment and self._token:
                self._token = ""  # it does not know us any more: begin with the operator's token
            self._needs_enrolment = True
        elif error.code in (ErrorCode.NOT_ENTITLED, ErrorCode.SCHEMA_MISMATCH):
            self._needs_profile = True
        self._wait_longer(error.retry_after_s)

    def _wait_longer(self, at_least: float = 0.0) -> None:
        longest = max(self._config.check_every_s, 1.0)
        wait = min(self._retry_s, longest, _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)  # noqa: S311
        with self._lock:
            self._next = time.monotonic() + max(wait, at_least)
        self._retry_s = min(self._retry_s * 2, _LONGEST_WAIT_S)

    # -- who we are --------------------------------------------------------------------------

    def _enrol(self) -> None:
        # It must rise from one enrolment to the next, whatever the clocks do.
        ts_us = max(self._clock.now_us(), int(self._store.meta_get("enrol.ts_us", 0)) + 1)
        token = "" if self._token else self._config.enrol_token
        reply = self.link.enrol(self._identity.enrol_request(token, self._profile(), ts_us))
        rows = [
            ("enrol.ts_us", min(ts_us, reply.server_time_us)),
            ("token", reply.token),
            ("cohort", reply.cohort),
        ]
        with self._store.transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
            # A pinned root changes by TUF's own chain of signatures only.
            cursor.execute("INSERT OR IGNORE INTO meta VALUES ('root', ?)", (reply.root,))
        self._token, self._cohort = reply.token, reply.cohort
        self._needs_enrolment = False
        self._open_trust()
        self._note_clock()
        if self._tunnel is not None:
            self._tunnel.retry_now()

    def _send_profile(self) -> None:
        reply = self.link.profile(self._profile())
        with self._store.transaction() as cursor:
            cursor.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)",
                [("token", reply.token), ("cohort", reply.cohort)],
            )
        self._token, self._cohort = reply.token, reply.cohort
        self._needs_profile = False
        self._note_clock()
        if reply.notice:
            self.heard(parse_notice_address(reply.notice))

    def _note_clock(self) -> None:
        self._store.meta_set("clock", self._clock.save())
        if self._clock.is_skewed() and not self._skew_told:
            self._skew_told = True
            self._survive(
                "clock_skew",
                UnavailableError(f"the clock is {self._clock.skew_us() / 86_400e6:+.1f} days off"),
            )
            with self._store.transaction() as cursor:
                self._uplink.count_dropped(cursor, f"clock_skew_{int(ErrorCode.CLOCK_SKEW)}")

    # -- the tunnel --------------------------------------------------------------------------

    def _start_tunnel(self) -> None:
        if self._tunnel is not None or self._config.tunnel == "off":
            return
        kind = Tunnel if self._config.tunnel == "websocket" else HttpUplink
        self._tunnel = kind(
            self._config.server_url,
            lambda: self._token,
            self._identity.device,
            self._uplink,
            self._check_soon,
            AGENT_NAME,
            ssl_context=self._ssl,
            on_refused=self._tunnel_refused,
        )
        self._tunnel.start()

    def _tunnel_refused(self, code: int, text: str) -> None:
        if code == ErrorCode.UNAUTHENTICATED:
            self._survive("tunnel_refused", UnavailableError(text))
            self._needs_enrolment = True
            self._check_soon()

    def flush(self, timeout: float) -> bool:
        """Send everything now and wait for it; says whether all was acknowledged."""
        return self._tunnel is not None and self._tunnel.flush(timeout)

    def leave(self) -> None:
        """Close the tunnel; the next step opens it again."""
        if self._tunnel is not None:
            self._tunnel.close()
            self._tunnel = None

    def come_back(self) -> None:
        """Check at the next step: the network is there again."""
        with self._lock:
            self._next = 0.0
        self._retry_s = 1.0

    def close(self) -> None:
        """Close the tunnel and all connections."""
        self.leave()
        self.link.close()
