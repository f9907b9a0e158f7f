"""What a device believes, and every known way to make it believe something else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from shoal.cloud.images import ImageRepository
from shoal.core.errors import InputError, NotFoundError, UnavailableError
from shoal.device.trust import TrustError, TrustStore
from shoal.wire import DesiredTask, ErrorCode, FileRef, ReleaseNotice
from shoal.wire.signing import (
    DirectorStatement,
    PrivateKey,
    generate_key,
    public_bytes,
    sign_statement,
)

DAY = 86_400_000_000
START = 1_700_000_000_000_000


class World:
    """A cloud's image repository, its director, a device, and whoever sits between them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = START
        self.director = generate_key()
        self.images = ImageRepository(folder / "images", folder / "offline", clock=self.clock)
        self.images.init([public_bytes(self.director)])
        self.images.add_target("demo", 1, sha("one"), 3)
        self.root = self.images.root_bytes()
        self.served = self.images.metadata_folder
        self.replaced: dict[str, bytes | Exception] = {}
        self.asked: list[str] = []
        self.down = False

    def clock(self) -> int:
        return self.now

    def fetch(self, name: str, limit: int) -> bytes:
        self.asked.append(name)
        if self.down:
            raise UnavailableError("no network")
        found = self.replaced.get(name)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return found
        path = self.served / name
        if not path.exists():
            raise NotFoundError(name)
        return path.read_bytes()

    def device(self, name: str = "device", **options: object) -> TrustStore:
        return TrustStore(
            self.folder / name,
            root=self.root,
            fetch=self.fetch,
            clock=self.clock,
            **options,  # type: ignore[arg-type]
        )

    def snapshot(self, name: str) -> Path:
        """Keep what the cloud serves now: an attacker's recording."""
        kept = self.folder / name
        shutil.copytree(self.images.metadata_folder, kept)
        return kept

    def notice(self, key: PrivateKey | None = None, **changes: object) -> ReleaseNotice:
        fields: dict[str, object] = {
            "epoch": 7,
            "cohort": 3,
            "mask": 0,
            "expires_us": self.now + DAY,
            "tasks": [desired("demo", 1, "one", 3)],
        }
        fields.update(changes)
        statement = DirectorStatement(**fields)  # type: ignore[arg-type]
        return ReleaseNotice(
            epoch=statement.epoch,
            cohort=statement.cohort,
            mask=statement.mask,
            expires_us=statement.expires_us,
            director=sign_statement(statement, key or self.director),
        )


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def desired(task: str, version: int, content: str, size: int) -> DesiredTask:
    package = FileRef(sha256=bytes.fromhex(sha(content)), size=size, path="")
    return DesiredTask(task=task, version=version, package=package)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def refused(call: Callable[[], object]) -> ErrorCode:
    with pytest.raises(TrustError) as caught:
        call()
    return caught.value.code


# -- the negative control: nothing tampered, everything accepted --------------------------


def test_untampered_metadata_is_accepted(world: World) -> None:
    device = world.device()
    image = device.image("demo", 1)
    assert (image.sha256.hex(), image.length, image.floor) == (sha("one"), 3, 0)
    statement = device.director(world.notice(), cohort=3)
    assert [task.task for task in statement.tasks] == ["demo"]
    for task in statement.tasks:
        device.check(task)


def test_it_goes_on_over_updates_restarts_and_years(world: World) -> None:
    device = world.device()
    device.image("demo", 1)
    for year in range(1, 5):
        world.now = START + year * 365 * DAY
        world.images.renew_root(replace=1 + year % 3)
        world.images.renew_targets()
        world.images.refresh()
        world.images.add_target("demo", year + 1, sha(str(year)), year)
        assert device.image("demo", year + 1).sha256.hex() == sha(str(year))
        device = world.device()  # the same folder after a restart
        assert device.image("demo", 1).length == 3


# -- TUF attacks --------------------------------------------------------------------------


def test_rollback_of_all_metadata_is_refused(world: World) -> None:
    old = world.snapshot("old")
    world.images.add_target("demo", 2, sha("two"), 3)
    device = world.device()
    device.image("demo", 2)
    world.served = old
    assert refused(device.refresh) == ErrorCode.ROLLBACK_REFUSED
    assert refused(world.device().refresh) == ErrorCode.ROLLBACK_REFUSED  # after a restart too
    # What was verified before the attack still answers.
    assert device.image("demo", 2).length == 3


