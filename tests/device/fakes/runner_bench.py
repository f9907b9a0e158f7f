"""A runner on a real store, log and uplink, with a pool whose tasks are Python functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import msgspec

from shoal.device.container.requests import RunReply, RunRequest, TaskCode
from shoal.device.jobs import LogView
from shoal.device.outbox import RecordKind
from shoal.device.packages import InstalledTask
from shoal.device.runner import TaskRunner
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureStore
from shoal.device.stream.log import EventLog
from shoal.device.uplink import Uplink
from shoal.wire.manifest import InputSpec, OutputSpec, TaskManifest, TriggerSpec
from shoal.wire.results import FeatureRecord, ResultRecord, RunSummary

DEVICE = bytes(range(16))
ENTER, EXPOSE, CLICK, EXIT = 1, 3, 4, 5

Task = Callable[[dict[str, Any], RunRequest], Any]


class FakePool:
    """Runs a function on (state, request); what it returns is emitted as ``seen``.

    A raised ``RunFailed`` is the outcome; ``held`` keeps replies back until ``release``.
    """

    backend, sandbox_level = "fake", 0

    def __init__(self, task: Task) -> None:
        self.task = task
        self.requests: list[RunRequest] = []
        self.held: list[tuple[Future[RunReply], RunReply]] | None = None

    def submit(self, request: RunRequest) -> Future[RunReply]:
        self.requests.append(request)
        state = {} if request.state is None else msgspec.msgpack.decode(request.state)
        try:
            made = self.task(state, request)
        except RunFailed as failure:
            reply = RunReply(request.run, failure.outcome, message=failure.text, backend="fake")
        else:
            features = state.pop("_features", [])
            reply = RunReply(
                request.run,
                0,
                emits=[] if made is None else [("seen", made, request.now_us)],
                features=features,
                state=msgspec.msgpack.encode(state) if state else None,
                backend="fake",
            )
        future: Future[RunReply] = Future()
        if self.held is None:
            future.set_result(reply)
        else:
            self.held.append((future, reply))
        return future

    def release(self) -> None:
        held, self.held = self.held or [], None
        for future, reply in held:
            if not future.cancelled():
                future.set_result(reply)


class RunFailed(Exception):
    def __init__(self, outcome: int, text: str = "failed") -> None:
        super().__init__(text)
        self.outcome, self.text = outcome, text


class RunnerBench:
    """One device folder; ``start`` is a start of the agent, ``crash`` ends it without a word."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.options = options
        self.now_us = 1_700_000_000_000_000
        self.judge: Callable[..., bool] = lambda *_: False
        self.open()

    def open(self) -> None:
        self.store = DeviceStore(self.folder, **self.options)
        self.log = EventLog(self.store, clock=lambda: self.now_us)
        self.view = LogView(self.log, size=64)
        self.uplink = Uplink(self.store, DEVICE)
        self.features = FeatureStore(self.store)

    def start(self, task: Task, version: int = 1, **manifest: Any) -> TaskRunner:
        spec = {
            "task": "count",
            "version": version,
            "triggers": [TriggerSpec(name="left", sequence=["page_exit@*"])],
            "outputs": [
                OutputSpec(name="seen"),
                OutputSpec(name="f", kind="feature", dtype="json"),
            ],
        } | manifest
        made = TaskManifest(**spec)
        self.pool = FakePool(task)
        self.uplink.declare(made)
        self.runner = TaskRunner(
            InstalledTask(made, self.folder, b"", "good"),
            TaskCode("count", version, self.folder),
            store=self.store,
            view=self.view,
            uplink=self.uplink,
            features=self.features,
            pool=self.pool,  # type: ignore[arg-type]
            on_runs=self._judged,
        )
        return self.runner

    def _judged(self, *what: Any) -> bool:
        return self.judge(*what)

    def crash(self) -> None:
        """Forget everything that is not in the database."""
        self.log.flush()
        self.store.close()
        self.open()

    def event(self, kind: int, page: str = "p", *, visit: bytes | None = None, **content: Any):
        self.now_us += 1_000_000
        # One boot of the device: a new one would end partial matches, as it should.
        return self.log.append(
            kind, page, content, ts_us=self.now_us, visit=visit, boot=1, mono_us=self.now_us
        )

    def work(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if not self.runner.step():
                if self.runner.idle:
                    return
                time.sleep(0.001)
        raise AssertionError("the runner does not come to an end")

    # -- what is durable ----------------------------------------------------------------------

    def _records(self, kind: RecordKind, of: type) -> list[Any]:
        with self.store.read() as cursor:
            rows = cursor.execute(
                "SELECT body FROM outbox WHERE kind=? ORDER BY seq DESC", (int(kind),)
            ).fetchall()
        return [msgspec.msgpack.decode(body, type=of) for (body,) in rows]

    def results(self) -> list[ResultRecord]:
        return self._records(RecordKind.RESULT, ResultRecord)

    def values(self) -> list[Any]:
        return [record.value for record in self.results()]

    def summaries(self) -> list[RunSummary]:
        return self._records(RecordKind.RUN, RunSummary)

    def sent_features(self) -> list[FeatureRecord]:
        return self._records(RecordKind.FEATURE, FeatureRecord)


def since(**options: Any) -> InputSpec:
    return InputSpec(scope="since", **options)
