"""Runs over the event log: what each is given, and that nothing is lost or done twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.device.jobs import LogView
from shoal.device.store import DiskFullError
from shoal.wire.codes import ErrorCode
from shoal.wire.manifest import InputSpec, LimitSpec, OutputSpec, TriggerSpec

sys.path.insert(0, str(Path(__file__).parent / "fakes"))

from runner_bench import CLICK, ENTER, EXIT, EXPOSE, RunFailed, RunnerBench, since


@pytest.fixture
def bench(tmp_path: Path) -> RunnerBench:
    return RunnerBench(tmp_path)


def numbers(state: dict[str, Any], request: Any) -> list[int]:
    """Emit the ``n`` of the events that the run was given."""
    return [event.content["n"] for event in request.events]


def fold(state: dict[str, Any], request: Any) -> list[int]:
    """Keep every ``n`` in the state and emit all of them: one lost or doubled shows for ever."""
    state["all"] = state.get("all", []) + numbers(state, request)
    return list(state["all"])


# -- what a run is given -----------------------------------------------------------------------


def test_since_gives_each_event_once_and_in_order(bench: RunnerBench) -> None:
    bench.start(numbers, input=since())
    for number in range(10):
        bench.event(EXIT if number % 3 == 2 else CLICK, n=number)
    bench.work()
    assert bench.values() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    bench.event(EXIT, n=10)
    bench.work()
    assert bench.values()[-1] == [9, 10]


def test_only_what_the_manifest_names_is_read(bench: RunnerBench) -> None:
    bench.start(numbers, input=since(events=["click@shop", "page_exit@*"]))
    for kind, page in ((CLICK, "shop"), (CLICK, "bank"), (EXPOSE, "shop"), (EXIT, "bank")):
        bench.event(kind, page, n=kind)
    bench.work()
    assert bench.values() == [[CLICK, EXIT]]


def test_a_large_input_comes_in_several_runs(bench: RunnerBench) -> None:
    bench.start(fold, input=since(max_events=4))
    for number in range(10):
        bench.event(EXIT if number == 9 else CLICK, n=number)
    bench.work()
    assert [len(request.events) for request in bench.pool.requests] == [4, 4, 2]
    assert bench.values()[-1] == list(range(10))
    assert len({request.run for request in bench.pool.requests}) == 3


def test_event_scope_gives_the_match_alone(bench: RunnerBench) -> None:
    trigger = TriggerSpec(name="bought", sequence=["page_enter@*", "click@*"], mode="strict")
    bench.start(numbers, triggers=[trigger], input=InputSpec(scope="event"))
    for number, kind in enumerate((CLICK, ENTER, CLICK, ENTER, EXIT, CLICK)):
        bench.event(kind, n=number)
    bench.work()
    assert bench.values() == [[1, 2]]


def test_visit_scope_gives_the_visit(bench: RunnerBench) -> None:
    bench.start(numbers, input=InputSpec(scope="visit"))
    one, two = b"1" * 16, b"2" * 16
    for number, (kind, visit) in enumerate(
        [(ENTER, one), (CLICK, one), (ENTER, two), (CLICK, one), (EXIT, two), (EXIT, one)]
    ):
        bench.event(kind, visit=visit, n=number)
    bench.work()
    assert bench.values() == [[2, 4], [0, 1, 3, 5]]


def test_visit_scope_without_ids_goes_by_page(bench: RunnerBench) -> None:
    bench.start(numbers, input=InputSpec(scope="visit"))
    for number, (kind, page) in enumerate(
        [(ENTER, "a"), (CLICK, "a"), (ENTER, "b"), (CLICK, "b"), (EXIT, "b"), (EXIT, "a")]
    ):
        bench.event(kind, page, n=number)
    bench.work()
    assert bench.values() == [[2, 3, 4], [0, 1, 5]]


def test_what_did_not_come_fires_on_the_watermark(bench: RunnerBench) -> None:
    trigger = TriggerSpec(
        name="left", sequence=["click@*"], not_followed_by="page_exit@*", within_ms=5_000
    )
    bench.start(numbers, triggers=[trigger], input=InputSpec(scope="event"))
    bench.event(CLICK, n=1)
    bench.event(EXIT, n=2)
    bench.event(CLICK, n=3)
    bench.work()
    assert bench.values() == []
    bench.now_us += 60_000_000
    bench.event(ENTER, n=4)
    bench.work()
    assert bench.values() == [[3]]


# -- exactly once --------------------------------------------------------------------------------


def test_a_commit_takes_many_runs(bench: RunnerBench) -> None:
    bench.start(fold, input=since())
    for number in range(200):
        bench.event(EXIT, n=number)
    commits = 0
    original = bench.runner.commit

    def counted() -> None:
        nonlocal commits
        commits += 1
        original()

    bench.runner.commit = counted  # type: ignore[method-assign]
    bench.work()
    assert bench.values()[-1] == list(range(200))
    assert commits <= 6


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_crash_between_any_two_steps_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Against an oracle that folds the whole log in one pass."""
    bench = RunnerBench(tmp_path_factory.mktemp("crash"))
    triggers = [
        TriggerSpec(name="left", sequence=["page_exit@*"]),
        TriggerSpec(name="twice", sequence=["click@*", "click@*"], mode="relaxed"),
        TriggerSpec(name="third", sequence=["click@*"], count=3),
    ]
    options = {"triggers": triggers, "input": since(max_events=3)}
    kinds = data.draw(st.lists(st.sampled_from([CLICK, EXIT, ENTER]), min_size=1, max_size=60))
    bench.start(fold, **options)
    for number, kind in enumerate(kinds):
        bench.event(kind, n=number)
        for _ in range(data.draw(st.integers(0, 3))):
            bench.runner.step()
        if data.draw(st.integers(0, 9)) == 0:
            bench.crash()
            bench.start(fold, **options)
    bench.work()
    kept = {record.id: record for record in bench.results()}
    assert len(kept) == len(bench.results())  # nothing was made durable twice
    got = [record.value for record in sorted(kept.values(), key=lambda record: len(record.value))]

    calm = RunnerBench(tmp_path_factory.mktemp("calm"))
    calm.start(fold, **options)
    for number, kind in enumerate(kinds):
        calm.event(kind, n=number)
    calm.work()
    assert got == calm.values()
    for value in got:
        assert value == list(range(len(value)))


