"""The web page of a cloud: fleet, releases, results and the flow of events."""

from shoal.console.app import create_console

__all__ = ["create_console"]
