"""What each page of the console shows, as plain values for its template.

The numbers come from :mod:`shoal.cloud.reports`; nothing is computed here that
a library user would miss.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from shoal.cloud import reports
from shoal.cloud.service import Cloud
from shoal.cloud.store import (
    device,
    holding,
    release,
    result,
    run_summary,
    task,
    task_version,
)
from shoal.console.charts import bars, coverage_chart, meter_bar
from shoal.console.evidence import meters
from shoal.core.errors import InputError, NotFoundError

__all__ = ["HISTORY_SIZE", "PAGE_SIZE", "Pages"]

#: Rows of a table on one page.
PAGE_SIZE = 100
#: Newest rows of a release's history on its page.
HISTORY_SIZE = 200
_FLOW_SECONDS = 300.0
#: Versions of a task on the page of tasks, and the runs that their times are taken from.
_VERSIONS, _SAMPLE = 10, 1_000
#: Values of an attribute that are named; the rest is added up.
_VALUES = 6
_LARGEST = 2**63 - 1
#: What an operator may ask for in each state.
_ACTIONS = {
    "draft": ("start", "abort"),
    "simulated": ("start", "abort"),
    "beta": ("advance", "rollback"),
    "gray": ("advance", "pause", "rollback"),
    "paused": ("resume", "rollback"),
    "full": ("rollback",),
}
_FIRST = (("beta", "gray", "paused", "rolling_back"), ("draft", "simulated"))


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
        # The one that moves; else the one that is to begin; else the newest.
        shown = min(
            releases,
            key=lambda row: next(
                (place for place, states in enumerate(_FIRST) if row["state"] in states),
                len(_FIRST),
            ),
            default=None,
        )
        return {
            "fleet": reports.fleet_summary(self._store, groups=False),
            "flow": self._flow(),
            "releases": releases,
            "shown": None if shown is None else self._covered(shown),
            "results": self._results(limit=10),
            "epoch": self._store.epoch(),
        }

    def releases(self) -> dict[str, Any]:
        """Every release, the newest first."""
        return {"releases": self._releases(limit=PAGE_SIZE)}

    def release(self, release_id: int) -> dict[str, Any]:
        """One release with its coverage curve, guardrails and history."""
        self.check_release(release_id)
        rows = self._releases(limit=1, only=release_id)
        if not rows:
            raise NotFoundError(f"no release {release_id}")
        row = rows[0]
        status = self._cloud.releases.status(release_id)
        return {
            **self._covered(row),
            "status": status,
            "guardrails": [
                {
                    **reading,
                    "meters": [
                        (one, meter_bar(one.share, side=one.side, title=f"{one.label}: {one.text}"))
                        for one in meters(reading)
                    ],
                }
                for reading in status["guardrails"]
            ],
            "warnings": _warnings(row["state"], status["warnings"]),
            "actions": _ACTIONS.get(row["state"], ()),
            "history": reports.release_history(self._store, release_id)[-HISTORY_SIZE:],
            "health": reports.task_health(self._store, row["task"], row["version"]),
        }

    @staticmethod
    def check_release(release_id: int) -> None:
        """Refuse a number that no database could hold as an id."""
        if not 0 < release_id <= _LARGEST:
            raise NotFoundError(f"no release {release_id}")

    def _covered(self, row: dict[str, Any]) -> dict[str, Any]:
        covered = reports.coverage(self._store, row["id"])
        return {
            "release": row,
            "coverage": covered,
            "chart": coverage_chart(
                covered.points,
                end=covered.elapsed_s,
                allowed=covered.allowed,
                title=f"Coverage of {row['task']} version {row['version']}",
            ),
        }

    def fleet(self, *, query: str = "", offset: int = 0) -> dict[str, Any]:
        """Devices, the last seen first.

        ``query`` is the beginning of an id, or occurs in the attributes.
        """
        if not 0 <= offset <= _LARGEST - PAGE_SIZE:
            raise InputError("out of range", field="offset", value=offset)
        wanted = query.strip().lower()
        statement = sa.select(
            device.c.id, device.c.attributes, device.c.last_seen_us, device.c.revoked_us
        ).order_by(device.c.last_seen_us.desc(), device.c.id)
        if wanted:
            # Attributes are stored as JSON, which spells letters beyond ASCII as escapes.
            stored = json.dumps(wanted)[1:-1]
            text = sa.func.lower(sa.cast(device.c.attributes, sa.Text))
            found = text.contains(stored, autoescape=True)
            if _is_hex(wanted):
                low, high = (bytes.fromhex(wanted.ljust(32, digit)) for digit in "0f")
                found = sa.or_(found, device.c.id.between(low, high))
            statement = statement.where(found)
        with self._store.read() as connection:
            total = connection.execute(
                sa.select(sa.func.count()).select_from(statement.order_by(None).subquery())
            ).scalar_one()
            rows = connection.execute(statement.offset(offset).limit(PAGE_SIZE)).all()
            held: dict[bytes, list[tuple[str, int, str]]] = {}
            for row in connection.execute(
                sa.select(holding)
                .where(holding.c.device.in_([row.id for row in rows]))
                .where(holding.c.state.in_(("trial", "good", "bad", "refused")))
                .order_by(holding.c.task, holding.c.version)
            ):
                held.setdefault(row.device, []).append((row.task, row.version, row.state))
        summary = reports.fleet_summary(self._store)
        return {
            "summary": summary,
            "groups": {name: _largest(values) for name, values in summary.groups.items()},
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
        if len(device_hex) != 32 or not _is_hex(device_hex):
            raise InputError("not a device id", field="device", value=device_hex[:64])
        device_id = bytes.fromhex(device_hex)
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
            "device": {**row._mapping, "id": device_id.hex()},
            "attributes": [
                (f"{room}.{name}", _shorten(_text(value), 500))
                for room, values in row.attributes.items()
                for name, value in values.items()
            ],
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
            versions = {
                entry.name: connection.execute(
                    sa.select(
                        task_version.c.task,
                        task_version.c.version,
                        task_version.c.label,
                        task_version.c.size,
                        task_version.c.created_us,
                    )
                    .where(task_version.c.task == entry.name)
                    .order_by(task_version.c.version.desc())
                    .limit(_VERSIONS)
                ).all()
                for entry in tasks
            }
            held: dict[tuple[str, int], int] = {
                (row.task, row.version): row.devices
                for row in connection.execute(
                    sa.select(holding.c.task, holding.c.version, sa.func.count().label("devices"))
                    .where(holding.c.state.in_(("trial", "good")))
                    .group_by(holding.c.task, holding.c.version)
                )
            }
        return {
            "tasks": [
                {
                    **entry._mapping,
                    "versions": [
                        {
                            **version._mapping,
                            "held": held.get((version.task, version.version), 0),
                            "health": reports.task_health(
                                self._store, version.task, version.version, sample=_SAMPLE
                            ),
                        }
                        for version in versions[entry.name]
                    ],
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
            "bucket_s": flow.bucket_s,
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
                sa.select(result)
                .order_by(result.c.received_us.desc(), result.c.ts_us.desc())
                .limit(limit)
            ).all()
        return [
            {
                **row._mapping,
                "device": row.device.hex(),
                "text": _shorten(_text(row.value)),
            }
            for row in rows
        ]


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(_rounded(value), default=str, sort_keys=True, ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Shorten the fractions in a value to what a person reads."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def _warnings(state: str, warnings: list[str]) -> list[str]:
    """Return what the planner says that still matters in a state."""
    if state in ("draft", "simulated", "beta"):
        return warnings
    return [line for line in warnings if line.startswith("cannot") and state in ("gray", "paused")]


def _is_hex(text: str) -> bool:
    return 0 < len(text) <= 32 and all(letter in "0123456789abcdef" for letter in text)


def _largest(values: dict[str, int]) -> list[tuple[str, int]]:
    """Return the most frequent values, and the others as one."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    named = [(_shorten(value, 40), number) for value, number in ordered[:_VALUES]]
    rest = ordered[_VALUES:]
    if rest:
        named.append((f"{len(rest)} others", sum(number for _, number in rest)))
    return named
