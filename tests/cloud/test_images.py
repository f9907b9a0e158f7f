"""The image repository: what it signs, that any TUF client can follow, and crashes in between."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from tuf.api import exceptions as tuf_errors
from tuf.ngclient import FetcherInterface, Updater

from shoal.cloud import imagefiles
from shoal.cloud.images import DIRECTOR_TARGET, ImageRepository, target_path
from shoal.core.errors import ConflictError, InputError, NotFoundError, UnavailableError

DAY = 86_400_000_000
HASHES = [f"{number:064x}" for number in range(100)]


class Folder(FetcherInterface):
    """A plain TUF client's download from the metadata folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _fetch(self, url: str):  # type: ignore[no-untyped-def]
        path = self.folder / url.rpartition("/")[2]
        if not path.exists():
            raise tuf_errors.DownloadHTTPError(url, 404)
        yield path.read_bytes()


class Clock:
    def __init__(self) -> None:
        import time

        self.now = time.time_ns() // 1000  # python-tuf's client reads the real clock

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def images(tmp_path: Path, clock: Clock) -> ImageRepository:
    made = ImageRepository(tmp_path / "images", tmp_path / "offline", clock=clock)
    made.init()
    return made


def again(images: ImageRepository, tmp_path: Path, clock: Clock) -> ImageRepository:
    return ImageRepository(images.folder, tmp_path / "offline", clock=clock)


def client(images: ImageRepository, folder: Path) -> Updater:
    folder.mkdir(exist_ok=True)
    updater = Updater(
        str(folder),
        "https://x/metadata/",
        fetcher=Folder(images.metadata_folder),
        bootstrap=images.root_bytes(1),
    )
    updater.refresh()
    return updater


def test_a_plain_tuf_client_finds_every_version(images: ImageRepository, tmp_path: Path) -> None:
    for version in range(1, 30):
        images.add_target("demo", version, HASHES[version], version, capabilities=["b", "a"])
    updater = client(images, tmp_path / "client")
    bins = {images._bin_of(target_path("demo", version)) for version in range(1, 30)}
    assert len(bins) > 5  # the versions are spread
    for version in range(1, 30):
        found = updater.get_targetinfo(target_path("demo", version))
        assert found is not None
        assert (found.hashes, found.length) == ({"sha256": HASHES[version]}, version)
        assert found.custom == {"floor": 0, "capabilities": ["a", "b"]}
    assert updater.get_targetinfo("task/demo/99") is None
    assert updater.get_targetinfo("other/path") is None


def test_versions_never_change_and_floors_only_rise(images: ImageRepository) -> None:
    images.add_target("demo", 1, HASHES[1], 1)
    before = sorted(path.name for path in images.metadata_folder.iterdir())
    images.add_target("demo", 1, HASHES[1], 1)
    assert sorted(path.name for path in images.metadata_folder.iterdir()) == before
    for sha256, length in ((HASHES[2], 1), (HASHES[1], 2)):
        with pytest.raises(ConflictError, match="other bytes"):
            images.add_target("demo", 1, sha256, length)
    images.add_target("demo", 2, HASHES[2], 2, 2)
    images.add_target("demo", 3, HASHES[3], 3)
    assert images.floor("demo") == 2
    for version in (1, 2, 3):
        target = images.target("demo", version)
        assert target is not None
        assert target.unrecognized_fields["custom"]["floor"] == 2
    with pytest.raises(ConflictError, match="only rises"):
        images.set_floor("demo", 1)
    with pytest.raises(ConflictError, match="only rises"):
        images.add_target("demo", 4, HASHES[4], 4, 1)
    assert images.target("demo", 4) is None
    with pytest.raises(NotFoundError):
        images.set_floor("nothing", 1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("Demo", 1, HASHES[1], 1), "task"),
        (("demo", 0, HASHES[1], 1), "version"),
        (("demo", 1, "AB" * 32, 1), "sha256"),
        (("demo", 1, "ab", 1), "sha256"),
        (("demo", 1, HASHES[1], -1), "length"),
    ],
)
def test_bad_targets(
    images: ImageRepository, arguments: tuple[str, int, str, int], field: str
) -> None:
    with pytest.raises(InputError, match=field):
        images.add_target(*arguments)