def test_two_firings_of_one_event_become_durable_together(bench: RunnerBench) -> None:
    """Else a crash between them would skip the second."""
    triggers = [
        TriggerSpec(name="a", sequence=["page_exit@*"]),
        TriggerSpec(name="b", sequence=["page_exit@*"]),
    ]
    failing = True

    def once(state: dict[str, Any], request: Any) -> list[int]:
        state["runs"] = state.get("runs", 0) + 1
        if failing and state["runs"] == 2:
            raise RunFailed(ErrorCode.EXCEPTION)
        return [state["runs"]]

    options = {"triggers": triggers, "input": InputSpec(scope="event")}
    bench.start(once, **options)
    bench.event(EXIT, n=1)
    for _ in range(4):  # the first run is over, the second has failed once and was reported
        bench.runner.step()
    assert len(bench.summaries()) >= 2
    assert bench.values() == []
    bench.crash()
    failing = False
    bench.start(once, **options)
    bench.work()
    assert bench.values() == [[1], [2]]


def test_repeated_runs_have_the_same_ids(bench: RunnerBench, tmp_path: Path) -> None:
    other = RunnerBench(tmp_path / "other")
    for one in (bench, other):
        one.start(numbers, input=since())
        event = one.log.append(EXIT, "p", {"n": 1}, ts_us=5, event_id=b"e" * 16)
        assert event.id == b"e" * 16
        one.work()
    assert [record.id for record in bench.results()] == [record.id for record in other.results()]
    assert bench.results()[0].id != bench.pool.requests[0].run


def test_a_stale_runner_cannot_move_its_successor_s_place(bench: RunnerBench) -> None:
    runner = bench.start(numbers, input=since())
    bench.event(EXIT, n=1)
    bench.work()
    with bench.store.transaction() as cursor:  # another version was put in force
        cursor.execute("UPDATE consumer SET version=2, last_seq=0")
    bench.event(EXIT, n=2)
    with pytest.raises(Exception, match="not in force"):
        bench.work()
    assert runner.backlog == 1
    assert bench.values() == [[1]]  # the whole commit was taken back


