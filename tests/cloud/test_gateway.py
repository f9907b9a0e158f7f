"""The device endpoints: what a device may ask, and what a hostile one gets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.cloud.blobs import BlobStore
from shoal.cloud.cohorts import CohortBook
from shoal.cloud.config import CloudConfig
from shoal.cloud.director import Director
from shoal.cloud.enrolment import Enrolment
from shoal.cloud.exclusive import ExclusiveFiles
from shoal.cloud.fleet import Fleet
from shoal.cloud.gateway import Gateway, GatewayParts
from shoal.cloud.plans import CohortPlan, GrayEntry, PlanTable
from shoal.cloud.store import Store
from shoal.cloud.tokens import TokenMint
from shoal.wire.buckets import bucket
from shoal.wire.codes import ErrorCode
from shoal.wire.enrolment import (
    EnrolReply,
    EnrolRequest,
    ExclusiveGrant,
    ProfileReply,
    enrolment_message,
)
from shoal.wire.notices import DesiredTask, FileRef, ReleaseNotice
from shoal.wire.profile import HeldTask, TaskProfile, format_profile_header, profile_digest
from shoal.wire.signing import generate_key, public_bytes, verify_statement

_NOW = 1_700_000_000_000_000


@dataclass
class World:
    """Every part that a gateway speaks to, on a clock that stands still."""

    folder: Path
    config: CloudConfig
    now: int = _NOW

    def __post_init__(self) -> None:
        clock = lambda: self.now  # noqa: E731
        self.store = Store(self.config.resolved_database_url)
        self.cohorts = CohortBook(self.store)
        self.cohorts.define("android", 'device.os == "android"')
        self.fleet = Fleet(self.store)
        self.director = Director(generate_key(), clock=clock)
        self.plans = PlanTable(self.director.notice, clock=clock)
        self.tokens = TokenMint([bytes(32)])
        self.blobs = BlobStore(self.folder / "blobs")
        self.enrolment = Enrolment(
            self.store, self.cohorts, self.fleet, is_open=self.config.open_enrolment, clock=clock
        )
        self.exclusive = ExclusiveFiles(
            self.store, BlobStore(self.folder / "own"), self.director, lambda _: 1, clock=clock
        )
        (self.folder / "metadata").mkdir()
        (self.folder / "metadata" / "1.root.json").write_bytes(b'{"root": 1}')
        self.pulled: list[tuple[bytes, tuple[int, int, int]]] = []
        self.gateway = Gateway(
            self.config,
            GatewayParts(
                tokens=self.tokens,
                plans=self.plans,
                fleet=self.fleet,
                enrolment=self.enrolment,
                files=self.blobs,
                metadata=self.folder / "metadata",
                root=lambda: b"root",
                exclusive=self.exclusive.grant,
                exclusive_file=self.exclusive.path,
                pulled=lambda device, address: self.pulled.append((device, address)),
            ),
            clock=clock,
        )

    def request(self, method: str, path: str, **more) -> httpx.Response:
        async def go() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.gateway, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://cloud") as client:
                return await client.request(method, path, **more)

        return asyncio.run(go())

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.request(
            "GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def build(**settings_: object) -> World:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        world = World(folder, CloudConfig(data_dir=folder, **settings_))
        made.append(world)
        return world

    yield build
    for world in made:
        world.store.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make(open_enrolment=True)


class Device:
    def __init__(self, number: int = 1, os: str = "android") -> None:
        self.id = number.to_bytes(16, "big")
        self.key = generate_key()
        self.os = os
        self.token = ""
        self.cohort = 0

    def profile(self, **more) -> TaskProfile:
        return TaskProfile(
            device=self.id, agent="test", attributes={"device": {"os": self.os}}, **more
        )

    def enrol_body(self, token: str = "", ts_us: int = _NOW, key=None, **more) -> bytes:
        key = key or self.key
        public = public_bytes(key)
        request = EnrolRequest(
            token=token,
            public_key=public,
            profile=self.profile(**more),
            proof=key.sign(enrolment_message(token, public, self.id, ts_us)),
            ts_us=ts_us,
        )
        return msgspec.msgpack.encode(request)

    def enrol(self, world: World, **more) -> EnrolReply:
        answer = world.request("POST", "/v1/d/enrol", content=self.enrol_body(**more))
        assert answer.status_code == 200, answer.text
        reply = msgspec.msgpack.decode(answer.content, type=EnrolReply)
        self.token, self.cohort = reply.token, reply.cohort
        return reply

    def check(self, world: World, held=(), epoch: int = 0) -> httpx.Response:
        header = format_profile_header(epoch, self.cohort, profile_digest(held))
        return world.get("/v1/d/check", Shoal_Profile=header, Shoal_Device=self.token)


def desired(task: str, version: int, ref: FileRef | None = None) -> DesiredTask:
    ref = ref or FileRef(sha256=bytes(32), size=1, path="p")
    return DesiredTask(task=task, version=version, package=ref)


def refused(answer: httpx.Response, code: ErrorCode, status: int) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["code"] == int(code) and body["status"] == status and body["detail"]
    return body


def test_the_whole_conversation(world: World) -> None:
    device = Device()
    reply = device.enrol(world)
    assert reply.device == device.id and reply.root == b"root" and reply.server_time_us == _NOW
    ref = world.blobs.put_bytes(b"package bytes", path="t-1.shoal")
    assert device.check(world).headers["shoal-notice"] == "0.0.0"  # no plan yet
    world.plans.rebuild([CohortPlan(cohort=device.cohort, epoch=3, base=[desired("t", 1, ref)])], 3)
    answer = device.check(world)
    assert answer.status_code == 200 and answer.content == b""
    address = answer.headers["shoal-notice"]
    assert address == f"3.{device.cohort}.0"
    got = world.get(f"/v1/d/notices/{address}", Shoal_Device=device.token)
    assert got.headers["cache-control"].startswith("private, max-age=")
    notice = msgspec.msgpack.decode(got.content, type=ReleaseNotice)
    statement = verify_statement(notice.director, [world.director.public_key], _NOW)
    assert statement.tasks == notice.tasks == [desired("t", 1, ref)]
    assert world.pulled == [(device.id, (3, device.cohort, 0))]
    (url,) = notice.urls[ref.sha256.hex()]
    assert world.get(url).content == b"package bytes"
    quiet = device.check(world, [("t", 1)], epoch=3)
    assert quiet.status_code == 204 and "shoal-notice" not in quiet.headers
    assert quiet.headers["cache-control"] == "no-store"


def test_profile_gives_a_new_token_and_address(world: World) -> None:
    device = Device(os="ios")
    device.enrol(world)
    device.os = "android"
    body = msgspec.msgpack.encode(device.profile(held=[HeldTask("t", 4, "good")]))
    answer = world.request(
        "POST", "/v1/d/profile", content=body, headers={"Shoal-Device": device.token}
    )
    reply = msgspec.msgpack.decode(answer.content, type=ProfileReply)
    assert reply.cohort != device.cohort and reply.notice is None
    assert world.tokens.verify(reply.token, _NOW).cohort == reply.cohort
    (found,) = world.fleet.devices()
    assert [(h["task"], h["version"], h["state"]) for h in found.holdings] == [("t", 4, "good")]
    other = Device(2)
    refused(
        world.request(
            "POST",
            "/v1/d/profile",
            content=msgspec.msgpack.encode(other.profile()),
            headers={"Shoal-Device": device.token},
        ),
        ErrorCode.NOT_ENTITLED,
        403,
    )


# -- identity -----------------------------------------------------------------


def test_closed_enrolment_needs_a_token_that_is_used_up(make: Callable[..., World]) -> None:
    world = make()
    enrol = lambda device, token: world.request(  # noqa: E731
        "POST", "/v1/d/enrol", content=device.enrol_body(token=token)
    )
    refused(enrol(Device(1), ""), ErrorCode.UNAUTHENTICATED, 401)
    refused(enrol(Device(1), "guessed"), ErrorCode.UNAUTHENTICATED, 401)
    token = world.enrolment.new_token(uses=2, ttl_s=60)
    assert enrol(Device(1), token).status_code == 200
    assert enrol(Device(2), token).status_code == 200
    refused(enrol(Device(3), token), ErrorCode.UNAUTHENTICATED, 401)
    late = world.enrolment.new_token(ttl_s=60)
    world.now += 61_000_000
    refused(enrol(Device(4), late), ErrorCode.UNAUTHENTICATED, 401)
    with world.store.read() as connection:  # only hashes are kept
        row = str(connection.execute(sa.text("SELECT * FROM enrolment_token")).all())
    assert token not in row


def test_own_key_comes_back_without_a_token_but_a_recording_does_not(world: World) -> None:
    device = Device()
    device.enrol(world, ts_us=_NOW)
    recorded = device.enrol_body(ts_us=_NOW + 1)
    assert world.request("POST", "/v1/d/enrol", content=recorded).status_code == 200
    refused(world.request("POST", "/v1/d/enrol", content=recorded), ErrorCode.CLOCK_SKEW, 400)
    future = device.enrol_body(ts_us=_NOW + 2 * 86_400_000_000)
    refused(world.request("POST", "/v1/d/enrol", content=future), ErrorCode.CLOCK_SKEW, 400)


def test_a_clock_years_ahead_enrols_and_can_come_back(world: World) -> None:
    device = Device()
    first = device.enrol_body(ts_us=_NOW + 5 * 365 * 86_400_000_000)
    assert world.request("POST", "/v1/d/enrol", content=first).status_code == 200
    refused(world.request("POST", "/v1/d/enrol", content=first), ErrorCode.CLOCK_SKEW, 400)
    device.enrol(world, ts_us=_NOW + 1)


def test_another_key_for_a_known_device_needs_the_operator(world: World) -> None:
    device = Device()
    device.enrol(world)
    stranger = generate_key()
    refused(
        world.request(
            "POST", "/v1/d/enrol", content=device.enrol_body(key=stranger, ts_us=_NOW + 1)
        ),
        ErrorCode.UNAUTHENTICATED,
        401,
    )
    token = world.enrolment.new_token()
    device.enrol(world, key=stranger, token=token, ts_us=_NOW + 2)


@pytest.mark.parametrize("what", ["proof", "key", "device", "token", "time"])
def test_a_proof_covers_every_field(world: World, what: str) -> None:
    request = msgspec.msgpack.decode(Device().enrol_body(token="a"), type=EnrolRequest)
    changed = {
        "proof": {"proof": bytes(64)},
        "key": {"public_key": public_bytes(generate_key())},
        "device": {"profile": Device(9).profile()},
        "token": {"token": "b"},
        "time": {"ts_us": _NOW + 1},
    }[what]
    body = msgspec.msgpack.encode(msgspec.structs.replace(request, **changed))
    refused(world.request("POST", "/v1/d/enrol", content=body), ErrorCode.UNAUTHENTICATED, 401)


def test_revoked_devices_are_locked_out_everywhere(world: World) -> None:
    device = Device()
    device.enrol(world)
    world.plans.rebuild([CohortPlan(cohort=device.cohort, epoch=1)], 1)
    world.fleet.revoke(device.id, _NOW)
    refused(device.check(world), ErrorCode.DEVICE_REVOKED, 403)
    for path in (f"/v1/d/notices/1.{device.cohort}.0", "/v1/d/exclusive/t/1"):
        refused(world.get(path, Shoal_Device=device.token), ErrorCode.DEVICE_REVOKED, 403)
    refused(
        world.request("POST", "/v1/d/enrol", content=device.enrol_body(ts_us=_NOW + 1)),
        ErrorCode.DEVICE_REVOKED,
        403,
    )
    assert Fleet(world.store).revoked == {device.id}  # survives a restart
    world.fleet.restore(device.id)
    assert device.check(world).status_code == 204


@pytest.mark.parametrize("token", ["", "x", "A" * 56, "A" * 57, "é" * 28, "=" * 56, "A" * 5000])
def test_rubbish_tokens(world: World, token: str) -> None:
    header = format_profile_header(0, 1, profile_digest([]))
    answer = world.request(
        "GET",
        "/v1/d/check",
        headers=[(b"shoal-profile", header.encode()), (b"shoal-device", token.encode("latin-1"))],
    )
    refused(answer, ErrorCode.UNAUTHENTICATED, 401)


def test_expired_tokens(world: World) -> None:
    device = Device()
    device.enrol(world)
    world.now += 8 * 86_400_000_000
    refused(device.check(world), ErrorCode.UNAUTHENTICATED, 401)


# -- hostile requests ---------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "code", "status"),
    [
        ("", ErrorCode.BAD_FRAME, 400),
        ("1.2.3", ErrorCode.BAD_FRAME, 400),
        ("\xff\xfe.\x80", ErrorCode.BAD_FRAME, 400),
        ("1.0.1." + "x" * 300, ErrorCode.TOO_LARGE, 413),
        ("7.0.1." + "x" * 22, ErrorCode.UNSUPPORTED_PROTOCOL, 426),
        ("1." + "9" * 5000 + ".1." + "x" * 22, ErrorCode.TOO_LARGE, 413),
    ],
)
def test_hostile_profile_headers(world: World, header: str, code: ErrorCode, status: int) -> None:
    device = Device()
    device.enrol(world)
    world.plans.rebuild([CohortPlan(cohort=device.cohort, epoch=1)], 1)
    answer = world.request(
        "GET",
        "/v1/d/check",
        headers=[
            (b"shoal-profile", header.encode("latin-1")),
            (b"shoal-device", device.token.encode()),
        ],
    )
    refused(answer, code, status)


def test_missing_and_doubled_headers(world: World) -> None:
    device = Device()
    device.enrol(world)
    profile = (b"shoal-profile", format_profile_header(0, 1, profile_digest([])).encode())
    token = (b"shoal-device", device.token.encode())
    for headers, code, status in (
        ([profile], ErrorCode.UNAUTHENTICATED, 401),
        ([token], ErrorCode.BAD_FRAME, 400),
        ([profile, profile, token], ErrorCode.BAD_FRAME, 400),
        ([profile, token, token], ErrorCode.BAD_FRAME, 400),
    ):
        refused(world.request("GET", "/v1/d/check", headers=headers), code, status)


def test_bodies_are_bounded_before_they_are_decoded(make: Callable[..., World]) -> None:
    world = make(open_enrolment=True, limits={"notice": 2048})
    refused(world.request("POST", "/v1/d/enrol", content=bytes(2049)), ErrorCode.TOO_LARGE, 413)

    async def endless():
        while True:
            yield bytes(1024)

    refused(world.request("POST", "/v1/d/enrol", content=endless()), ErrorCode.TOO_LARGE, 413)


def test_bodies_that_do_not_decode(world: World) -> None:
    good = Device().enrol_body()
    for body in (b"", b"\xc1", good[:-5], good + b"\x00", b"\x91" * 2000, b"{}"):
        refused(world.request("POST", "/v1/d/enrol", content=body), ErrorCode.SCHEMA_MISMATCH, 422)


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"app": {"x": float("nan")}}, ErrorCode.BAD_FRAME),
        ({"app": {"x": b"bytes"}}, ErrorCode.BAD_FRAME),
        ({"app": {"x": 2**64 - 1}}, ErrorCode.BAD_FRAME),
        ({"app": {"x": "y" * 1025}}, ErrorCode.TOO_LARGE),
        ({"app": {"k" * 1025: 1}}, ErrorCode.TOO_LARGE),
        ({"app": {"x": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}}, ErrorCode.TOO_LARGE),
    ],
)
def test_attributes_that_no_predicate_could_digest(
    world: World, attributes: dict, code: ErrorCode
) -> None:
    device = Device()
    public = public_bytes(device.key)
    request = EnrolRequest(
        public_key=public,
        profile=TaskProfile(device=device.id, agent="t", attributes=attributes),
        proof=device.key.sign(enrolment_message("", public, device.id, 1)),
        ts_us=1,
    )
    answer = world.request("POST", "/v1/d/enrol", content=msgspec.msgpack.encode(request))
    assert answer.json()["code"] == int(code)
    assert world.fleet.counts()["devices"] == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/d/", 404),
        ("GET", "/v1/d/nothing", 404),
        ("POST", "/v1/d/check", 405),
        ("GET", "/v1/d/enrol", 405),
        ("POST", "/v1/d/enrol/more", 404),
        ("GET", "/v1/d/files/xyz", 404),
        ("GET", "/v1/d/files/" + "A" * 64, 404),
        ("GET", "/v1/d/metadata/..%2f..%2fcloud.db", 404),
        ("GET", "/v1/d/metadata/.hidden", 404),
        ("GET", "/v1/d/metadata/none.json", 404),
        ("GET", "/v1/d/notices/1.2", 400),
        ("GET", "/v1/d/notices/1.2.-3", 400),
        ("POST", "/v1/d/uplink", 404),  # this world has no tunnel
    ],
)
def test_paths_and_methods(world: World, method: str, path: str, status: int) -> None:
    assert world.request(method, path).status_code == status


def test_metadata_is_served(world: World) -> None:
    answer = world.get("/v1/d/metadata/1.root.json")
    assert answer.json() == {"root": 1}


# -- who gets what ------------------------------------------------------------


def test_notices_of_others_are_refused_and_old_ones_are_gone(world: World) -> None:
    android, ios = Device(1), Device(2, os="ios")
    android.enrol(world)
    ios.enrol(world)
    secret = desired("secret", 1)
    gray = GrayEntry(release_id=1, salt="s", threshold=5_000, desired=secret)
    inside = bucket("s", android.id.hex()) < 5_000
    world.plans.rebuild(
        [
            CohortPlan(cohort=android.cohort, epoch=2, gray=[gray]),
            CohortPlan(cohort=ios.cohort, epoch=1),
        ],
        2,
    )
    mine = f"2.{android.cohort}.{int(inside)}"
    wrong_mask = f"2.{android.cohort}.{int(not inside)}"
    fetch = lambda device, address: world.get(  # noqa: E731
        f"/v1/d/notices/{address}", Shoal_Device=device.token
    )
    assert fetch(android, mine).status_code == 200
    refused(fetch(android, wrong_mask), ErrorCode.NOT_ENTITLED, 403)
    refused(fetch(ios, mine), ErrorCode.NOT_ENTITLED, 403)
    refused(world.get(f"/v1/d/notices/{mine}"), ErrorCode.UNAUTHENTICATED, 401)
    refused(fetch(android, f"1.{android.cohort}.0"), ErrorCode.STALE_EPOCH, 410)


def test_a_header_cannot_claim_another_cohort_than_the_token(world: World) -> None:
    android, ios = Device(1), Device(2, os="ios")
    android.enrol(world)
    ios.enrol(world)
    world.plans.rebuild(
        [
            CohortPlan(cohort=android.cohort, epoch=2, base=[desired("secret", 1)]),
            CohortPlan(cohort=ios.cohort, epoch=1),
        ],
        2,
    )
    ios.cohort = android.cohort  # lies
    assert ios.check(world).headers["shoal-notice"] == "0.0.0"
    assert ios.check(world, [("secret", 1)]).headers["shoal-notice"] == "0.0.0"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_device_outside_a_cohort_receives_its_release(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Random predicates, devices, thresholds and lies: a release stays in its cohort."""
    folder = tmp_path_factory.mktemp("world")
    world = World(folder, CloudConfig(data_dir=folder, open_enrolment=True))
    try:
        oses = ["android", "ios", "linux"]
        rules = {
            f"c{n}": data.draw(st.sets(st.sampled_from(oses)), label="predicate") for n in range(3)
        }
        for name, group in rules.items():
            quoted = ", ".join(f'"{os}"' for os in sorted(group))
            world.cohorts.define(name, f"device.os in [{quoted}]")
        devices = [Device(n + 1, data.draw(st.sampled_from(oses))) for n in range(4)]
        for device in devices:
            device.enrol(world)
        threshold = {name: data.draw(st.sampled_from([0, 3_000, 10_000])) for name in rules}
        named = {world.cohorts.get(name).id: name for name in rules}
        plans = []
        for number, members in world.cohorts.sets().items():
            gray = [
                GrayEntry(
                    release_id=cohort,
                    salt=named[cohort],
                    threshold=threshold[named[cohort]],
                    desired=desired(f"task-of-{named[cohort]}", 1),
                )
                for cohort in members
                if cohort in named
            ]
            plans.append(CohortPlan(cohort=number, epoch=number, gray=gray))
        world.plans.rebuild(plans, 99)
        everything = [
            f"{plan.epoch}.{plan.cohort}.{mask}"
            for plan in plans
            for mask in range(1 << len(plan.gray))
        ]
        for device in devices:
            answer = device.check(world)
            asked = [answer.headers["shoal-notice"]] if answer.status_code == 200 else []
            asked += data.draw(st.lists(st.sampled_from(everything), max_size=4))  # lies
            for address in asked:
                got = world.get(f"/v1/d/notices/{address}", Shoal_Device=device.token)
                if got.status_code != 200:
                    assert address != (asked[0] if answer.status_code == 200 else None)
                    continue
                notice = msgspec.msgpack.decode(got.content, type=ReleaseNotice)
                for task in notice.tasks:
                    cohort = task.task.removeprefix("task-of-")
                    assert device.os in rules[cohort]
                    assert bucket(cohort, device.id.hex()) < threshold[cohort]
    finally:
        world.store.close()


