"""From the releases of a fleet to the plan of every cohort set.

A pure function: the same releases give the same plans, whoever asks. Only
releases whose cohort is part of a set can appear in that set's plan, which is
why no device outside a cohort is ever offered its releases.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from shoal.cloud.plans import CohortPlan, GrayEntry
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.releases import TERMINAL, Release, ReleaseState, settled_version
from shoal.wire.buckets import bucket
from shoal.wire.notices import DesiredTask

__all__ = ["VIRTUAL_COHORT", "ManagedRelease", "build_plans"]

#: Devices of this cohort run the simulation test: they hold every task's newest open release.
VIRTUAL_COHORT = "virtual"

_PARTIAL = frozenset({ReleaseState.BETA, ReleaseState.GRAY, ReleaseState.PAUSED})
_WITHDRAWN = frozenset({ReleaseState.ROLLING_BACK, ReleaseState.ROLLED_BACK})


@dataclass(frozen=True, slots=True)
class ManagedRelease:
    """A release together with what the state machine does not look at."""

    release: Release
    policy: ReleasePolicy
    salt: str
    lock_version: int = 1
    created_us: int = 0
    started_us: int | None = None
    step_us: int = 0


def _withdrawn(releases: Iterable[Release]) -> set[tuple[str, int]]:
    """Versions that a cohort has rolled back and not released again since."""
    last: dict[tuple[str, int], Release] = {}
    for release in sorted(releases, key=lambda r: (r.epoch, r.id)):
        if release.state not in (ReleaseState.DRAFT, ReleaseState.SIMULATED, ReleaseState.ABORTED):
            last[release.task, release.version] = release
    return {key for key, release in last.items() if release.state in _WITHDRAWN}


def _virtual_plan(
    cohort: int,
    everything: list[Release],
    desired: Callable[[str, int], DesiredTask],
) -> CohortPlan:
    newest: dict[str, Release] = {}
    for release in everything:
        if release.state not in TERMINAL and release.state is not ReleaseState.ROLLING_BACK:
            present = newest.get(release.task)
            if present is None or release.version > present.version:
                newest[release.task] = release
    return CohortPlan(
        cohort=cohort,
        epoch=max((r.epoch for r in everything), default=0),
        base=[desired(task, newest[task].version) for task in sorted(newest)],
    )


def build_plans(
    sets: Mapping[int, Iterable[int]],
    releases: Iterable[ManagedRelease],
    desired: Callable[[str, int], DesiredTask],
    *,
    cohort_epochs: Mapping[int, int] | None = None,
    device_sets: Mapping[str, int] | None = None,
    virtual: int | None = None,
) -> list[CohortPlan]:
    """Build the plan of every cohort set.

    Parameters
    ----------
    sets : mapping of int to iterable of int
        Cohort set id to the ids of its cohorts.
    releases : iterable of ManagedRelease
        All releases, ended ones included.
    desired : callable
        Makes the desired task of (task, version).
    cohort_epochs : mapping of int to int, optional
        Epoch of the last change of each cohort.
    device_sets : mapping of str to int, optional
        Cohort set of each named beta device (id in hex).
    virtual : int, optional
        Id of the cohort of virtual devices.

    Returns
    -------
    list of CohortPlan
        One a set, by id. Per task and set: the highest settled version of its
        cohorts, without versions that one of them has rolled back; above it the
        gray releases of higher versions (or of any version where the cohorts
        hold none), in order of version, so that the newest one counts.
    """
    managed = list(releases)
    everything = [m.release for m in managed]
    by_cohort: dict[int, list[ManagedRelease]] = defaultdict(list)
    for m in managed:
        by_cohort[m.release.cohort].append(m)
    books: dict[tuple[int, str], list[Release]] = defaultdict(list)
    for release in everything:
        books[release.cohort, release.task].append(release)
    settled = {key: settled_version(book) for key, book in books.items()}
    withdrawn = {
        cohort: _withdrawn(m.release for m in group) for cohort, group in by_cohort.items()
    }
    named = device_sets or {}

    plans = []
    for number, members in sorted(sets.items()):
        cohorts = sorted(members)
        if virtual is not None and virtual in cohorts:
            plans.append(_virtual_plan(number, everything, desired))
            continue
        refused = set().union(*(withdrawn.get(cohort, set()) for cohort in cohorts))
        base: dict[str, int] = {}
        for (cohort, task), version in settled.items():
            if cohort in cohorts and version and (task, version) not in refused:
                base[task] = max(base.get(task, 0), version)
        inside = [m for cohort in cohorts for m in by_cohort.get(cohort, ())]
        gray = sorted(
            (
                m
                for m in inside
                if m.release.state in _PARTIAL
                and (m.release.task, m.release.version) not in refused
                and _counts_here(m.release, base, settled)
            ),
            key=lambda m: (m.release.task, m.release.version, m.release.id),
        )
        plans.append(
            CohortPlan(
                cohort=number,
                epoch=max(
                    [m.release.epoch for m in inside]
                    + [(cohort_epochs or {}).get(cohort, 0) for cohort in cohorts],
                    default=0,
                ),
                base=[desired(task, base[task]) for task in sorted(base)],
                gray=[
                    GrayEntry(
                        release_id=m.release.id,
                        salt=m.salt,
                        threshold=m.release.threshold,
                        desired=_forced(desired(m.release.task, m.release.version), m.policy),
                        sticky=m.policy.sticky,
                    )
                    for m in gray
                ],
                overrides=_overrides(number, gray, named),
            )
        )
    return plans


def _counts_here(
    release: Release, base: Mapping[str, int], settled: Mapping[tuple[int, str], int]
) -> bool:
    """Tell whether a partial release matters beside what other cohorts of the set hold.

    Its own cohort may release an older version on purpose; another cohort's newer
    version is not taken away by that.
    """
    held = base.get(release.task, 0)
    return release.version > held or held == settled.get((release.cohort, release.task), 0)


def _forced(task: DesiredTask, policy: ReleasePolicy) -> DesiredTask:
    if not policy.force:
        return task
    return DesiredTask(
        task=task.task,
        version=task.version,
        package=task.package,
        resources=task.resources,
        priority=task.priority,
        force=True,
    )


def _overrides(number: int, gray: list[ManagedRelease], named: Mapping[str, int]) -> dict[str, int]:
    masks: dict[str, int] = {}
    for bit, m in enumerate(gray):
        for device in m.policy.beta_devices:
            if named.get(device) != number:
                continue
            if device not in masks:
                masks[device] = sum(
                    1 << place
                    for place, other in enumerate(gray)
                    if bucket(other.salt, device) < other.release.threshold
                )
            masks[device] |= 1 << bit
    return masks
