"""The plan table: what every device should hold, answered in a few microseconds.

For each cohort set the table holds the gray releases that touch it, in fixed
order, and for each mask of "in / not in" the digest of the desired set. A check
costs one bucket hash per gray release and two dictionary look-ups; no database,
no state per device (Walle sheet A.4).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

import mmh3
import msgspec

from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.buckets import BUCKETS
from shoal.wire.codes import ErrorCode
from shoal.wire.notices import DesiredTask
from shoal.wire.profile import PROTOCOL, ProfileHeader, parse_profile_header, profile_digest

__all__ = [
    "MAX_GRAY",
    "SEND_PROFILE",
    "CohortPlan",
    "GrayEntry",
    "NoticeMaker",
    "PlanTable",
    "UnsupportedProtocolError",
    "desired_tasks",
]

#: Gray releases that one cohort set may have at once: there may be 2**MAX_GRAY masks.
MAX_GRAY: Final = 12

#: The address that tells a device to send its full profile (its cohort is unknown).
SEND_PROFILE: Final = (0, 0, 0)

#: Longest ``Shoal-Profile`` header that is looked at at all (Walle sheet 6.1).
_MAX_HEADER = 256


class UnsupportedProtocolError(InputError):
    """The device speaks a protocol that this cloud does not (or no longer) know."""

    wire_code = ErrorCode.UNSUPPORTED_PROTOCOL


class GrayEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One release that only part of a cohort set is in.

    Attributes
    ----------
    release_id : int
        The release.
    salt : str
        Salt of its buckets.
    threshold : int
        In ``[0, 10,000]``: a device is in iff ``bucket(salt, device) < threshold``.
    desired : DesiredTask or None
        What devices inside hold for this task instead of the base's entry;
        version 0 means they hold none; ``None`` changes nothing.
    sticky : bool
        A device that has installed this release stays in when the threshold falls.
    """

    release_id: int
    salt: str
    threshold: int
    desired: DesiredTask | None = None
    sticky: bool = False


class CohortPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What the devices of one cohort set should hold.

    Attributes
    ----------
    cohort : int
        Id of the cohort set, at least 1.
    epoch : int
        Global epoch of the last change that concerns this set.
    base : list of DesiredTask
        For devices that are in no gray release.
    gray : list of GrayEntry
        Bit ``j`` of a mask stands for ``gray[j]``; at most :data:`MAX_GRAY`.
    overrides : dict
        Masks of single devices by id (lower-case hex): beta devices.
    """

    cohort: int
    epoch: int
    base: list[DesiredTask] = []
    gray: list[GrayEntry] = []
    overrides: dict[str, int] = {}


#: Makes the encoded ``ReleaseNotice`` of (plan, mask, desired tasks) and says when it
#: expires (microseconds since 1970, UTC).
NoticeMaker = Callable[[CohortPlan, int, list[DesiredTask]], tuple[bytes, int]]


def desired_tasks(plan: CohortPlan, mask: int) -> list[DesiredTask]:
    """Return the desired set of ``mask``, sorted by task name.

    Where two gray releases speak of one task, the later entry counts.
    """
    wanted = {desired.task: desired for desired in plan.base}
    for bit, entry in enumerate(plan.gray):
        if mask >> bit & 1 and entry.desired is not None:
            wanted[entry.desired.task] = entry.desired
    return [wanted[name] for name in sorted(wanted)]


class _Compiled:
    """A plan with its salts encoded and its digests filled in as masks turn up."""

    __slots__ = ("cohort", "digests", "force", "gray", "overrides", "plan", "sticky")

    def __init__(self, plan: CohortPlan) -> None:
        self.plan = plan
        self.cohort = plan.cohort
        self.gray = tuple(
            (1 << bit, f"{entry.salt}:", entry.threshold) for bit, entry in enumerate(plan.gray)
        )
        self.overrides = dict(plan.overrides)
        self.sticky = any(entry.sticky for entry in plan.gray)
        self.digests: dict[int, str] = {}
        #: Masks whose set has a forced task, which asks even quiet devices to try again.
        self.force: dict[int, bool] = {}

    def mask(self, device: str) -> int:
        override = self.overrides.get(device)
        if override is not None:
            return override
        mask = 0
        for bit, salt, threshold in self.gray:
            if mmh3.hash(salt + device, 0, signed=False) % BUCKETS < threshold:
                mask |= bit
        return mask

    def digest(self, mask: int) -> str:
        tasks = desired_tasks(self.plan, mask)
        self.force[mask] = any(task.force for task in tasks)
        digest = profile_digest((task.task, task.version) for task in tasks if task.version > 0)
        self.digests[mask] = digest  # after `force`: readers look at the digest first
        return digest


class _Table:
    """One immutable generation of plans; swapped as a whole."""

    __slots__ = ("built_us", "by_cohort", "by_text", "epoch")

    def __init__(self, plans: Iterable[CohortPlan], epoch: int) -> None:
        self.epoch = epoch
        self.built_us = time.time_ns() // 1000
        self.by_cohort: dict[int, _Compiled] = {}
        for plan in plans:
            _check_plan(plan)
            if plan.cohort in self.by_cohort:
                raise InputError("two plans for one cohort set", field="cohort", value=plan.cohort)
            self.by_cohort[plan.cohort] = _Compiled(plan)
        # Keyed by the text in the header too, which saves a parse on the hot path.
        self.by_text = {_base36(cohort): plan for cohort, plan in self.by_cohort.items()}


def _base36(number: int) -> str:
    text = ""
    while number:
        number, rest = divmod(number, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[rest] + text
    return text or "0"


def _check_plan(plan: CohortPlan) -> None:
    if plan.cohort < 1:
        raise InputError("a cohort set's id is at least 1", field="cohort", value=plan.cohort)
    if len(plan.gray) > MAX_GRAY:
        raise LimitError(
            f"at most {MAX_GRAY} gray releases may touch one cohort set",
            field="gray",
            value=len(plan.gray),
            hint="finish or roll back a release of this cohort first",
        )
    for entry in plan.gray:
        if not 0 <= entry.threshold <= BUCKETS:
            raise InputError("must lie in [0, 10000]", field="threshold", value=entry.threshold)
    names = [task.task for task in plan.base]
    if len(names) != len(set(names)):
        raise InputError("a task appears twice in the base set", field="base", value=sorted(names))
    for device, mask in plan.overrides.items():
        if not 0 <= mask < 1 << len(plan.gray):
            raise InputError(f"mask of device {device} out of range", field="mask", value=mask)


class PlanTable:
    """Desired sets of all cohort sets, swapped whole, read without a lock.

    Parameters
    ----------
    make_notice : callable, optional
        Makes the bytes of a notice; needed by :meth:`notice` only.
    sticky : callable, optional
        Returns the ids of the releases that a device (hex) is held in although
        its bucket has left them. Asked only after a mismatch, and only for
        plans with sticky releases; its answer becomes an override.
    clock : callable, optional
        Microseconds since 1970 (UTC).
    """

    def __init__(
        self,
        make_notice: NoticeMaker | None = None,
        *,
        sticky: Callable[[str], Iterable[int]] | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._table = _Table((), 0)
        self._make_notice = make_notice
        self._sticky = sticky
        self._clock = clock
        self._notices: dict[tuple[int, int, int], tuple[bytes, int]] = {}
        self._lock = threading.Lock()

    @property
    def epoch(self) -> int:
        """Global epoch of the plans in force."""
        return self._table.epoch

    @property
    def built_us(self) -> int:
        """When the plans in force were put in, microseconds since 1970 (UTC)."""
        return self._table.built_us

    def cohorts(self) -> list[int]:
        """Return the ids of the cohort sets that have a plan."""
        return sorted(self._table.by_cohort)

    def has(self, cohort: int) -> bool:
        """Say whether a cohort set has a plan."""
        return cohort in self._table.by_cohort

    def plan(self, cohort: int) -> CohortPlan:
        """Return the plan of a cohort set; :class:`NotFoundError` if it has none."""
        compiled = self._table.by_cohort.get(cohort)
        if compiled is None:
            raise NotFoundError(f"no plan for cohort set {cohort}")
        return compiled.plan

    def check(
        self, header: ProfileHeader | str, device: str, cohort: int | None = None
    ) -> tuple[int, int, int] | None:
        """Compare what a device holds with what it should hold.

        Parameters
        ----------
        header : ProfileHeader or str
            The ``Shoal-Profile`` header.
        device : str
            The device id in lower-case hex (32 characters).
        cohort : int, optional
            The cohort set that the device's token names; a header that claims
            another one is answered like an unknown one.

        Returns
        -------
        tuple of (epoch, cohort, mask) or None
            ``None``: nothing to do. Else the address of the notice to pull;
            :data:`SEND_PROFILE` when the cohort set is unknown here.

        Raises
        ------
        LimitError, InputError
            The header is too long or malformed.
        UnsupportedProtocolError
            Another protocol than ours or the one before.
        """
        table = self._table
        if isinstance(header, str):
            parts = header.split(".", 4)
            compiled = table.by_text.get(parts[2]) if len(parts) == 4 else None
            if compiled is None or parts[0] != "1" or len(header) > _MAX_HEADER:
                return self._check_parsed(table, parse_profile_header(header), device, cohort)
            if cohort is not None and cohort != compiled.cohort:
                return SEND_PROFILE
            mask = compiled.mask(device)
            digest = compiled.digests.get(mask) or compiled.digest(mask)
            if digest == parts[3] and not compiled.force[mask] and parts[1].isalnum():
                return None
            header = parse_profile_header(header)
        return self._check_parsed(table, header, device, cohort)

    def _check_parsed(
        self, table: _Table, header: ProfileHeader, device: str, cohort: int | None
    ) -> tuple[int, int, int] | None:
        if not max(1, PROTOCOL - 1) <= header.protocol <= PROTOCOL:
            raise UnsupportedProtocolError(
                f"protocol {header.protocol} is not supported",
                field="protocol",
                value=header.protocol,
                hint=f"this cloud speaks protocol {PROTOCOL}",
            )
        compiled = table.by_cohort.get(header.cohort)
        if compiled is None or (cohort is not None and cohort != header.cohort):
            return SEND_PROFILE
        mask = compiled.mask(device)
        if self._settled(compiled, mask, header):
            return None
        if compiled.sticky and self._sticky is not None and device not in compiled.overrides:
            held = set(self._sticky(device))
            kept = mask
            for bit, entry in enumerate(compiled.plan.gray):
                if entry.sticky and entry.release_id in held:
                    kept |= 1 << bit
            if kept != mask:
                compiled.overrides[device] = mask = kept
                if self._settled(compiled, mask, header):
                    return None
        return compiled.plan.epoch, compiled.plan.cohort, mask

    @staticmethod
    def _settled(compiled: _Compiled, mask: int, header: ProfileHeader) -> bool:
        digest = compiled.digests.get(mask) or compiled.digest(mask)
        if digest != header.digest:
            return False
        return not compiled.force[mask] or header.epoch >= compiled.plan.epoch

    def address(self, cohort: int, device: str) -> tuple[int, int, int]:
        """Return the address of the notice that is meant for a device of ``cohort``.

        :data:`SEND_PROFILE` if the cohort set has no plan here.
        """
        compiled = self._table.by_cohort.get(cohort)
        if compiled is None:
            return SEND_PROFILE
        return compiled.plan.epoch, cohort, compiled.mask(device)

    def rebuild(self, plans: Iterable[CohortPlan], epoch: int) -> None:
        """Put new plans in force by one assignment; checks under way finish on the old ones.

        Parameters
        ----------
        plans : iterable of CohortPlan
            Every cohort set's plan; a set that is missing becomes unknown.
        epoch : int
            The global epoch, not lower than the one in force.

        Raises
        ------
        InputError
            A plan is inconsistent, or the epoch goes backwards; nothing changes.
        LimitError
            More than :data:`MAX_GRAY` gray releases in one plan.
        """
        table = _Table(plans, epoch)
        with self._lock:
            if epoch < self._table.epoch:
                raise InputError(
                    f"epoch goes backwards from {self._table.epoch}", field="epoch", value=epoch
                )
            self._table = table
            self._notices = {}

    def notice(self, epoch: int, cohort: int, mask: int) -> bytes:
        """Return the encoded ``ReleaseNotice`` at an address of the plans in force.

        It is made at the first call and again when half its life is over.

        Raises
        ------
        NotFoundError
            No such notice now: unknown cohort set, another epoch or an
            impossible mask.
        """
        table = self._table
        compiled = table.by_cohort.get(cohort)
        if (
            compiled is None
            or compiled.plan.epoch != epoch
            or not 0 <= mask < 1 << len(compiled.plan.gray)
        ):
            raise NotFoundError(f"no notice {epoch}.{cohort}.{mask} in force")
        if self._make_notice is None:
            raise NotFoundError("this plan table has no director, so it makes no notices")
        key = (epoch, cohort, mask)
        notices = self._notices
        now = self._clock()
        made = notices.get(key)
        if made is None or now >= made[1]:
            data, expires_us = self._make_notice(
                compiled.plan, mask, desired_tasks(compiled.plan, mask)
            )
            made = (data, now + (expires_us - now) // 2)
            notices[key] = made
        return made[0]
