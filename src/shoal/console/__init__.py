"""The web pages: a cloud's fleet, releases, results and events; a map of places."""

from shoal.console.app import create_console, create_place_console

__all__ = ["create_console", "create_place_console"]
