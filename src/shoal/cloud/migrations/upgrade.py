"""Bring a database to the newest revision, from an installed wheel too."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

__all__ = ["configuration", "upgrade"]


def configuration(connection: sa.Connection | None = None) -> Config:
    """Return Alembic's configuration for the migrations in this folder.

    Parameters
    ----------
    connection : sqlalchemy.Connection, optional
        The connection, inside a transaction, that the migrations run on.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Run every migration up to ``revision`` on ``connection``; the caller commits."""
    command.upgrade(configuration(connection), revision)
