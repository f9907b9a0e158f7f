"""One cloud: every part made, joined and kept going.

Nothing else composes the parts, and nothing here decides anything: rules live in
the parts, this file says who speaks to whom.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import sqlalchemy as sa

from shoal.cloud import store as tables
from shoal.cloud.blobs import BlobStore
from shoal.cloud.bus import Bus
from shoal.cloud.cohorts import Cohort, CohortBook
from shoal.cloud.config import CloudConfig
from shoal.cloud.controller import ReleaseController
from shoal.cloud.director import Director
from shoal.cloud.enrolment import Enrolment
from shoal.cloud.exclusive import ExclusiveFiles
from shoal.cloud.fleet import Fleet
from shoal.cloud.gateway import Gateway, GatewayParts
from shoal.cloud.images import ImageRepository
from shoal.cloud.ingest import Ingest
from shoal.cloud.middleware import ASGIApp, ReleaseMiddleware
from shoal.cloud.plans import PlanTable
from shoal.cloud.registry import Registry
from shoal.cloud.release_plans import VIRTUAL_COHORT
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenMint
from shoal.cloud.tunnel import TunnelParts, tunnel_app
from shoal.core.errors import InputError
from shoal.core.files import FolderLock
from shoal.wire.results import ResultBatch
from shoal.wire.simulation import SimulationReport

__all__ = ["EVERYONE", "Cloud"]

_log = logging.getLogger(__name__)

#: Cohort of all real devices; there from the first start on.
EVERYONE: Final = "everyone"

_REFRESH_US: Final = 3_600_000_000


class Cloud:
    """All parts of a cloud; made by :meth:`open`.

    Attributes
    ----------
    config, store, bus, blobs, images, registry, director, tokens, cohorts, plans,
    fleet, enrolment, exclusive, releases, ingest, gateway
        The parts.
    tunnel : TunnelServer
        The device tunnel (an ASGI websocket application).
    """

    def __init__(self, config: CloudConfig, *, recover: bool, clock: Callable[[], int]) -> None:
        folder = config.data_dir
        self.config = config
        self._clock = clock
        self._epoch_file = folder / "keys" / "director.epoch"
        self._publish_lock = threading.RLock()
        self._ticker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._refreshed_us = 0
        self._started_us = clock()
        #: Rounds of periodic work that failed, by error class.
        self.tick_errors: Counter[str] = Counter()
        self._holder = f"cloud-{secrets.token_hex(6)}"
        self._lock = FolderLock(folder, "shoal cloud")
        try:
            self.store = Store(config.resolved_database_url)
            try:
                self._assemble(folder, recover=recover)
            except BaseException:
                self.store.close()
                raise
        except BaseException:
            self._lock.close()
            raise

    def _assemble(self, folder: Path, *, recover: bool) -> None:
        config, store, clock = self.config, self.store, self._clock
        self.bus = Bus()
        self.director = Director(
            Director.open_key(folder / "keys" / "director.pem"),
            ttl_s=config.notice_ttl_s,
            base_url=config.public_url or "",
            pull_rate=config.pull_rate_limit,
            devices=self._devices_in,
            limits=config.limits,
            clock=clock,
        )
        self._check_epoch(recover)
        self.tokens = TokenMint.open(folder / "keys" / "tokens.json", ttl_s=config.token_ttl_s)
        self.blobs = BlobStore(folder / "blobs")
        self.images = ImageRepository(
            folder / "images", config.resolved_offline_keys_dir, clock=clock
        )
        self.images.init([self.director.public_key])
        self.registry = Registry(
            folder / "registry", self.blobs, self.images, store, limits=config.limits, clock=clock
        )
        self.cohorts = CohortBook(store)
        self.cohorts.define(EVERYONE, "!agent.virtual")
        self.cohorts.define(VIRTUAL_COHORT, "agent.virtual")
        self.fleet = Fleet(store)
        self.enrolment = Enrolment(
            store,
            self.cohorts,
            self.fleet,
            is_open=config.open_enrolment,
            limits=config.limits,
            clock=clock,
        )
        self.releases = ReleaseController(
            store, self.publish, holder=f"{self._holder}-releases", clock=clock
        )
        self.plans = PlanTable(
            self.director.notice, sticky=self.releases.sticky_releases, clock=clock
        )
        self.exclusive = ExclusiveFiles(
            store, BlobStore(folder / "exclusive"), self.director, self._epoch_of, clock=clock
        )
        self.ingest = Ingest(store, self._on_results, limits=config.limits)
        self.tunnel = tunnel_app(
            TunnelParts(
                ingest=self.ingest,
                verify=self.tokens.verify,
                revoked=lambda device: device in self.fleet.revoked,
                bus=self.bus,
                address=self.plans.address,
                seen=self.fleet.saw,
                limits=config.limits,
                clock=clock,
            )
        )
        self.gateway = Gateway(
            config,
            GatewayParts(
                tokens=self.tokens,
                plans=self.plans,
                fleet=self.fleet,
                enrolment=self.enrolment,
                files=self.blobs,
                metadata=self.images.metadata_folder,
                root=self.images.root_bytes,
                uplink=self.tunnel.uplink,
                simulation=self._take_simulation,
                exclusive=self.exclusive.grant,
                exclusive_file=self.exclusive.path,
                admitted=self._admitted,
                pulled=self._pulled,
            ),
            clock=clock,
        )
        self.publish()

    @classmethod
    def open(
        cls,
        config: CloudConfig,
        *,
        recover: bool = False,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> Self:
        """Open (and at the first start, make) the cloud in ``config.data_dir``.

        Parameters
        ----------
        config : CloudConfig
            Its settings.
        recover : bool
            Go on although the database is older than what was signed already (it
            was restored from a copy): epochs continue above the highest signed.
        clock : callable, optional
            Microseconds since 1970 (UTC).

        Raises
        ------
        ConflictError
            Another process has the folder; or the database lies behind and
            ``recover`` is off; or a newer shoal wrote it.
        UnavailableError
            The database cannot be opened.
        """
        return cls(config, recover=recover, clock=clock)

    # -- epochs and plans -------------------------------------------------------

    def _check_epoch(self, recover: bool) -> None:
        signed = self.director.signed_epoch(self._epoch_file)
        if recover and self.store.epoch() < signed:
            with self.store.begin():
                self.store.put("epoch", signed + 1)
                # Releases remember lower epochs than devices have seen already.
                self.store.put("epoch_floor", signed + 1)
        self.director.check_epoch(self.store.epoch(), self._epoch_file)

    def publish(self) -> None:
        """Put the plans of the present releases in force and tell the listeners.

        The epoch is noted durably before any device can see it.
        """
        with self._publish_lock:
            stored = self.store.epoch()
            floor = int(self.store.get("epoch_floor", 0))
            plans = [
                plan if plan.epoch >= floor else msgspec.structs.replace(plan, epoch=floor)
                for plan in self.releases.cohort_plans()
            ]
            # Another transaction may have come between the two reads.
            epoch = max([stored, *(plan.epoch for plan in plans)])
            self.director.check_epoch(epoch, self._epoch_file)
            before = {number: self.plans.plan(number).epoch for number in self.plans.cohorts()}
            self.plans.rebuild(plans, epoch)
            self._named = frozenset(name for plan in plans for name in plan.overrides)
            after = {plan.cohort: plan.epoch for plan in plans}
            # Sets that were retired count too: their devices are to send their profile.
            changed = sorted(
                number for number in before | after if before.get(number) != after.get(number)
            )
        self.bus.publish("epoch", {"epoch": epoch, "cohorts": changed})

    def define_cohort(self, name: str, predicate: str) -> Cohort:
        """Make or change a cohort and put the plans of its sets in force.

        Raises
        ------
        InputError
            See :meth:`CohortBook.define`; and the built-in cohorts stay as they are.
        """
        if name in (EVERYONE, VIRTUAL_COHORT):
            raise InputError("this cohort is built in", field="name", value=name)
        cohort = self.cohorts.define(name, predicate)
        self.publish()
        self.bus.publish("cohort", {"name": cohort.name, "epoch": cohort.epoch})
        return cohort

    def _epoch_of(self, cohort: int) -> int:
        return self.plans.plan(cohort).epoch if self.plans.has(cohort) else self.plans.epoch

    def _devices_in(self, cohort: int) -> int:
        query = sa.select(sa.func.count()).where(tables.device.c.cohort_set == cohort)
        with self.store.read() as connection:
            return int(connection.execute(query).scalar_one())

    # -- what devices do --------------------------------------------------------

    def _admitted(self, device: bytes, cohort: int) -> None:
        if not self.plans.has(cohort) or device.hex() in self._named:
            self.publish()
        self.bus.publish("fleet", {"device": device.hex(), "cohort": cohort})

    def _pulled(self, device: bytes, address: tuple[int, int, int]) -> None:
        _, cohort, mask = address
        if not self.plans.has(cohort):
            return
        now = self._clock()
        for bit, entry in enumerate(self.plans.plan(cohort).gray):
            if mask >> bit & 1 and entry.desired is not None and entry.desired.version > 0:
                self.releases.on_pull(device, entry.desired.task, entry.desired.version, now)

    def _on_results(self, device: bytes, batch: ResultBatch, now_us: int) -> None:
        """Take what a durable batch says; runs inside the transaction that stores it."""
        self.fleet.on_results(device, batch, now_us)
        self.releases.on_results(device, batch, now_us)
        self.bus.publish(
            "result",
            {
                "device": device.hex(),
                "results": len(batch.results),
                "features": len(batch.features),
                "runs": len(batch.runs),
                "installs": len(batch.installs),
            },
        )

    def _take_simulation(self, device: bytes, body: bytes) -> None:
        report = msgspec.msgpack.decode(body, type=SimulationReport)
        if report.device != device:
            raise InputError("the report speaks of another device", field="device")
        self.releases.record_simulation(report.release, report, self._clock())

    # -- periodic work ----------------------------------------------------------

    def tick(self, now_us: int | None = None) -> None:
        """Do one round of the periodic work.

        Releases move, the image metadata is signed again before it expires, the
        fleet's last-seen times are written, and another process's new epoch is
        picked up.
        """
        now = self._clock() if now_us is None else now_us
        self.fleet.flush()
        before = self.store.epoch()
        self.releases.tick(now)
        if now - self._refreshed_us >= _REFRESH_US:
            self.images.refresh(now)
            self._refreshed_us = now
        if self.store.epoch() != self.plans.epoch:
            self.cohorts.reload()
            self.fleet.reload()
            self.publish()
        if self.store.epoch() != before:
            self.bus.publish("release", {"epoch": self.store.epoch()})

    def start(self) -> None:
        """Do the periodic work in a thread, every ``config.tick_s`` seconds."""
        if self._ticker is not None:
            return
        self._stopping.clear()
        self._ticker = threading.Thread(target=self._keep_ticking, name="cloud-tick", daemon=True)
        self._ticker.start()

    def _keep_ticking(self) -> None:
        while not self._stopping.wait(self.config.tick_s):
            try:
                self.tick()
            except Exception as error:
                # One bad round must not end all rounds; it is counted and shown.
                self.tick_errors[type(error).__name__] += 1
                _log.exception("a round of the periodic work failed")

    def stop(self) -> None:
        """Stop the thread of :meth:`start`."""
        if self._ticker is not None:
            self._stopping.set()
            self._ticker.join(timeout=30)
            self._ticker = None

    # -- outside views ----------------------------------------------------------

    def middleware(self, app: ASGIApp) -> ReleaseMiddleware:
        """Wrap a business service, so that its ordinary requests carry the check."""
        return ReleaseMiddleware(app, self.gateway.check_headers)

    def health(self) -> tuple[int, str]:
        """Return HTTP status and JSON of the health check; ``stale`` without a database."""
        body: dict[str, Any] = {"status": "ok", "epoch": self.plans.epoch}
        status = 200
        try:
            body["behind"] = self.store.epoch() - self.plans.epoch
        except sa.exc.SQLAlchemyError as error:
            # Checks go on from memory; what is served may be old.
            body |= {"status": "stale", "reason": type(error).__name__}
            status = 503
        if self.tick_errors:
            body["tick_errors"] = sum(self.tick_errors.values())
        return status, json.dumps(body)

    def close(self) -> None:
        """Stop the periodic work and close everything."""
        self.stop()
        try:
            self.ingest.close()
            self.fleet.flush()
            self.registry.close()
        finally:
            self.store.close()
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
