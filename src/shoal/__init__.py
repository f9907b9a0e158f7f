"""shoal ships machine-learning tasks to a fleet of devices and brings their results back.

Rooms are imported by name (``from shoal.device import Agent``); importing
``shoal`` itself loads nothing, so a device pays only for what it uses.
"""

__version__ = "0.1.0"
