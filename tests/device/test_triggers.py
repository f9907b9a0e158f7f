"""The trigger engine against a naive matcher that keeps every partial match for ever."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.core.errors import InputError
from shoal.device.stream.triggers import Firing, Trigger, TriggerEngine
from shoal.wire import Event, EventKind
from shoal.wire.manifest import Condition, TriggerSpec

HOUR_US = 3_600_000_000
YEAR_US = 365 * 24 * HOUR_US
KINDS = {"page_enter": 1, "exposure": 3, "click": 4}


def make(
    kind: int, page: str, ts_us: int, content: dict[str, Any] | None = None, boot: int = 1
) -> Event:
    return Event(bytes(16), kind, page, ts_us, ts_us, boot, None, content or {})


# -- the oracle ----------------------------------------------------------------------------


def takes(pattern: str, event: Event) -> bool:
    kind, page = pattern.split("@")
    return (
        kind in ("*", str(event.kind)) or KINDS.get(kind) == event.kind
        if page
        in (
            "*",
            event.page,
        )
        else False
    )


def holds(condition: tuple[int, str, str, Any], event: Event) -> bool:
    _, field, op, value = condition
    there = field in event.content
    found = event.content.get(field)
    if op == "exists":
        return there == value
    if not there:
        return False
    if op in ("<", "<=", ">", ">="):
        if isinstance(found, str) or found is None or isinstance(found, list):
            return False
        return {"<": found < value, "<=": found <= value, ">": found > value, ">=": found >= value}[
            op
        ]
    return {"==": lambda: found == value, "!=": lambda: found != value,
            "in": lambda: found in value}[op]()  # fmt: skip


def step_takes(trigger: Trigger, step: int, event: Event) -> bool:
    return takes(trigger.steps[step], event) and all(
        holds(one, event) for one in trigger.where if one[0] == step
    )


class Naive:
    """One trigger of one task, with its whole history and every partial match."""

    def __init__(self, task: str, trigger: Trigger) -> None:
        self.task, self.trigger = task, trigger
        self.fired_at: int | None = None
        self.clear()

    def clear(self) -> None:
        self.history: list[tuple[int, int, Event]] = []
        self.partials: list[tuple[int, int, int]] = []  # steps done, start seq, start us
        self.counted: list[tuple[int, int]] = []
        self.reset = -1
        self.pending: list[tuple[int, int, int, Event]] = []

    def on(self, event: Event, seq: int, now: int) -> Firing | None:
        trigger, steps = self.trigger, len(self.trigger.steps)
        self.history.append((seq, now, event))
        if trigger.without and takes(trigger.without, event):
            self.reset = seq
            self.counted = []
        matches = []
        if trigger.mode == "strict":
            last = self.history[-steps:]
            if len(last) == steps and all(
                step_takes(trigger, n, one) for n, (_, _, one) in enumerate(last)
            ):
                matches.append((last[0][0], last[0][1]))
        else:
            grown = [
                (done + 1, start, at)
                for done, start, at in self.partials
                if step_takes(trigger, done, event)
            ]
            if step_takes(trigger, 0, event):
                grown.append((1, seq, now))
            matches = [(start, at) for done, start, at in grown if done == steps]
            self.partials += [one for one in grown if one[0] < steps]
        matches = [one for one in matches if one[0] >= self.reset]
        if not matches:
            return None
        start, at = max(matches)
        limit = (
            trigger.within_ms * 1000 if trigger.within_ms and not trigger.not_followed_by else None
        )
        if trigger.count > 1:
            self.counted.append((start, at))
            group = self.counted[-trigger.count :]
            if len(group) < trigger.count:
                return None
            start, at = group[0]
            if limit is not None and now - at > limit:
                return None
            self.counted = []
        elif limit is not None and now - at > limit:
            return None
        if trigger.not_followed_by:
            self.pending.append((now + trigger.within_ms * 1000, start, seq, event))
            return None
        return self.fire(start, seq, now, event)

    def fire(self, start: int, seq: int, now: int, event: Event) -> Firing | None:
        if (
            self.trigger.cooldown_ms
            and self.fired_at is not None
            and now - self.fired_at < self.trigger.cooldown_ms * 1000
        ):
            return None
        self.fired_at = now
        return Firing(self.task, self.trigger.name, start, event, seq)

    def watermark(self, ts_us: int) -> list[tuple[int, Firing]]:
        due = [one for one in self.pending if one[0] < ts_us]
        self.pending = [one for one in self.pending if one[0] >= ts_us]
        fired = []
        for deadline, start, seq, event in due:
            followed = any(
                later > seq and takes(self.trigger.not_followed_by or "", one)
                and one.ts_us <= deadline
                for later, _, one in self.history
            )  # fmt: skip
            if not followed:
                firing = self.fire(start, seq, deadline, event)
                if firing:
                    fired.append((deadline, firing))
        return fired


class Oracle:
    def __init__(self) -> None:
        self.all: list[Naive] = []
        self.boot: int | None = None
        self.now = -(10**18)

    def on(self, event: Event, seq: int) -> list[Firing]:
        if self.boot is not None and event.boot != self.boot:
            for one in self.all:
                one.clear()
        self.boot = event.boot
        if event.ts_us < self.now - HOUR_US:
            for one in self.all:
                one.clear()
                one.fired_at = None
            self.now = event.ts_us
        self.now = max(self.now, event.ts_us)
        fired = [firing for one in self.all if (firing := one.on(event, seq, self.now))]
        return sorted(fired, key=lambda f: (f.task, f.trigger))

    def on_watermark(self, ts_us: int) -> list[Firing]:
        fired = [one for naive in self.all for one in naive.watermark(ts_us)]
        return [f for _, f in sorted(fired, key=lambda d: (d[0], d[1].task, d[1].trigger))]


# -- programs ------------------------------------------------------------------------------

patterns = st.sampled_from(
    ["page_enter@a", "click@a", "click@b", "click@*", "*@a", "*@*", "exposure@b", "64@a", "4@a"]
)
conditions = st.sampled_from(
    [("w", "==", 1), ("w", "==", "x"), ("w", "==", 2), ("v", "==", 1), ("w", "!=", 1),
     ("w", "<", 2), ("v", ">=", 1), ("w", "in", [1, "x", None]), ("v", "exists", True),
     ("w", "exists", False), ("w", "==", None), ("w", "==", [1])]
)  # fmt: skip


@st.composite
def triggers(draw: st.DrawFn, name: str) -> Trigger:
    steps = draw(st.lists(patterns, min_size=1, max_size=4))
    where = draw(
        st.lists(
            st.tuples(st.integers(0, len(steps) - 1), conditions).map(
                lambda one: (one[0], *one[1])
            ),
            max_size=2,
        )
    )
    negated = draw(st.none() | patterns)
    within = draw(st.sampled_from([0, 1, 3, 10_000]))
    return Trigger(
        name=name,
        steps=tuple(steps),
        mode=draw(st.sampled_from(["strict", "relaxed"])),
        within_ms=within,
        where=tuple(where),
        not_followed_by=negated if within and draw(st.booleans()) else None,
        count=draw(st.sampled_from([1, 1, 1, 2, 3])),
        without=draw(st.none() | st.none() | patterns),
        cooldown_ms=draw(st.sampled_from([0, 0, 0, 2, 50])),
    )


contents = st.fixed_dictionaries(
    {},
    optional={
        "w": st.sampled_from([1, 2, "x", None, True, [1], 1.0]),
        "v": st.sampled_from([0, 1, "y"]),
    },
)
events = st.tuples(
    st.just("event"),
    st.sampled_from([1, 3, 4, 4, 4, 64, 99]),
    st.sampled_from(["a", "a", "b", "elsewhere", "nowhere"]),
    st.sampled_from([0, 1000, 1000, 1000, 2000, 5000, -1500, 12_000_000]),
    contents,
)
actions = st.one_of(
    events, events, events, events, events, events, events, events, events, events,
    st.tuples(st.just("watermark"), st.sampled_from([-2000, 0, 1000, 20_000_000])),
    st.tuples(st.just("add"), st.sampled_from("tuv"), triggers(name="late")),
    st.tuples(st.just("remove"), st.sampled_from("tuv")),
    st.tuples(st.just("boot")),
    st.tuples(st.just("jump"), st.sampled_from([5 * YEAR_US, -5 * YEAR_US])),
    st.tuples(st.just("restore")),
)  # fmt: skip


def follow(start: list[tuple[str, Trigger]], program: Iterable[tuple[Any, ...]]) -> list[Firing]:
    """Run one program through both; return what fired."""
    engine, oracle = TriggerEngine(), Oracle()
    held: dict[tuple[str, str], Trigger] = {}
    everything: list[Firing] = []

    def add(task: str, trigger: Trigger) -> None:
        name = trigger.name
        while (task, name) in held:
            name += "'"
        trigger = dataclasses.replace(trigger, name=name)
        held[task, name] = trigger
        engine.add(task, trigger)
        oracle.all.append(Naive(task, trigger))

    for task, trigger in start:
        add(task, trigger)
    now, boot, seq = 1_000_000_000, 1, 0
    for action in program:
        what = action[0]
        if what == "event":
            _, kind, page, step, content = action
            now += step
            seq += 1
            event = make(kind, page, now, content, boot)
            expected = oracle.on(event, seq)
            assert engine.on(event, seq) == expected
            everything += expected
        elif what == "watermark":
            expected = oracle.on_watermark(now + action[1])
            assert engine.on_watermark(now + action[1]) == expected
            everything += expected
        elif what == "add":
            add(action[1], action[2])
        elif what == "remove":
            engine.remove(action[1])
            oracle.all = [one for one in oracle.all if one.task != action[1]]
            held = {key: one for key, one in held.items() if key[0] != action[1]}
        elif what == "boot":
            boot += 1
        elif what == "jump":
            now += action[1]
        else:
            again = TriggerEngine()
            for (task, _), trigger in reversed(held.items()):  # another order changes nothing
                again.add(task, trigger)
            again.restore(engine.snapshot())
            engine = again
    return everything


@given(
    st.lists(st.tuples(st.sampled_from("tuv"), triggers(name="x")), min_size=1, max_size=8),
    st.lists(actions, min_size=5, max_size=60),
)
@settings(max_examples=300, deadline=None)
def test_equals_the_naive_matcher(
    start: list[tuple[str, Trigger]], program: list[tuple[Any, ...]]
) -> None:
    follow(start, program)


def random_trigger(rng: random.Random, name: str) -> Trigger:
    pages = [
        "page_enter@a",
        "click@a",
        "click@a",
        "click@b",
        "click@*",
        "*@a",
        "*@*",
        "3@b",
        "64@a",
    ]
    steps = rng.choices(pages, k=rng.choice([1, 2, 2, 3, 4]))
    where = [
        (rng.randrange(len(steps)), *rng.choice(
            [("w", "==", 1), ("w", "==", "x"), ("v", "==", 1), ("w", "!=", 1), ("w", "<", 2)]))
        for _ in range(rng.choice([0, 0, 0, 1, 2]))
    ]  # fmt: skip
    within = rng.choice([0, 0, 5, 20])
    return Trigger(
        name=name,
        steps=tuple(steps),
        mode=rng.choice(["strict", "relaxed"]),
        within_ms=within,
        where=tuple(where),
        not_followed_by=rng.choice(["64@a", "click@b"]) if within and rng.random() < 0.3 else None,
        count=rng.choice([1, 1, 1, 2, 3]),
        without=rng.choice([None, None, "64@a", "3@b"]),
        cooldown_ms=rng.choice([0, 0, 0, 7]),
    )


def random_program(rng: random.Random, length: int) -> Iterator[tuple[Any, ...]]:
    for n in range(length):
        draw = rng.random()
        if draw < 0.93:
            content = {"w": rng.choice([1, 2, "x", None])} if rng.random() < 0.7 else {}
            if rng.random() < 0.3:
                content["v"] = rng.choice([0, 1])
            step = rng.choice([0, 1000, 1000, 2000, 3000, -1500])
            yield "event", rng.choice([1, 3, 4, 4, 64, 99]), rng.choice("aabz"), step, content
        elif draw < 0.96:
            yield "watermark", rng.choice([-2000, 0, 30_000])
        elif draw < 0.975:
            yield "add", rng.choice("tuv"), random_trigger(rng, f"late{n}")
        elif draw < 0.98:
            yield "remove", rng.choice("tuv")
        elif draw < 0.99:
            yield ("restore",)
        else:
            yield rng.choice([("boot",), ("jump", 5 * YEAR_US), ("jump", -5 * YEAR_US)])


def test_equals_the_naive_matcher_on_busy_streams_with_every_option_firing() -> None:
    fired_with: Counter[str] = Counter()
    for seed in range(40):
        rng = random.Random(seed)
        start = [(rng.choice("tuvw"), random_trigger(rng, f"n{n}")) for n in range(40)]
        options = {one.name: one for _, one in start}
        for firing in follow(start, random_program(rng, 130)):
            trigger = options.get(firing.trigger)
            if trigger is None:
                continue
            fired_with[f"{trigger.mode} of {len(trigger.steps)}"] += 1
            for option, default in (
                ("within_ms", 0), ("where", ()), ("not_followed_by", None), ("count", 1),
                ("without", None), ("cooldown_ms", 0),
            ):  # fmt: skip
                fired_with[option] += getattr(trigger, option) != default
    assert len(fired_with) == 8 + 6
    assert min(fired_with.values()) >= 10, fired_with


def test_the_oracle_would_notice_a_wrong_engine() -> None:
    """Negative control: relaxed matching taken for strict must differ."""
    engine, oracle = TriggerEngine(), Oracle()
    engine.add("t", Trigger.sequence("1@a", "4@a", name="x", mode="relaxed"))
    oracle.all.append(Naive("t", Trigger.sequence("1@a", "4@a", name="x", mode="strict")))
    program = [make(1, "a", 1), make(3, "a", 2), make(4, "a", 3)]
    got = [engine.on(event, n) for n, event in enumerate(program)]
    wanted = [oracle.on(event, n) for n, event in enumerate(program)]
    assert got != wanted


# -- single behaviours, readable -----------------------------------------------------------


def run(trigger: Trigger, *events: Event) -> list[int]:
    """Return the positions (from 1) of the events at which the trigger fired."""
    engine = TriggerEngine()
    engine.add("t", trigger)
    return [n for n, event in enumerate(events, 1) if engine.on(event, n)]


ENTER, EXPOSE, CLICK = 1, 3, 4


def test_strict_wants_neighbours_and_relaxed_does_not() -> None:
    events = [make(k, "a", n) for n, k in enumerate([ENTER, EXPOSE, CLICK, ENTER, CLICK, CLICK])]
    steps = ("page_enter@a", "click@a")
    assert run(Trigger.sequence(*steps), *events) == [5]
    assert run(Trigger.sequence(*steps, mode="relaxed"), *events) == [3, 5, 6]


def test_within_is_inclusive() -> None:
    for gap, fires in ((2000, [2]), (2001, [])):
        events = [make(ENTER, "a", 0), make(CLICK, "a", gap)]
        for mode in ("strict", "relaxed"):
            trigger = Trigger.sequence("page_enter@a", "click@a", mode=mode, within_ms=2)
            assert run(trigger, *events) == fires


def test_k_exposures_without_a_click() -> None:
    trigger = Trigger.sequence("exposure@a", count=3, without="click@a")
    kinds = [EXPOSE, EXPOSE, CLICK, EXPOSE, EXPOSE, EXPOSE, EXPOSE, EXPOSE, EXPOSE]
    assert run(trigger, *[make(k, "a", n) for n, k in enumerate(kinds)]) == [6, 9]


def test_not_followed_by_waits_for_the_watermark() -> None:
    engine = TriggerEngine()
    engine.add("t", Trigger.sequence("click@a", not_followed_by="click@b", within_ms=5))
    assert engine.on(make(CLICK, "a", 1000), 1) == []
    assert engine.on_watermark(6000) == []
    (firing,) = engine.on_watermark(6001)
    assert (firing.start_seq, firing.seq, firing.event.ts_us) == (1, 1, 1000)
    engine.on(make(CLICK, "a", 10_000), 2)
    engine.on(make(CLICK, "b", 15_000), 3)
    assert engine.on_watermark(10**9) == []


def test_cooldown() -> None:
    trigger = Trigger.sequence("click@a", cooldown_ms=2)
    times = [0, 1999, 2000, 2001, 4000]
    assert run(trigger, *[make(CLICK, "a", t) for t in times]) == [1, 3, 5]


def test_conditions_on_dotted_fields_and_absent_fields() -> None:
    trigger = Trigger.sequence("click@a", where=[(0, "item.id", "==", 7)])
    contents = [{"item": {"id": 7}}, {"item.id": 7}, {"item": 7}, {"item": {"id": 8}}, {}]
    assert run(trigger, *[make(CLICK, "a", n, c) for n, c in enumerate(contents)]) == [1, 2]


def test_other_tasks_keep_their_partial_matches_when_tasks_come_and_go() -> None:
    engine = TriggerEngine()
    for mode in ("strict", "relaxed"):
        engine.add(mode, Trigger.sequence("page_enter@a", "click@a", mode=mode))
    engine.on(make(ENTER, "a", 1), 1)
    engine.add("new", Trigger.sequence("page_enter@a", "click@a", mode="relaxed"))
    engine.add("longer", Trigger.sequence("page_enter@a", "click@a", "click@a"))
    assert engine.remove("nobody") == 0
    assert [f.task for f in engine.on(make(CLICK, "a", 2), 2)] == ["relaxed", "strict"]
    assert engine.remove("relaxed") == 1
    assert engine.tasks() == ["strict", "new", "longer"]


def test_a_restart_and_a_clock_set_back_end_partial_matches_and_are_counted() -> None:
    engine = TriggerEngine()
    engine.add("t", Trigger.sequence("page_enter@a", "click@a"))
    engine.on(make(ENTER, "a", 1, boot=1), 1)
    assert engine.on(make(CLICK, "a", 2, boot=2), 2) == []
    engine.on(make(ENTER, "a", 5 * YEAR_US, boot=2), 3)
    assert engine.on(make(CLICK, "a", 4, boot=2), 4) == []
    assert +engine.counts == {"restarts": 1, "clock_resets": 1}
    engine.on(make(ENTER, "a", 5, boot=2), 5)
    assert len(engine.on(make(CLICK, "a", 6, boot=2), 6)) == 1


def test_a_spec_of_a_manifest_becomes_a_trigger() -> None:
    spec = TriggerSpec(
        name="x",
        sequence=["page_enter@a", "click@*"],
        where=[Condition(step=1, field="w", op="in", value=["cart", "buy"])],
        within_ms=100,
    )
    events = [make(ENTER, "a", 0), make(CLICK, "z", 1, {"w": "buy"})]
    engine = TriggerEngine()
    engine.add("t", spec)
    assert [len(engine.on(event, n)) for n, event in enumerate(events)] == [0, 1]


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("steps", {"steps": ()}),
        ("pattern", {"steps": ("click",)}),
        ("pattern", {"steps": ("tap@a",)}),
        ("mode", {"mode": "loose"}),
        ("within_ms", {"within_ms": -1}),
        ("within_ms", {"not_followed_by": "click@a"}),
        ("count", {"count": 0}),
        ("where.step", {"where": ((1, "w", "==", 1),)}),
        ("where.op", {"where": ((0, "w", "~", 1),)}),
        ("where.value", {"where": ((0, "w", "in", 1),)}),
        ("where.field", {"where": ((0, "", "==", 1),)}),
        ("name", {"name": ""}),
    ],
)
def test_a_bad_trigger_is_refused_by_field_and_changes_nothing(
    field: str, options: dict[str, Any]
) -> None:
    engine = TriggerEngine()
    with pytest.raises(InputError, match=field):
        engine.add("t", Trigger(**{"name": "x", "steps": ("click@a",), **options}))
    assert len(engine) == 0
    engine.add("t", Trigger.sequence("click@a"))
    with pytest.raises(InputError, match="has this trigger"):
        engine.add("t", Trigger.sequence("click@a"))
    assert engine.on(make(CLICK, "a", 1), 1)


@pytest.mark.parametrize("bad", [b"", b"\xc1", msgspec.msgpack.encode({"schema": 1})])
def test_a_damaged_snapshot_is_refused(bad: bytes) -> None:
    with pytest.raises(InputError, match="snapshot"):
        TriggerEngine().restore(bad)


def test_memory_stays_bounded_whatever_pages_appear() -> None:
    engine = TriggerEngine()
    engine.add("t", Trigger.sequence("*@*", "click@a", where=[(0, "w", ">", 3)]))
    engine.add("t", Trigger.sequence("click@a", not_followed_by="64@b", within_ms=10**9, name="n"))
    for n in range(10_000):
        engine.on(make(1 + n % 5, f"page{n}", n, {"w": n % 7}), n)
        engine.on(make(CLICK, "a", n), n)
    assert len(engine._plans) <= 4096
    assert len(engine._tries._plans) < 30
    assert engine._tries.sets.size < 500
    assert len(engine.snapshot()) < 1_000_000
    engine.on_watermark(0)
    assert engine.counts["pending_dropped"] == 10_000 - 4096


def test_kinds_cover_the_published_five() -> None:
    engine = TriggerEngine()
    for kind in EventKind:
        engine.add(kind.name.lower(), Trigger.sequence(f"{kind.name.lower()}@p"))
    for n, kind in enumerate(EventKind):
        assert [f.task for f in engine.on(make(kind, "p", n), n)] == [kind.name.lower()]