def test_rollback_of_the_timestamp_alone_is_refused(world: World) -> None:
    old = (world.served / "timestamp.json").read_bytes()
    world.images.add_target("demo", 2, sha("two"), 3)
    device = world.device()
    device.refresh()
    world.replaced["timestamp.json"] = old
    assert refused(device.refresh) == ErrorCode.ROLLBACK_REFUSED


def test_freeze_is_noticed_when_the_timestamp_expires(world: World) -> None:
    device = world.device()
    device.image("demo", 1)
    world.served = world.snapshot("frozen")  # the attacker serves this for ever
    world.now += DAY // 2
    device.refresh()
    world.now += DAY
    assert refused(device.refresh) == ErrorCode.METADATA_EXPIRED
    assert refused(lambda: device.image("demo", 1)) == ErrorCode.METADATA_EXPIRED


def test_mix_and_match_is_refused(world: World) -> None:
    old_snapshot = (world.served / "2.snapshot.json").read_bytes()
    world.images.add_target("demo", 2, sha("two"), 3)
    world.replaced["3.snapshot.json"] = old_snapshot  # new timestamp, old snapshot
    assert refused(world.device().refresh) == ErrorCode.HASH_MISMATCH


def test_a_bin_of_another_state_is_refused(world: World) -> None:
    role = world.images._bin_of("task/demo/1")
    old = (world.served / f"1.{role}.json").read_bytes()
    world.replaced[f"2.{role}.json"] = old
    assert refused(lambda: world.device().image("demo", 1)) == ErrorCode.ROLLBACK_REFUSED


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "default", "bin"])
def test_metadata_by_a_wrong_key_is_refused(world: World, role: str, tmp_path: Path) -> None:
    # A stranger runs a whole repository of the same shape with keys of its own.
    other = ImageRepository(tmp_path / "other", tmp_path / "other-offline", clock=world.clock)
    other.init([public_bytes(generate_key())])
    other.add_target("demo", 1, sha("evil"), 4)
    name = world.images._bin_of("task/demo/1") if role == "bin" else role
    for path in other.metadata_folder.glob(f"*{name}.json"):
        if role == "timestamp" or path.name.endswith(f".{name}.json"):
            world.replaced[path.name] = path.read_bytes()
    code = refused(lambda: world.device().image("demo", 1))
    # A foreign snapshot does not even have the hash that our timestamp signs.
    assert code == (ErrorCode.HASH_MISMATCH if role == "snapshot" else ErrorCode.SIGNATURE_INVALID)


def test_a_whole_foreign_repository_is_refused(world: World, tmp_path: Path) -> None:
    other = ImageRepository(tmp_path / "other", tmp_path / "other-offline", clock=world.clock)
    other.init()
    device = world.device()
    world.served = other.metadata_folder
    assert refused(device.refresh) == ErrorCode.SIGNATURE_INVALID


def test_a_root_below_its_threshold_is_refused(world: World) -> None:
    world.images.renew_root()
    root = json.loads((world.served / "2.root.json").read_bytes())
    assert len(root["signatures"]) == 3
    for keep, accepted in ((3, True), (2, True), (1, False), (0, False)):
        fewer = {**root, "signatures": root["signatures"][:keep]}
        world.replaced["2.root.json"] = json.dumps(fewer).encode()
        device = world.device(f"device-{keep}")
        if accepted:
            device.refresh()
        else:
            assert refused(device.refresh) == ErrorCode.SIGNATURE_INVALID


def test_one_signature_counted_twice_is_no_threshold(world: World) -> None:
    world.images.renew_root()
    root = json.loads((world.served / "2.root.json").read_bytes())
    root["signatures"] = [root["signatures"][0]] * 2
    world.replaced["2.root.json"] = json.dumps(root).encode()
    assert refused(world.device().refresh) == ErrorCode.SIGNATURE_INVALID


