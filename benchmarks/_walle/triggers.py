"""Part a: the trigger engine against a list scan, with the same matches.

``run(quick, seed)`` measures CPU per event at 10, 100 and 1,000 triggers on one
user's shop sessions (``shoal.data.shop``). The triggers are cut from other
users' real event sequences, generalised by wildcards, narrowed by conditions on
widgets, categories, items and durations, so that they fire as tasks do: rarely.
Engine and scan take turns on the same chunks of the stream; every chunk's
firings are compared.
"""

from __future__ import annotations

import gc
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from shoal.core.seeds import derive_seed
from shoal.data.shop import Shop, ShopConfig, ShopEvent
from shoal.device.stream.conditions import compile_condition
from shoal.device.stream.triggers import Trigger, TriggerEngine
from shoal.wire import Event, EventKind
from shoal.wire.manifest import parse_pattern

__all__ = ["ListScan", "make_events", "make_triggers", "run"]

_NAMES = {int(kind): kind.name.lower() for kind in EventKind}
_MINUTE_US = 60_000_000
# Tasks that wake at every visit of some page, as the IPV task does.
_BROAD = ("page_exit@detail", "page_enter@home", "page_exit@list")


def make_events(seed: int, sessions: int) -> list[Event]:
    """Return one user's life with the app, without the duplicates that the log removes."""
    config = ShopConfig(duplicates=0.0, trace_bytes=0)
    return [Event(*one) for one in Shop(config, seed).device(0, sessions)]


