"""Parts b and g: events to features on the device, in bytes and in time.

``run(quick, seed)`` sends generated shop sessions through the real pipeline
(event log, IPV fold, feature store: one transaction a batch) and compares what
would leave the device: raw events against IPV records and vectors, each as the
wire's messages carry them, plain and compressed by zlib. The features are
checked against an offline computation over each visit's whole list of events.
"""

from __future__ import annotations

import math
import statistics
import struct
import tempfile
import time
import zlib
from collections import defaultdict
from typing import Any

import msgspec
import numpy as np

from shoal.data.shop import Shop, ShopConfig
from shoal.device.store import DeviceStore
from shoal.device.stream.features import FeatureFold, FeatureStore
from shoal.device.stream.ipv import ACTIONS, IpvFold, encode_record, ipv_vector
from shoal.device.stream.log import EventLog
from shoal.wire import Event, EventBatch, FeatureRecord, ResultBatch

__all__ = ["run"]

_pack = msgspec.msgpack.encode
_ITEM_PAGE = "detail"


def _step(state: dict[str, Any], event: Event, put: Any) -> dict[str, Any]:
    fold = IpvFold(state)
    for record in fold.on(event):
        options = {"ts_us": record["exited_us"], "revision": record["revision"]}
        put("ipv", record["visit"], encode_record(record), dtype="json", **options)
        put("ipv_vector", record["visit"], ipv_vector(record), dtype="f32[32]", **options)
    return fold.state


def _pipeline(
    events: list[Any], folder: str
) -> tuple[list[FeatureRecord], list[FeatureRecord], list[float]]:
    """Run the device's pipeline; return records, vectors and seconds of CPU per batch of 100."""
    with DeviceStore(folder) as store:
        # Sessions are replayed at full speed; the storm limit is for real time.
        log = EventLog(store, burst=10**9)
        fold = FeatureFold(
            store, log, FeatureStore(store), "ipv", 1, initial=dict, step=_step, state_type=dict
        )
        costs = []
        for first in range(0, len(events), 100):
            part = events[first : first + 100]
            cpu = time.process_time()
            for e in part:
                log.append(
                    e.kind, e.page, e.content, ts_us=e.ts_us, visit=e.visit, event_id=e.id,
                    mono_us=e.mono_us, boot=e.boot,
                )  # fmt: skip
            fold.run()
            costs.append((time.process_time() - cpu) / len(part))
        features = FeatureStore(store)
        return features.scan("ipv", "ipv"), features.scan("ipv", "ipv_vector"), costs


def _check(events: list[Any], records: list[FeatureRecord], vectors: list[FeatureRecord]) -> int:
    """Compare with a batch over each visit's events; return how many visits were compared."""
    visits: dict[str, list[Any]] = defaultdict(list)
    for event in sorted({e.id: e for e in events}.values(), key=lambda e: (e.boot, e.mono_us)):
        if event.page == _ITEM_PAGE and event.visit:
            visits[event.visit.hex()].append(event)
    found = {record.key: msgspec.json.decode(record.value) for record in records}
    slots = {vector.key: np.frombuffer(vector.value, "<f4") for vector in vectors}
    if not found.keys() <= visits.keys() or found.keys() != slots.keys():
        raise AssertionError("the pipeline made features of visits that were not")
    for visit, record in found.items():
        own = visits[visit]
        kinds = np.array([e.kind for e in own])
        widgets = [e.content["widget"] for e in own if e.kind == 4]
        scrolls = np.array(
            [
                (e.content["speed"], e.content["distance"], e.content["depth"])
                for e in own
                if e.kind == 2
            ]
        ).reshape(-1, 3)
        shown = np.array([e.content["duration_ms"] for e in own if e.kind == 3]) / 1e3
        counts = [int((kinds == kind).sum()) for kind in (4, 3, 2)]
        exact = {
            "events": len(own),
            "clicks": counts[0],
            "exposures": counts[1],
            "scrolls": counts[2],
            "item": own[0].content["item"],
            "actions": {name: widgets.count(name) for name in ACTIONS},
            "scroll_speed_max": float(scrolls[:, 0].max(initial=0.0)),
            "scroll_distance": round(math.fsum(scrolls[:, 1]), 3),
            "exposure_duration_max_s": float(shown.max(initial=0.0)),
        }
        if record["closed_by"] == "exit" and kinds[0] == 1:
            exact["dwell_s"] = (own[-1].mono_us - own[0].mono_us) / 1e6
        wrong = {
            name: (record[name], value) for name, value in exact.items() if record[name] != value
        }
        if wrong:
            raise AssertionError(f"visit {visit} differs from the offline computation: {wrong}")
        expected = np.log1p([record["dwell_s"], len(own), *counts]).astype("<f4")
        flags = np.array([name in widgets for name in ACTIONS], "<f4")
        if not (
            np.allclose(slots[visit][:5], expected, rtol=1e-6)
            and (slots[visit][8:18] == flags).all()
        ):
            raise AssertionError(f"vector of visit {visit} differs from the offline computation")
    return len(found)


