"""The director: what it signs, how large, and that it never goes back."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoal.cloud.director import Director
from shoal.cloud.plans import CohortPlan
from shoal.core.errors import ConflictError, IntegrityError, LimitError
from shoal.wire.limits import WireLimits
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.signing import SignatureError, generate_key, verify_statement

_NOW = 1_700_000_000_000_000


def desired(number: int) -> DesiredTask:
    sha = number.to_bytes(32, "big")
    return DesiredTask(
        task=f"task{number}",
        version=1,
        package=FileRef(sha256=sha, size=1, path=f"task{number}-1.shoal"),
        resources=[FileRef(sha256=sha[::-1], size=2, path="m", scope="exclusive")],
    )


def test_a_notice_is_signed_and_its_shared_files_have_addresses() -> None:
    director = Director(generate_key(), base_url="https://cdn/", clock=lambda: _NOW, ttl_s=10)
    plan = CohortPlan(cohort=3, epoch=5)
    data, expires = director.notice(plan, 2, [desired(1)])
    notice = msgspec.msgpack.decode(data, type=ReleaseNotice)
    assert expires == notice.expires_us == _NOW + 10_000_000
    statement = verify_statement(notice.director, [director.public_key], _NOW)
    assert (statement.epoch, statement.cohort, statement.mask) == (5, 3, 2)
    sha = desired(1).package.sha256.hex()
    assert notice.urls == {sha: [f"https://cdn/v1/d/files/{sha}"]}
    with pytest.raises(SignatureError, match="expired"):
        verify_statement(notice.director, [director.public_key], expires)
    with pytest.raises(SignatureError):  # negative control: another director
        verify_statement(notice.director, [Director(generate_key()).public_key], _NOW)


def test_jitter_spreads_a_cohort_over_the_allowed_pulls() -> None:
    director = Director(generate_key(), pull_rate=50, devices=lambda cohort: cohort * 100)
    data, _ = director.notice(CohortPlan(cohort=7, epoch=1), 0, [])
    assert msgspec.msgpack.decode(data, type=ReleaseNotice).jitter_s == 14


def test_large_sets_shrink_to_what_is_signed_and_then_are_refused() -> None:
    tasks = [desired(n) for n in range(40)]
    plan = CohortPlan(cohort=1, epoch=1)
    director = Director(generate_key())
    full, _ = director.notice(plan, 0, tasks)
    assert len(full) < 64 * 1024  # the 40 tasks fit with everything
    tight = Director(generate_key(), limits=WireLimits(notice=len(full) - 1))
    data, _ = tight.notice(plan, 0, tasks)
    notice = msgspec.msgpack.decode(data, type=ReleaseNotice)
    assert notice.tasks == [] and notice.urls == {}
    assert verify_statement(notice.director, [tight.public_key], 0).tasks == tasks
    with pytest.raises(LimitError):
        Director(generate_key(), limits=WireLimits(notice=1000)).notice(plan, 0, tasks)


def test_the_signed_epoch_only_rises(tmp_path: Path) -> None:
    path = tmp_path / "epoch"
    director = Director(generate_key())
    assert director.signed_epoch(path) == 0
    for epoch in (0, 1, 1, 7):
        assert director.check_epoch(epoch, path) == epoch
    with pytest.raises(ConflictError, match="epoch 7"):
        director.check_epoch(6, path)
    assert director.signed_epoch(path) == 7
    with pytest.raises(IntegrityError):
        Director(generate_key()).check_epoch(8, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        director.check_epoch(8, path)


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "director.pem"
    first = Director(Director.open_key(path))
    assert Director(Director.open_key(path)).key_id == first.key_id
    assert path.stat().st_mode & 0o077 == 0


def test_exclusive_files_must_carry_their_device() -> None:
    director = Director(generate_key())
    for ref in (
        FileRef(sha256=bytes(32), size=1, path="m", scope="exclusive"),
        FileRef(sha256=bytes(32), size=1, path=f"{'00' * 16}/m", scope="shared"),
        FileRef(sha256=bytes(32), size=1, path=f"{'11' * 16}/m", scope="exclusive"),
    ):
        task = DesiredTask(task="t", version=1, package=ref, resources=[ref])
        with pytest.raises(IntegrityError):
            director.exclusive(bytes(16), 1, 1, task)
