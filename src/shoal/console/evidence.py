"""What speaks for and against a release, put beside the thresholds that decide.

Figures come from ``ReleaseController.status``; see :mod:`shoal.cloud.guardrails`
for what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

__all__ = ["Meter", "meters"]


class Meter(msgspec.Struct, frozen=True):
    """One figure on its way to a threshold.

    Attributes
    ----------
    side : str
        ``"safe"`` if reaching the threshold lets the release go on, ``"worse"``
        if it rolls it back.
    label, text : str
        What it is; the figure and its threshold in words.
    share : float
        How much of the way it has gone, 0 to 1.
    """

    side: Literal["safe", "worse"]
    label: str
    text: str
    share: float


def meters(reading: Mapping[str, Any]) -> list[Meter]:
    """Return the figures that a guardrail's verdict rests on.

    Parameters
    ----------
    reading : mapping
        One of ``status(release)["guardrails"]``.
    """
    match reading["rule"]:
        case "always_valid":
            return [
                _evidence("safe", "that it is safe", reading["log_e_safe"], reading["advance_at"]),
                _evidence(
                    "worse", "that it is worse", reading["log_e_worse"], reading["roll_back_at"]
                ),
            ]
        case "versus_control":
            return _against_control(reading)
        case _:
            return _against_limit(reading)


def _evidence(
    side: Literal["safe", "worse"], label: str, value: float | None, goal: float
) -> Meter:
    # None: minus infinity, no evidence at all.
    found = "none" if value is None else f"{value:.1f}".replace("-", "−")
    return Meter(
        side, f"Evidence {label}", f"{found}, decides at {goal:.1f}", _part(value or 0.0, goal)
    )


def _against_control(reading: Mapping[str, Any]) -> list[Meter]:
    margin, least, most = (
        reading[name] for name in ("margin", "excess_at_least", "excess_at_most")
    )
    return [
        Meter(
            "safe",
            "Excess over control, at most",
            f"{most:.2%}, safe below {margin:.2%}",
            1.0 if most <= margin else _part(margin, most),
        ),
        Meter(
            "worse",
            "Excess over control, at least",
            f"{least:.2%}, worse above {margin:.2%}",
            _part(least, margin),
        ),
    ]


def _against_limit(reading: Mapping[str, Any]) -> list[Meter]:
    devices, limit = reading["devices"], reading["limit"]
    share = reading["failures"] / devices if devices else 0.0
    found = [
        Meter("worse", "Share that failed", f"{share:.2%}, worse above {limit:.2%}",
              _part(share, limit)),
    ]  # fmt: skip
    if "needs_devices" in reading:
        needs = reading["needs_devices"]
        found.insert(
            0, Meter("safe", "Devices heard of", f"{devices} of {needs}", _part(devices, needs))
        )
    return found


def _part(value: float, goal: float) -> float:
    if goal <= 0:
        return float(value > goal)
    return min(max(value / goal, 0.0), 1.0)
