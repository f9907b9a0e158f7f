"""The life of a release as a pure state machine.

``draft -> simulated -> beta -> gray(1..k) -> full``, and beside them paused,
rolling_back, rolled_back, superseded and aborted (Walle, OSDI 2022, section on
deployment; guards as in Walle sheet A.6). Nothing here reads a clock or a
database: :func:`decide` says what the facts call for, :func:`apply` what a
command makes of all releases of one task in one cohort. The controller runs
exactly these two functions, and the tests search all their states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from shoal.cloud.guardrails import Verdict
from shoal.cloud.policy import DEFAULT_STEPS, Guardrail, ReleasePolicy
from shoal.core.errors import ConflictError, NotFoundError
from shoal.wire.buckets import BUCKETS
from shoal.wire.simulation import SimulationReport

__all__ = [
    "DEFAULT_STEPS",
    "LIVE",
    "TERMINAL",
    "Change",
    "Command",
    "Decision",
    "Facts",
    "Guardrail",
    "Release",
    "ReleasePolicy",
    "ReleaseState",
    "SimulationReport",
    "apply",
    "decide",
    "settled_version",
]


class ReleaseState(StrEnum):
    """Where a release stands."""

    DRAFT = "draft"
    SIMULATED = "simulated"
    BETA = "beta"
    GRAY = "gray"
    PAUSED = "paused"
    FULL = "full"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"
    ABORTED = "aborted"


class Command(StrEnum):
    """What can happen to a release: the first group by operators, the second by facts."""

    START = "start"
    ADVANCE = "advance"
    OVERRIDE = "override"
    PAUSE = "pause"
    RESUME = "resume"
    ROLLBACK = "rollback"
    ABORT = "abort"

    SIMULATED = "simulated"
    BEGIN = "begin"
    BETA_PASSED = "beta_passed"
    SAFE = "safe"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    REVERTED = "reverted"


S = ReleaseState

#: In motion: at most one of them per task and cohort (also a database constraint).
LIVE: Final = frozenset({S.BETA, S.GRAY, S.PAUSED, S.ROLLING_BACK})
#: Part of the cohort, or all of it, should hold the version.
SERVING: Final = frozenset({S.BETA, S.GRAY, S.PAUSED, S.FULL})
#: Nothing can happen to it any more.
TERMINAL: Final = frozenset({S.ROLLED_BACK, S.SUPERSEDED, S.ABORTED})


@dataclass(frozen=True, slots=True)
class Release:
    """One version of a task on its way to one cohort.

    Attributes
    ----------
    id, task, version, cohort : int, str, int, int
    steps : tuple of int
        Thresholds of the gray steps, the last one 10,000.
    state : ReleaseState
    step : int
        Gray step, from 1; 0 before the first. Kept while paused.
    threshold : int
        Share of the cohort that should hold the version, in 1/10,000. Stays at
        10,000 for ever once the release was full.
    epoch : int
        Global epoch of the last change that concerns devices.
    previous : int
        Version that the cohort falls back to; 0: none.
    started : bool
        An operator has asked for it; it may still wait for another release.
    """

    id: int
    task: str
    version: int
    cohort: int
    steps: tuple[int, ...] = DEFAULT_STEPS
    state: ReleaseState = S.DRAFT
    step: int = 0
    threshold: int = 0
    epoch: int = 0
    previous: int = 0
    started: bool = False

    @property
    def was_full(self) -> bool:
        """Whether the release reached the whole cohort at some time."""
        return self.threshold == BUCKETS


@dataclass(frozen=True, slots=True)
class Change:
    """One release before and after; ``concerns_devices`` when desired sets change."""

    before: Release
    after: Release
    concerns_devices: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a release at one moment; all that guards may look at.

    Attributes
    ----------
    simulated : bool
        A simulation test passed, or none is required.
    redundant : bool
        The cohort holds the version already.
    ready : bool
        The named beta devices are enrolled and in the cohort.
    beta_passed, beta_failed : bool
        All named devices ran often enough without failure; one of them failed
        and the policy rolls back at that.
    verdict : Verdict
        Worst over all guardrails: worse if one is worse, safe if all are safe.
    dwelt, overdue : bool
        The minimum stay in the step is over; so is the maximum.
    strict : bool
        The policy rolls back what was not proven safe in time.
    enough_devices : bool
        The minimum number of devices was observed.
    reverted : bool
        Enough devices have left the version, or the time for it is up.
    """

    simulated: bool = False
    redundant: bool = False
    ready: bool = True
    beta_passed: bool = False
    beta_failed: bool = False
    verdict: Verdict = Verdict.UNDECIDED
    dwelt: bool = False
    overdue: bool = False
    strict: bool = False
    enough_devices: bool = False
    reverted: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """A command that the facts call for, and why."""

    command: Command
    reason: str