def make_triggers(
    count: int, seed: int, *, conditions: float = 0.2, relaxed: float = 0.05
) -> list[Trigger]:
    """Return ``count`` triggers of 1 to 4 steps over the shop's pages.

    Steps follow what other users did. Walle's own triggers are plain sequences of
    event and page ids; here a share ``conditions`` of them also looks at content, a
    share ``relaxed`` allows other events between (with a duration of 1 to 30
    minutes), 10 % of the steps of longer sequences have a wildcard; durations,
    cooldowns and not-followed-by occur too. Of 1,000, three wake at every visit of
    some page (as the IPV task does) and two count exposures without a click; the
    rest are different ones that complete at most once in 2,000 events of four
    users set aside, since a task is run tens of times a day on a device, not
    thousands of times.
    """
    rng = random.Random(derive_seed(seed, "benchmark", "triggers"))
    shop = Shop(ShopConfig(duplicates=0.0, trace_bytes=0), seed)
    streams = [shop.device(device, 4) for device in range(1000, 1060)]
    aside = [Event(*one) for device in range(2000, 2004) for one in shop.device(device, 20)]
    found = [Trigger.sequence(one, name=one) for one in _BROAD[: max(1, count // 300)]]
    for _ in range(count // 500):  # k exposures without a click, after EdgeRec
        page = rng.choice(("home", "list", "search"))
        counted = {"count": rng.randrange(5, 30), "without": "click@*"}
        found.append(Trigger.sequence(f"exposure@{page}", **counted))
    # Exactly so many of each sort, though the rare ones are mostly those with conditions.
    left = Counter()
    for number in range(count - len(found)):
        left[number < conditions * count, rng.random() < relaxed] += 1
    taken: set[Trigger] = set()
    while left.total():
        drawn = _draw(rng, streams, 1000, looks=min(conditions, 0.2), relaxed=min(3 * relaxed, 0.3))
        # A short look first: most of what is drawn fires far too often to be counted at length.
        for part, most in ((aside[:200], 0), (aside[:1_500], 1), (aside, len(aside) // 2000)):
            fired = _fired(drawn, part)
            drawn = [trigger for trigger in drawn if fired[trigger.name] <= most]
        for trigger in drawn:
            sort = bool(trigger.where), trigger.mode == "relaxed"
            plain = replace(trigger, name="")
            if left[sort] and plain not in taken:
                taken.add(plain)
                left[sort] -= 1
                found.append(trigger)
    return [replace(trigger, name=f"n{number}") for number, trigger in enumerate(found)]


def _fired(triggers: list[Trigger], events: list[Event]) -> Counter[str]:
    """Count how often each trigger completes, cooldowns and refusals apart."""
    engine = TriggerEngine()
    for trigger in triggers:
        engine.add("t", replace(trigger, cooldown_ms=0, not_followed_by=None))
    fired: Counter[str] = Counter()
    for seq, event in enumerate(events, 1):
        fired.update(firing.trigger for firing in engine.on(event, seq))
    return fired


def _draw(
    rng: random.Random,
    streams: list[list[ShopEvent]],
    count: int,
    *,
    looks: float,
    relaxed: float,
) -> list[Trigger]:
    found: list[Trigger] = []
    while len(found) < count:
        stream = rng.choice(streams)
        is_relaxed = rng.random() < relaxed
        has_conditions = rng.random() < looks
        # What does not look at contents is specific by its length.
        length = rng.choices((1, 2, 3, 4), (40, 40, 10, 10) if has_conditions else (5, 15, 30, 50))[
            0
        ]
        place = rng.randrange(len(stream))
        path = []
        for _ in range(length):
            if place >= len(stream):
                break
            path.append(stream[place])
            place += rng.randrange(1, 8) if is_relaxed else 1
        if len(path) < length or any(one.page == "app" for one in path):
            continue
        steps, where = [], []
        for number, one in enumerate(path):
            kind, page, draw = _NAMES[one.kind], one.page, rng.random()
            if length > 1 and draw < 0.1:
                kind, page = ("*", page) if draw < 0.05 else (kind, "*")
            elif has_conditions and (length == 1 or draw < 0.6):
                where += _conditions(rng, number, one.content)
            steps.append(f"{kind}@{page}")
        options: dict[str, Any] = {}
        if is_relaxed or rng.random() < 0.15:
            options["within_ms"] = rng.choice((60_000, 300_000, 1_800_000))
        if rng.random() < 0.15:
            options["cooldown_ms"] = 600_000
        if rng.random() < 0.03:
            options |= {"not_followed_by": "page_enter@order", "within_ms": 600_000}
        mode = "relaxed" if is_relaxed else "strict"
        name = f"n{len(found)}"
        found.append(Trigger.sequence(*steps, name=name, mode=mode, where=where, **options))
    return found


def _conditions(rng: random.Random, step: int, content: dict[str, Any]) -> list[tuple[Any, ...]]:
    choices: list[tuple[Any, ...]] = [
        (step, field, "==", content[field])
        for field in ("item", "widget", "category", "source")
        if field in content and (field != "item" or rng.random() < 0.15)
    ]
    if "duration_ms" in content:
        choices.append((step, "duration_ms", ">", 4000))
    if "depth" in content:
        choices.append((step, "depth", ">=", 0.97))
    if "position" in content:
        choices.append((step, "position", "in", (content["position"], 25, 30)))
    return rng.sample(choices, min(len(choices), rng.choice((1, 1, 2))))


class _Rule:
    """One trigger of the list scan: a plain state machine."""

    def __init__(self, trigger: Trigger) -> None:
        self.name = trigger.name
        self.steps = []
        for number, pattern in enumerate(trigger.steps):
            checks = [compile_condition(*one[1:]) for one in trigger.where if one[0] == number]
            self.steps.append((*parse_pattern(pattern), checks))
        self.relaxed = trigger.mode == "relaxed"
        self.within = trigger.within_ms * 1000
        self.cooldown = trigger.cooldown_ms * 1000
        self.count = trigger.count
        self.without = parse_pattern(trigger.without) if trigger.without else None
        self.negated = parse_pattern(trigger.not_followed_by) if trigger.not_followed_by else None
        self.last: int | None = None
        self.clear()

    def clear(self) -> None:
        self.live: list[tuple[int, int, int]] = []
        self.starts: list[tuple[int, int] | None] = [None] * len(self.steps)
        self.counted: deque[tuple[int, int]] = deque(maxlen=self.count)
        self.reset = -1
        self.pending: list[tuple[int, int, int]] = []

    def takes(self, step: int, event: Event) -> bool:
        kind, page, checks = self.steps[step]
        if kind is not None and kind != event.kind:
            return False
        if page is not None and page != event.page:
            return False
        return all(check(event.content) for check in checks)

    def on(self, event: Event, seq: int, now: int) -> tuple[str, int, int] | None:
        if self.without is not None and _fits(self.without, event):
            self.reset = seq
            self.counted.clear()
        if self.pending and self.negated is not None and _fits(self.negated, event):
            self.pending = [one for one in self.pending if one[0] < event.ts_us]
        start: tuple[int, int] | None = None
        length = len(self.steps)
        if self.relaxed:
            for step in range(length - 1, 0, -1):
                before = self.starts[step - 1]
                if before is not None and self.takes(step, event):
                    self.starts[step] = before
                    if step == length - 1:
                        start = before
            if self.takes(0, event):
                self.starts[0] = (seq, now)
                if length == 1:
                    start = (seq, now)
        else:
            live, self.live = self.live, []
            for done, start_seq, start_us in live:
                if self.takes(done, event):
                    if done + 1 == length:
                        start = (start_seq, start_us)
                    else:
                        self.live.append((done + 1, start_seq, start_us))
            if self.takes(0, event):
                if length == 1:
                    start = (seq, now)
                else:
                    self.live.append((1, seq, now))
        if start is None or start[0] < self.reset:
            return None
        if self.count > 1:
            self.counted.append(start)
            if len(self.counted) < self.count:
                return None
            start = self.counted[0]
        if self.within and self.negated is None and now - start[1] > self.within:
            return None
        self.counted.clear()
        if self.negated is not None:
            self.pending.append((now + self.within, start[0], seq))
            return None
        return self.fire(start[0], seq, now)

    def fire(self, start: int, seq: int, now: int) -> tuple[str, int, int] | None:
        if self.cooldown and self.last is not None and now - self.last < self.cooldown:
            return None
        self.last = now
        return self.name, start, seq


def _fits(pattern: tuple[int | None, str | None], event: Event) -> bool:
    return pattern[0] in (None, event.kind) and pattern[1] in (None, event.page)


class ListScan:
    """The straightforward way: ask every trigger at every event."""

    def __init__(self, triggers: list[Trigger]) -> None:
        self.rules = [_Rule(trigger) for trigger in triggers]
        self.boot: int | None = None
        self.now = -(1 << 63)

    def on(self, event: Event, seq: int) -> list[tuple[str, int, int]]:
        if event.boot != self.boot:
            for rule in self.rules:
                rule.clear()
            self.boot = event.boot
        self.now = max(self.now, event.ts_us)
        found = []
        for rule in self.rules:
            fired = rule.on(event, seq, self.now)
            if fired is not None:
                found.append(fired)
        return found

    def on_watermark(self, ts_us: int) -> list[tuple[str, int, int]]:
        found = []
        for rule in self.rules:
            while rule.pending and rule.pending[0][0] < ts_us:
                deadline, start, seq = rule.pending.pop(0)
                fired = rule.fire(start, seq, deadline)
                if fired is not None:
                    found.append(fired)
        return found


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def _compare(triggers: list[Trigger], events: list[Event], chunk: int) -> dict[str, Any]:
    """Run both over the stream, each by itself; the scan as far as four seconds go."""
    numbered = list(enumerate(events, 1))
    chunks = [numbered[first : first + chunk] for first in range(0, len(numbered), chunk)]
    # An agent matches events that it has just read from its log, so both sides get theirs
    # freshly decoded (outside the timing), not from the far end of a long list.
    packed = [msgspec.msgpack.encode(part) for part in chunks]
    fresh = msgspec.msgpack.Decoder(list[tuple[int, Event]]).decode

    def through(matcher: Any, part: list[tuple[int, Event]]) -> list[Any]:
        found: list[Any] = []
        on = matcher.on
        for seq, event in part:
            hits = on(event, seq)
            if hits:
                found += hits
        found += matcher.on_watermark(part[-1][1].ts_us - _MINUTE_US // 2)
        return found

    # Five lives of the engine, each from nothing; the scan once, since it takes long.
    lives: list[list[float]] = []
    builds = []
    for _ in range(5):
        engine = TriggerEngine()
        for trigger in triggers:
            engine.add("t", trigger)
        cpu, _, _ = _timed(lambda engine=engine: engine.on_watermark(-(1 << 62)))
        builds.append(cpu)
        ours, firings, wall = [], [], 0.0
        for raw in packed:
            part = fresh(raw)
            cpu, seconds, found = _timed(lambda part=part, engine=engine: through(engine, part))
            ours.append(cpu)
            wall += seconds
            firings.append(sorted((f.trigger, f.start_seq, f.seq) for f in found))
        lives.append(ours)
    scan, theirs, budget = ListScan(triggers), [], 4.0
    for raw, ours_found in zip(packed, firings, strict=True):
        part = fresh(raw)
        cpu, _, wanted = _timed(lambda part=part: through(scan, part))
        theirs.append(cpu)
        if ours_found != sorted(wanted):
            raise AssertionError("trigger engine and list scan differ")
        budget -= cpu
        if budget < 0:
            break
    compared = sum(len(part) for part in chunks[: len(theirs)])
    half = len(chunks) // 2
    warm_events = sum(map(len, chunks[half:]))
    half = len(chunks) // 2
    warm_events = sum(map(len, chunks[half:]))
    # A busy neighbour slows some chunks of some lives: the least of five for each chunk.
    least = [min(costs) for costs in zip(*lives, strict=True)]
    middle = sorted(1e6 * sum(life[half:]) / warm_events for life in lives)[2]
    early = sorted(sum(life[: len(theirs)]) for life in lives)[2]
    return {
        "triggers": len(triggers),
        "events": len(events),
        "build_ms": round(1e3 * sorted(builds)[1], 2),
        # Over the stream's second half, when most states have come up (the least of five
        # lives for each chunk, and the median life); then over all of it, from cold.
        "us_per_event": round(1e6 * sum(least[half:]) / warm_events, 3),
        "us_per_event_median": round(middle, 3),
        "us_per_event_from_cold": round(1e6 * sum(least) / len(events), 3),
        "us_per_event_wall": round(1e6 * wall / len(events), 3),
        "scan_us_per_event": round(1e6 * sum(theirs) / compared, 2),
        "compared_events": compared,
        # Over the same events on both sides, the engine's cold start included.
        "ratio": round(sum(theirs) / early, 1),
        "firings_per_event": round(sum(map(len, firings)) / len(events), 4),
    }


def run(quick: bool, seed: int) -> dict[str, Any]:
    """Measure; the keys of the contract are ``trigger_ratio`` and ``trigger_us``.

    They speak of the published form at 1,000 triggers: plain sequences of event
    and page ids, in a steady state (the second half of the stream). Beside them,
    under ``detail``: what our own options cost (a mix with conditions on content
    and other events between, and one where nearly every trigger has them), from
    a cold start too, and fewer triggers.
    """
    events = make_events(seed, 120 if quick else 300)
    # A long-lived agent collects its garbage too; the benchmark's own lists are set aside.
    gc.collect()
    gc.freeze()
    published = {"conditions": 0.0, "relaxed": 0.0}
    sizes = (1000,) if quick else (10, 100, 1000)
    rows = [_compare(make_triggers(count, seed, **published), events, 200) for count in sizes]
    detail: dict[str, Any] = {"published_form": rows}
    if not quick:
        detail["mixed"] = _compare(make_triggers(1000, seed), events, 200)
        # Where the engine does worst: nearly every trigger looks at contents.
        heavy = make_triggers(1000, seed, conditions=0.9, relaxed=0.3)
        detail["mostly_with_conditions"] = _compare(heavy, events, 200)
    gc.unfreeze()
    return {
        "trigger_ratio": rows[-1]["ratio"],
        "trigger_us": rows[-1]["us_per_event"],
        "detail": detail,
    }


if __name__ == "__main__":
    import json

    print(json.dumps(run(quick=True, seed=0), indent=1))
