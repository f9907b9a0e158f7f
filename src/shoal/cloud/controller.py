"""Carries releases through their states on the cloud's database.

The rules are in :mod:`shoal.cloud.releases`, the statistics in
:mod:`shoal.cloud.guardrails`; here they meet the store. Every change of a
release is one transaction with a check of ``lock_version`` and one row of
history (:mod:`shoal.cloud.transitions`). A controller that dies in the middle
leaves nothing half done: its leader row expires and the next one finds the
state as it was.
"""

from __future__ import annotations

import builtins
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from shoal.cloud.guardrails import ArmCount, Verdict
from shoal.cloud.observations import Observations
from shoal.cloud.plans import CohortPlan
from shoal.cloud.policy import ReleasePolicy
from shoal.cloud.reach import Forecast, fit_gamma, forecast
from shoal.cloud.release_fleet import ReleaseFleet
from shoal.cloud.release_plans import VIRTUAL_COHORT, ManagedRelease, build_plans
from shoal.cloud.release_status import describe, simulation_problem
from shoal.cloud.release_store import ReleaseStore
from shoal.cloud.releases import LIVE, TERMINAL, Command, Release
from shoal.cloud.store import Store
from shoal.cloud.transitions import Transitions
from shoal.core.errors import ConflictError, InputError, IntegrityError, NotFoundError
from shoal.wire.results import ResultBatch
from shoal.wire.simulation import SimulationReport, verify_simulation

__all__ = ["ReleaseController"]

_LEADER_TTL_US: Final = 15_000_000


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
        self._fleet = ReleaseFleet()
        self._observations = Observations(store)
        self._transitions = Transitions(store, self._rows, self._fleet, self._observations)
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
            cohort_id, name = self._fleet.find_cohort(connection, cohort)
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
            self._transitions.settle(connection, release_id, now)
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
            key = self._fleet.virtual_device_key(connection, report.device)
            if key is None:
                raise IntegrityError(
                    f"device {report.device.hex()} is not an enrolled virtual device"
                )
            verify_simulation(report, key)
            limits = self._rows.task_limits(connection, m.release.task, m.release.version)
            problem = simulation_problem(report, limits)
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
            epoch = self._transitions.settle(connection, release, now)
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
                self._transitions.settle(connection, release_id, now)
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
            self._transitions.settle(connection, release_id, now)
            m = self._rows.load(connection, release_id)
            if lock_version is not None and m.lock_version != lock_version:
                raise ConflictError(
                    f"release {release_id} was changed by someone else"
                    f" (it is at {m.lock_version}, not {lock_version})",
                    hint="look at it again and repeat the action",
                )
            evidence = self._transitions.evidence(connection, m)
            if command in (Command.ADVANCE, Command.RESUME) and (
                evidence["verdict"] == Verdict.WORSE
            ):
                raise ConflictError(
                    f"release {release_id}: a guardrail is worse than its limit",
                    hint="roll it back",
                )
            self._transitions.carry_out(
                connection,
                m,
                command,
                actor=actor,
                reason=reason,
                evidence=evidence,
                now_us=now,
                supersede=supersede,
            )
            self._transitions.settle(connection, release_id, now)
        self._changed(now, publish=self._store.epoch() != epoch)

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
            evidence = self._transitions.evidence(connection, m)
            eligible, exposed = self._fleet.exposure(connection, m)
            book = [other.release for other in self._rows.book(connection, m.release)]
            missing = self._fleet.missing_beta(connection, m)
        return describe(
            m,
            evidence,
            eligible=eligible,
            exposed=exposed,
            missing_beta=missing,
            in_the_way=next((r for r in book if r.id != release and r.state in LIVE), None),
            now_us=now,
        )

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
            eligible, _ = self._fleet.exposure(connection, m)
            requests, seconds = self._fleet.request_counts(connection, m.release.cohort, now)
        rates = fit_gamma(requests, seconds)
        since = -(now - m.step_us) / 1e6 if m.release.step else 0.0
        return forecast(
            rates, m.policy, eligible, share, first=max(1, m.release.step), start_s=since
        )

    def sticky_releases(self, device: str) -> builtins.list[int]:
        """Return the releases that a device (hex) has installed, for ``PlanTable(sticky=…)``."""
        with self._store.read() as connection:
            return self._fleet.sticky(connection, bytes.fromhex(device))

    def cohort_plans(self) -> builtins.list[CohortPlan]:
        """Build the plan of every cohort set from the releases as they stand."""
        with self._store.read() as connection:
            releases = self._rows.all(connection)
            named = {device for m in releases for device in m.policy.beta_devices}
            desired = self._rows.desired_tasks(connection)
            return build_plans(
                self._fleet.sets(connection),
                releases,
                lambda task, version: desired[task, version],
                cohort_epochs=self._fleet.cohort_epochs(connection),
                device_sets=self._fleet.device_sets(connection, named),
                virtual=self._fleet.virtual_cohort(connection),
            )

    # -- inside ----------------------------------------------------------------------

    def _watch(self, now_us: int) -> None:
        with self._store.read() as connection:
            releases = self._rows.all(connection)
            virtual = self._fleet.virtual_cohort(connection)
        self._observations.watch(releases, now_us, virtual)

    def _changed(self, now_us: int, *, publish: bool = True) -> None:
        self._watch(now_us)
        if publish:
            self._publish()


def _first_line(error: ValueError) -> str:
    from pydantic import ValidationError  # noqa: PLC0415 - only to word an error

    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error)
