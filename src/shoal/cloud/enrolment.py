"""Letting devices in: proof of their key, permission to enrol, their cohort set.

A device shows that it has its private key by a signature. A new device, or a new
key for a known id, also needs an operator's one-time token (or open enrolment,
for new ids only). A known device with its own key gets a new token at any time,
if its request is not a recording of an earlier one (Walle sheet A.5, A.9).
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import sqlalchemy as sa
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shoal.cloud import store as tables
from shoal.cloud.cohorts import CohortBook
from shoal.cloud.fleet import Fleet
from shoal.cloud.predicates import attributes_of
from shoal.cloud.problems import Problem
from shoal.cloud.store import Store
from shoal.core.errors import InputError, LimitError
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import EnrolRequest, enrolment_message
from shoal.wire.limits import DEFAULT_LIMITS, WireLimits
from shoal.wire.profile import TaskProfile

__all__ = ["Enrolment", "check_profile"]

_DAY_US: Final = 86_400_000_000
_MAX_HELD: Final = 4096


def check_profile(profile: TaskProfile, limits: WireLimits = DEFAULT_LIMITS) -> None:
    """Refuse a profile that predicates and the database could not digest.

    Raises
    ------
    InputError
        The device id has not 16 bytes, or an attribute is not a plain value.
    LimitError
        Strings too long, nesting too deep, or too many held tasks.
    """
    if len(profile.device) != 16:
        raise InputError("a device id has 16 bytes", field="device", value=profile.device)
    if len(profile.held) > _MAX_HELD:
        raise LimitError("too many held tasks", field="held", value=len(profile.held))
    texts = [profile.agent, profile.python, profile.platform, *profile.capabilities]
    texts += [held.task for held in profile.held] + [held.state for held in profile.held]
    _check_value(texts, "profile", limits, 0)
    _check_value(profile.engines, "engines", limits, 0)
    _check_value(profile.attributes, "attributes", limits, 0)


def _check_value(value: Any, field: str, limits: WireLimits, depth: int) -> None:
    if depth > limits.nesting:
        raise LimitError("nested too deeply", field=field, value=depth)
    if isinstance(value, str):
        if len(value) > limits.string:
            raise LimitError("string too long", field=field, value=value)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise InputError("keys are strings", field=field, value=key)
            _check_value(key, field, limits, depth + 1)
            _check_value(item, f"{field}.{key}"[:80], limits, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_value(item, field, limits, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError("must be finite", field=field, value=value)
    elif isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise InputError("does not fit 64 bits", field=field, value=value)
    elif value is not None:
        raise InputError("not a plain value", field=field, value=value)


class Enrolment:
    """Decides who becomes, or stays, a device of this cloud.

    Parameters
    ----------
    store, cohorts, fleet
        Parts of the cloud.
    is_open : bool
        Whether a new device needs no operator's token.
    limits : WireLimits
        Bounds on what a profile may say.
    """

    def __init__(
        self,
        store: Store,
        cohorts: CohortBook,
        fleet: Fleet,
        *,
        is_open: bool = False,
        limits: WireLimits = DEFAULT_LIMITS,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._store = store
        self._cohorts = cohorts
        self._fleet = fleet
        self._open = is_open
        self._limits = limits
        self._clock = clock

    def new_token(self, *, uses: int = 1, ttl_s: float = 86_400.0, note: str = "") -> str:
        """Make an enrolment token for ``uses`` devices; only its hash is kept.

        Raises
        ------
        InputError
            ``uses`` or ``ttl_s`` is not positive.
        """
        if uses < 1 or not ttl_s > 0:
            raise InputError("must be positive", field="uses" if uses < 1 else "ttl_s")
        token = secrets.token_urlsafe(24)
        now = self._clock()
        with self._store.begin() as connection:
            connection.execute(
                sa.insert(tables.enrolment_token).values(
                    token_hash=hashlib.sha256(token.encode()).digest(),
                    note=note,
                    created_us=now,
                    expires_us=now + int(ttl_s * 1e6),
                    uses_left=uses,
                )
            )
        return token

    def enrol(self, request: EnrolRequest) -> int:
        """Admit a device and return its cohort set.

        Raises
        ------
        Problem
            UNAUTHENTICATED (no proof, no permission), DEVICE_REVOKED, CLOCK_SKEW
            (``ts_us`` did not rise, or lies more than a day ahead).
        InputError, LimitError
            See :func:`check_profile`.
        """
        profile = request.profile
        check_profile(profile, self._limits)
        self._check_proof(request)
        now = self._clock()
        with self._store.begin() as connection:
            known = connection.execute(
                sa.select(tables.device).where(tables.device.c.id == profile.device)
            ).one_or_none()
            if known is not None and known.revoked_us is not None:
                raise Problem(ErrorCode.DEVICE_REVOKED, "this device is locked out")
            enrolled_us = request.ts_us
            if known is not None and known.public_key == request.public_key:
                if not known.enrolled_us < request.ts_us <= now + _DAY_US:
                    raise Problem(
                        ErrorCode.CLOCK_SKEW,
                        "ts_us must rise with every enrolment and not lie a day ahead",
                        hint="estimate the server's time from its Date header and try again",
                    )
            else:
                self._spend(connection, request.token, known is not None, now)
                # A device whose clock runs years ahead must be able to come back.
                if request.ts_us > now + _DAY_US:
                    enrolled_us = now
            cohort_set = self._cohorts.cohort_set(attributes_of(profile), device=profile.device)
            self._fleet.write_profile(
                connection,
                profile,
                cohort_set,
                now,
                public_key=request.public_key,
                enrolled_us=enrolled_us,
            )
        return cohort_set

    def update(self, profile: TaskProfile) -> int:
        """Take the full profile of an authenticated device and return its cohort set.

        Raises
        ------
        Problem
            UNAUTHENTICATED: the database does not know the device (it was restored).
        InputError, LimitError
            See :func:`check_profile`.
        """
        check_profile(profile, self._limits)
        with self._store.begin() as connection:
            cohort_set = self._cohorts.cohort_set(attributes_of(profile), device=profile.device)
            if not self._fleet.write_profile(connection, profile, cohort_set, self._clock()):
                raise Problem(
                    ErrorCode.UNAUTHENTICATED, "this device is not known here", hint="enrol again"
                )
        return cohort_set

    @staticmethod
    def _check_proof(request: EnrolRequest) -> None:
        if len(request.public_key) != 32 or len(request.token) > 256:
            raise InputError("a public key has 32 bytes, a token at most 256", field="public_key")
        if not 0 <= request.ts_us < 1 << 63:
            raise InputError("out of range", field="ts_us", value=request.ts_us)
        message = enrolment_message(
            request.token, request.public_key, request.profile.device, request.ts_us
        )
        try:
            Ed25519PublicKey.from_public_bytes(request.public_key).verify(request.proof, message)
        except (InvalidSignature, ValueError) as error:
            raise Problem(
                ErrorCode.UNAUTHENTICATED, "the proof is not a signature of this request"
            ) from error

    def _spend(self, connection: sa.Connection, token: str, known: bool, now: int) -> None:
        if not token:
            if self._open and not known:
                return
            raise Problem(
                ErrorCode.UNAUTHENTICATED,
                "a known device with another key needs an enrolment token"
                if known
                else "enrolment needs an operator's token",
                hint="ask the operator for a token (shoal fleet token)",
            )
        table = tables.enrolment_token
        done = connection.execute(
            sa.update(table)
            .where(table.c.token_hash == hashlib.sha256(token.encode()).digest())
            .where(table.c.uses_left > 0, table.c.expires_us > now)
            .values(uses_left=table.c.uses_left - 1)
        )
        # A device that brings a stale token where none is needed is let in all the same.
        if done.rowcount == 0 and not (self._open and not known):
            raise Problem(
                ErrorCode.UNAUTHENTICATED, "the enrolment token is unknown, used up or expired"
            )
