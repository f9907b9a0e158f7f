"""Small charts as SVG text, drawn on the server so that a page needs no chart library.

Every chart scales with its container, carries a title for screen readers, and
takes its colours from the page's style sheet by class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["bars", "coverage_chart", "duration", "meter_bar"]

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 12, 34


def duration(seconds: float) -> str:
    """Write a duration the way a person says it: ``4.2 s``, ``12 min``, ``3.1 h``, ``2 d``."""
    if seconds < 0.0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, unit, size in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172_800.0, "h", 3600.0)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def _frame(title: str, body: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>{body}</svg>'
    )


def _x(value: float, end: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value / end if end else 0.0)


def _y(share: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - share)


def coverage_chart(
    points: Sequence[tuple[float, float]],
    *,
    end: float,
    allowed: Sequence[tuple[float, float]] = (),
    title: str = "Coverage of the release",
) -> str:
    """Draw coverage over time as a step curve.

    Parameters
    ----------
    points : sequence of (seconds, share)
        Share of the reachable devices, 0 to 1, that hold the version; sorted.
    end : float
        Right end of the time axis in seconds.
    allowed : sequence of (seconds, share)
        The share that the gray step in force lets in, drawn behind the curve.
    title : str
        For screen readers.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    end = max(end, 1e-9)
    parts = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="axis end" x="{_LEFT - 6}" y="{y + 4}">{share:.0%}</text>')
    for part in range(5):
        seconds = end * part / 4
        anchor = ("start", "middle minor", "middle", "middle minor", "end")[part]
        parts.append(
            f'<text class="axis {anchor}" x="{_x(seconds, end):.1f}" '
            f'y="{_HEIGHT - 10}">{duration(seconds) if part else 0}</text>'
        )
    if allowed:
        parts.append(f'<path class="allowed" d="{_steps(allowed, end, closed=True)}"/>')
    if points:
        parts.append(f'<path class="curve" d="{_steps(points, end, closed=False)}"/>')
        last = min(points[-1][1], 1.0)
        parts.append(f'<circle class="dot" cx="{_x(end, end):.1f}" cy="{_y(last):.1f}" r="3.5"/>')
    else:
        parts.append(
            f'<text class="axis middle" x="{_WIDTH / 2}" y="{_HEIGHT / 2}">no device yet</text>'
        )
    return _frame(title, "".join(parts))


def _steps(points: Sequence[tuple[float, float]], end: float, *, closed: bool) -> str:
    # One step a pixel at the most: a curve of a million devices is no longer than one of 600.
    heights: dict[int, float] = {}
    for seconds, share in points:
        heights[round(_x(min(max(seconds, 0), end), end))] = min(max(share, 0.0), 1.0)
    path = [f"M{_x(0, end):.0f},{_y(0):.1f}"]
    for x, share in heights.items():
        path.append(f"H{x}V{_y(share):.1f}")
    path.append(f"H{_x(end, end):.0f}")
    if closed:
        path.append(f"V{_y(0):.1f}Z")
    return "".join(path)


def meter_bar(share: float, *, side: str, title: str) -> str:
    """Draw how much of the way to a threshold is done.

    Parameters
    ----------
    share : float
        0 to 1; the threshold is the right end.
    side : str
        A class name for its colour.
    title : str
        For screen readers.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<svg class="meter {escape(side, quote=True)}" viewBox="0 0 100 6" '
        f'preserveAspectRatio="none" role="img" aria-label="{escape(title, quote=True)}">'
        f'<rect class="track" width="100" height="6"/>'
        f'<rect class="fill" width="{width:.1f}" height="6"/></svg>'
    )


def _short(value: float) -> str:
    """Write a count in at most five characters, as an axis has room for."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= max(size, 1e4):
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:,.0f}"


def bars(values: Sequence[float], *, labels: tuple[str, str], title: str) -> str:
    """Draw values as bars of equal width, the highest one filling the height.

    Parameters
    ----------
    values : sequence of float
        From the oldest to the newest; not negative.
    labels : (str, str)
        Text under the first and the last bar.
    title : str
        For screen readers; shown with the highest value.

    Returns
    -------
    str
        An ``<svg>`` element.
    """
    top = max(values, default=0.0)
    width = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{_y(0)}" y2="{_y(0)}"/>',
        f'<text class="axis end" x="{_LEFT - 6}" y="{_y(1) + 8}">{_short(top)}</text>',
        f'<text class="axis start" x="{_LEFT}" y="{_HEIGHT - 10}">{escape(labels[0])}</text>',
        f'<text class="axis end" x="{_WIDTH - _RIGHT}" '
        f'y="{_HEIGHT - 10}">{escape(labels[1])}</text>',
    ]
    if top <= 0:
        parts[1] = (
            f'<text class="axis middle" x="{_WIDTH / 2}" y="{_HEIGHT / 2}">nothing yet</text>'
        )
    for place, value in enumerate(values):
        if value <= 0:
            continue
        y = _y(value / top)
        parts.append(
            f'<rect class="bar" x="{_LEFT + place * width:.1f}" y="{y:.1f}" '
            f'width="{max(width - 1, 0.8):.1f}" height="{_y(0) - y:.1f}"/>'
        )
    return _frame(f"{title}; at most {top:,.0f}", "".join(parts))