def test_a_pinned_root_must_itself_be_signed(world: World) -> None:
    root = json.loads(world.root)
    root["signatures"] = root["signatures"][:1]
    world.root = json.dumps(root).encode()
    assert refused(world.device) == ErrorCode.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "name", ["timestamp.json", "2.snapshot.json", "1.targets.json", "2.root.json"]
)
def test_endless_data_is_refused(world: World, name: str) -> None:
    world.replaced[name] = b" " * 3_000_000
    assert refused(world.device().refresh) == ErrorCode.SIZE_EXCEEDED


@pytest.mark.parametrize("garbage", [b"", b"{}", b"[" * 10_000, b"\xff\xfe", b'{"signed": 1}'])
def test_garbage_is_refused(world: World, garbage: bytes) -> None:
    world.replaced["timestamp.json"] = garbage
    assert refused(world.device().refresh) == ErrorCode.SIGNATURE_INVALID


def test_an_expired_root_chain_is_refused_until_it_is_renewed(world: World) -> None:
    device = world.device()
    device.image("demo", 1)
    world.now = START + 3 * 365 * DAY
    world.images.renew_targets()
    world.images.refresh()
    assert refused(device.refresh) == ErrorCode.METADATA_EXPIRED
    world.images.renew_root()
    world.images.renew_root()
    device.refresh()  # an expired link in the middle of the chain is no harm
    assert device.image("demo", 1).length == 3


def test_a_root_out_of_order_is_refused(world: World) -> None:
    world.images.renew_root()
    world.images.renew_root()
    world.replaced["2.root.json"] = (world.served / "3.root.json").read_bytes()
    assert refused(world.device().refresh) == ErrorCode.ROLLBACK_REFUSED


def test_a_stolen_release_key_reaches_its_own_scenario_only(world: World) -> None:
    world.images.add_scenario("shop")
    world.images.add_target("shop.rank", 1, sha("rank"), 4)
    assert world.device("a").image("shop.rank", 1).length == 4
    # Whoever holds the default scenario's and the online keys signs a bin that names
    # the other scenario's task: devices ask the owner, which is terminating.
    from tuf.api.metadata import TargetFile

    images = world.images
    role = images._succinct("default").get_role_for_target("task/shop.rank/2")
    images._targets(role).targets["task/shop.rank/2"] = TargetFile(
        4, {"sha256": sha("evil")}, "task/shop.rank/2"
    )
    images._publish({role})
    device = world.device("b")
    assert refused(lambda: device.image("shop.rank", 2)) == ErrorCode.UNKNOWN_TASK
    assert device.image("shop.rank", 1).sha256.hex() == sha("rank")


def test_a_pinned_root_is_not_replaced_by_enrolling_again(world: World, tmp_path: Path) -> None:
    world.device().refresh()
    other = ImageRepository(tmp_path / "other", tmp_path / "other-offline", clock=world.clock)
    other.init()
    world.root = other.root_bytes()
    world.served = other.metadata_folder
    assert refused(world.device().refresh) == ErrorCode.SIGNATURE_INVALID


def test_without_a_root_nothing_is_trusted(world: World) -> None:
    world.root = b""
    with pytest.raises(InputError, match="root"):
        world.device()


# -- the director -------------------------------------------------------------------------


def test_director_epoch_going_back_is_refused_even_after_a_restart(world: World) -> None:
    device = world.device()
    device.director(world.notice(epoch=7), cohort=3)
    device.director(world.notice(epoch=7), cohort=3)  # pulling it again is fine
    for again in (device, world.device()):
        assert refused(lambda again=again: again.director(world.notice(epoch=6), cohort=3)) == (
            ErrorCode.ROLLBACK_REFUSED
        )
    # Another cohort set keeps the epoch of its own last change, which may be smaller.
    device.director(world.notice(epoch=2, cohort=4), cohort=4)


def test_director_for_another_cohort_set_is_refused(world: World) -> None:
    device = world.device()
    code = refused(lambda: device.director(world.notice(cohort=4), cohort=3))
    assert code == ErrorCode.NOT_ENTITLED


def test_director_by_a_wrong_key_is_refused(world: World) -> None:
    device = world.device()
    code = refused(lambda: device.director(world.notice(generate_key()), cohort=3))
    assert code == ErrorCode.SIGNATURE_INVALID


