"""Folds the visits of a page into a small feature. Runs on the device."""

PAGE_ENTER, CLICK, PAGE_EXIT = 1, 4, 5


def run(ctx, batch):
    """Called by the trigger with the events since the last run.

    ``ctx.state`` is kept from run to run and saved together with the outputs:
    after a crash nothing is counted twice and nothing is lost.
    """
    state = ctx.state
    for event in batch.events:
        if event.kind == PAGE_ENTER:
            state["entered_us"] = event.ts_us
            state["clicks"] = 0
        elif event.kind == CLICK:
            state["clicks"] = state.get("clicks", 0) + 1
        elif event.kind == PAGE_EXIT and "entered_us" in state:
            close(ctx, event)


def close(ctx, event):
    state = ctx.state
    dwell_s = (event.ts_us - state.pop("entered_us")) / 1_000_000
    clicks = state.pop("clicks", 0)
    state["visits"] = state.get("visits", 0) + 1
    ctx.features.put("interest", event.page, [dwell_s, float(clicks), float(state["visits"])])
    ctx.emit("visit", {"page": event.page, "dwell_s": dwell_s, "clicks": clicks})
