"""``shoal server``: run the cloud."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from shoal.cli.output import Output, json_option

if TYPE_CHECKING:
    from shoal.cloud.config import CloudConfig
    from shoal.cloud.middleware import ASGIApp

__all__ = ["load_cloud_config", "server"]

#: Where the cloud keeps its things unless it is told otherwise.
_DATA_DIR = Path(".shoal") / "cloud"


@click.group()
def server() -> None:
    """Run the cloud."""


def _cloud_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say which cloud."""
    for option in (
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            help=f"Folder of the cloud; {_DATA_DIR} by default.",
        ),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="TOML file with the fields of CloudConfig.",
        ),
    ):
        command = option(command)
    return command


def load_cloud_config(config_file: Path | None = None, **overrides: Any) -> CloudConfig:
    """Read the cloud's settings from file, environment (``SHOAL_CLOUD_...``) and options."""
    from shoal.cloud.config import CloudConfig
    from shoal.core.settings import load_settings

    return load_settings(
        CloudConfig,
        config_file,
        env_prefix="SHOAL_CLOUD_",
        overrides=overrides,
        defaults={"data_dir": _DATA_DIR},
    )


@server.command()
@_cloud_options
@click.option("--host", help="Address to listen on; 127.0.0.1 by default.")
@click.option("--port", type=int, help="Port to listen on; 8400 by default, 0 takes a free one.")
@click.option("--public-url", help="Address that devices reach the cloud by.")
@click.option(
    "--open-enrolment/--closed-enrolment",
    default=None,
    help="Whether devices may enrol without a token; closed by default.",
)
@click.option("--console/--no-console", default=True, help="Serve the console beside it.")
@click.option(
    "--recover", is_flag=True, help="Go on with a database that was restored from a copy."
)
@click.option("--verbose", "-v", is_flag=True, help="Log more than warnings.")
@json_option
def run(
    out: Output,
    *,
    config_file: Path | None,
    data_dir: Path | None,
    host: str | None,
    port: int | None,
    public_url: str | None,
    open_enrolment: bool | None,
    console: bool,
    recover: bool,
    verbose: bool,
) -> None:
    """Serve the cloud until it is interrupted.

    At its first start it makes its database, repositories and keys in the data
    folder. The offline keys are in keys/offline there: move them away.
    """
    from shoal.cloud.http import serve
    from shoal.cloud.service import Cloud

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn").setLevel(logging.INFO if verbose else logging.WARNING)
    config = load_cloud_config(
        config_file,
        data_dir=data_dir,
        host=host,
        port=port,
        public_url=public_url,
        open_enrolment=open_enrolment,
    )
    config.data_dir.mkdir(parents=True, exist_ok=True)
    with Cloud.open(config, recover=recover) as cloud:
        mounts: dict[str, ASGIApp] = {}
        if console:
            from shoal.console.app import create_console

            mounts["/"] = cast("ASGIApp", create_console(cloud))

        def ready(address: str) -> None:
            out.value({"address": address, "data_dir": str(config.data_dir), "console": console})
            out.line(f"cloud at {address}, data in {config.data_dir}")
            if console:
                out.line(f"console at {address}/")
            out.line("stop with Ctrl-C")

        serve(cloud, mounts=mounts, ready=ready)
    out.line("stopped")


@server.command()
@_cloud_options
@json_option
def reindex(out: Output, config_file: Path | None, data_dir: Path | None) -> None:
    """Rebuild the index of tasks and versions from the git repositories.

    The cloud must not be running.
    """
    from shoal.cloud.service import Cloud

    with Cloud.open(load_cloud_config(config_file, data_dir=data_dir)) as cloud:
        cloud.registry.reindex()
        tasks = {name: len(cloud.registry.versions(name)) for name in cloud.registry.tasks()}
    out.value({"tasks": tasks})
    out.table(["task", "versions"], list(tasks.items()))
    out.line(f"{sum(tasks.values())} versions of {len(tasks)} tasks")
