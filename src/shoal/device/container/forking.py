"""The pool's end of the zygote: starting it, ordering workers, hearing how they end."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal.device.container.messages import encode

__all__ = ["ZygoteLink", "ZygoteNews"]

_decode = msgspec.msgpack.Decoder(tuple[str, int, int]).decode
_NEWS_BYTES = 4096
#: Directory that holds the package ``shoal``, and the one of msgspec: all that a zygote needs.
_SOURCE = str(Path(__file__).resolve().parents[3])
_START = (
    "import sys; sys.path.extend(p for p in sys.argv[3:] if p not in sys.path); "
    "from shoal.device.container.zygote import main; main()"
)


@dataclass(frozen=True)
class ZygoteNews:
    """What the zygote tells: kind ``hello``, ``forked`` or ``exited``.

    ``number`` is the slot's; ``value`` its process number or exit status;
    ``descriptor`` the process descriptor of a forked worker, else -1.
    """

    kind: str
    number: int
    value: int
    descriptor: int = -1


class ZygoteLink:
    """A running zygote; make a new one when this one has closed."""

    def __init__(self, scratch: Path) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
            [
                *(sys.executable, "-s", "-P", "-c", _START),
                *(str(theirs.fileno()), str(scratch)),
                *(_SOURCE, str(Path(msgspec.__file__).resolve().parents[1])),
            ],
            pass_fds=[theirs.fileno()],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self.greeted = False

    def fork(self, number: int, engine: str, connection: int, counter: int) -> bool:
        """Order a worker; return False if the zygote is gone."""
        rights = array.array("i", [connection, counter])
        try:
            self.socket.sendmsg(
                [encode((number, engine))],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())],
            )
        except OSError:
            return False
        return True

    def receive(self) -> ZygoteNews | None:
        """Return what it says next, or None when it has ended."""
        try:
            body, ancillary, _, _ = self.socket.recvmsg(_NEWS_BYTES, socket.CMSG_SPACE(4))
        except OSError:
            return None
        if not body:
            return None
        descriptor = -1
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptor = array.array("i", data[:4])[0]
                os.set_inheritable(descriptor, False)
        kind_of_news, number, value = _decode(body)
        self.greeted = True
        return ZygoteNews(kind_of_news, number, value, descriptor)

    def close(self, timeout_s: float) -> None:
        """Close our end, on which it kills its workers and leaves; kill it if it lingers."""
        self.socket.close()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)


def _environment() -> dict[str, str]:
    """Return all that a zygote gets of the agent's environment, and what it needs."""
    kept: dict[str, Any] = {
        name: os.environ[name]
        for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")
        if name in os.environ
    }
    return {
        **kept,
        "LC_ALL": "C.UTF-8",
        # The same events give the same bytes, also where a task walks over a set of names.
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The pool, not the libraries, decides about parallelism.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
