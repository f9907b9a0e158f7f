"""The report of a simulation test: what a virtual device saw when it replayed traces.

A virtual device is an agent on the cloud's side of the network (cohort
``virtual``) that runs a draft release in the ordinary container before any real
device gets it. Its report is signed with the device's own key.
"""

from __future__ import annotations

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shoal.core.errors import InputError, IntegrityError

__all__ = ["SimulationReport", "sign_simulation", "verify_simulation"]

_DOMAIN = b"shoal.simulation.1\x00"


class SimulationReport(msgspec.Struct, frozen=True, array_like=True):
    """How the replay of traces through one version of a task went.

    Attributes
    ----------
    schema : int
        1.
    release : int
        The release that is being tested.
    task, version : str, int
        What ran.
    device : bytes
        Id of the virtual device (16 bytes).
    n_traces, n_runs, failures : int
        Traces replayed to their end, runs that they caused, runs that failed.
    max_wall_us : int
        Slowest run.
    max_peak_kb : int
        Largest memory peak of a run; 0 if it was not measured.
    outputs_sha256 : bytes
        SHA-256 over everything the runs emitted, in order.
    ts_us : int
        When it ended, microseconds since 1970 (UTC).
    message : str
        First failure, in one line.
    signature : bytes
        ed25519 by the virtual device over all fields before; 64 bytes.
    """

    schema: int
    release: int
    task: str
    version: int
    device: bytes
    n_traces: int
    n_runs: int
    failures: int
    max_wall_us: int
    max_peak_kb: int
    outputs_sha256: bytes
    ts_us: int = 0
    message: str = ""
    signature: bytes = b""


def _signed_bytes(report: SimulationReport) -> bytes:
    return _DOMAIN + msgspec.msgpack.encode(msgspec.structs.replace(report, signature=b""))


def sign_simulation(report: SimulationReport, key: Ed25519PrivateKey) -> SimulationReport:
    """Return ``report`` with the device's signature."""
    return msgspec.structs.replace(report, signature=key.sign(_signed_bytes(report)))


def verify_simulation(report: SimulationReport, public_key: bytes) -> None:
    """Check form and signature of a report.

    Parameters
    ----------
    report : SimulationReport
    public_key : bytes
        Raw ed25519 key (32 bytes) of the device that it names.

    Raises
    ------
    InputError
        A field is out of range.
    IntegrityError
        The signature is not that device's.
    """
    for field, length in (("device", 16), ("outputs_sha256", 32)):
        if len(getattr(report, field)) != length:
            raise InputError(
                f"must be {length} bytes", field=field, value=getattr(report, field).hex()
            )
    for field in ("n_traces", "n_runs", "failures", "max_wall_us", "max_peak_kb"):
        if getattr(report, field) < 0:
            raise InputError("must not be negative", field=field, value=getattr(report, field))
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            report.signature, _signed_bytes(report)
        )
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(
            f"simulation report of device {report.device.hex()} is not signed by that device"
        ) from error