def test_expired_director_metadata_is_refused_by_the_servers_clock(world: World) -> None:
    device = world.device()
    notice = world.notice(expires_us=world.now + 1)
    device.director(notice, cohort=3)
    world.now += 1
    assert refused(lambda: device.director(notice, cohort=3)) == ErrorCode.METADATA_EXPIRED


def test_clear_fields_that_differ_from_the_signed_ones_are_refused(world: World) -> None:
    device = world.device()
    for field, value in (("epoch", 9), ("mask", 1), ("cohort", 4)):
        notice = msgspec.structs.replace(world.notice(), **{field: value})
        code = refused(lambda notice=notice: device.director(notice, cohort=3))
        assert code == ErrorCode.SIGNATURE_INVALID


def test_oversized_director_metadata_is_refused(world: World) -> None:
    notice = msgspec.structs.replace(world.notice(), director=b"\0" * 70_000)
    device = world.device()
    assert refused(lambda: device.director(notice, cohort=3)) == ErrorCode.SIZE_EXCEEDED


def test_every_bit_flip_of_director_metadata_is_refused(world: World) -> None:
    device = world.device()
    notice = world.notice()
    for bit in range(0, len(notice.director) * 8, 7):
        data = bytearray(notice.director)
        data[bit // 8] ^= 1 << bit % 8
        flipped = msgspec.structs.replace(notice, director=bytes(data))
        assert refused(lambda flipped=flipped: device.director(flipped, cohort=3)) in {
            ErrorCode.SIGNATURE_INVALID,
            ErrorCode.SCHEMA_MISMATCH,
        }
    device.director(notice, cohort=3)


def test_a_replaced_director_key_is_learnt_at_once(world: World) -> None:
    device = world.device()
    device.director(world.notice(), cohort=3)
    fresh = generate_key()
    world.images.set_director_keys([public_bytes(fresh)])
    device.director(world.notice(fresh, epoch=8), cohort=3)
    assert refused(lambda: device.director(world.notice(epoch=9), cohort=3)) == (
        ErrorCode.SIGNATURE_INVALID
    )


def test_a_grant_of_exclusive_files_is_bound_to_device_and_use(world: World) -> None:
    device_id = bytes(range(16))
    ref = FileRef(sha256=b"x" * 32, size=1, path=f"{device_id.hex()}/map", scope="exclusive")
    task = msgspec.structs.replace(desired("demo", 1, "one", 3), resources=[ref], exclusive=True)
    notice = world.notice(tasks=[task])
    device = world.device()
    grant = device.exclusive(notice.director, cohort=3, device=device_id, task="demo")
    assert grant.resources == [ref]
    for other in ({"device": bytes(16)}, {"task": "other"}, {"cohort": 5}):
        arguments = {"cohort": 3, "device": device_id, "task": "demo", **other}
        code = refused(lambda a=arguments: device.exclusive(notice.director, **a))  # type: ignore[arg-type]
        assert code == ErrorCode.NOT_ENTITLED
    # Put into a notice, the grant would tell the device to drop everything else.
    assert refused(lambda: device.director(notice, cohort=3)) == ErrorCode.SIGNATURE_INVALID


# -- image and director together ----------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        (desired("demo", 1, "evil", 3), ErrorCode.HASH_MISMATCH),
        (desired("demo", 1, "one", 4), ErrorCode.HASH_MISMATCH),
        (desired("demo", 2, "one", 3), ErrorCode.UNKNOWN_TASK),
        (desired("other", 1, "one", 3), ErrorCode.UNKNOWN_TASK),
    ],
)
def test_a_director_alone_installs_nothing(world: World, wanted: DesiredTask, code: int) -> None:
    device = world.device()
    assert refused(lambda: device.check(wanted)) == code


def test_a_version_below_the_floor_is_refused_for_ever(world: World) -> None:
    device = world.device(refresh_every_s=0)
    device.check(desired("demo", 1, "one", 3))
    world.images.add_target("demo", 2, sha("two"), 3)
    recorded = world.snapshot("before")
    world.images.set_floor("demo", 2)
    assert refused(lambda: device.check(desired("demo", 1, "one", 3))) == ErrorCode.BELOW_FLOOR
    device.check(desired("demo", 2, "two", 3))
    assert device.floor("demo") == 2
    # Even where the image metadata were lost, the floor stays.
    shutil.rmtree(world.folder / "device" / "metadata")
    world.served = recorded
    again = world.device()
    assert refused(lambda: again.check(desired("demo", 1, "one", 3))) == ErrorCode.BELOW_FLOOR


