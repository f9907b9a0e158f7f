"""Whether a task can run on this device: what its manifest requires against what there is."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from shoal.wire.profile import PROTOCOL
from shoal.wire.specs import TaskManifest

__all__ = ["DeviceFacts", "fits"]

_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)?\s*([0-9][0-9a-zA-Z.]*)")


def _memory_mb() -> int:
    return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20


@dataclass(frozen=True)
class DeviceFacts:
    """What this device can do.

    Attributes
    ----------
    engines : mapping of str to str
        Versions of the tensor engines by name.
    capabilities : frozenset of str
        What the device declares besides.
    sandbox_level : int
        What its containers keep (0 to 3).
    backend : str
        Where tasks run: ``process`` or ``inline``.
    memory_mb : int
        Memory of the machine.
    """

    engines: Mapping[str, str]
    capabilities: frozenset[str] = frozenset()
    sandbox_level: int = 0
    backend: str = "process"
    memory_mb: int = 0

    @classmethod
    def of_machine(
        cls,
        engines: Mapping[str, str],
        capabilities: frozenset[str],
        sandbox_level: int,
        backend: str,
    ) -> DeviceFacts:
        """Fill in what the machine itself says."""
        return cls(engines, capabilities, sandbox_level, backend, _memory_mb())

    def digest(self) -> bytes:
        """Return 16 bytes that change when a refused task deserves another look."""
        told = (
            sorted(self.engines.items()), sorted(self.capabilities), self.sandbox_level,
            self.backend, self.memory_mb, platform.python_version(), PROTOCOL,
        )  # fmt: skip
        return hashlib.blake2b(msgspec.msgpack.encode(told), digest_size=16).digest()

    def problems(self, manifest: TaskManifest, free_mb: int) -> list[str]:
        """Return why a task cannot run here, one phrase each; empty if it can.

        Parameters
        ----------
        manifest : TaskManifest
        free_mb : int
            Free disk space.
        """
        requires = manifest.requires
        found = []
        if not fits(platform.python_version(), requires.python):
            found.append(f"needs Python {requires.python}")
        if requires.protocol > PROTOCOL:
            found.append(f"needs protocol {requires.protocol}")
        for name, wanted in requires.engines.items():
            have = self.engines.get(name)
            if have is None or not fits(have, wanted):
                found.append(f"needs engine {name} {wanted} (here: {have or 'none'})")
        missing = sorted(set(requires.capabilities) - self.capabilities)
        if missing:
            found.append(f"needs {', '.join(missing)}")
        if requires.memory_mb > self.memory_mb:
            found.append(f"needs {requires.memory_mb} MB of memory")
        if requires.disk_mb > free_mb:
            found.append(f"needs {requires.disk_mb} MB of free disk")
        if manifest.isolation.sandbox_level > self.sandbox_level:
            found.append(
                f"needs sandbox level {manifest.isolation.sandbox_level}"
                f" (here: {self.sandbox_level})"
            )
        if manifest.isolation.backend == "interpreter":
            found.append("needs the interpreter backend")
        return found


def fits(version: str, wanted: str) -> bool:
    """Whether a version meets clauses such as ``>=1.20, <2``; nothing wanted fits always.

    A clause that is not understood is not met.
    """
    have = _parts(version)
    for clause in filter(None, (part.strip() for part in wanted.split(","))):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            return False
        operator, want = match[1] or "==", _parts(match[2])
        size = max(len(have), len(want))
        left = have + (0,) * (size - len(have))
        right = want + (0,) * (size - len(want))
        if operator == "==":
            left = left[: len(want)] + (0,) * (size - len(want))  # 1.2 stands for 1.2.anything
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            ">": left > right,
            "<": left < right,
            "==": left == right,
            "!=": left != right,
        }[operator]
        if not holds:
            return False
    return True


def _parts(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        digits = re.match(r"\d+", part)
        if digits is None:
            break
        parts.append(int(digits[0]))
        if digits[0] != part:
            break
    return tuple(parts)
