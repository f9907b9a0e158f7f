"""The plan table against the plain reading of the specification."""

from __future__ import annotations

import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.cloud.plans import (
    MAX_GRAY,
    SEND_PROFILE,
    CohortPlan,
    GrayEntry,
    PlanTable,
    UnsupportedProtocolError,
    desired_tasks,
)
from shoal.core.errors import InputError, LimitError, NotFoundError
from shoal.wire.buckets import bucket
from shoal.wire.notices import DesiredTask, FileRef
from shoal.wire.profile import format_profile_header, parse_profile_header, profile_digest


def desired(task: str, version: int, *, force: bool = False) -> DesiredTask:
    ref = FileRef(sha256=bytes(32), size=1, path="p")
    return DesiredTask(task=task, version=version, package=ref, force=force)


def slow_check(plans, header: str, device: str):
    """What A.4 says, without any preparation: the oracle."""
    parsed = parse_profile_header(header)
    plan = next((p for p in plans if p.cohort == parsed.cohort), None)
    if plan is None:
        return SEND_PROFILE
    mask = sum(
        1 << bit
        for bit, entry in enumerate(plan.gray)
        if bucket(entry.salt, device) < entry.threshold
    )
    mask = plan.overrides.get(device, mask)
    wanted = {t.task: t for t in plan.base}
    for bit, entry in enumerate(plan.gray):
        if mask & 1 << bit and entry.desired is not None:
            wanted[entry.desired.task] = entry.desired
    digest = profile_digest((t.task, t.version) for t in wanted.values() if t.version)
    forced = any(t.force for t in wanted.values()) and parsed.epoch < plan.epoch
    return None if digest == parsed.digest and not forced else (plan.epoch, plan.cohort, mask)


_devices = st.binary(min_size=16, max_size=16).map(bytes.hex)
_tasks = st.builds(
    desired,
    st.sampled_from("abcde"),
    st.integers(0, 3),
    force=st.sampled_from([False] * 4 + [True]),
)
_gray = st.builds(
    GrayEntry,
    release_id=st.integers(1, 9),
    salt=st.text(max_size=4),
    threshold=st.sampled_from([0, 10, 5_000, 9_999, 10_000]),
    desired=st.none() | _tasks,
)


@st.composite
def _plan(draw, cohort: int):
    gray = draw(st.lists(_gray, max_size=4))
    return CohortPlan(
        cohort=cohort,
        epoch=draw(st.integers(1, 50)),
        base=draw(st.lists(_tasks, max_size=4, unique_by=lambda t: t.task)),
        gray=gray,
        overrides=draw(st.dictionaries(_devices, st.integers(0, (1 << len(gray)) - 1), max_size=2)),
    )


@settings(max_examples=200)
@given(st.data())
def test_equals_the_oracle_on_any_plans(data: st.DataObject) -> None:
    plans = [data.draw(_plan(cohort)) for cohort in (1, 2, 37)]
    table = PlanTable()
    table.rebuild(plans, 60)
    named = [d for p in plans for d in p.overrides]
    for _ in range(5):
        device = (
            data.draw(st.sampled_from(named) if named else _devices)
            if data.draw(st.booleans())
            else data.draw(_devices)
        )
        cohort = data.draw(st.sampled_from([1, 2, 37, 3, 0]))
        held = data.draw(st.dictionaries(st.sampled_from("abcde"), st.integers(1, 3), max_size=4))
        if data.draw(st.booleans()) and cohort in table.cohorts():  # often a settled device
            mask = table.address(cohort, device)[2]
            held = {t.task: t.version for t in desired_tasks(table.plan(cohort), mask) if t.version}
        header = format_profile_header(
            data.draw(st.integers(0, 60)), cohort, profile_digest(held.items())
        )
        expected = slow_check(plans, header, device)
        assert table.check(header, device) == expected
        assert table.check(parse_profile_header(header), device) == expected
        assert table.check(header, device, cohort) == expected
        assert table.check(header, device, cohort + 1) == SEND_PROFILE


@given(_devices, st.text(max_size=5), st.data())
def test_steps_are_monotone(device: str, salt: str, data: st.DataObject) -> None:
    inside = []
    for threshold in range(0, 10_001, 500):
        entry = GrayEntry(release_id=1, salt=salt, threshold=threshold, desired=desired("t", 2))
        table = PlanTable()
        table.rebuild([CohortPlan(cohort=1, epoch=1, gray=[entry])], 1)
        inside.append(table.address(1, device)[2])
    assert inside == sorted(inside)
    assert inside[0] == 0 and inside[-1] == 1


@pytest.mark.parametrize(
    "header",
    [
        "",
        "1",
        "1.2.3",
        "1.2.3.4.5",
        "1.1.1.short",
        "1.-1.1." + "x" * 22,
        "1.1.?." + "x" * 22,
        "one.1.1." + "x" * 22,
        "1.1.9." + "x" * 21,
        "1..1." + "x" * 22,
        "\x00.\x00.\x00.\x00",
    ],
)
def test_malformed_headers(header: str) -> None:
    table = PlanTable()
    table.rebuild([CohortPlan(cohort=1, epoch=1)], 1)
    with pytest.raises(InputError):
        table.check(header, "0" * 32)


