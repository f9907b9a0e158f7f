"""Packages: brought whole or not at all, switched and taken back, whatever goes wrong."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.core.errors import UnavailableError
from shoal.device.compatibility import DeviceFacts, fits
from shoal.wire.codes import ErrorCode
from shoal.wire.profile import profile_digest

sys.path.insert(0, str(Path(__file__).parent / "fakes"))

from sync_bench import CODE, SyncBench

MODEL = bytes(range(256)) * 40
SEPARATE = """
[[resources]]
name = "model"
path = "model.bin"
kind = "model"
separate = true
"""


@pytest.fixture
def bench(tmp_path: Path) -> SyncBench:
    return SyncBench(tmp_path)


def content(bench: SyncBench) -> set[str]:
    return {path.name for path in (bench.folder / "device" / "content").iterdir()}


# -- the ordinary way ------------------------------------------------------------------------


def test_a_version_is_brought_and_settles(bench: SyncBench) -> None:
    one = bench.build(1)
    assert bench.sync.settled() == []
    assert bench.follow(one)
    assert bench.active() == {"count": 1}
    assert bench.state(1) == ("trial", 0)
    assert bench.sync.header(7).endswith(profile_digest([("count", 1)]))
    (task,) = bench.sync.installed()
    assert (task.folder / "main.py").read_text() == CODE
    assert bench.reports() == [(1, "trial", 0)]


def test_a_trial_ends_well_after_five_good_runs(bench: SyncBench) -> None:
    bench.follow(bench.build(1))
    assert not bench.runs(1, good=4)
    assert bench.state(1) == ("trial", 0)
    assert not bench.runs(1, good=1)
    assert bench.state(1) == ("good", 0)
    assert bench.reports()[-1] == (1, "good", 0)
    # A good version is not given up by the device alone: that is the guardrail's business.
    assert not bench.runs(1, failed=10)


def test_three_failures_in_the_trial_bring_the_last_good_one_back(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.follow(one)
    bench.runs(1, good=5)
    bench.follow(two)
    assert bench.active() == {"count": 2}
    assert not bench.runs(2, good=3, failed=2)
    assert bench.runs(2, failed=1)
    served = len(bench.link.served)
    assert bench.sync.revert("count", 2, "it crashes") == 1
    assert bench.active() == {"count": 1}
    assert bench.state(2) == ("bad", ErrorCode.QUARANTINED)
    assert len(bench.link.served) == served  # no download
    assert bench.sync.settled() == [("count", 2)]  # reported, hence quiet
    # The same notice, and a newer one without force, do not bring it again.
    assert bench.follow(two, epoch=bench.epoch)
    assert bench.follow(two)
    assert bench.active() == {"count": 1}
    # A newer one with force does.
    assert bench.follow(msgspec.structs.replace(two, force=True))
    assert bench.active() == {"count": 2}
    assert bench.state(2) == ("trial", 0)


def test_a_first_version_that_fails_leaves_nothing_in_force(bench: SyncBench) -> None:
    bench.follow(bench.build(1))
    assert bench.runs(1, failed=3)
    assert bench.sync.revert("count", 1, "") is None
    assert bench.active() == {}
    bench.follow(bench.build(2))
    assert bench.active() == {"count": 2}


def test_a_rollback_by_the_cloud_needs_no_download(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.follow(one)
    bench.runs(1, good=5)
    bench.follow(two)
    bench.runs(2, good=5)
    served = len(bench.link.served)
    assert bench.follow(one)
    assert bench.active() == {"count": 1}
    assert len(bench.link.served) == served


def test_a_withdrawn_version_does_not_come_back(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.follow(one)
    bench.runs(1, good=5)
    bench.follow(two)
    bench.trust.floors["count"] = 2
    bench.runs(2, failed=3)
    assert bench.sync.revert("count", 2, "") is None  # rather none than a withdrawn one
    assert bench.follow(one)
    assert bench.active() == {}
    assert bench.state(1) == ("refused", ErrorCode.BELOW_FLOOR)


def test_a_task_that_is_not_wanted_any_more_goes(bench: SyncBench) -> None:
    one, other = bench.build(1), bench.build(4, task="other")
    bench.follow(one, other)
    assert bench.active() == {"count": 1, "other": 4}
    bench.follow(other)
    assert bench.active() == {"other": 4}
    assert bench.state(1) == ("removed", 0)
    assert one.package.sha256.hex() not in content(bench)
    none = msgspec.structs.replace(other, version=0)
    bench.follow(none)
    assert bench.active() == {}
    assert bench.sync.settled() == []
    assert bench.follow(one)  # and it can come again
    assert bench.active() == {"count": 1}


def test_garbage_goes_and_the_last_good_one_stays(bench: SyncBench) -> None:
    versions = [bench.build(number, code=f"{CODE}# {number}\n") for number in range(1, 6)]
    for desired in versions:
        bench.follow(desired)
        bench.runs(desired.version, good=5)
    kept = {desired.package.sha256.hex() for desired in versions[-2:]}
    assert content(bench) == kept
    assert bench.state(1) == ("removed", 0)
    assert bench.follow(versions[0])  # a version that was cleared away is brought again
    assert bench.active() == {"count": 1}


# -- places in the event log ---------------------------------------------------------------------


def place(bench: SyncBench) -> tuple[int, int, bytes | None]:
    with bench.store.read() as cursor:
        return cursor.execute(
            "SELECT version, last_seq, state FROM consumer WHERE task='count'"
        ).fetchone()


def move(bench: SyncBench, seq: int, state: bytes) -> None:
    with bench.store.transaction() as cursor:
        cursor.execute("UPDATE consumer SET last_seq=?, state=? WHERE task='count'", (seq, state))


def test_a_version_that_comes_back_goes_on_where_it_was(bench: SyncBench) -> None:
    bench.follow(bench.build(1))
    bench.runs(1, good=5)
    move(bench, 100, b"one")
    bench.follow(bench.build(2))
    assert place(bench) == (2, 100, b"one")  # begins where its predecessor stands
    move(bench, 130, b"two")
    bench.follow(bench.build(3))  # replaced while still on trial
    assert place(bench) == (3, 130, b"two")
    with bench.store.read() as cursor:  # the log is not trimmed past the good one's place
        assert cursor.execute("SELECT min(last_seq) FROM consumer").fetchone()[0] == 100
    bench.runs(3, failed=3)
    bench.sync.revert("count", 3, "")
    assert place(bench) == (1, 100, b"one")


def test_after_a_good_trial_the_stream_only_goes_on(bench: SyncBench) -> None:
    one = bench.build(1)
    bench.follow(one)
    bench.runs(1, good=5)
    move(bench, 100, b"one")
    bench.follow(bench.build(2))
    move(bench, 130, b"two")
    bench.runs(2, good=5)
    bench.follow(one)
    assert place(bench) == (1, 130, b"two")


# -- downloads that go wrong --------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["broken", "truncated"])
def test_a_download_that_breaks_off_goes_on_where_it_stopped(bench: SyncBench, fault: str) -> None:
    one = bench.build(1)
    name = one.package.sha256.hex()
    bench.link.faults[name] = [fault]
    assert not bench.follow(one)
    assert bench.active() == {}
    assert bench.state(1) is None  # still wanted
    bench.reopen()
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {"count": 1}
    assert bench.link.served == [(name, 0), (name, one.package.size // 2)]
    assert bench.reports()[0] == (1, "wanted", ErrorCode.DOWNLOAD_FAILED)


@pytest.mark.parametrize(
    ("fault", "code"),
    [("foreign", ErrorCode.HASH_MISMATCH), ("endless", ErrorCode.SIZE_EXCEEDED)],
)
def test_bad_bytes_are_tried_three_times_and_then_refused(
    bench: SyncBench, fault: str, code: ErrorCode
) -> None:
    one = bench.build(1)
    bench.link.faults[one.package.sha256.hex()] = [fault] * 5
    assert not bench.follow(one)
    assert not bench.follow(one, epoch=bench.epoch)
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.state(1) == ("refused", code)
    assert bench.active() == {}
    assert bench.sync.settled() == [("count", 1)]
    assert content(bench) == set()
    # A newer notice is a reason to look again, and by now the cache holds the right bytes.
    bench.link.faults.clear()
    assert bench.follow(one)
    assert bench.active() == {"count": 1}


def test_once_bad_bytes_do_no_harm(bench: SyncBench) -> None:
    one = bench.build(1)
    bench.link.faults[one.package.sha256.hex()] = ["foreign"]
    assert not bench.follow(one)
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {"count": 1}


@pytest.mark.parametrize("fault", ["away", "busy"])
def test_what_is_away_is_tried_again_and_told_once(bench: SyncBench, fault: str) -> None:
    one = bench.build(1)
    bench.link.faults[one.package.sha256.hex()] = [fault] * 3
    for _ in range(3):
        assert not bench.follow(one, epoch=1)
    assert len(bench.reports()) == 1
    assert bench.follow(one, epoch=1)


def test_a_full_disk_waits_and_nothing_is_half_there(
    bench: SyncBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bench.build(1)
    monkeypatch.setattr(bench.packages, "free_bytes", lambda: 10)
    assert not bench.follow(one)
    assert bench.reports() == [(1, "wanted", ErrorCode.DISK_FULL)]
    assert bench.link.served == []  # asked before the download, not after
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shoal.wire.package.TaskPackage.unpack", full)
    assert not bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {}
    monkeypatch.undo()
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {"count": 1}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_package_is_never_installed(bench: SyncBench, data: st.DataObject) -> None:
    """Bit flips and truncations, under the hash of what arrives: only the form is wrong."""
    bench.number += 1
    one = bench.build(1, task=f"t{bench.number:06}")
    raw = bytearray(bench.link.files[one.package.sha256.hex()])
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = msgspec.structs.replace(one, package=bench.offer(bytes(raw), "p"))
    assert bench.follow(damaged)
    state = bench.state(1, task=one.task)
    assert state is not None and state[0] == "refused"
    assert one.task not in bench.active()
    assert bench.follow(one)  # negative control: whole, it installs
    assert bench.active()[one.task] == 1


# -- what is not acceptable --------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [ErrorCode.BELOW_FLOOR, ErrorCode.NOT_ENTITLED, ErrorCode.SCHEMA_MISMATCH]
)
def test_what_is_not_trusted_is_refused_and_reported(bench: SyncBench, code: ErrorCode) -> None:
    one = bench.build(1)
    bench.trust.refusals["count", 1] = code
    assert bench.follow(one)
    assert bench.state(1) == ("refused", code)
    assert bench.reports() == [(1, "refused", code)]
    assert bench.link.served == []


@pytest.mark.parametrize("code", [ErrorCode.METADATA_EXPIRED, ErrorCode.UNKNOWN_TASK])
def test_what_may_pass_is_tried_again(bench: SyncBench, code: ErrorCode) -> None:
    one = bench.build(1)
    bench.trust.refusals["count", 1] = code
    assert not bench.follow(one)
    bench.trust.refusals.clear()
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {"count": 1}


def test_a_notice_that_is_not_trusted_changes_nothing(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.follow(one)
    bench.trust.notice_refusal = ErrorCode.ROLLBACK_REFUSED
    assert not bench.follow(two)
    assert bench.sync.counts["notice_203"] == 1
    assert not bench.sync.follow(b"\xc1 not msgpack", cohort=1)
    assert bench.sync.counts["bad_notice"] == 1
    assert bench.active() == {"count": 1}
    assert bench.sync.epoch == 1


def test_without_a_root_nothing_is_followed(bench: SyncBench) -> None:
    bench.sync.trust = None
    with pytest.raises(UnavailableError, match="root of trust"):
        bench.follow(bench.build(1))


@pytest.mark.parametrize(
    "extra",
    [
        '[requires]\npython = ">=9.0"\n',
        '[requires]\nengines = { onnx = ">=99" }\n',
        '[requires]\nengines = { mnn = ">=1" }\n',
        '[requires]\ncapabilities = ["camera"]\n',
        "[requires]\nmemory_mb = 999999\n",
        "[requires]\nprotocol = 99\n",
    ],
)
def test_what_cannot_run_here_is_refused_before_its_model_comes(
    bench: SyncBench, extra: str
) -> None:
    one = bench.build(1, extra=SEPARATE + extra, model=MODEL)
    assert bench.follow(one)
    assert bench.state(1) == ("refused", ErrorCode.INCOMPATIBLE)
    assert [name for name, _ in bench.link.served] == [one.package.sha256.hex()]
    # A newer notice changes nothing about that, a newer device does.
    assert bench.follow(one)
    assert len(bench.link.served) == 1
    bench.facts = DeviceFacts(
        engines={"onnx": "99.1", "mnn": "2"},
        capabilities=frozenset({"camera"}),
        sandbox_level=3,
        memory_mb=1 << 20,
    )
    bench.reopen()
    assert bench.sync.settled() == []
    bench.follow(one)
    needs_more = "python" in extra or "protocol" in extra
    assert (bench.active() == {}) == needs_more


def test_a_package_that_is_another_task(bench: SyncBench) -> None:
    other = bench.build(1, task="other")
    assert bench.follow(msgspec.structs.replace(other, task="count"))
    assert bench.state(1) == ("refused", ErrorCode.SCHEMA_MISMATCH)


def test_not_before_its_time(bench: SyncBench) -> None:
    one = msgspec.structs.replace(bench.build(1), not_before_us=bench.now_us + 1)
    assert not bench.follow(one)
    bench.now_us += 1
    assert bench.follow(one, epoch=bench.epoch)


# -- files beside the package --------------------------------------------------------------------


def test_a_model_travels_apart_and_only_once(bench: SyncBench) -> None:
    one = bench.build(1, extra=SEPARATE, model=MODEL)
    two = bench.build(2, extra=SEPARATE, code=CODE + "#\n", model=MODEL)
    assert bench.follow(one)
    bench.runs(1, good=5)
    assert bench.follow(two)
    model = one.resources[0].sha256.hex()
    assert [name for name, _ in bench.link.served].count(model) == 1
    for task in bench.sync.installed():
        assert (task.folder / "model.bin").read_bytes() == MODEL


def test_files_of_this_device_alone(bench: SyncBench) -> None:
    one = bench.grant(bench.build(1), own=b"for your eyes only")
    assert bench.follow(one)
    (task,) = bench.sync.installed()
    assert (task.folder / "own.key").read_bytes() == b"for your eyes only"


def test_a_grant_for_another_version_is_refused(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.grant(two, own=b"x")
    bench.link.grants["count", 1] = bench.link.grants["count", 2]
    assert bench.follow(msgspec.structs.replace(one, exclusive=True))
    assert bench.state(1) == ("refused", ErrorCode.NOT_ENTITLED)


# -- damage and restarts ---------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["change", "remove", "folder", "manifest"])
def test_damage_shows_and_is_repaired_without_a_download(bench: SyncBench, harm: str) -> None:
    import shutil

    one = bench.build(1, extra=SEPARATE, model=MODEL)
    bench.follow(one)
    (task,) = bench.sync.installed()
    target = task.folder / "main.py"
    if harm == "folder":
        shutil.rmtree(task.folder)
    elif harm == "remove":
        target.unlink()
    else:
        target = task.folder / "manifest.json" if harm == "manifest" else target
        target.chmod(0o644)
        target.write_text(target.read_text().replace("count", "cOunt") + " ")
    served = len(bench.link.served)
    bench.reopen()
    assert bench.sync.settled() == []  # so the next check asks for a notice
    assert bench.active() == {}
    assert bench.follow(one, epoch=bench.epoch)
    (task,) = bench.sync.installed()
    assert (task.folder / "main.py").read_text() == CODE
    assert len(bench.link.served) == served


def test_a_wiped_folder_is_filled_again(bench: SyncBench) -> None:
    import shutil

    one = bench.build(1)
    bench.follow(one)
    for name in ("content", "packages"):
        shutil.rmtree(bench.folder / "device" / name)
    bench.reopen()
    assert bench.sync.settled() == []
    assert bench.follow(one, epoch=bench.epoch)
    assert bench.active() == {"count": 1}


def test_everything_is_remembered_over_a_restart(bench: SyncBench) -> None:
    one, two = bench.build(1), bench.build(2)
    bench.follow(one)
    bench.runs(1, good=5)
    bench.follow(two)
    bench.runs(2, failed=3)
    bench.sync.revert("count", 2, "")
    before = (bench.active(), bench.sync.settled(), bench.sync.epoch, bench.sync.held())
    bench.reopen()
    assert (bench.active(), bench.sync.settled(), bench.sync.epoch, bench.sync.held()) == before


def test_work_comes_in_small_pieces(tmp_path: Path) -> None:
    bench = SyncBench(tmp_path, chunk=2000)
    one = bench.build(1, extra=SEPARATE, model=MODEL)
    assert bench.sync.accept(bench.notice(one, jitter_s=1.5), cohort=1) == 1.5
    steps = 0
    while bench.sync.work() is None:
        steps += 1
        assert bench.active() == {} or not bench.sync.working or steps
    assert steps >= len(MODEL) // 2000
    assert bench.active() == {"count": 1}


# -- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "wanted", "answer"),
    [
        ("1.20.1", ">=1.20", True),
        ("1.20", ">=1.20.1", False),
        ("1.9", ">=1.10", False),
        ("2.0", ">=1.20, <2", False),
        ("1.99", ">=1.20, <2", True),
        ("1.2.3", "==1.2", True),
        ("1.2.3", "1.2", True),
        ("1.3", "!=1.2", True),
        ("2.13.0+cpu", ">=2.13", True),
        ("1.0", "", True),
        ("1.0", "~=1.0", False),
        ("1.0", "newest", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, answer: bool) -> None:
    assert fits(version, wanted) == answer
