"""A whole cloud over real HTTP: publish, release, enrol, check, verify, download, report."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
import sqlalchemy as sa

from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer, create_app
from shoal.cloud.service import EVERYONE, Cloud
from shoal.core.errors import ConflictError, InputError, UnavailableError
from shoal.wire.enrolment import EnrolReply, EnrolRequest, ProfileReply, enrolment_message
from shoal.wire.exchange import join_frames, split_frames
from shoal.wire.frames import Ack, Batch, BatchKind, Codec, Hello, Welcome
from shoal.wire.notices import ReleaseNotice
from shoal.wire.package import TaskPackage
from shoal.wire.profile import TaskProfile, format_profile_header, profile_digest
from shoal.wire.results import InstallReport, ResultBatch, ResultRecord, RunSummary
from shoal.wire.signing import generate_key, public_bytes, verify_statement
from shoal.wire.simulation import SimulationReport, sign_simulation

_TOML = """
task = "hello"
[[triggers]]
name = "left"
sequence = ["page_exit@*"]
[input]
scope = "event"
events = ["page_exit@*"]
[[outputs]]
name = "seen"
kind = "result"
dtype = "json"
bytes_per_day = 1000
uplink = "now"
"""
_CODE = "def run(ctx, batch):\n    ctx.emit('seen', {})\n"


def folder_zip(number: int = 1) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("task.toml", _TOML)
        bundle.writestr("main.py", _CODE.replace("{}", f"{{'n': {number}}}"))
    return buffer.getvalue()


@pytest.fixture
def config(tmp_path: Path) -> CloudConfig:
    return CloudConfig(data_dir=tmp_path / "cloud", open_enrolment=True, tick_s=0.1)


@pytest.fixture
def cloud(config: CloudConfig) -> Iterator[Cloud]:
    with Cloud.open(config) as opened:
        yield opened


@pytest.fixture
def server(cloud: Cloud) -> Iterator[CloudServer]:
    with CloudServer(cloud) as running:
        yield running


@pytest.fixture
def http(server: CloudServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


class Device:
    """The smallest honest device: keys, a token, and what the wire structs say."""

    def __init__(self, http: httpx.Client, *, virtual: bool = False, **device: object) -> None:
        self.http, self.id, self.key = http, os.urandom(16), generate_key()
        self.profile = TaskProfile(
            device=self.id,
            agent="test",
            attributes={"device": device},
            capabilities=["virtual"] if virtual else [],
        )
        public, now = public_bytes(self.key), time.time_ns() // 1000
        request = EnrolRequest(
            public_key=public,
            profile=self.profile,
            proof=self.key.sign(enrolment_message("", public, self.id, now)),
            ts_us=now,
        )
        answer = http.post("/v1/d/enrol", content=msgspec.msgpack.encode(request))
        assert answer.status_code == 200, answer.text
        self.reply = msgspec.msgpack.decode(answer.content, type=EnrolReply)
        self.token, self.cohort = self.reply.token, self.reply.cohort
        self.held: dict[str, int] = {}
        self.seq = 0

    def check(self) -> str | None:
        header = format_profile_header(0, self.cohort, profile_digest(self.held.items()))
        headers = {"Shoal-Profile": header, "Shoal-Device": self.token}
        answer = self.http.get("/v1/d/check", headers=headers)
        assert answer.status_code in (200, 204), answer.text
        return answer.headers.get("shoal-notice")

    def send_profile(self) -> ProfileReply:
        answer = self.http.post(
            "/v1/d/profile",
            content=msgspec.msgpack.encode(self.profile),
            headers={"Shoal-Device": self.token},
        )
        reply = msgspec.msgpack.decode(answer.content, type=ProfileReply)
        self.token, self.cohort = reply.token, reply.cohort
        return reply

    def pull(self, director: bytes) -> dict[str, TaskPackage]:
        """Check until quiet, as a device does; verify, download and hold what is named."""
        packages = {}
        for _ in range(5):
            address = self.check()
            if address is None:
                return packages
            if address == "0.0.0":
                self.send_profile()
                continue
            got = self.http.get(f"/v1/d/notices/{address}", headers={"Shoal-Device": self.token})
            assert got.status_code == 200, got.text
            notice = msgspec.msgpack.decode(got.content, type=ReleaseNotice)
            statement = verify_statement(notice.director, [director], time.time_ns() // 1000)
            assert statement.cohort == self.cohort
            for task in statement.tasks:
                (url,) = notice.urls[task.package.sha256.hex()]
                data = self.http.get(url).content
                packages[task.task] = TaskPackage.open(data, sha256=task.package.sha256)
            self.held = {task.task: task.version for task in statement.tasks}
        raise AssertionError("the device does not become quiet")

    def report(self, **records: list) -> list:
        self.seq += 1
        batch = ResultBatch(schema=1, device=self.id, seq=self.seq, **records)
        frames = [
            Hello(1, self.token, self.id, "test", 0),
            Batch(self.seq, BatchKind.RESULTS, Codec.RAW, 0, msgspec.msgpack.encode(batch)),
        ]
        answer = self.http.post("/v1/d/uplink", content=join_frames(frames))
        assert answer.status_code == 200, answer.text
        return split_frames(answer.content)


def admin(http: httpx.Client, method: str, path: str, *, status: int | None = None, **more):
    answer = http.request(method, f"/v1/admin{path}", **more)
    assert answer.status_code in ((status,) if status else (200, 201)), answer.text
    return answer.json() if answer.content else None


def publish(http: httpx.Client, number: int = 1) -> dict:
    return admin(http, "POST", "/versions", content=folder_zip(number))


def force(http: httpx.Client, version: int, cohort: str = EVERYONE) -> dict:
    made = admin(
        http, "POST", "/releases", json={"task": "hello", "version": version, "cohort": cohort}
    )
    return admin(
        http, "POST", f"/releases/{made['id']}/override", json={"reason": "forced by the test"}
    )


def test_from_a_task_folder_to_a_result(cloud: Cloud, http: httpx.Client) -> None:
    version = publish(http)
    assert (version["task"], version["version"]) == ("hello", 1)
    assert publish(http)["version"] == 1  # the same content again
    device = Device(http)
    assert device.reply.root == cloud.images.root_bytes()
    assert device.pull(cloud.director.public_key) == {}
    forced = force(http, 1)
    assert forced["state"] == "full"
    packages = device.pull(cloud.director.public_key)
    assert packages["hello"].manifest.version == 1
    assert packages["hello"].read("main.py").startswith(b"def run(ctx, batch):")
    assert cloud.images.target("hello", 1).hashes["sha256"] == version["sha256"]
    assert device.check() is None

    run = os.urandom(16)
    answers = device.report(
        results=[ResultRecord(os.urandom(16), "hello", 1, "seen", 5, {"x": 1})],
        runs=[RunSummary(run, "hello", 1, 0, "process", 10, 20, 30, 5, 7)],
        installs=[InstallReport("hello", 1, "trial", 0), InstallReport("hello", 1, "good", 0)],
        dropped={"idle": 3},
    )
    assert [type(a) for a in answers] == [Welcome, Ack] and answers[1].seq == 1
    assert admin(http, "GET", "/results", params={"task": "hello"})[0]["value"] == {"x": 1}
    assert admin(http, "GET", "/runs")[0]["run"] == run.hex()
    assert admin(http, "GET", "/tasks/hello/versions/1/health")["runs"] == 1
    fleet = admin(http, "GET", "/fleet")
    assert fleet["holdings"] == [{"task": "hello", "version": 1, "state": "good", "devices": 1}]
    assert admin(http, "GET", f"/releases/{forced['id']}/coverage")["holding"] == 1
    metrics = http.get("/metrics").text
    assert 'shoal_dropped_total{part="device",reason="idle"} 3' in metrics
    assert 'shoal_holdings{task="hello",version="1",state="good"} 1' in metrics
    # The second version replaces the first; the rollback brings it back at a higher epoch.
    publish(http, 2)
    second = force(http, 2)
    assert device.pull(cloud.director.public_key)["hello"].manifest.version == 2
    admin(http, "POST", f"/releases/{second['id']}/rollback", json={"reason": "no"})
    assert device.pull(cloud.director.public_key)["hello"].manifest.version == 1


def test_a_virtual_device_lets_a_draft_pass(cloud: Cloud, http: httpx.Client) -> None:
    publish(http)
    virtual, real = Device(http, virtual=True), Device(http)
    made = admin(http, "POST", "/releases", json={"task": "hello", "version": 1})
    admin(http, "POST", f"/releases/{made['id']}/start")
    assert "hello" in virtual.pull(cloud.director.public_key)
    assert real.pull(cloud.director.public_key) == {}
    report = SimulationReport(1, made["id"], "hello", 1, virtual.id, 2, 4, 0, 1000, 1000, bytes(32))
    send = lambda device, body: http.post(  # noqa: E731
        "/v1/d/simulation", content=body, headers={"Shoal-Device": device.token}
    )
    good = msgspec.msgpack.encode(sign_simulation(report, virtual.key))
    assert send(virtual, msgspec.msgpack.encode(report)).status_code == 409  # not signed
    assert send(real, good).status_code == 400  # not its own
    assert admin(http, "GET", f"/releases/{made['id']}")["state"] == "draft"
    assert send(virtual, good).status_code == 202
    assert admin(http, "GET", f"/releases/{made['id']}")["state"] != "draft"


def test_a_new_cohort_moves_devices_and_keeps_others_out(cloud: Cloud, http: httpx.Client) -> None:
    publish(http)
    android, ios = Device(http, os="android"), Device(http, os="ios")
    assert android.cohort == ios.cohort
    made = admin(
        http, "PUT", "/cohorts", json={"name": "robots", "predicate": 'device.os == "android"'}
    )
    assert made["devices"] == 1
    force(http, 1, "robots")
    assert set(android.pull(cloud.director.public_key)) == {"hello"}
    assert ios.pull(cloud.director.public_key) == {}
    assert android.cohort != ios.cohort
    admin(http, "PUT", "/cohorts", json={"name": EVERYONE, "predicate": "true"}, status=400)
    admin(http, "PUT", "/cohorts", json={"name": "x", "predicate": "a =="}, status=400)


def test_two_operators_at_once(http: httpx.Client) -> None:
    publish(http)
    made = admin(http, "POST", "/releases", json={"task": "hello", "version": 1})
    path = f"/v1/admin/releases/{made['id']}"
    etag = http.get(path).headers["etag"]
    first = http.post(f"{path}/abort", headers={"If-Match": etag}, json={"reason": "mine"})
    assert first.status_code == 200 and first.headers["etag"] != etag
    second = http.post(f"{path}/abort", headers={"If-Match": etag})
    assert second.status_code == 412
    assert second.headers["content-type"].startswith("application/problem+json")
    assert http.post(f"{path}/abort").status_code == 409  # no precondition, but the wrong state
    assert http.post(f"{path}/abort", headers={"If-Match": "nonsense"}).status_code == 400
    assert http.post(f"{path}/explode").status_code == 404
    events = admin(http, "GET", f"/releases/{made['id']}/history")
    assert any(event["reason"] == "mine" and event["actor"] == "local" for event in events)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_uploads_that_must_not_be_unpacked(cloud: Cloud, http: httpx.Client) -> None:
    def bundle(name: str, data: bytes = b"x", mode: int = 0) -> bytes:
        buffer = io.BytesIO(folder_zip())
        with zipfile.ZipFile(buffer, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
        return buffer.getvalue()

    before = {path for path in cloud.config.data_dir.rglob("*") if path.is_file()}
    for body in (
        b"",
        b"not a zip",
        folder_zip()[:-30],
        bundle("../climbs.py"),
        bundle("/absolute.py"),
        bundle("link", b"/etc/passwd", 0o120777),
        bundle("main.py"),
    ):
        answer = http.post("/v1/admin/versions", content=body)
        assert answer.status_code == 400, answer.text
    after = {path for path in cloud.config.data_dir.rglob("*") if path.is_file()}
    assert {p for p in after - before if "cloud.db" not in p.name} == set()
    assert admin(http, "GET", "/tasks") == []


def test_a_zip_bomb_is_stopped_while_it_inflates(tmp_path: Path) -> None:
    limits = {"resource": 1_000_000}
    config = CloudConfig(data_dir=tmp_path / "c", limits=limits)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("task.toml", _TOML)
        bundle.writestr("big", bytes(50_000_000))
    assert len(buffer.getvalue()) < 100_000
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        answer = httpx.post(server.url + "/v1/admin/versions", content=buffer.getvalue())
        assert answer.status_code == 413
        answer = httpx.post(server.url + "/v1/admin/versions", content=bytes(1_000_001))
        assert answer.status_code == 413
        assert not list(config.data_dir.glob(".upload-*"))


def test_who_may_administer(tmp_path: Path) -> None:
    config = CloudConfig(data_dir=tmp_path / "c", admin_token="secret")
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        http = httpx.Client(base_url=server.url + "/v1/admin")
        with http:

            def status(method: str, path: str, token: str | None, **more) -> int:
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                return http.request(method, path, headers=headers, **more).status_code

            assert status("GET", "/fleet", None) == 401
            assert status("GET", "/fleet", "wrong") == 401
            assert status("GET", "/fleet", "secret") == 200
            tokens = {}
            for role in ("viewer", "author", "releaser"):
                answer = http.post(
                    "/operators",
                    json={"name": role, "role": role},
                    headers={"Authorization": "Bearer secret"},
                )
                tokens[role] = answer.json()["token"]
            upload = {"content": folder_zip()}
            cohort = {"json": {"name": "c", "predicate": "true"}}
            key = {"json": {}}
            matrix = {
                "viewer": (200, 403, 403, 403),
                "author": (200, 201, 403, 403),
                "releaser": (200, 201, 200, 403),
            }
            for role, expected in matrix.items():
                found = (
                    status("GET", "/tasks", tokens[role]),
                    status("POST", "/versions", tokens[role], **upload),
                    status("PUT", "/cohorts", tokens[role], **cohort),
                    status("POST", "/fleet/enrolment-tokens", tokens[role], **key),
                )
                assert found == expected, role
    assert b"secret" not in (config.data_dir / "cloud.db").read_bytes()
    assert "secret" not in repr(config)


def test_pages_of_other_origins_and_other_names_are_refused(http: httpx.Client) -> None:
    assert http.get("/v1/admin/fleet").status_code == 200
    own = {"Origin": str(http.base_url).rstrip("/")}
    assert http.get("/v1/admin/fleet", headers=own).status_code == 200
    foreign = {"Origin": "http://evil.example"}
    assert http.get("/v1/admin/fleet", headers=foreign).status_code == 403
    assert http.post("/v1/admin/releases/1/rollback", headers=foreign).status_code == 403
    rebound = {"Host": "evil.example"}
    assert http.get("/v1/admin/fleet", headers=rebound).status_code == 401


def test_bad_admin_bodies_name_the_field(http: httpx.Client) -> None:
    for body, word in (
        ({"task": "hello"}, "version"),
        ({"task": "hello", "version": "one"}, "version"),
        ({"task": "hello", "version": 1, "surprise": 1}, "surprise"),
        ({"task": "hello", "version": 1, "policy": {"alpha": 7}}, "alpha"),
        ({"task": "hello", "version": 1, "policy": {"nope": 7}}, "nope"),
    ):
        publish(http)
        answer = http.post("/v1/admin/releases", json=body)
        assert answer.status_code == 400, answer.text
        assert word in answer.text
    missing = http.post("/v1/admin/releases", json={"task": "nobody", "version": 1})
    assert missing.status_code == 404
    assert http.get("/v1/admin/fleet/devices/zz").status_code == 400
    assert http.get("/v1/admin/fleet/devices", params={"limit": 0}).status_code == 400


def test_every_admin_route_is_described(http: httpx.Client) -> None:
    paths = http.get("/v1/admin/schema/openapi.json").json()["paths"]
    for path in ("/scenarios", "/tasks", "/versions", "/cohorts", "/releases", "/fleet", "/events"):
        assert f"/v1/admin{path}" in paths
    assert "put" in paths["/v1/admin/cohorts"]


def test_the_event_stream_tells_what_happens(cloud: Cloud, http: httpx.Client) -> None:
    with http.stream("GET", "/v1/admin/events", params={"topics": "version,epoch"}) as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith(":")
        publish(http)
        Device(http)
        seen: dict[str, dict] = {}
        event = ""
        for line in lines:
            if line.startswith("event:"):
                event = line.split(":", 1)[1].strip()
            elif line.startswith("data:"):
                seen[event] = json.loads(line.split(":", 1)[1])
            if {"version", "epoch"} <= set(seen):
                break
    assert seen["version"]["task"] == "hello"
    assert "cohorts" in seen["epoch"]


def test_revoking_and_rotating_by_rest(http: httpx.Client) -> None:
    device = Device(http)
    admin(http, "POST", f"/fleet/devices/{device.id.hex()}/revoke")
    header = format_profile_header(0, device.cohort, profile_digest([]))
    headers = {"Shoal-Profile": header, "Shoal-Device": device.token}
    assert http.get("/v1/d/check", headers=headers).status_code == 403
    assert (
        http.post(
            "/v1/d/uplink", content=join_frames([Hello(1, device.token, device.id, "t", 0)])
        ).status_code
        == 403
    )
    admin(http, "POST", f"/fleet/devices/{device.id.hex()}/restore")
    admin(http, "POST", "/fleet/rotate-keys")
    assert http.get("/v1/d/check", headers=headers).status_code in (200, 204)
    admin(http, "POST", "/fleet/rotate-keys")
    assert http.get("/v1/d/check", headers=headers).status_code == 401


# -- lives of a cloud ---------------------------------------------------------


def test_everything_is_there_after_a_restart(config: CloudConfig) -> None:
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        with httpx.Client(base_url=server.url) as http:
            publish(http)
            device = Device(http)
            force(http, 1)
        key = cloud.director.public_key
    with Cloud.open(config) as cloud, CloudServer(cloud) as server:
        assert cloud.director.public_key == key
        with httpx.Client(base_url=server.url) as http:
            device.http = http
            assert set(device.pull(key)) == {"hello"}  # the old token still holds


def test_a_restored_database_is_noticed_and_recovered(config: CloudConfig) -> None:
    with Cloud.open(config) as cloud:
        epoch = cloud.store.epoch()
    copy = (config.data_dir / "cloud.db").read_bytes()
    with Cloud.open(config) as cloud:
        cloud.define_cohort("later", "true")
        later = cloud.store.epoch()
        assert later > epoch
    (config.data_dir / "cloud.db").write_bytes(copy)
    with pytest.raises(ConflictError, match=f"epoch {later} was signed"):
        Cloud.open(config)
    with Cloud.open(config, recover=True) as cloud:
        assert cloud.store.epoch() > later
        number = cloud.cohorts.cohort_set({"app": {}, "device": {}, "user": {}, "agent": {}})
        cloud.publish()
        assert cloud.plans.plan(number).epoch > later  # devices have seen `later`
    Cloud.open(config).close()


def test_one_cloud_a_folder_and_one_server_a_port(cloud: Cloud, config: CloudConfig) -> None:
    with pytest.raises(ConflictError, match="in use"):
        Cloud.open(config)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UnavailableError, match="cannot listen"):
            CloudServer(cloud, port=taken.getsockname()[1])


def test_mounts_are_served_and_may_not_hide_the_cloud(cloud: Cloud) -> None:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    def app(name: str, path: str) -> Starlette:
        return Starlette(routes=[Route(path, lambda _: PlainTextResponse(name))])

    mounts = {"/": app("root", "/"), "/shop": app("shop", "/shop/buy")}
    with CloudServer(cloud, mounts=mounts) as server:
        assert httpx.get(server.url + "/").text == "root"
        assert httpx.get(server.url + "/shop/buy").text == "shop"
        assert httpx.get(server.url + "/shopping").status_code == 404
        assert httpx.get(server.url + "/healthz").json()["status"] == "ok"
    for prefix in ("/v1", "/v1/d", "shop"):
        with pytest.raises(InputError):
            create_app(cloud, {prefix: app("x", "/")})


def test_hostile_bytes_on_the_wire_do_not_stop_the_server(
    server: CloudServer, http: httpx.Client
) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    for raw in (
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /v1/d/check HTTP/1.1\r\nHost: x\r\nShoal-Device: " + b"A" * 200_000 + b"\r\n\r\n",
        b"POST /v1/d/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n",
        b"POST /v1/d/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"GET /v1/d/files/%00%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(raw)
            plain.settimeout(2)
            try:
                first = plain.recv(64)
            except (TimeoutError, ConnectionError):
                first = b""
            assert not first.startswith(b"HTTP/1.1 2") and b" 500 " not in first
    assert http.get("/healthz").status_code == 200


_SERVE = """
import sys, threading
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import serve
from shoal.cloud.service import Cloud
config = CloudConfig(data_dir=sys.argv[1], open_enrolment=True, port=0, tick_s=0.05)
with Cloud.open(config) as cloud:
    serve(cloud, ready=lambda url: print(url, flush=True))
