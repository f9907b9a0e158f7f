"""Which sequences of events wake which tasks: three triggers over one visit of a shop."""

from shoal.device.stream import Trigger, TriggerEngine
from shoal.wire.events import Event, EventKind, new_ulid

engine = TriggerEngine()
engine.add(
    "rerank",
    Trigger.sequence(
        "page_enter@detail", "click@detail", name="interested", mode="relaxed", within_ms=30_000
    ),
)
engine.add("offer", Trigger.sequence("page_exit@detail", name="left"))
engine.add("hint", Trigger.sequence("exposure@list", name="lost", count=3, without="click@*"))

VISIT = [
    (0, EventKind.EXPOSURE, "list"),
    (1, EventKind.EXPOSURE, "list"),
    (2, EventKind.EXPOSURE, "list"),
    (5, EventKind.PAGE_ENTER, "detail"),
    (9, EventKind.PAGE_SCROLL, "detail"),
    (12, EventKind.CLICK, "detail"),
    (40, EventKind.PAGE_EXIT, "detail"),
]

for seq, (second, kind, page) in enumerate(VISIT, start=1):
    ts_us = 1_767_225_600_000_000 + second * 1_000_000
    event = Event(id=new_ulid(ts_us), kind=kind, page=page, ts_us=ts_us)
    for firing in engine.on(event, seq):
        print(f"{second:3d} s  {kind.name.lower()}@{page} wakes {firing.task} ({firing.trigger})")