def test_long_silence_moves_the_place_too(bench: RunnerBench) -> None:
    bench.start(numbers, input=since(events=["page_exit@*"]))
    for number in range(1500):
        bench.event(CLICK, str(number), n=number)
    bench.work()
    assert bench.runner.backlog < 1000  # a restart does not read everything again


def test_close_and_start_again(bench: RunnerBench) -> None:
    bench.start(fold, input=since())
    for number in range(3):
        bench.event(EXIT, n=number)
    bench.pool.held = []
    bench.runner.step()
    assert len(bench.pool.held) == 1  # one run is under way
    bench.runner.close()
    bench.crash()
    bench.start(fold, input=since())
    bench.work()
    assert bench.values() == [[0], [0, 1], [0, 1, 2]]


# -- failures --------------------------------------------------------------------------------------


def test_a_failing_run_is_tried_three_times_and_then_set_aside(bench: RunnerBench) -> None:
    def picky(state: dict[str, Any], request: Any) -> list[int]:
        if 3 in numbers(state, request):
            raise RunFailed(ErrorCode.EXCEPTION, "no threes")
        return fold(state, request)

    bench.start(picky, input=since())
    for number in range(6):
        bench.event(EXIT, n=number)
    bench.work()
    assert bench.values()[-1] == [0, 1, 2, 4, 5]
    failed = [summary for summary in bench.summaries() if summary.outcome]
    assert [summary.message for summary in failed] == ["no threes"] * 3
    assert len({summary.run for summary in failed}) == 3  # three runs for the guardrail to count
    with bench.store.read() as cursor:
        rows = cursor.execute("SELECT seq, attempts, code, message FROM quarantine").fetchall()
    assert rows == [(4, 3, ErrorCode.EXCEPTION, "1 events: no threes")]
    assert bench.runner.counts["skipped"] == 1


def test_a_failure_that_passes_loses_nothing(bench: RunnerBench) -> None:
    fails = [True, True, False]

    def shaky(state: dict[str, Any], request: Any) -> list[int]:
        if fails and fails.pop(0):
            raise RunFailed(ErrorCode.VM_CRASHED)
        return fold(state, request)

    bench.start(shaky, input=since())
    bench.event(EXIT, n=1)
    bench.work()
    assert bench.values() == [[1]]


def test_the_trial_is_told_and_ends_the_runner(bench: RunnerBench) -> None:
    told = []

    def judge(_cursor: Any, *what: Any) -> bool:
        told.append(what)
        return sum(one[3] for one in told) >= 3

    def broken(state: dict[str, Any], request: Any) -> None:
        raise RunFailed(ErrorCode.EXCEPTION, "broken")

    bench.judge = judge
    runner = bench.start(broken, input=since())
    for number in range(5):
        bench.event(EXIT, n=number)
    for _ in range(50):
        runner.step()
    assert runner.failed_trial == "broken"
    assert told == [("count", 1, 0, 1)] * 3
    assert len(bench.pool.requests) == 3  # and no more after that


def test_what_keeps_failing_rests(bench: RunnerBench) -> None:
    def broken(state: dict[str, Any], request: Any) -> None:
        raise RunFailed(ErrorCode.EXCEPTION)

    runner = bench.start(broken, input=since())
    for number in range(20):
        bench.event(EXIT, n=number)
    for _ in range(500):
        runner.step()
    assert len(bench.pool.requests) == 5
    assert runner.counts["circuit_open"] == 1
    assert [s.outcome for s in bench.summaries()].count(ErrorCode.CIRCUIT_OPEN) == 1
    assert not runner.idle  # what was not run waits


def test_a_full_queue_is_nobody_s_fault(bench: RunnerBench) -> None:
    busy = [True] * 3

    def task(state: dict[str, Any], request: Any) -> list[int]:
        if busy and busy.pop():
            raise RunFailed(ErrorCode.RATE_LIMITED)
        return fold(state, request)

    bench.start(task, input=since())
    bench.event(EXIT, n=1)
    bench.work()
    assert bench.values() == [[1]]
    assert [summary.outcome for summary in bench.summaries()] == [0]


