"""Carries releases through their states on the cloud's database.

The rules are in :mod:`shoal.cloud.releases`, the statistics in
:mod:`shoal.cloud.guardrails`; here they meet the store. Every change of a
release is one transaction with a check of ``lock_version`` and one row of
history. A controller that dies in the middle leaves nothing half done: its
leader row expires and the next one finds the state as it was.
"""

from __future__ import annotations

import builtins
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from shoal.cloud.guardrails import ArmCount, Verdict
from shoal.cloud.observations import Observations
from shoal.cloud.plans import MAX_GRAY, CohortPlan
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.reach import Forecast, fit_gamma, forecast
from shoal.cloud.release_plans import VIRTUAL_COHORT, ManagedRelease, build_plans
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
from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.wire.results import ResultBatch
from shoal.wire.simulation import SimulationReport, verify_simulation

__all__ = ["ReleaseController"]

_LEADER_TTL_US: Final = 15_000_000
_ROUNDS: Final = 32  # automatic transitions of one release in one tick, at most
_AUTOMATIC: Final = "controller"


def _now_us() -> int:
    return time.time_ns() // 1000


class ReleaseController:
    """Creates releases, takes operators' orders, and moves releases by itself.

    Parameters
    ----------
    store : Store
        The cloud's database.
    publish : callable
        Called after a change that concerns devices is durable; it rebuilds the
        plan table from :meth:`cohort_plans`.
    holder : str, optional
        Name of this controller in the leader row; drawn at random if absent.
    clock : callable, optional
        Microseconds since 1970 (UTC), for operators' actions.
    """

    def __init__(
        self,
        store: Store,
        publish: Callable[[], None] = lambda: None,
        *,
        holder: str | None = None,
        clock: Callable[[], int] = _now_us,
    ) -> None:
        self._store = store
        self._rows = ReleaseStore(store)
        self._publish = publish
        self._holder = holder or f"controller-{secrets.token_hex(6)}"
        self._clock = clock
        self._observations = Observations(store)
        self._watch(clock())

    # -- operators ---------------------------------------------------------------

    def create(
        self,
        task: str,
        version: int,
        cohort: str | int,
        policy: ReleasePolicy | Mapping[str, Any] | None = None,
        actor: str = "operator",
        *,
        salt: str | None = None,
    ) -> int:
        """Make a draft; virtual devices are offered it at once, nobody else.

        Parameters
        ----------
        task, version : str, int
            A published version.
        cohort : str or int
            Name or id of the cohort that is to get it.
        policy : ReleasePolicy or mapping, optional
            The defaults if absent.
        actor : str
            Who asks, for the history.
        salt : str, optional
            Salt of the buckets; chosen when the release begins if absent.

        Returns
        -------
        int
            The release's id.

        Raises
        ------
        NotFoundError
            No such version or cohort.
        InputError
            The policy is wrong, or the cohort is that of virtual devices.
        """
        if not isinstance(policy, ReleasePolicy):
            try:
                policy = ReleasePolicy.model_validate(dict(policy or {}))
            except ValueError as error:
                raise InputError(_first_line(error), field="policy") from error
        now = self._clock()
        with self._store.begin() as connection:
            if not self._rows.has_version(connection, task, version):
                raise NotFoundError(f"no version {version} of task {task!r}")
            cohort_id, name = self._rows.find_cohort(connection, cohort)
            if name == VIRTUAL_COHORT:
                raise InputError("virtual devices get drafts by themselves", field="cohort")
            release = Release(
                id=0,
                task=task,
                version=version,
                cohort=cohort_id,
                steps=policy.steps,
                epoch=self._store.bump_epoch(connection),
            )
            release_id = self._rows.insert(
                connection, release, policy, salt or "", actor=actor, now_us=now
            )
            self._settle(connection, release_id, now)
        self._changed(now)
        return release_id

    def start(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
        supersede: bool = False,
    ) -> None:
        """Let a release begin as soon as its simulation and other releases allow.

        With ``supersede``, another release of the task that is in motion in the
        cohort ends here and now.
        """
        self._act(
            release, Command.START, actor, reason, lock_version=lock_version, supersede=supersede
        )

    def advance(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
    ) -> None:
        """Approve the next state although its guard does not hold yet.

        Raises
        ------
        ConflictError
            A guardrail is worse than its limit, or the state has no next one.
        """
        self._act(release, Command.ADVANCE, actor, reason, lock_version=lock_version)

    def override(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
        supersede: bool = False,
    ) -> None:
        """Skip straight to the whole cohort; the reason is kept for ever.

        Raises
        ------
        InputError
            No reason is given.
        """
        if not reason.strip():
            raise InputError("an override needs a reason", field="reason")
        self._act(
            release, Command.OVERRIDE, actor, reason,
            lock_version=lock_version, supersede=supersede,
        )  # fmt: skip

    def pause(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
    ) -> None:
        """Hold a gray release where it is; devices keep what they have."""
        self._act(release, Command.PAUSE, actor, reason, lock_version=lock_version)

    def resume(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
    ) -> None:
        """Go on after a pause; the stay in the step begins again."""
        self._act(release, Command.RESUME, actor, reason, lock_version=lock_version)

    def rollback(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
    ) -> None:
        """Send the cohort back to the version before (or to none, if there was none)."""
        self._act(release, Command.ROLLBACK, actor, reason, lock_version=lock_version)

    def abort(
        self,
        release: int,
        actor: str = "operator",
        reason: str = "",
        *,
        lock_version: int | None = None,
    ) -> None:
        """Give up a release before its first gray step."""
        self._act(release, Command.ABORT, actor, reason, lock_version=lock_version)

    # -- what devices tell ---------------------------------------------------------

    def record_simulation(
        self, release: int, report: SimulationReport, now_us: int | None = None
    ) -> bool:
        """Take the report of a virtual device about a draft.

        Parameters
        ----------
        release : int
            The release; 0 (in the report as well) means the newest draft of the
            version that it names, since a notice does not name releases.
        report : SimulationReport
        now_us : int, optional

        Returns
        -------
        bool
            Whether the simulation test passed: traces replayed, no failure, the
            task's own limits kept, outputs recorded.

        Raises
        ------
        InputError, IntegrityError
            The report speaks of another release, does not come from an enrolled
            virtual device, or is not signed by it.
        """
        now = self._clock() if now_us is None else now_us
        with self._store.begin() as connection:
            about = report.release == release
            if release == 0:
                release = self._rows.newest_draft(connection, report.task, report.version)
            m = self._rows.load(connection, release)
            found = (report.release, report.task, report.version)
            if not about or found[1:] != (m.release.task, m.release.version):
                raise InputError("report is about another release", field="report", value=found)
            key = self._rows.virtual_device_key(connection, report.device)
            if key is None:
                raise IntegrityError(
                    f"device {report.device.hex()} is not an enrolled virtual device"
                )
            verify_simulation(report, key)
            limits = self._rows.task_limits(connection, m.release.task, m.release.version)
            problem = _simulation_problem(report, limits)
            self._rows.add_event(
                connection,
                m.release.id,
                actor=f"device {report.device.hex()}",
                before=str(m.release.state),
                after=str(m.release.state),
                reason=problem or "simulation test passed",
                evidence={
                    "simulation": problem is None,
                    "traces": report.n_traces,
                    "runs": report.n_runs,
                    "failures": report.failures,
                    "max_wall_us": report.max_wall_us,
                    "max_peak_kb": report.max_peak_kb,
                    "outputs_sha256": report.outputs_sha256.hex(),
                    "message": report.message,
                },
                now_us=now,
            )
            epoch = self._settle(connection, release, now)
        self._changed(now, publish=epoch)
        return problem is None

    def on_results(self, device: bytes, batch: ResultBatch, now_us: int) -> None:
        """Count what a batch says about releases (see :class:`Observations`).

        Inside the write transaction that stores the batch, it is part of it.
        """
        self._observations.on_results(device, batch, now_us)

    #: The same under the name that the ingest side may use.
    observe = on_results

    def on_pull(self, device: bytes, task: str, version: int, now_us: int) -> None:
        """Note that a device fetches a version, for guardrails of kind ``no_report``."""
        self._observations.on_pull(device, task, version, now_us)

    def record_outcomes(
        self,
        release: int,
        outcomes: Mapping[str, ArmCount],
        *,
        arm: str = "new",
        now_us: int | None = None,
    ) -> None:
        """Add devices that were counted elsewhere, many at a time (the fleet simulation)."""
        now = self._clock() if now_us is None else now_us
        with self._store.begin() as connection:
            self._observations.add_counts(connection, release, arm, outcomes, now)

    # -- by itself -------------------------------------------------------------------

    def tick(self, now_us: int | None = None) -> bool:
        """Move every release that its facts call to move.

        Returns
        -------
        bool
            Whether this controller is the active one; another one's turn is not
            an error.
        """
        now = self._clock() if now_us is None else now_us
        if not self._store.acquire_leader("releases", self._holder, now, _LEADER_TTL_US):
            self._watch(now)
            return False
        epoch = self._store.epoch()
        with self._store.read() as connection:
            open_ids = self._rows.open_ids(connection)
        for release_id in open_ids:
            with self._store.begin() as connection:
                self._settle(connection, release_id, now)
        self._changed(now, publish=self._store.epoch() != epoch)
        return True

    def _act(
        self,
        release_id: int,
        command: Command,
        actor: str,
        reason: str,
        *,
        lock_version: int | None,
        supersede: bool = False,
    ) -> None:
        now = self._clock()
        epoch = self._store.epoch()
        with self._store.begin() as connection:
            self._settle(connection, release_id, now)
            m = self._rows.load(connection, release_id)
            if lock_version is not None and m.lock_version != lock_version:
                raise ConflictError(
                    f"release {release_id} was changed by someone else"
                    f" (it is at {m.lock_version}, not {lock_version})",
                    hint="look at it again and repeat the action",
                )
            evidence = self._evidence(connection, m)
            if command in (Command.ADVANCE, Command.RESUME) and (
                evidence["verdict"] == Verdict.WORSE
            ):
                raise ConflictError(
                    f"release {release_id}: a guardrail is worse than its limit",
                    hint="roll it back",
                )
            self._carry_out(
                connection,
                m,
                command,
                actor=actor,
                reason=reason,
                evidence=evidence,
                now_us=now,
                supersede=supersede,
            )
            self._settle(connection, release_id, now)
        self._changed(now, publish=self._store.epoch() != epoch)

    def _settle(self, connection: sa.Connection, release_id: int, now_us: int) -> bool:
        """Let one release move as its facts call for; tell whether that concerned devices."""
        concerned = False
        for _ in range(_ROUNDS):
            m = self._rows.load(connection, release_id)
            if m.release.state in TERMINAL:
                break
            if m.release.state not in (ReleaseState.DRAFT, ReleaseState.SIMULATED):
                self._observations.close_due(connection, m, now_us)
            evidence = self._evidence(connection, m)
            facts = self._facts(connection, m, evidence, now_us)
            book = [other.release for other in self._rows.book(connection, m.release)]
            blocked = any(r.id != release_id and r.state in LIVE for r in book)
            decision = decide(m.release, facts, blocked=blocked)
            if decision is None:
                break
            concerned |= self._carry_out(
                connection,
                m,
                decision.command,
                actor=_AUTOMATIC,
                reason=decision.reason,
                evidence=evidence,
                now_us=now_us,
            )
        return concerned

    def _carry_out(
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
            salt = self._rows.choose_salt(connection, m)
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
        sets = self._rows.sets(connection)
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

    def _evidence(self, connection: sa.Connection, m: ManagedRelease) -> dict[str, Any]:
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
                        and not self._rows.has_virtual_device(connection)
                    )
                )
            case ReleaseState.SIMULATED:
                rows = self._rows.book(connection, release)
                settled = settled_version(r.release for r in rows if r.release.id != release.id)
                facts["redundant"] = settled == release.version
                facts["ready"] = not self._rows.missing_beta(connection, m)
            case ReleaseState.BETA:
                facts["beta_passed"] = len(beta["passed"]) == len(policy.beta_devices)
                facts["beta_failed"] = (
                    bool(beta["failed"]) and policy.on_beta_failure == "roll_back"
                )
            case ReleaseState.ROLLING_BACK:
                left = self._rows.still_holding(connection, release)
                ever = self._rows.ever_installed(connection, release.id)
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

    # -- reading ---------------------------------------------------------------------

    def get(self, release: int) -> ManagedRelease:
        """Return a release; :class:`NotFoundError` if there is none."""
        with self._store.read() as connection:
            return self._rows.load(connection, release)

    def list(
        self, *, task: str | None = None, cohort: int | None = None, live: bool = False
    ) -> list[ManagedRelease]:
        """Return releases, newest first; with ``live``, those that may still change."""
        with self._store.read() as connection:
            found = self._rows.all(connection)
        return [
            m
            for m in reversed(found)
            if (task is None or m.release.task == task)
            and (cohort is None or m.release.cohort == cohort)
            and (not live or m.release.state not in TERMINAL)
        ]

    def history(self, release: int) -> builtins.list[dict[str, Any]]:
        """Return the append-only history of a release, oldest first."""
        with self._store.read() as connection:
            self._rows.load(connection, release)
            return self._rows.history(connection, release)

    def status(self, release: int, now_us: int | None = None) -> dict[str, Any]:
        """Return where a release stands and what it waits for (JSON-able).

        Keys: id, task, version, cohort, state, step, steps, threshold, epoch,
        previous, lock_version, dwell_s, eligible, exposed (devices inside each
        step), verdict, guardrails, beta (where named devices are being tried),
        waiting_for (a line or ``None``) and warnings (of the planner).
        """
        now = self._clock() if now_us is None else now_us
        with self._store.read() as connection:
            m = self._rows.load(connection, release)
            evidence = self._evidence(connection, m)
            eligible, exposed = self._rows.exposure(connection, m)
            book = [other.release for other in self._rows.book(connection, m.release)]
            missing = self._rows.missing_beta(connection, m)
        waiting = None
        state = m.release.state
        blocker = next((r for r in book if r.id != release and r.state in LIVE), None)
        if state is ReleaseState.DRAFT:
            waiting = "a passed simulation test"
        elif state is ReleaseState.SIMULATED and not m.release.started:
            waiting = "an operator to start it"
        elif state is ReleaseState.SIMULATED and missing:
            waiting = f"beta device {missing[0]} to enrol in the cohort"
        elif state is ReleaseState.SIMULATED and blocker:
            waiting = f"release {blocker.id} (version {blocker.version}, {blocker.state})"
        elif state is ReleaseState.BETA:
            waiting = "every beta device to run without failure"
        elif state is ReleaseState.GRAY:
            waiting = (
                "the minimum stay"
                if evidence["verdict"] == Verdict.SAFE
                else "a verdict of every guardrail"
            )
        elif state is ReleaseState.PAUSED:
            waiting = "an operator to resume it"
        return {
            "id": m.release.id,
            "task": m.release.task,
            "version": m.release.version,
            "cohort": m.release.cohort,
            "state": str(state),
            "step": m.release.step,
            "steps": [*m.policy.steps],
            "threshold": m.release.threshold,
            "epoch": m.release.epoch,
            "previous": m.release.previous,
            "lock_version": m.lock_version,
            "dwell_s": (now - m.step_us) / 1e6,
            "eligible": eligible,
            "exposed": exposed,
            **evidence,
            "waiting_for": waiting,
            "warnings": m.policy.feasibility(eligible, exposed=exposed if m.salt else None),
        }

    def feasibility(self, release: int) -> builtins.list[str]:
        """Return the planner's warnings for a release, by the devices that are enrolled now."""
        found: builtins.list[str] = self.status(release)["warnings"]
        return found

    def forecast(self, release: int, share: float = 0.95, *, now_us: int | None = None) -> Forecast:
        """Forecast when ``share`` of a release's cohort will know of it.

        Rests on how often the cohort's devices have talked to the cloud, on the
        steps still to come and on no guardrail stopping them. In a state that
        does not move by itself the forecast speaks as if it went on now.

        Raises
        ------
        InputError
            No device of the cohort has made a request yet.
        """
        now = self._clock() if now_us is None else now_us
        with self._store.read() as connection:
            m = self._rows.load(connection, release)
            eligible, _ = self._rows.exposure(connection, m)
            requests, seconds = self._rows.request_counts(connection, m.release.cohort, now)
        rates = fit_gamma(requests, seconds)
        since = -(now - m.step_us) / 1e6 if m.release.step else 0.0
        return forecast(
            rates, m.policy, eligible, share, first=max(1, m.release.step), start_s=since
        )

    def sticky_releases(self, device: str) -> builtins.list[int]:
        """Return the releases that a device (hex) has installed, for ``PlanTable(sticky=…)``."""
        with self._store.read() as connection:
            return self._rows.sticky(connection, bytes.fromhex(device))

    def cohort_plans(self) -> builtins.list[CohortPlan]:
        """Build the plan of every cohort set from the releases as they stand."""
        with self._store.read() as connection:
            releases = self._rows.all(connection)
            named = {device for m in releases for device in m.policy.beta_devices}
            desired = self._rows.desired_tasks(connection)
            return build_plans(
                self._rows.sets(connection),
                releases,
                lambda task, version: desired[task, version],
                cohort_epochs=self._rows.cohort_epochs(connection),
                device_sets=self._rows.device_sets(connection, named),
                virtual=self._rows.virtual_cohort(connection),
            )

    # -- inside ----------------------------------------------------------------------

    def _watch(self, now_us: int) -> None:
        with self._store.read() as connection:
            releases = self._rows.all(connection)
            virtual = self._rows.virtual_cohort(connection)
        self._observations.watch(releases, now_us, virtual)

    def _changed(self, now_us: int, *, publish: bool = True) -> None:
        self._watch(now_us)
        if publish:
            self._publish()


def _moved(change: Change) -> bool:
    return change.before.state is not change.after.state


def _first_line(error: ValueError) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - only to word an error

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error)


def _simulation_problem(report: SimulationReport, limits: Mapping[str, Any]) -> str | None:
    if report.n_traces < 1 or report.n_runs < 1:
        return "no trace was replayed, or none caused a run"
    if report.failures:
        return report.message or f"{report.failures} of {report.n_runs} runs failed"
    deadline_ms = limits.get("deadline_ms")
    if deadline_ms and report.max_wall_us > deadline_ms * 1000:
        return f"a run took {report.max_wall_us / 1000:.0f} ms, the limit is {deadline_ms} ms"
    memory_mb = limits.get("memory_mb")
    if memory_mb and report.max_peak_kb > memory_mb * 1024:
        return f"a run took {report.max_peak_kb} KB, the limit is {memory_mb} MB"
    return None
