"""Charts are valid SVG and show the values that they were given."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.console.charts import bars, coverage_chart, duration

SHARES = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), max_size=30)


@given(points=SHARES, allowed=SHARES, end=st.floats(0, 1e6))
def test_coverage_stays_inside_the_frame(
    points: list[tuple[float, float]], allowed: list[tuple[float, float]], end: float
) -> None:
    svg = ET.fromstring(coverage_chart(sorted(points), end=end, allowed=sorted(allowed)))
    for path in svg.iter("path"):
        for axis, number in re.findall(r"([HV])(-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(number) <= (640 if axis == "H" else 220)


def test_coverage_reaches_its_share() -> None:
    svg = coverage_chart([(1.0, 0.5), (2.0, 1.0)], end=4.0)
    assert "V12.0" in svg  # the top of the frame is 100 %
    assert 'class="curve"' in svg
    assert "no device yet" in coverage_chart([], end=4.0)


@given(values=st.lists(st.floats(0, 1e9), max_size=80))
def test_bars_are_as_many_as_there_are_values(values: list[float]) -> None:
    svg = ET.fromstring(bars(values, labels=("<then>", "now"), title='a "title" & more'))
    assert len(list(svg.iter("rect"))) == sum(value > 0 for value in values)


def test_highest_bar_fills_the_frame() -> None:
    svg = ET.fromstring(bars([1, 2, 4], labels=("a", "b"), title="t"))
    heights = [float(rect.attrib["height"]) for rect in svg.iter("rect")]
    assert heights[2] == pytest.approx(2 * heights[1], abs=0.1)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "4 ms"),
        (4.21, "4.2 s"),
        (75, "75 s"),
        (3600, "60 min"),
        (90_000, "25 h"),
        (-3, "-3.0 s"),
        (1e6, "12 d"),
    ],
)
def test_durations_read_like_speech(seconds: float, text: str) -> None:
    assert duration(seconds) == text