def test_public_notices_do_leave_their_cohort(make: Callable[..., World]) -> None:
    """Negative control of the property above: the setting gives it up, and it shows."""
    world = make(open_enrolment=True, public_notices=True)
    world.plans.rebuild([CohortPlan(cohort=1, epoch=2, base=[desired("secret", 1)])], 2)
    answer = world.get("/v1/d/notices/2.1.0")
    assert answer.headers["cache-control"].startswith("public")
    assert msgspec.msgpack.decode(answer.content, type=ReleaseNotice).tasks[0].task == "secret"


def test_exclusive_files_reach_one_device_alone(world: World) -> None:
    mine, other = Device(1), Device(2)
    mine.enrol(world)
    other.enrol(world)
    with world.store.begin() as connection:
        connection.execute(
            sa.text("INSERT INTO scenario(name, repo, created_us) VALUES ('d','',0)")
        )
        connection.execute(
            sa.text(
                "INSERT INTO task(scenario,name,branch,owner,created_us) VALUES ('d','t','','',0)"
            )
        )
        connection.execute(
            sa.text(
                'INSERT INTO task_version(task, version, label, tag, "commit", package_sha256,'
                " size, manifest, key_id, floor, created_by, created_us)"
                " VALUES ('t', 1, '', '', '', :sha, 1, '{}', '', 0, '', 0)"
            ),
            {"sha": bytes(32)},
        )
    ref = world.exclusive.put(mine.id, "t", 1, "models/own.onnx", b"personal")
    got = world.get("/v1/d/exclusive/t/1", Shoal_Device=mine.token)
    grant = msgspec.msgpack.decode(got.content, type=ExclusiveGrant)
    statement = verify_statement(grant.director, [world.director.public_key], _NOW)
    (resource,) = statement.tasks[0].resources
    assert statement.tasks[0].exclusive and resource.path == f"{mine.id.hex()}/models/own.onnx"
    url = grant.urls[ref.sha256.hex()]
    assert world.get(url, Shoal_Device=mine.token).content == b"personal"
    assert world.get(url, Shoal_Device=other.token).status_code == 404
    refused(world.get(url), ErrorCode.UNAUTHENTICATED, 401)
    assert world.get("/v1/d/exclusive/t/1", Shoal_Device=other.token).status_code == 404


