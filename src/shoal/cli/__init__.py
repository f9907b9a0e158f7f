"""The ``shoal`` command."""

from shoal.cli.root import cli, main

__all__ = ["cli", "main"]