print("left", flush=True)
"""


def _start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_sigterm_ends_it_in_order(tmp_path: Path) -> None:
    process, url = _start(tmp_path)
    assert httpx.get(url + "/healthz").status_code == 200
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "left" in out


def test_killed_between_any_two_requests_it_comes_back_whole(tmp_path: Path) -> None:
    """After kill -9 every acknowledged step is there, and no device is led backwards."""
    device: Device | None = None
    acknowledged = 0
    epochs = []
    for round_ in range(4):
        process, url = _start(tmp_path)
        try:
            with httpx.Client(base_url=url, timeout=20) as http:
                listed = admin(http, "GET", "/tasks")
                assert len(listed[0]["versions"] if listed else []) >= acknowledged
                acknowledged = publish(http, round_)["version"]
                if device is None:
                    device = Device(http)
                device.http = http
                released = force(http, acknowledged)
                assert released["state"] == "full"
                key_status = admin(http, "GET", "/status")
                epochs.append(key_status["epoch"])
                address = device.check()
                assert address is not None
                if round_ % 2:  # cut off in the middle of something
                    killer = threading.Timer(0.02, process.kill)
                    killer.start()
                    with pytest.raises(httpx.HTTPError):
                        for n in range(10_000):
                            admin(
                                http,
                                "PUT",
                                "/cohorts",
                                json={"name": f"k{n}", "predicate": "false"},
                            )
                    killer.join()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    assert epochs == sorted(set(epochs))
    with Cloud.open(CloudConfig(data_dir=tmp_path, open_enrolment=True)) as cloud:
        assert len(cloud.registry.versions("hello")) == acknowledged == 4
        with cloud.store.read() as connection:
            assert connection.execute(sa.text("PRAGMA integrity_check")).scalar_one() == "ok"


def test_definitions_enrolments_and_uplinks_at_once(cloud: Cloud, http: httpx.Client) -> None:
    """No deadlock, and afterwards every device is in the set that its attributes say."""
    publish(http)
    failures: list[BaseException] = []
    devices: list[Device] = []

    def guarded(work) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        return thread

    def define() -> None:
        for number in range(8):
            cloud.define_cohort(f"c{number % 3}", f"device.number < {number + 2}")

    def enrol(first: int) -> None:
        with httpx.Client(base_url=http.base_url, timeout=60) as own:
            for number in range(first, first + 5):
                device = Device(own, number=number)
                devices.append(device)
                device.report(runs=[RunSummary(os.urandom(16), "hello", 1, 0, "p", 1, 1, 1)])
                device.pull(cloud.director.public_key)

    threads = [guarded(define), guarded(lambda: enrol(0)), guarded(lambda: enrol(5))]
    for thread in threads:
        thread.join(timeout=90)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    assert failures == []
    sets = cloud.cohorts.sets()
    for device in devices:
        stored = cloud.fleet.get(device.id)
        expected = cloud.cohorts.matching(stored.attributes)
        assert sets[stored.cohort_set] == expected
    assert admin(http, "GET", "/status")["tick_errors"] == {}
    with cloud.store.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM run_summary")).scalar_one() == 10