def settled_version(book: Iterable[Release]) -> int:
    """Return the version that a cohort holds apart from releases in motion; 0: none.

    It is the newest release that reached everyone and was not rolled back, so
    that rolling back a full release brings the one before it back.
    """
    newest = max(
        (r for r in book if r.was_full and r.state in (S.FULL, S.SUPERSEDED)),
        key=lambda r: r.epoch,
        default=None,
    )
    return newest.version if newest else 0


def decide(release: Release, facts: Facts, *, blocked: bool = False) -> Decision | None:
    """Say what should happen to a release by itself.

    Parameters
    ----------
    release : Release
    facts : Facts
    blocked : bool
        Another release of the task is in motion in the cohort.

    Returns
    -------
    Decision or None
        ``None``: wait.
    """
    state = release.state
    if state is S.DRAFT and facts.simulated:
        return Decision(Command.SIMULATED, "the simulation test is passed, or none is needed")
    if state is S.SIMULATED and release.started and facts.redundant:
        return Decision(Command.ABORT, "the cohort holds this version already")
    if state is S.SIMULATED and release.started and facts.ready and not blocked:
        return Decision(Command.BEGIN, "started, and no other release is in motion")
    if state in (S.GRAY, S.PAUSED, S.FULL) and facts.verdict is Verdict.WORSE:
        return Decision(Command.WORSE, "a guardrail is worse than its limit")
    if state is S.BETA:
        if facts.beta_failed:
            return Decision(Command.WORSE, "a beta device failed")
        if facts.beta_passed:
            return Decision(Command.BETA_PASSED, "every beta device ran without failure")
    if state is S.GRAY:
        if facts.verdict is Verdict.SAFE and facts.dwelt and facts.enough_devices:
            return Decision(Command.SAFE, "all guardrails are safe")
        if facts.overdue and facts.strict:
            return Decision(Command.WORSE, "not proven safe within the longest stay")
        if facts.overdue:
            return Decision(Command.INCONCLUSIVE, "no verdict within the longest stay")
    if state is S.ROLLING_BACK and facts.reverted:
        return Decision(Command.REVERTED, "devices have left the version, or time is up")
    return None


_ALLOWED: Final[dict[Command, frozenset[ReleaseState]]] = {
    Command.START: frozenset({S.DRAFT, S.SIMULATED}),
    Command.ADVANCE: frozenset({S.DRAFT, S.BETA, S.GRAY}),
    Command.OVERRIDE: frozenset({S.DRAFT, S.SIMULATED, S.BETA, S.GRAY, S.PAUSED}),
    Command.PAUSE: frozenset({S.GRAY}),
    Command.RESUME: frozenset({S.PAUSED}),
    Command.ROLLBACK: frozenset({S.BETA, S.GRAY, S.PAUSED, S.FULL}),
    Command.ABORT: frozenset({S.DRAFT, S.SIMULATED, S.BETA}),
    Command.SIMULATED: frozenset({S.DRAFT}),
    Command.BEGIN: frozenset({S.SIMULATED}),
    Command.BETA_PASSED: frozenset({S.BETA}),
    Command.SAFE: frozenset({S.GRAY}),
    Command.WORSE: frozenset({S.BETA, S.GRAY, S.PAUSED, S.FULL}),
    Command.INCONCLUSIVE: frozenset({S.GRAY}),
    Command.REVERTED: frozenset({S.ROLLING_BACK}),
}


def _clear_way(
    book: Sequence[Release], release: Release, *, supersede: bool, epoch: int
) -> list[Change]:
    """End what stands in the way of ``release``; raise when it may not be ended."""
    changes = []
    for other in book:
        if other.id == release.id or other.state not in LIVE:
            continue
        if not supersede:
            raise ConflictError(
                f"release {other.id} of {other.task!r} version {other.version}"
                f" is {other.state} in this cohort",
                hint="wait for it, roll it back, or supersede it",
            )
        if other.state is S.ROLLING_BACK:
            # Its devices have been told to leave; the newer release closes it early.
            changes.append(Change(other, replace(other, state=S.ROLLED_BACK), False))
        else:
            changes.append(Change(other, replace(other, state=S.SUPERSEDED, epoch=epoch), True))
    return changes


