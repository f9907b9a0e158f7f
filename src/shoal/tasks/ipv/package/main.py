"""One feature for every visit of an item page. Runs on the device, standard library only.

``ipv.py`` beside this file is the platform's own fold (``shoal.device.stream.ipv``).
Its state is the task's state, so it is saved together with the features it gave:
each event counts once, whatever crashes.
"""

import struct

from ipv import IpvFold, ipv_vector


def changed_visits(ctx, batch):
    """Fold the batch; return the newest record of each visit that ended or changed."""
    fold = IpvFold(ctx.state)
    dropped = fold.state["late_dropped"]
    newest = {}
    for event in batch.events:
        for record in fold.on(event):
            newest[record["visit"]] = record
    if fold.state["late_dropped"] > dropped:
        ctx.log(f"{fold.state['late_dropped'] - dropped} events came too late for their visit")
    ctx.state = fold.state
    return list(newest.values())


def put_vector(ctx, record):
    vector = struct.unpack("<32f", ipv_vector(record))
    ctx.features.put("ipv", record["visit"], list(vector), ts_us=record["exited_us"])


def run(ctx, batch):
    for record in changed_visits(ctx, batch):
        put_vector(ctx, record)


def run_with_records(ctx, batch):
    """As ``run``, and the whole record of about 1 KB as a result besides."""
    for record in changed_visits(ctx, batch):
        put_vector(ctx, record)
        ctx.emit("visit", record, ts_us=record["exited_us"])