def test_runs_an_hour_are_limited(bench: RunnerBench) -> None:
    runner = bench.start(numbers, input=since(), limits=LimitSpec(runs_per_hour=3))
    for number in range(5):
        bench.event(EXIT, n=number)
    for _ in range(100):
        runner.step()
    assert bench.values() == [[0], [1], [2]]
    assert not runner.idle


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path) -> None:
    bench = RunnerBench(tmp_path)
    runner = bench.start(fold, input=since())
    for number in range(5):
        bench.event(EXIT, n=number)
    bench.log.flush()
    original = bench.store.transaction

    def full() -> Any:
        raise DiskFullError("no room")

    bench.store.transaction = full  # type: ignore[assignment, method-assign]
    refused = 0
    for _ in range(50):
        try:
            runner.step()
        except DiskFullError:
            refused += 1
    assert refused >= 1
    assert bench.values() == []
    bench.store.transaction = original  # type: ignore[method-assign]
    runner._not_before = 0.0
    bench.work()
    assert bench.values()[-1] == list(range(5))


# -- outputs ---------------------------------------------------------------------------------------


def test_what_is_not_declared_does_not_leave(bench: RunnerBench) -> None:
    bench.start(numbers, input=since(), outputs=[OutputSpec(name="other")])
    bench.event(EXIT, n=1)
    bench.work()
    assert bench.values() == []
    assert bench.uplink.dropped() == {"undeclared_result": 1}


def test_features_are_stored_sent_and_read_again(bench: RunnerBench) -> None:
    seen = []

    def task(state: dict[str, Any], request: Any) -> None:
        seen.append(dict(request.features))
        number = numbers(state, request)[0]
        state["_features"] = [("f", "key", "json", {"n": number}, request.now_us)]

    bench.start(task, input=since(features=["f"]))
    for number in range(3):
        bench.event(EXIT, n=number)
    bench.work()
    # Each run reads what the one before has put, durable or not.
    assert seen == [{}, {("f", "key"): {"n": 0}}, {("f", "key"): {"n": 1}}]
    assert [record.revision for record in bench.sent_features()] == [0, 1, 2]
    held = bench.features.get("count", "f", "key")
    assert held is not None and held.value == b'{"n":2}'
    bench.crash()
    bench.start(task, input=since(features=["f"]))
    bench.event(EXIT, n=3)
    bench.work()
    assert seen[-1] == {("f", "key"): {"n": 2}}


@pytest.mark.parametrize("value", [[1e300], ["x"], "not numbers", [1.0, 2.0], None])
def test_a_value_that_is_not_what_it_says_stays(bench: RunnerBench, value: Any) -> None:
    def task(state: dict[str, Any], request: Any) -> list[int]:
        state["_features"] = [("f", "key", "f32[1]", value, request.now_us)]
        return numbers(state, request)

    outputs = [OutputSpec(name="seen"), OutputSpec(name="f", kind="feature", dtype="f32[1]")]
    bench.start(task, input=since(), outputs=outputs)
    bench.event(EXIT, n=1)
    bench.work()
    assert bench.values() == [[1]]  # the run itself was fine
    assert bench.sent_features() == []
    assert bench.uplink.dropped() == {"refused_feature": 1}


def test_raw_events_leave_only_with_permission(bench: RunnerBench) -> None:
    from shoal.device.outbox import RecordKind

    outputs = [OutputSpec(name="seen"), OutputSpec(name="raw", kind="events")]
    bench.start(numbers, input=since(), outputs=outputs)
    bench.event(EXIT, n=1)
    bench.work()
    with bench.store.read() as cursor:
        query = "SELECT count(*) FROM outbox WHERE kind=?"
        assert cursor.execute(query, (int(RecordKind.EVENT),)).fetchone()[0] == 1


# -- the window on the log -------------------------------------------------------------------------


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_view_reads_what_the_log_holds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    bench = RunnerBench(tmp_path_factory.mktemp("view"))
    view = LogView(bench.log, size=data.draw(st.integers(1, 20)))
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.integers(0, 2)):
            case 0:
                for _ in range(data.draw(st.integers(1, 15))):
                    bench.event(CLICK)
            case 1:
                view.forget()
            case _:
                after = data.draw(st.integers(0, bench.log.last_seq + 2))
                limit = data.draw(st.integers(1, 12))
                assert view.read(after, limit) == bench.log.read(after, limit)
