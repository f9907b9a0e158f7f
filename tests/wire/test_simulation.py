"""The signed report of a simulation test."""

from __future__ import annotations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.errors import InputError, IntegrityError
from shoal.wire.simulation import SimulationReport, sign_simulation, verify_simulation

KEY = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
REPORT = SimulationReport(
    schema=1, release=3, task="delay", version=2, device=b"\1" * 16, n_traces=2, n_runs=9,
    failures=0, max_wall_us=1_500, max_peak_kb=64, outputs_sha256=b"\2" * 32, ts_us=7,
)  # fmt: skip


def test_a_signed_report_survives_the_wire() -> None:
    signed = sign_simulation(REPORT, KEY)
    raw = msgspec.msgpack.encode(signed)
    again = msgspec.msgpack.decode(raw, type=SimulationReport)
    assert again == signed
    verify_simulation(again, PUBLIC)


def test_golden_bytes() -> None:
    """ed25519 is deterministic, so other languages can check themselves against this."""
    signed = sign_simulation(REPORT, KEY)
    assert len(signed.signature) == 64
    assert sign_simulation(REPORT, KEY).signature == signed.signature
    assert msgspec.msgpack.encode(REPORT).hex() == (
        "9e0103a564656c617902c41001010101010101010101010101010101"
        "020900cd05dc40c4200202020202020202020202020202020202020202020202020202020202020202"
        "07a0c400"
    )


@given(
    st.sampled_from(["release", "version", "n_traces", "n_runs", "failures", "max_wall_us"]),
    st.integers(1, 1_000),
)
def test_any_changed_figure_breaks_the_signature(field: str, by: int) -> None:
    signed = sign_simulation(REPORT, KEY)
    changed = msgspec.structs.replace(signed, **{field: getattr(signed, field) + by})
    with pytest.raises(IntegrityError, match="not signed by that device"):
        verify_simulation(changed, PUBLIC)


@pytest.mark.parametrize(
    ("field", "value"),
    [("device", b"short"), ("outputs_sha256", b""), ("n_runs", -1), ("failures", -1)],
)
def test_fields_out_of_range_are_named(field: str, value: object) -> None:
    report = sign_simulation(msgspec.structs.replace(REPORT, **{field: value}), KEY)
    with pytest.raises(InputError, match=field):
        verify_simulation(report, PUBLIC)


def test_a_broken_key_is_an_integrity_error() -> None:
    with pytest.raises(IntegrityError):
        verify_simulation(sign_simulation(REPORT, KEY), b"\0")
