"""The cloud's numbers in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import sqlalchemy as sa

from shoal.cloud import store as tables

if TYPE_CHECKING:
    from shoal.cloud.service import Cloud

__all__ = ["METRICS_TYPE", "Metric", "cloud_metrics", "prometheus_text"]

#: Media type of the exposition format.
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Name, kind ("counter" or "gauge"), help, and values by labels.
Metric = tuple[str, str, str, Iterable[tuple[Mapping[str, str], float]]]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def prometheus_text(metrics: Iterable[Metric]) -> str:
    """Return the exposition of ``metrics``; label values are escaped."""
    lines = []
    for name, kind, text, values in metrics:
        lines.append(f"# HELP {name} {text}")
        lines.append(f"# TYPE {name} {kind}")
        for labels, value in values:
            inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
            shown = int(value) if float(value).is_integer() else value
            lines.append(f"{name}{{{inside}}} {shown}" if inside else f"{name} {shown}")
    return "\n".join(lines) + "\n"


def cloud_metrics(cloud: Cloud) -> list[Metric]:
    """Return a cloud's numbers for ``/metrics``."""
    counts = cloud.fleet.counts()
    with cloud.store.read() as connection:
        lost = connection.execute(sa.select(tables.dropped)).all()
        dead = connection.execute(
            sa.select(sa.func.count()).select_from(tables.dead_letter)
        ).scalar_one()
    gateway = sorted(cloud.gateway.counts.items())
    return [
        ("shoal_epoch", "gauge", "Global epoch in force", [({}, cloud.plans.epoch)]),
        ("shoal_devices", "gauge", "Enrolled devices", [({}, counts["devices"])]),
        ("shoal_devices_revoked", "gauge", "Revoked devices", [({}, counts["revoked"])]),
        (
            "shoal_gateway_requests_total",
            "counter",
            "Requests by kind; refused_N counts refusals with code N",
            [({"kind": kind}, number) for kind, number in gateway],
        ),
        (
            "shoal_ingest_batches_total",
            "counter",
            "Uplink batches by what became of them",
            [({"kind": kind}, n) for kind, n in sorted(cloud.ingest.counts.items())],
        ),
        (
            "shoal_tunnel_total",
            "counter",
            "Tunnel connections and frames by kind",
            [({"kind": kind}, n) for kind, n in sorted(cloud.tunnel.counts.items())],
        ),
        ("shoal_tunnel_connected", "gauge", "Open tunnels", [({}, cloud.tunnel.connected)]),
        (
            "shoal_holdings",
            "gauge",
            "Devices by task, version and state",
            [
                (
                    {
                        "task": row["task"],
                        "version": str(row["version"]),
                        "state": row["state"],
                    },
                    row["devices"],
                )
                for row in counts["holdings"]
            ],
        ),
        (
            "shoal_cohort_predicate_errors_total",
            "counter",
            "Predicates that failed on a device",
            [({"cohort": name}, number) for name, number in cloud.cohorts.errors.items()],
        ),
        (
            "shoal_dropped_total",
            "counter",
            "Things dropped, by part and reason",
            [({"part": row.part, "reason": row.reason}, row.total) for row in lost],
        ),
        ("shoal_dead_letters", "gauge", "Batches that could not be read", [({}, dead)]),
        (
            "shoal_tick_errors_total",
            "counter",
            "Failed rounds of periodic work",
            [({"error": name}, number) for name, number in cloud.tick_errors.items()],
        ),
    ]
