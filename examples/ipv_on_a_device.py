"""Events to features: what a phone sends about visits of item pages, instead of every event."""

import tempfile

import msgspec

from shoal.data.shop import Shop
from shoal.tasks import play_task
from shoal.tasks.ipv import write_task_folder
from shoal.wire.events import Event

# Three sessions of one user of a generated shop: scrolls, exposures, clicks, page visits.
events = [Event(*event) for event in Shop(seed=1).device(0, sessions=3)]

with tempfile.TemporaryDirectory() as folder:
    # The task's folder, run by the device's own log, triggers and worker processes.
    played = play_task(write_task_folder(folder), events)

# A late event changes a feature that was there already: the newest one counts.
vectors = {visit: vector for run in played.runs for _, visit, vector in run.features}
for visit, vector in vectors.items():
    clicked = "cart" if vector[8] else "nothing in the cart"
    print(f"visit {visit[:8]}: {len(vector)} numbers, {clicked}")

seen = {event.id: event for event in events if event.page == "detail"}
raw = sum(len(msgspec.msgpack.encode(event)) for event in seen.values())
features = sum(4 * len(vector) for vector in vectors.values())
print(f"{len(seen)} events of item pages: {raw:,} bytes")
print(f"{len(vectors)} features: {features:,} bytes, {100 * features / raw:.1f} %")
