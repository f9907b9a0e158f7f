"""How values are written in the console's templates."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from shoal.console.charts import duration

__all__ = ["FILTERS", "clock", "figure", "sentence", "share", "short", "since", "size"]


def since(at_us: int | None) -> str:
    """Write how long ago a time was; ``never`` without one."""
    if not at_us:
        return "never"
    seconds = time.time() - at_us / 1e6
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def clock(at_us: int | None) -> str:
    """Write a time as date and time of day, UTC."""
    if not at_us:
        return "–"
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_us / 1e6))
    except (OverflowError, ValueError, OSError):  # a device may claim any time
        return f"{at_us} µs"


def share(threshold: int) -> str:
    """Write a number of buckets of 10,000 as per cent, with no more digits than it has."""
    return f"{threshold / 100:.2f}".rstrip("0").rstrip(".") + " %"


def size(octets: int) -> str:
    """Write a number of bytes."""
    for unit in ("B", "KB", "MB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}" if unit == "B" or octets >= 10 else f"{octets:.1f} {unit}"
        octets /= 1000  # type: ignore[assignment]
    return f"{octets:.1f} GB"


def figure(value: float) -> str:
    """Write a measured number: whole from ten thousand on, else with four digits."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def short(value: Any, limit: int = 40) -> str:
    """Write a value that may be of any length."""
    text = str(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def sentence(text: str) -> str:
    """Begin with a capital letter and end with a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


FILTERS: Final[dict[str, Callable[..., str]]] = {
    "clock": clock,
    "duration": duration,
    "figure": figure,
    "sentence": sentence,
    "share": share,
    "short": short,
    "since": since,
    "size": size,
}