def test_long_headers_and_other_protocols() -> None:
    table = PlanTable()
    table.rebuild([CohortPlan(cohort=1, epoch=1)], 1)
    with pytest.raises(LimitError):
        table.check("1." + "0" * 300 + ".1." + profile_digest([]), "0" * 32)
    for protocol in ("2", "0", "99"):
        with pytest.raises(UnsupportedProtocolError):
            table.check(f"{protocol}.1.1.{profile_digest([])}", "0" * 32)


@given(st.text(max_size=300))
def test_any_text_is_answered_or_refused(text: str) -> None:
    table = PlanTable()
    table.rebuild([CohortPlan(cohort=1, epoch=1)], 1)
    try:
        answer = table.check(text, "0" * 32)
    except InputError:
        return
    assert answer is None or len(answer) == 3


def test_sticky_device_stays_in_when_the_threshold_falls() -> None:
    device = next(f"{i:032x}" for i in range(10_000) if bucket("s", f"{i:032x}") >= 5_000)
    asked: list[str] = []

    def sticky(hex_id: str) -> list[int]:
        asked.append(hex_id)
        return [7] if hex_id == device else []

    def plan(threshold: int, is_sticky: bool) -> CohortPlan:
        entry = GrayEntry(
            release_id=7, salt="s", threshold=threshold, desired=desired("t", 2), sticky=is_sticky
        )
        return CohortPlan(cohort=1, epoch=1, base=[desired("t", 1)], gray=[entry])

    table = PlanTable(sticky=sticky)
    header = format_profile_header(1, 1, profile_digest([("t", 2)]))
    table.rebuild([plan(5_000, True)], 1)
    assert table.check(header, device) is None
    assert table.check(header, device) is None
    assert asked == [device]  # the second answer came from the override
    table.rebuild([plan(5_000, False)], 2)  # off during a rollback
    assert table.check(header, device) == (1, 1, 0)
    stranger = next(
        f"{i:032x}"
        for i in range(10_000)
        if bucket("s", f"{i:032x}") >= 5_000 and f"{i:032x}" != device
    )
    table.rebuild([plan(5_000, True)], 3)
    assert table.check(header, stranger) == (1, 1, 0)


def test_rebuild_refuses_what_is_inconsistent_and_keeps_the_old_plans() -> None:
    table = PlanTable()
    table.rebuild([CohortPlan(cohort=1, epoch=3)], 5)
    gray = [GrayEntry(release_id=i, salt=str(i), threshold=0) for i in range(MAX_GRAY + 1)]
    bad = [
        [CohortPlan(cohort=0, epoch=1)],
        [CohortPlan(cohort=1, epoch=1), CohortPlan(cohort=1, epoch=1)],
        [CohortPlan(cohort=1, epoch=1, gray=gray)],
        [CohortPlan(cohort=1, epoch=1, base=[desired("a", 1), desired("a", 2)])],
        [CohortPlan(cohort=1, epoch=1, overrides={"x": 1})],
        [CohortPlan(cohort=1, epoch=1, gray=[GrayEntry(release_id=1, salt="", threshold=10_001)])],
    ]
    for plans in bad:
        with pytest.raises(InputError):
            table.rebuild(plans, 6)
    with pytest.raises(InputError, match="backwards"):
        table.rebuild([], 4)
    assert table.epoch == 5 and table.cohorts() == [1]


def test_notices_are_made_once_and_again_at_half_their_life() -> None:
    now = [1_000]
    made: list[tuple[int, int]] = []

    def make(plan: CohortPlan, mask: int, tasks: list[DesiredTask]) -> tuple[bytes, int]:
        made.append((plan.cohort, mask))
        return msgspec.msgpack.encode([t.version for t in tasks]), now[0] + 1_000

    table = PlanTable(make, clock=lambda: now[0])
    entry = GrayEntry(release_id=1, salt="s", threshold=5_000, desired=desired("t", 2))
    table.rebuild([CohortPlan(cohort=1, epoch=4, base=[desired("t", 1)], gray=[entry])], 9)
    assert msgspec.msgpack.decode(table.notice(4, 1, 0)) == [1]
    assert msgspec.msgpack.decode(table.notice(4, 1, 1)) == [2]
    assert made == [(1, 0), (1, 1)]
    now[0] += 499
    table.notice(4, 1, 0)
    assert len(made) == 2
    now[0] += 1
    table.notice(4, 1, 0)
    assert len(made) == 3
    for wrong in ((9, 1, 0), (4, 2, 0), (4, 1, 2), (4, 1, -1)):
        with pytest.raises(NotFoundError):
            table.notice(*wrong)
    with pytest.raises(NotFoundError, match="director"):
        plain = PlanTable()
        plain.rebuild([CohortPlan(cohort=1, epoch=1)], 1)
        plain.notice(1, 1, 0)


def test_checks_under_way_see_one_generation() -> None:
    """Swapped while being read: every answer belongs to one of the two plan sets."""
    one = [CohortPlan(cohort=c, epoch=1, base=[desired("t", 1)]) for c in (1, 2)]
    two = [CohortPlan(cohort=c, epoch=2, base=[desired("t", 2)]) for c in (1, 2)]
    table = PlanTable()
    table.rebuild(one, 1)
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        header = format_profile_header(0, 1, profile_digest([]))
        while not stop.is_set():
            answer = table.check(header, "ab" * 16)
            if answer not in ((1, 1, 0), (2, 1, 0)):
                wrong.append(answer)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(300):
        table.rebuild(one if number % 2 else two, 2)
    stop.set()
    thread.join()
    assert wrong == []
