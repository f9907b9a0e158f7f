"""An agent and groups of them without a cloud: away, mute, damaged, wrongly set up."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal.core.errors import ConflictError, InputError
from shoal.core.settings import load_settings
from shoal.device import Agent, AgentConfig, AgentGroup, VMPool, VMPoolConfig
from shoal.wire.package import build_package
from shoal.wire.results import InstallState


@pytest.fixture(scope="module")
def pool() -> Iterator[VMPool]:
    with VMPool(VMPoolConfig(backend="inline")) as made:
        yield made


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def config(folder: Path, url: str, **options: object) -> AgentConfig:
    return AgentConfig(data_dir=folder, server_url=url, **options)  # type: ignore[arg-type]


def install(agent: Agent, folder: Path) -> None:
    """Put a task on the device as an earlier conversation with a cloud would have left it."""
    source = folder / "source"
    source.mkdir()
    (source / "task.toml").write_text(
        'task = "count"\n[[triggers]]\nname = "left"\nsequence = ["page_exit@*"]\n'
        '[[outputs]]\nname = "seen"\n'
    )
    (source / "main.py").write_text("def run(ctx, batch):\n    ctx.emit('seen', len(batch))\n")
    built = build_package(source, 1)
    from shoal.wire.notices import FileRef

    ref = FileRef(sha256=built.sha256, size=len(built.bytes), path="count-1.shoal")
    for _ in agent.packages.content.receive(ref, lambda _: iter([built.bytes])):
        pass
    unpacked = agent.packages.unpack(ref)
    with agent.store.transaction() as cursor:
        agent.packages.write(
            cursor, ("count", 1), sha256=built.sha256, state=InstallState.GOOD, epoch=1,
            folder=unpacked.name,
        )  # fmt: skip
        agent.packages.activate(cursor, "count", 1)
    agent.sync.versions.generation += 1


def until(condition, agent: Agent | AgentGroup, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        agent.tick()
        time.sleep(0.001)


# -- no cloud ----------------------------------------------------------------------------------


def test_without_a_cloud_it_records_and_predicts(tmp_path: Path, pool: VMPool) -> None:
    with Agent(config(tmp_path / "d", closed_port()), pool=pool) as agent:
        install(agent, tmp_path)
        for number in range(10):
            agent.record(5, "detail", ts_us=1_700_000_000_000_000 + number)
        until(lambda: agent.settled and agent.runners, agent)
        assert agent.status()["runs"] == {"count": {"ok": 10}}
        assert agent.status()["unacknowledged"] >= 10
        until(lambda: agent.counts["unavailable"] >= 1, agent)
        assert "cannot be reached" in agent.last_error
        assert not agent.drain(0.3)  # nothing was acknowledged, and it says so
    with Agent(config(tmp_path / "d", closed_port()), pool=pool) as agent:
        assert agent.status()["unacknowledged"] >= 10  # it waits for better times


def test_a_mute_server_holds_up_no_prediction(tmp_path: Path, pool: VMPool, nobody: str) -> None:
    agent = Agent(config(tmp_path / "d", nobody, timeout_s=30.0), pool=pool)
    agent.open()
    install(agent, tmp_path)
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,), daemon=True)
    thread.start()
    try:
        for number in range(5):
            agent.record(5, "detail", ts_us=1_700_000_000_000_000 + number)
        end = time.monotonic() + 10
        while not (agent.runners and agent.settled):
            assert time.monotonic() < end  # long before the request gives up
            time.sleep(0.01)
    finally:
        stop.set()


def test_offline_means_off_the_network(tmp_path: Path, pool: VMPool) -> None:
    with Agent(config(tmp_path, closed_port()), pool=pool) as agent:
        agent.online = False
        for _ in range(20):
            agent.tick()
        assert agent.counts["unavailable"] == 0
        agent.online = True
        until(lambda: agent.counts["unavailable"], agent)


# -- folders and settings ----------------------------------------------------------------------


def test_one_agent_a_folder(tmp_path: Path, pool: VMPool) -> None:
    second = Agent(config(tmp_path, closed_port()), pool=pool)
    with Agent(config(tmp_path, closed_port()), pool=pool), pytest.raises(ConflictError) as error:
        second.open()
    assert "in use" in str(error.value)
    with Agent(config(tmp_path, closed_port()), pool=pool):
        pass  # negative control: it is free again


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('server_url = "shop.example"', "server_url"),
        ('server_url = "ftp://shop.example"', "server_url"),
        ('server_url = "http://h"\ncheck_every_s = 0', "check_every_s"),
        ('server_url = "http://h"\ntunnel = "pigeon"', "tunnel"),
        ('server_url = "http://h"\nnonsense = 1', "nonsense"),
        ('server_url = "http://h"\n[attributes.shoe]\nsize = 43', "attributes"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, text: str, field: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'data_dir = "{tmp_path}"\n{text}\n')
    with pytest.raises(InputError, match=field):
        load_settings(AgentConfig, path)


def test_settings_do_not_show_the_token() -> None:
    made = AgentConfig(data_dir="d", server_url="http://h/", enrol_token="secret")
    assert "secret" not in repr(made)
    assert made.server_url == "http://h"


# -- damage ------------------------------------------------------------------------------------


def test_a_damaged_database_is_replaced_and_work_goes_on(tmp_path: Path, pool: VMPool) -> None:
    folder = tmp_path / "d"
    with Agent(config(folder, closed_port()), pool=pool) as agent:
        device = agent.device
        install(agent, tmp_path)
        until(lambda: agent.runners, agent)
    (folder / "device.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 400)
    for suffix in ("-wal", "-shm"):
        (folder / f"device.db{suffix}").unlink(missing_ok=True)
    with Agent(config(folder, closed_port()), pool=pool) as agent:
        assert agent.device == device  # the identity is not in the database
        assert agent.status()["damaged_databases"] == 1
        assert agent.sync.settled() == []  # so the cloud is asked what to hold
        agent.record(5, "detail")
        until(lambda: agent.settled, agent)


def test_damage_while_it_runs(tmp_path: Path, pool: VMPool) -> None:
    with Agent(config(tmp_path / "d", closed_port()), pool=pool) as agent:
        install(agent, tmp_path)
        until(lambda: agent.runners, agent)
        agent.store.moved_aside += 1  # what the store says when it had to start a fresh file
        agent.tick()
        until(lambda: agent.runners and agent.settled, agent)


# -- groups ------------------------------------------------------------------------------------


def test_a_defect_of_one_agent_does_not_stop_the_others(tmp_path: Path, pool: VMPool) -> None:
    agents = [Agent(config(tmp_path / str(n), closed_port()), pool=pool) for n in range(3)]
    with AgentGroup(agents) as group:
        for number, agent in enumerate(agents):
            (tmp_path / f"s{number}").mkdir()
            install(agent, tmp_path / f"s{number}")
            agent.record(5, "detail")
        agents[1]._run_tasks = lambda: 1 // 0  # type: ignore[method-assign, return-value]
        until(lambda: all(agents[n].runners and agents[n].settled for n in (0, 2)), group)
        assert group.counts["ZeroDivisionError"] >= 1


def test_a_group_opens_all_or_none(tmp_path: Path, pool: VMPool) -> None:
    url = closed_port()
    same = [Agent(config(tmp_path / "a", url), pool=pool) for _ in range(2)]
    with pytest.raises(ConflictError):
        AgentGroup(same).open()
    with Agent(config(tmp_path / "a", url), pool=pool):
        pass  # the first one was closed again


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, shoal.device; "
        "print([n for n in ('numpy', 'tuf', 'pydantic', 'urllib3', 'msgspec') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