def _reach(release: Release, step: int, book: Sequence[Release], epoch: int) -> list[Change]:
    """Bring ``release`` to gray step ``step``, or to full where that is the last step."""
    threshold = release.steps[step - 1]
    if threshold < BUCKETS:
        after = replace(release, state=S.GRAY, step=step, threshold=threshold, epoch=epoch)
        return [Change(release, after, True)]
    after = replace(
        release,
        state=S.FULL,
        step=step,
        threshold=BUCKETS,
        epoch=epoch,
        previous=settled_version(r for r in book if r.id != release.id),
    )
    older = [
        Change(other, replace(other, state=S.SUPERSEDED), True)
        for other in book
        if other.id != release.id and other.state is S.FULL
    ]
    return [*older, Change(release, after, True)]


def apply(
    book: Sequence[Release],
    release_id: int,
    command: Command,
    *,
    epoch: int,
    supersede: bool = False,
) -> list[Change]:
    """Carry out a command on one release of a task in a cohort.

    Parameters
    ----------
    book : sequence of Release
        All releases of the task in the cohort, ended ones included.
    release_id : int
    command : Command
    epoch : int
        The epoch that a change that concerns devices gets: the global one plus
        one.
    supersede : bool
        For ``START``, ``BEGIN`` and ``OVERRIDE``: end another release of the
        task that is in motion instead of waiting for it.

    Returns
    -------
    list of Change
        In the order in which they must be written (what makes way comes first).

    Raises
    ------
    NotFoundError
        No such release in the book.
    ConflictError
        The command does not fit the release's state, or another release is in
        the way.
    """
    release = next((r for r in book if r.id == release_id), None)
    if release is None:
        raise NotFoundError(f"no release {release_id}")
    if release.state not in _ALLOWED[command]:
        allowed = ", ".join(sorted(_ALLOWED[command]))
        raise ConflictError(
            f"release {release_id} is {release.state}: cannot {command.replace('_', ' ')}",
            hint=f"possible in: {allowed}",
        )
    match command:
        case Command.START:
            changes = _clear_way(book, release, supersede=True, epoch=epoch) if supersede else []
            return [*changes, Change(release, replace(release, started=True), False)]
        case Command.SIMULATED:
            return [Change(release, replace(release, state=S.SIMULATED), False)]
        case Command.BEGIN | Command.OVERRIDE:
            others = [r for r in book if r.id != release_id]
            settled = settled_version(others)
            if settled == release.version:
                raise ConflictError(
                    f"the cohort holds {release.task!r} version {release.version} already"
                )
            changes = (
                []
                if release.state in LIVE
                else _clear_way(book, release, supersede=supersede, epoch=epoch)
            )
            if command is Command.OVERRIDE:
                release = replace(release, started=True)
                return [*changes, *_reach(release, len(release.steps), book, epoch)]
            after = replace(release, state=S.BETA, previous=settled, epoch=epoch, started=True)
            return [*changes, Change(release, after, True)]
        case Command.BETA_PASSED:
            return _reach(release, 1, book, epoch)
        case Command.SAFE | Command.ADVANCE:
            if release.state is S.DRAFT:  # an operator waives the simulation test
                return [Change(release, replace(release, state=S.SIMULATED), False)]
            return _reach(release, release.step + 1, book, epoch)
        case Command.PAUSE | Command.INCONCLUSIVE:
            return [Change(release, replace(release, state=S.PAUSED), False)]
        case Command.RESUME:
            return [Change(release, replace(release, state=S.GRAY), False)]
        case Command.ROLLBACK | Command.WORSE:
            changes = []
            if release.state is S.FULL:
                # It was not in motion, so a newer one may be: that one was built
                # on this version and waits for nobody, hence it ends as well.
                changes = _clear_way(book, release, supersede=True, epoch=epoch)
            rest = [r for r in book if r.id != release_id]
            after = replace(
                release,
                state=S.ROLLING_BACK,
                epoch=epoch,
                previous=settled_version(rest),
            )
            return [*changes, Change(release, after, True)]
        case Command.REVERTED:
            return [Change(release, replace(release, state=S.ROLLED_BACK), False)]
        case Command.ABORT:
            # Virtual devices hold drafts too, so this concerns devices in any state.
            return [Change(release, replace(release, state=S.ABORTED, epoch=epoch), True)]