# -- files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "status", "start", "stop"),
    [
        ("bytes=0-", 206, 0, 1_000_000),
        ("bytes=999990-", 206, 999_990, 1_000_000),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=-7", 206, 999_993, 1_000_000),
        ("bytes=0-99999999", 206, 0, 1_000_000),
        ("bytes=5-4", 200, 0, 1_000_000),
        ("bytes=1-2,5-6", 200, 0, 1_000_000),
        ("lines=1-2", 200, 0, 1_000_000),
        ("bytes=-", 200, 0, 1_000_000),
        ("bytes=1000000-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
    ],
)
def test_ranges(world: World, asked: str, status: int, start: int, stop: int) -> None:
    data = bytes(range(250)) * 4000
    ref = world.blobs.put_bytes(data)
    answer = world.get(f"/v1/d/files/{ref.sha256.hex()}", Range=asked)
    assert answer.status_code == status
    assert answer.content == data[start:stop]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/1000000"
    if status == 416:
        assert answer.headers["content-range"] == "bytes */1000000"


def test_validators_and_head(world: World) -> None:
    ref = world.blobs.put_bytes(b"0123456789")
    path = f"/v1/d/files/{ref.sha256.hex()}"
    etag = world.get(path).headers["etag"]
    assert etag == f'"{ref.sha256.hex()}"'
    assert world.get(path, Range="bytes=5-", If_Range=etag).content == b"56789"
    assert world.get(path, Range="bytes=5-", If_Range='"other"').content == b"0123456789"
    assert world.get(path, If_None_Match=etag).status_code == 304
    head = world.request("HEAD", path)
    assert head.headers["content-length"] == "10" and head.content == b""
    empty = world.blobs.put_bytes(b"")
    assert world.get(f"/v1/d/files/{empty.sha256.hex()}").content == b""


