"""Will the next departure be late? Runs on the aircraft, standard library only.

Each run sees the events since the last one, folds them into ``ctx.state`` and
predicts for the departure that was just filed: once from the schedule alone,
once with what the aircraft's own stream adds (how the previous leg left and
arrived, the time on the ground since, the weather). Inputs must equal
``shoal.tasks.departure_delay.features`` to the last bit of a float32.
"""

import math

SCHEDULE, OFF_BLOCK, LANDING, WEATHER = 64, 65, 66, 67
CARRIERS = ("MQ", "B6", "UA", "DL", "EV", "AA", "9E", "US", "WN")
MINUTE_US = 60_000_000


def schedule_features(page, plan):
    angle = plan["local_hour"] / 24 * 2 * math.pi
    row = [
        math.sin(angle),
        math.cos(angle),
        plan["local_hour"] / 24,
        float(plan["weekday"] >= 6),
        plan["distance"] / 1000,
        float(page == "EWR"),
        float(page == "JFK"),
    ]
    row.extend(float(plan["carrier"] == carrier) for carrier in CARRIERS)
    return row


def leg_features(state, scheduled_us):
    """Delay at departure and arrival of the last leg, minutes since landing, legs known."""
    left, landed = state.get("left"), state.get("landed")
    turnaround = (scheduled_us - landed[0]) / MINUTE_US if landed else 600.0
    return [
        min(max(left[1], -60), 240) / 60 if left else 0.0,
        min(max(landed[1], -60), 240) / 60 if landed else 0.0,
        min(turnaround, 3000.0) / 600,
        float(left is not None) + float(landed is not None),
    ]


def weather_features(report):
    return [
        report.get("wind_speed", 10.0) / 20,
        report.get("precip", 0.0) * 10,
        report.get("visib", 10.0) / 10,
        (report.get("pressure", 1018.0) - 1018) / 10,
        report.get("temp", 55.0) / 50,
    ]


def run(ctx, batch):
    state = ctx.state
    for event in batch.events:
        content = event.content
        if event.kind == OFF_BLOCK:
            state["left"] = [event.ts_us, content["delay"]]
        elif event.kind == LANDING:
            state["landed"] = [event.ts_us, content["delay"]]
        elif event.kind == WEATHER:
            state["weather"] = [event.page, event.ts_us, content]
        elif event.kind == SCHEDULE:
            predict(ctx, event)


def predict(ctx, event):
    plan = event.content
    report = ctx.state.get("weather")
    fresh = report is not None and report[0] == event.page and report[1] == event.ts_us
    schedule = schedule_features(event.page, plan)
    legs = leg_features(ctx.state, plan["scheduled_us"])
    stream = schedule + legs + weather_features(report[2] if fresh else {})
    key = f"{plan['flight']}@{plan['scheduled_us']}"
    with_stream = ctx.model("stream").run({"x": [stream]})["p"][0][0]
    schedule_only = ctx.model("schedule").run({"x": [schedule]})["p"][0][0]
    ctx.features.put("legs", key, legs)
    ctx.emit("risk", {"departure": key, "p": with_stream, "p_schedule": schedule_only})