def test_nothing_before_init(tmp_path: Path) -> None:
    bare = ImageRepository(tmp_path / "images", tmp_path / "offline")
    assert not bare.initialised
    with pytest.raises(NotFoundError, match="not been made"):
        bare.root_bytes()
    with pytest.raises(NotFoundError):
        bare.add_target("demo", 1, HASHES[1], 1)


def test_state_survives_a_restart(images: ImageRepository, tmp_path: Path, clock: Clock) -> None:
    images.set_director_keys([b"k" * 32])
    images.add_scenario("shop")
    images.add_target("shop.rank", 1, HASHES[1], 1)
    images.add_target("demo", 1, HASHES[2], 2, 1)
    restarted = again(images, tmp_path, clock)
    restarted.init([b"k" * 32])  # does nothing: all is there
    assert restarted.root_bytes() == images.root_bytes()
    assert restarted.scenarios() == ["default", "shop"]
    assert restarted.director_keys() == [b"k" * 32]
    assert restarted.floor("demo") == 1
    assert restarted.target("shop.rank", 1) == images.target("shop.rank", 1)
    restarted.init([b"m" * 32])  # a new director key is taken over
    assert restarted.director_keys() == [b"m" * 32]


def test_keys_are_private_and_apart(images: ImageRepository, tmp_path: Path) -> None:
    online = {path.name for path in (images.folder / "keys").iterdir()}
    offline = {path.name for path in (tmp_path / "offline").iterdir()}
    assert online == {"online.pem", "release-default.pem"}
    assert offline == {"root-1.pem", "root-2.pem", "root-3.pem", "targets.pem"}
    for path in [*(images.folder / "keys").iterdir(), *(tmp_path / "offline").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    public = b"".join(path.read_bytes() for path in images.metadata_folder.iterdir())
    assert b"PRIVATE" not in public


def test_director_keys_are_a_target_of_the_offline_key(
    images: ImageRepository, tmp_path: Path
) -> None:
    images.set_director_keys([b"a" * 32, b"b" * 32])
    found = client(images, tmp_path / "client").get_targetinfo(DIRECTOR_TARGET)
    assert found is not None
    content = json.dumps({"keys": ["61" * 32, "62" * 32]}).encode()
    found.verify_length_and_hashes(content)  # the file itself may be served too
    with pytest.raises(InputError):
        images.set_director_keys([b"short"])
    with pytest.raises(InputError):
        images.set_director_keys([])


def test_scenarios_own_their_names(images: ImageRepository, tmp_path: Path) -> None:
    images.add_target("shop.old", 1, HASHES[1], 1)
    with pytest.raises(ConflictError, match=r"shop\.old"):
        images.add_scenario("shop")
    images.add_scenario("fleet")
    images.add_scenario("fleet")
    images.add_target("fleet.plan", 1, HASHES[2], 2)
    assert images._bin_of(target_path("fleet.plan", 1)).startswith("fleet-bin-")
    assert images._bin_of(target_path("fleet", 1)).startswith("default-bin-")
    updater = client(images, tmp_path / "client")
    assert updater.get_targetinfo("task/fleet.plan/1") is not None
    assert updater.get_targetinfo("task/shop.old/1") is not None
    for name in ("root", "a.b", "Fleet", ""):
        with pytest.raises(InputError):
            images.add_scenario(name)


def test_refresh_signs_only_what_is_due(images: ImageRepository, clock: Clock) -> None:
    images.add_target("demo", 1, HASHES[1], 1)
    assert images.refresh() == []
    clock.now += DAY // 2 + 1_000_000
    assert images.refresh() == ["timestamp"]
    assert images.refresh() == []
    clock.now += 4 * DAY
    assert images.refresh() == ["snapshot", "timestamp"]
    clock.now += 45 * DAY
    due = images.refresh()
    assert len(due) == 2 + 1 + 16  # one scenario and its bins besides
    assert "root" not in due and "targets" not in due


def test_half_a_year_of_ticks_keeps_clients_going(
    images: ImageRepository, tmp_path: Path, clock: Clock
) -> None:
    # What is signed at any time must be unexpired at that time and half a day on.
    for _ in range(60):
        clock.now += 3 * DAY
        images.refresh()
        at = images._moment(clock.now + DAY // 3)
        for name, role in images._roles.items():
            assert not role.signed.is_expired(at), name


def test_offline_roles_warn_before_they_expire(images: ImageRepository, clock: Clock) -> None:
    assert images.expiring() == []
    clock.now += 310 * DAY
    assert images.expiring() == ["targets"]
    images.renew_targets()
    clock.now += 365 * DAY
    assert images.expiring() == ["root", "targets"]
    images.renew_root()
    assert images.expiring() == ["targets"]


def test_root_keys_are_replaced_one_after_the_other(
    images: ImageRepository, tmp_path: Path, clock: Clock
) -> None:
    original = {path.name: path.read_bytes() for path in (tmp_path / "offline").glob("root-?.pem")}
    for number in (1, 2, 3):
        assert images.renew_root(replace=number) == number + 1
    for name, content in original.items():
        assert (tmp_path / "offline" / name).read_bytes() != content
    client(images, tmp_path / "client")  # from root 1 over the whole chain
    with pytest.raises(InputError):
        images.renew_root(replace=4)
    # A lost key is replaced with the two others.
    (tmp_path / "offline" / "root-2.pem").unlink()
    assert images.renew_root(replace=2) == 5
    client(again(images, tmp_path, clock), tmp_path / "client")


def test_without_enough_offline_keys_nothing_changes(
    images: ImageRepository, tmp_path: Path, clock: Clock
) -> None:
    for name in ("root-1.pem", "root-2.pem", "targets.pem"):
        (tmp_path / "offline" / name).unlink()
    before = images.root_bytes()
    with pytest.raises(UnavailableError, match="2 of its 3"):
        images.renew_root()
    with pytest.raises(UnavailableError):
        images.set_director_keys([b"k" * 32])
    assert images.root_bytes() == before
    assert images.director_keys() == []
    images.add_target("demo", 1, HASHES[1], 1)  # the daily work goes on
    assert again(images, tmp_path, clock).target("demo", 1) is not None
    client(images, tmp_path / "client")


@pytest.mark.parametrize("point", range(4))
def test_a_crash_at_every_write_is_not_noticed(
    images: ImageRepository,
    tmp_path: Path,
    clock: Clock,
    point: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images.add_target("demo", 1, HASHES[1], 1)
    old_client = tmp_path / "client"
    client(images, old_client)
    writes = 0
    real = imagefiles.write_bytes

    def write(path: Path, data: bytes) -> None:
        nonlocal writes
        if writes == point:
            raise OSError("power cut")
        writes += 1
        real(path, data)

    monkeypatch.setattr(imagefiles, "write_bytes", write)
    if point < 3:  # bin, snapshot, timestamp
        with pytest.raises(OSError, match="power cut"):
            images.add_target("demo", 2, HASHES[2], 2)
        assert images.target("demo", 2) is None
    else:
        images.add_target("demo", 2, HASHES[2], 2)
    monkeypatch.undo()
    restarted = again(images, tmp_path, clock)
    assert (restarted.target("demo", 2) is not None) == (point == 3)
    client(restarted, old_client)
    restarted.add_target("demo", 2, HASHES[2], 2)
    found = client(restarted, old_client).get_targetinfo("task/demo/2")
    assert found is not None
    assert found.length == 2


def test_damaged_metadata_stops_the_cloud_with_one_line(
    images: ImageRepository, tmp_path: Path, clock: Clock
) -> None:
    (images.metadata_folder / "1.default.json").write_bytes(b"{")
    with pytest.raises(UnavailableError, match=r"1\.default\.json"):
        again(images, tmp_path, clock)
    shutil.copy(
        images.metadata_folder / "1.targets.json", images.metadata_folder / "1.default.json"
    )
    (images.metadata_folder / "1.snapshot.json").write_bytes(
        (images.metadata_folder / "1.targets.json").read_bytes()
    )
    with pytest.raises(UnavailableError, match="another role"):
        again(images, tmp_path, clock)


def test_old_roots_stay_readable(images: ImageRepository) -> None:
    first = images.root_bytes()
    images.renew_root()
    assert images.root_bytes(1) == first
    assert images.root_bytes() == images.root_bytes(2) != first
    with pytest.raises(NotFoundError):
        images.root_bytes(9)
