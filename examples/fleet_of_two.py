"""A cloud, a task, two devices: published, released, run, and the results back; one process."""

import tempfile
from pathlib import Path

import httpx
from click.testing import CliRunner

from shoal.cli import cli
from shoal.cloud.config import CloudConfig
from shoal.cloud.http import CloudServer
from shoal.cloud.service import Cloud
from shoal.device import Agent, AgentConfig, VMPool, VMPoolConfig
from shoal.wire import EventKind

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    CliRunner().invoke(cli, ["task", "init", "interest", "--folder", str(folder / "interest")])
    config = CloudConfig(data_dir=folder / "cloud", port=0, open_enrolment=True)
    with Cloud.open(config) as cloud, CloudServer(cloud) as server, VMPool(VMPoolConfig()) as pool:
        version = cloud.registry.publish(folder / "interest")
        release = cloud.releases.create(version.task, version.version, "everyone")
        cloud.releases.override(release, reason="two devices, no steps")
        for number in (1, 2):
            settings = AgentConfig(
                data_dir=folder / f"device{number}",
                server_url=server.url,
                attributes={"device": {"os": "linux"}},
                check_every_s=0.2,
            )
            with Agent(settings, pool=pool) as agent:
                while not agent.status()["active"]:
                    agent.tick()
                agent.record(EventKind.PAGE_ENTER, "detail")
                for _ in range(number):
                    agent.record(EventKind.CLICK, "detail")
                agent.record(EventKind.PAGE_EXIT, "detail")
                agent.drain(20)
        for result in httpx.get(f"{server.url}/v1/admin/results?task=interest").json():
            print(result["task"], result["version"], "clicks", result["value"]["clicks"])