def _uplink_sizes(
    events: list[Any], records: list[FeatureRecord], vectors: list[FeatureRecord]
) -> dict[str, int]:
    """Bytes that would leave the device, in batches as the tunnel makes them (zlib apart)."""
    device = bytes(16)
    # Only what the features stand for: the events of item pages.
    raw = [Event(*e) for e in {e.id: e for e in events}.values() if e.page == _ITEM_PAGE]

    def batches(items: list[Any], per: int) -> list[list[Any]]:
        return [items[n : n + per] for n in range(0, len(items), per)]

    bodies = {
        "raw": [
            _pack(EventBatch(1, device, "ipv", 1, n, 1, 0, b))
            for n, b in enumerate(batches(raw, 28))
        ],
        "record": [
            _pack(ResultBatch(1, device, n, features=b)) for n, b in enumerate(batches(records, 20))
        ],
        "vector": [
            _pack(ResultBatch(1, device, n, features=b))
            for n, b in enumerate(batches(vectors, 100))
        ],
    }
    sizes = {name: sum(map(len, found)) for name, found in bodies.items()}
    sizes |= {
        f"{name}_zlib": sum(len(zlib.compress(b, 6)) for b in found)
        for name, found in bodies.items()
    }
    return sizes


def _latency(events: list[Any]) -> dict[str, float]:
    """CPU and wall time from an exit event to its stored feature, one visit at a time."""
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as folder, DeviceStore(folder) as store:
        log = EventLog(store, burst=10**9)
        fold = FeatureFold(
            store, log, FeatureStore(store), "ipv", 1, initial=dict, step=_step, state_type=dict
        )
        for e in events:
            began = time.perf_counter(), time.process_time()
            log.append(e.kind, e.page, e.content, ts_us=e.ts_us, visit=e.visit, event_id=e.id)
            if e.kind == 5 and e.page == _ITEM_PAGE:
                fold.run()
                wall.append(time.perf_counter() - began[0])
                cpu.append(time.process_time() - began[1])
    cuts = statistics.quantiles(wall, n=100)
    return {
        "wall_ms_p50": round(1e3 * cuts[49], 3),
        "wall_ms_p99": round(1e3 * cuts[98], 3),
        "cpu_ms_p50": round(1e3 * statistics.median(cpu), 3),
    }


def _per_row(events: list[Any]) -> dict[str, float]:
    """CPU per row of one transaction each against group commit (the sheet's 23 and 2.6 us)."""
    found = {}
    rows = [
        (n, e.id, 1, 0, e.ts_us, e.kind, e.page, None, b"x" * 100)
        for n, e in enumerate(events[:5000])
    ]
    insert = "INSERT OR IGNORE INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    for name, group in (("autocommit_us", 1), ("group_us", 100)):
        with tempfile.TemporaryDirectory() as folder, DeviceStore(folder) as store:
            began = time.process_time()
            for n in range(0, len(rows), group):
                with store.transaction() as cursor:
                    cursor.executemany(insert, rows[n : n + group])
            found[name] = round(1e6 * (time.process_time() - began) / len(rows), 2)
    return found


def run(quick: bool, seed: int) -> dict[str, Any]:
    """Measure; the key of the contract is ``bytes_ratio`` (full records against raw events)."""
    shop = Shop(ShopConfig(), seed)
    totals: dict[str, int] = defaultdict(int)
    visits, costs = 0, []
    for device in range(10 if quick else 60):
        events = shop.device(device, 10)
        with tempfile.TemporaryDirectory() as folder:
            records, vectors, cost = _pipeline(events, folder)
        costs += cost
        visits += _check(events, records, vectors)
        for name, size in _uplink_sizes(events, records, vectors).items():
            totals[name] += size
    one = shop.device(0, 20 if quick else 60)
    return {
        # The dearer of the two forms; the vector alone is in the detail.
        "bytes_ratio": round(totals["record"] / totals["raw"], 4),
        "detail": {
            "bytes": {
                "visits": visits,
                "per_visit": {name: round(size / visits, 1) for name, size in totals.items()},
                "vector_ratio": round(totals["vector"] / totals["raw"], 4),
                # Honest company: compression helps raw events as well.
                "ratio_both_zlib": round(totals["record_zlib"] / totals["raw_zlib"], 4),
                "vector_ratio_both_zlib": round(totals["vector_zlib"] / totals["raw_zlib"], 4),
                "vector_bytes": len(struct.pack("<32f", *[0.0] * 32)),
                "cpu_us_per_event": round(1e6 * statistics.median(costs), 2),
                "event_to_feature": _latency(one),
                "sqlite_row": _per_row(one),
            }
        },
    }


if __name__ == "__main__":
    import json

    print(json.dumps(run(quick=True, seed=0), indent=1))
