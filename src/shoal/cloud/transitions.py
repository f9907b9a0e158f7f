"""Moves releases: facts from the store, the pure state machine, rows written back.

Every change is written inside the caller's transaction, with a check of each
row's ``lock_version`` and a row of history, so a process that dies in the
middle leaves nothing half done.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from shoal.cloud.guardrails import ArmCount, Verdict
from shoal.cloud.observations import Observations
from shoal.cloud.plans import MAX_GRAY
from shoal.cloud.release_fleet import ReleaseFleet
from shoal.cloud.release_plans import ManagedRelease
from shoal.cloud.release_store import ReleaseStore
from shoal.cloud.releases import (
    LIVE,
    TERMINAL,
    Change,
    Command,
    Facts,
    Release,
    ReleaseState,
    apply,
    decide,
    settled_version,
)
from shoal.cloud.store import Store
from shoal.core.errors import ConflictError

__all__ = ["Transitions"]

_ROUNDS: Final = 32  # automatic transitions of one release in one go, at most
_AUTOMATIC: Final = "controller"


class Transitions:
    """Carries releases from state to state on a store.

    Parameters
    ----------
    store : Store
    rows : ReleaseStore
    fleet : ReleaseFleet
    observations : Observations
    """

    def __init__(
        self, store: Store, rows: ReleaseStore, fleet: ReleaseFleet, observations: Observations
    ) -> None:
        self._store = store
        self._rows = rows
        self._fleet = fleet
        self._observations = observations

    def settle(self, connection: sa.Connection, release_id: int, now_us: int) -> bool:
        """Let one release move as its facts call for; tell whether that concerned devices."""
        concerned = False
        for _ in range(_ROUNDS):
            m = self._rows.load(connection, release_id)
            if m.release.state in TERMINAL:
                break
            if m.release.state not in (ReleaseState.DRAFT, ReleaseState.SIMULATED):
                self._observations.close_due(connection, m, now_us)
            evidence = self.evidence(connection, m)
            facts = self._facts(connection, m, evidence, now_us)
            book = [other.release for other in self._rows.book(connection, m.release)]
            blocked = any(r.id != release_id and r.state in LIVE for r in book)
            decision = decide(m.release, facts, blocked=blocked)
            if decision is None:
                break
            concerned |= self.carry_out(
                connection,
                m,
                decision.command,
                actor=_AUTOMATIC,
                reason=decision.reason,
                evidence=evidence,
                now_us=now_us,
            )
        return concerned

    def carry_out(
        self,
        connection: sa.Connection,
        m: ManagedRelease,
        command: Command,
        *,
        actor: str,
        reason: str,
        evidence: dict[str, Any],
        now_us: int,
        supersede: bool = False,
    ) -> bool:
        """Write what a command makes of the releases of its task in its cohort."""
        rows = self._rows.book(connection, m.release)
        locks = {row.release.id: row.lock_version for row in rows}
        book = [row.release for row in rows]
        changes = apply(
            book, m.release.id, command, epoch=self._store.epoch() + 1, supersede=supersede
        )
        if command in (Command.BEGIN, Command.OVERRIDE):
            self._make_room(connection, m.release)
        concerned = any(change.concerns_devices for change in changes)
        if concerned:
            self._store.bump_epoch(connection)
        salt = m.salt
        if not salt and any(c.after.id == m.release.id and c.after.state in LIVE for c in changes):
            salt = self._fleet.choose_salt(connection, m)
        for change in changes:
            own = change.after.id == m.release.id
            self._rows.write(
                connection,
                change,
                lock_version=locks[change.after.id],
                salt=salt if own else None,
                now_us=now_us,
            )
            if own or _moved(change):
                why = reason if own else f"by {command} of release {m.release.id}"
                self._rows.add_event(
                    connection,
                    change.after.id,
                    actor=actor,
                    before=str(change.before.state),
                    after=str(change.after.state),
                    reason=why or str(command),
                    evidence={
                        "command": str(command),
                        "step": change.after.step,
                        "threshold": change.after.threshold,
                        "epoch": change.after.epoch,
                        **(evidence if own else {}),
                    },
                    now_us=now_us,
                )
        return concerned

    def _make_room(self, connection: sa.Connection, release: Release) -> None:
        """Refuse a release that would make too many gray ones in one cohort set."""
        sets = self._fleet.sets(connection)
        cohorts = [
            m.release.cohort
            for m in self._rows.all(connection)
            if m.release.state in LIVE and m.release.id != release.id
        ]
        for members in sets.values():
            if release.cohort in members:
                inside = sum(cohort in members for cohort in cohorts)
                if inside >= MAX_GRAY:
                    raise ConflictError(
                        f"{inside} releases are in motion for devices of this cohort",
                        hint="finish or roll back one of them first",
                    )

    def evidence(self, connection: sa.Connection, m: ManagedRelease) -> dict[str, Any]:
        """Judge every guardrail on the devices counted so far."""
        counts = self._observations.counts(connection, m.release.id)
        readings = [
            m.policy.judge(
                guardrail,
                counts.get((guardrail.name, "new"), ArmCount()),
                counts.get((guardrail.name, "control"), ArmCount()),
            )
            for guardrail in m.policy.guardrails
        ]
        verdicts = {reading["verdict"] for reading in readings}
        if Verdict.WORSE in verdicts:
            verdict = Verdict.WORSE
        elif verdicts == {Verdict.SAFE}:
            verdict = Verdict.SAFE
        else:
            verdict = Verdict.UNDECIDED
        evidence: dict[str, Any] = {"verdict": str(verdict), "guardrails": readings}
        if m.policy.beta_devices and m.release.state is ReleaseState.BETA:
            passed, failed = self._observations.beta(connection, m)
            evidence["beta"] = {"passed": passed, "failed": failed}
        return evidence

    def _facts(
        self,
        connection: sa.Connection,
        m: ManagedRelease,
        evidence: dict[str, Any],
        now_us: int,
    ) -> Facts:
        release, policy = m.release, m.policy
        dwell_s = (now_us - m.step_us) / 1e6
        beta = evidence.get("beta", {"passed": [], "failed": []})
        facts: dict[str, Any] = {}
        match release.state:
            case ReleaseState.DRAFT:
                facts["simulated"] = (
                    policy.simulation == "off"
                    or self._rows.simulation_passed(connection, release.id)
                    or (
                        policy.simulation == "if_possible"
                        and not self._fleet.has_virtual_device(connection)
                    )
                )
            case ReleaseState.SIMULATED:
                rows = self._rows.book(connection, release)
                settled = settled_version(r.release for r in rows if r.release.id != release.id)
                facts["redundant"] = settled == release.version
                facts["ready"] = not self._fleet.missing_beta(connection, m)
            case ReleaseState.BETA:
                facts["beta_passed"] = len(beta["passed"]) == len(policy.beta_devices)
                facts["beta_failed"] = (
                    bool(beta["failed"]) and policy.on_beta_failure == "roll_back"
                )
            case ReleaseState.ROLLING_BACK:
                left = self._fleet.still_holding(connection, release)
                ever = self._fleet.ever_installed(connection, release.id)
                facts["reverted"] = (
                    left <= (1 - policy.rollback_target) * ever
                    or dwell_s >= policy.rollback_timeout_s
                )
            case _:
                pass
        observed = min((g["devices"] for g in evidence["guardrails"]), default=0)
        return Facts(
            verdict=Verdict(evidence["verdict"]),
            dwelt=dwell_s >= policy.min_dwell_s,
            overdue=dwell_s >= policy.max_dwell_s,
            strict=policy.on_inconclusive == "roll_back",
            enough_devices=observed >= policy.min_devices,
            **facts,
        )


def _moved(change: Change) -> bool:
    return change.before.state is not change.after.state
