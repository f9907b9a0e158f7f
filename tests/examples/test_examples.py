"""Every example runs and prints what its text promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

#: What each example must print, so that an example that does nothing fails.
PROMISES = {
    "triggers.py": [
        "2 s  exposure@list wakes hint (lost)",
        "12 s  click@detail wakes rerank (interested)",
        "40 s  page_exit@detail wakes offer (left)",
    ],
    "guardrails.py": ["at most  1.0% may fail:   377", "50%:", "(median of 50)"],
    "fleet_of_two.py": ["interest 1 clicks 1", "interest 1 clicks 2"],
    "simulate_fleet.py": ["good: ended as full", "bad: ended as rolled_back", "cohort 0"],
    "ipv_on_a_device.py": ["visit e461e602: 32 numbers, cart", "16 features: 2,048 bytes, 0.6 %"],
    "search_places.py": [
        "39 km  San Jose",
        "Munich: space 0.160, attributes 0.630",
        "it does not pass the conditions of where",
    ],
    "live_places.py": ["built: Anchor, Bakery", "opened again: Chapter, Bakery 2", "with 9"],
    "which_packages.py": [
        "50 packages reach 69.0% within 1 hop",
        "no other 50 reach more than 69.0% (proven)",
        "50 packages reach 83.7% within 2 hops",
        "libc6            adds 21,809",
        "are enough for 80% within 3 hops: libc6",
    ],
    "middleware.py": ["a browser gets {'item': 7}", "and the notice 0.0.0"],
}


def test_no_example_is_left_out():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_example(name, tmp_path):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for promise in PROMISES[name]:
        assert promise in done.stdout
