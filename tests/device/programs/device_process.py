"""A device in a process of its own, to be killed: it makes results and sends them.

Arguments: data folder, the cloud's address, device id (hex), number of results,
"websocket" or "http", and optionally "split". Each result is put in the
transaction that notes that it was made, as the agent does with a task's place in
the event log; "split" makes two of it, which is the mistake the tests must see.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from shoal.device.store import DeviceStore
from shoal.device.tunnel import HttpUplink, Tunnel
from shoal.device.uplink import Uplink
from shoal.wire.events import Event
from shoal.wire.manifest import OutputSpec
from shoal.wire.results import FeatureRecord, ResultRecord, RunSummary

OUTPUTS = [
    OutputSpec(name="now", uplink="now"),
    OutputSpec(name="soon", uplink="soon"),
    OutputSpec(name="last", kind="feature", dtype="json", uplink="idle"),
    OutputSpec(name="raw", kind="events", uplink="idle"),
]


def main(folder: Path, url: str, device: bytes, total: int, kind: str, *, split: bool) -> int:
    """Return 0 when everything is acknowledged."""
    store = DeviceStore(folder)
    uplink = Uplink(store, device, close_after_us=20_000)
    uplink.declare_outputs("t", 1, OUTPUTS)
    link_type = Tunnel if kind == "websocket" else HttpUplink
    link = link_type(url, lambda: f"token-{device.hex()}", device, uplink, backoff_s=(0.05, 0.5))
    link.start()
    made = store.meta_get("made", 0)
    while made < total:
        made += 1
        now_us = time.time_ns() // 1000
        key = device[:8] + made.to_bytes(8, "big")
        if split:
            store.meta_set("made", made)
        with store.transaction() as cursor:
            name = "now" if made % 3 == 0 else "soon"
            record = ResultRecord(key, "t", 1, name, now_us, made)
            uplink.put_results(cursor, [record], now_us)
            uplink.put_runs(cursor, [RunSummary(key, "t", 1, 0, "inline", 1, 1, 1, now_us)], now_us)
            value = str(made).encode()
            last = FeatureRecord("t", 1, "last", "k", now_us, made, "json", value)
            uplink.put_features(cursor, [last], now_us)
            uplink.put_events(cursor, "t", 1, [Event(key, 4, "p", now_us)], now_us)
            cursor.execute("INSERT OR REPLACE INTO meta VALUES ('made', ?)", (made,))
        time.sleep(0.002)
    done = link.flush(30)
    link.close()
    store.close()
    return 0 if done else 3


if __name__ == "__main__":
    folder, url, device, total, kind, *rest = sys.argv[1:]
    sys.exit(
        main(Path(folder), url, bytes.fromhex(device), int(total), kind, split="split" in rest)
    )