def test_a_held_version_is_withdrawn_by_the_floor_alone(world: World) -> None:
    device = world.device(refresh_every_s=0)
    assert not device.withdrawn("demo", 1)
    world.images.add_target("demo", 2, sha("two"), 3, 2)
    recorded = world.snapshot("recorded")
    assert device.withdrawn("demo", 1)
    assert not device.withdrawn("demo", 2)
    for trouble in ("down", "rollback"):
        world.down = trouble == "down"
        world.served = recorded
        world.now += 10 * DAY  # everything verified has expired
        assert device.withdrawn("demo", 1)
        assert not device.withdrawn("demo", 2)
    assert not device.withdrawn("unheard-of", 1)


def test_hold_none_needs_no_image(world: World) -> None:
    world.down = True
    world.device().check(desired("demo", 0, "", 0))


# -- economy, absence, damage -------------------------------------------------------------


def test_many_lookups_cost_one_refresh(world: World) -> None:
    for version in range(2, 12):
        world.images.add_target("demo", version, sha(str(version)), version)
    device = world.device()
    for _ in range(5):
        for version in range(2, 12):
            assert device.image("demo", version).length == version
            device.director(world.notice(), cohort=3)
    assert device.refreshes == 1
    assert world.asked.count("timestamp.json") == 1
    world.now += 301_000_000
    device.image("demo", 2)
    assert device.refreshes == 2


def test_an_unknown_version_asks_once_and_then_waits(world: World) -> None:
    device = world.device()
    device.image("demo", 1)
    for _ in range(10):
        assert refused(lambda: device.image("demo", 9)) == ErrorCode.UNKNOWN_TASK
    assert device.refreshes == 2
    world.images.add_target("demo", 9, sha("nine"), 9)
    world.now += 5_000_000
    assert device.image("demo", 9).length == 9


def test_offline_what_is_valid_still_answers(world: World) -> None:
    device = world.device()
    device.image("demo", 1)
    world.down = True
    world.now += DAY // 2
    assert device.image("demo", 1).length == 3
    world.now += DAY
    with pytest.raises(UnavailableError):
        device.image("demo", 1)
    world.down = False
    world.images.refresh()
    assert device.image("demo", 1).length == 3


def test_a_network_error_is_not_a_refusal(world: World) -> None:
    world.down = True
    with pytest.raises(UnavailableError):
        world.device().image("demo", 1)


def test_a_device_clock_five_years_off_does_not_matter(world: World) -> None:
    # Only the estimated server clock counts: START lies years from this machine's time.
    world.device().image("demo", 1)
    world.now += 5 * 365 * DAY
    assert refused(world.device("late").refresh) == ErrorCode.METADATA_EXPIRED


def test_a_damaged_state_file_is_moved_aside_and_counted(world: World) -> None:
    device = world.device()
    device.director(world.notice(), cohort=3)
    path = world.folder / "device" / "seen.json"
    path.write_bytes(b"\0" * 10)
    again = world.device()
    assert again.damaged == 1
    assert path.with_suffix(".damaged").exists()
    again.director(world.notice(), cohort=3)


def test_damaged_local_metadata_is_fetched_again(world: World) -> None:
    world.device().image("demo", 1)
    for path in (world.folder / "device" / "metadata").glob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"\0")
    assert world.device().image("demo", 1).length == 3


def test_offline_keys_are_not_needed_day_by_day(world: World) -> None:
    shutil.rmtree(world.folder / "offline")
    images = ImageRepository(world.images.folder, world.folder / "offline", clock=world.clock)
    images.add_target("demo", 2, sha("two"), 3)
    images.refresh(world.now + DAY)
    with pytest.raises(UnavailableError, match="offline"):
        images.renew_root()
    with pytest.raises(UnavailableError, match="not at hand"):
        images.renew_targets()
    assert world.device().image("demo", 2).length == 3