@given(st.text(max_size=40), st.integers(0, 1000))
def test_any_range_header_is_inside_the_file(text: str, size: int) -> None:
    from shoal.cloud.files import parse_range
    from shoal.core.errors import NotFoundError

    for asked in (text, f"bytes={text}"):
        try:
            found = parse_range(asked, size)
        except NotFoundError:
            continue
        assert found is None or 0 <= found[0] < found[1] <= size


# -- rates and trouble --------------------------------------------------------


def test_pulls_above_the_rate_are_told_when_to_come_back(make: Callable[..., World]) -> None:
    world = make(open_enrolment=True, pull_rate_limit=2)
    ref = world.blobs.put_bytes(b"x")
    answers = [world.get(f"/v1/d/files/{ref.sha256.hex()}") for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    refused(answers[2], ErrorCode.RATE_LIMITED, 429)
    assert int(answers[2].headers["retry-after"]) >= 1


def test_one_busy_device_does_not_lock_out_another(make: Callable[..., World]) -> None:
    world = make(open_enrolment=True, device_rate_limit=0.01)
    first = Device(1)
    first.enrol(world)
    body = msgspec.msgpack.encode(first.profile())
    send = lambda token: world.request(  # noqa: E731
        "POST", "/v1/d/profile", content=body, headers={"Shoal-Device": token}
    )
    assert send(first.token).status_code == 200
    again = send(first.token)
    refused(again, ErrorCode.RATE_LIMITED, 429)
    assert 1 <= int(again.headers["retry-after"]) <= 100
    token = world.tokens.mint(Device(2).id, first.cohort, _NOW)
    assert send(token).status_code == 403  # past the limit: refused for its content


def test_without_a_database_checks_go_on_and_the_rest_says_when(world: World) -> None:
    device = Device()
    device.enrol(world)
    world.plans.rebuild([CohortPlan(cohort=device.cohort, epoch=1)], 1)
    with world.store.begin() as connection:
        connection.execute(sa.text("ALTER TABLE device RENAME TO gone"))
    assert device.check(world).status_code == 204
    answer = world.request("POST", "/v1/d/enrol", content=device.enrol_body(ts_us=_NOW + 1))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_requests_are_counted_by_kind(world: World) -> None:
    device = Device()
    device.enrol(world)
    device.check(world)
    world.get("/v1/d/nothing")
    assert world.gateway.counts["enrol"] == world.gateway.counts["check"] == 1
    assert world.gateway.counts["refused_100"] == 1
    assert world.fleet.flush() == 1
    (found,) = world.fleet.devices()
    assert found.requests == 1 and found.last_seen_us == _NOW
