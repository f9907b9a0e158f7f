"""What each page of the console shows, as plain values for its template.

The numbers come from :mod:`shoal.cloud.reports`; nothing is computed here that
a library user would miss.
"""

from __future__ import annotations

import json
import time
from typing import Any

import sqlalchemy as sa

from shoal.cloud import reports
from shoal.cloud.service import Cloud
from shoal.cloud.store import (
    arm_count,
    device,
    holding,
    release,
    result,
    run_summary,
    task,
    task_version,
)
from shoal.console.charts import bars, coverage_chart
from shoal.core.errors import InputError, NotFoundError

__all__ = ["PAGE_SIZE", "Pages"]

#: Rows of a table on one page.
PAGE_SIZE = 100
_FLOW_SECONDS = 300.0
_ACTIVE = ("draft", "simulated", "beta", "gray", "paused", "rolling_back")


class Pages:
    """Read-only views of one cloud.

    Parameters
    ----------
    cloud : Cloud
        The cloud to look at.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._store = cloud.store

    def overview(self) -> dict[str, Any]:
        """Fleet, running releases, flow and the latest results."""
        releases = self._releases(limit=8)
        shown = next((row for row in releases if row["state"] in _ACTIVE), None) or next(
            iter(releases), None
        )
        return {
            "fleet": reports.fleet_summary(self._store),
            "flow": self._flow(),
            "releases": releases,
            "shown": None if shown is None else self.release(shown["id"]),
            "results": self._results(limit=10),
            "epoch": self._store.epoch(),
        }

    def releases(self) -> dict[str, Any]:
        """Every release, the newest first."""
        return {"releases": self._releases(limit=PAGE_SIZE)}

    def release(self, release_id: int) -> dict[str, Any]:
        """One release with its coverage curve, guardrails and history."""
        rows = self._releases(limit=1, only=release_id)
        if not rows:
            raise NotFoundError(f"no release {release_id}")
        covered = reports.coverage(self._store, release_id)
        with self._store.read() as connection:
            arms = [
                dict(row._mapping)
                for row in connection.execute(
                    sa.select(arm_count)
                    .where(arm_count.c.release == release_id)
                    .order_by(arm_count.c.guardrail, arm_count.c.arm)
                )
            ]
        row = rows[0]
        return {
            "release": row,
            "coverage": covered,
            "chart": coverage_chart(
                covered.points,
                end=covered.elapsed_s,
                allowed=covered.allowed,
                title=f"Coverage of {row['task']} version {row['version']}",
            ),
            "arms": arms,
            "history": reports.release_history(self._store, release_id),
            "health": reports.task_health(self._store, row["task"], row["version"]),
        }

    def fleet(self, *, query: str = "", offset: int = 0) -> dict[str, Any]:
        """Devices, the last seen first; ``query`` looks into ids and attributes."""
        if offset < 0:
            raise InputError("must not be negative", field="offset", value=offset)
        wanted = query.strip().lower()
        statement = sa.select(device).order_by(device.c.last_seen_us.desc(), device.c.id)
        if wanted:
            like = f"%{wanted.replace('%', '').replace('_', '')}%"
            statement = statement.where(
                sa.or_(
                    sa.func.lower(sa.cast(device.c.attributes, sa.Text)).like(like),
                    sa.func.lower(sa.func.hex(device.c.id)).like(like),
                )
            )
        with self._store.read() as connection:
            total = connection.execute(
                sa.select(sa.func.count()).select_from(statement.order_by(None).subquery())
            ).scalar_one()
            rows = connection.execute(statement.offset(offset).limit(PAGE_SIZE)).all()
            held: dict[bytes, list[str]] = {}
            for row in connection.execute(
                sa.select(holding)
                .where(holding.c.device.in_([row.id for row in rows]))
                .where(holding.c.state.in_(("trial", "good", "bad", "refused")))
                .order_by(holding.c.task, holding.c.version)
            ):
                held.setdefault(row.device, []).append(f"{row.task} {row.version} {row.state}")
        return {
            "summary": reports.fleet_summary(self._store),
            "devices": [
                {**row._mapping, "id": row.id.hex(), "held": held.get(row.id, [])} for row in rows
            ],
            "total": total,
            "query": query,
            "offset": offset,
            "page_size": PAGE_SIZE,
        }

    def device(self, device_hex: str) -> dict[str, Any]:
        """One device: what it is, what it holds, how its last runs went."""
        try:
            device_id = bytes.fromhex(device_hex)
        except ValueError:
            raise InputError("not a device id", field="device", value=device_hex) from None
        with self._store.read() as connection:
            row = connection.execute(sa.select(device).where(device.c.id == device_id)).first()
            if row is None:
                raise NotFoundError(f"no device {device_hex}")
            held = connection.execute(
                sa.select(holding)
                .where(holding.c.device == device_id)
                .order_by(holding.c.task, holding.c.version)
            ).all()
            runs = connection.execute(
                sa.select(run_summary)
                .where(run_summary.c.device == device_id)
                .order_by(run_summary.c.received_us.desc())
                .limit(20)
            ).all()
        return {
            "device": {**row._mapping, "id": device_hex},
            "held": [dict(entry._mapping) for entry in held],
            "runs": [
                {**entry._mapping, "outcome_name": reports.outcome_name(entry.outcome)}
                for entry in runs
            ],
        }

    def tasks(self) -> dict[str, Any]:
        """Every task with the health of its versions."""
        with self._store.read() as connection:
            tasks = connection.execute(sa.select(task).order_by(task.c.name)).all()
            versions = connection.execute(
                sa.select(task_version).order_by(task_version.c.task, task_version.c.version.desc())
            ).all()
        return {
            "tasks": [
                {
                    **entry._mapping,
                    "versions": [
                        {
                            **version._mapping,
                            "health": reports.task_health(
                                self._store, version.task, version.version
                            ),
                        }
                        for version in versions
                        if version.task == entry.name
                    ][:20],
                }
                for entry in tasks
            ],
            "results": self._results(limit=30),
        }

    def events(self) -> dict[str, Any]:
        """The flow of results, features and runs, and what was dropped."""
        flow = reports.event_flow(self._store, seconds=_FLOW_SECONDS)
        labels = (f"{_FLOW_SECONDS / 60:.0f} min ago", "now")
        return {
            "flow": flow,
            "charts": [
                (name, sum(values), bars(values, labels=labels, title=f"{name} received"))
                for name, values in (
                    ("Results", flow.results),
                    ("Features", flow.features),
                    ("Runs", flow.runs),
                )
            ],
            "results": self._results(limit=30),
        }

    def _flow(self) -> dict[str, Any]:
        flow = reports.event_flow(self._store, seconds=_FLOW_SECONDS)
        together = [sum(parts) for parts in zip(flow.results, flow.features, strict=True)]
        return {
            "total": sum(together),
            "dead_letters": flow.dead_letters,
            "dropped": sum(flow.dropped.values()),
            "chart": bars(
                together,
                labels=(f"{_FLOW_SECONDS / 60:.0f} min ago", "now"),
                title=f"Results and features received every {flow.bucket_s:.0f} s",
            ),
        }

    def _releases(self, *, limit: int, only: int | None = None) -> list[dict[str, Any]]:
        names = reports.cohort_names(self._store)
        statement = sa.select(release).order_by(release.c.id.desc()).limit(limit)
        if only is not None:
            statement = statement.where(release.c.id == only)
        with self._store.read() as connection:
            rows = connection.execute(statement).all()
        return [
            {**row._mapping, "cohort_name": names.get(row.cohort, str(row.cohort))} for row in rows
        ]

    def _results(self, *, limit: int) -> list[dict[str, Any]]:
        with self._store.read() as connection:
            rows = connection.execute(
                sa.select(result).order_by(result.c.received_us.desc()).limit(limit)
            ).all()
        return [
            {
                **row._mapping,
                "device": row.device.hex(),
                "text": _shorten(json.dumps(row.value, default=str, sort_keys=True)),
                "age_s": (time.time_ns() // 1000 - row.received_us) / 1e6,
            }
            for row in rows
        ]


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
