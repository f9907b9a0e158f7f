"""The platform's benchmark: triggers, gateway, containers, feature bytes, reach.

    python benchmarks/walle.py [--quick] [--data DIR] [--seed N]

Each part runs ours and its peers interleaved on the same input (the parts are
modules of ``benchmarks/_walle``). The last line of standard output is one JSON
object with the figures; the full run also writes ``evidence/walle.json``. All
input is generated, so ``--data`` has nothing to change here; it is accepted
because every benchmark of the project takes it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# One thread a process: the parts measure CPU time, and count their processes themselves.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

KEYS = (
    "trigger_ratio",
    "trigger_us",
    "gateway_ratio_bare",
    "gateway_ratio_fastapi",
    "vm_ratio",
    "vm_scaling",
    "bytes_ratio",
    "coverage_gap",
)
#: Bars of the issue, with the side on which a figure must lie.
BARS = {
    "trigger_ratio": (">=", 20.0),
    "trigger_us": ("<=", 1.2),
    "gateway_ratio_bare": ("<=", 1.3),
    "gateway_ratio_fastapi": ("<=", 0.6),
    "vm_ratio": (">=", 3.0),
    "vm_scaling": (">=", 1.8),
    "bytes_ratio": ("<=", 0.1),
    "coverage_gap": ("<=", 0.02),
}


def measure(quick: bool, seed: int) -> dict[str, Any]:
    """Run every part and return everything it found."""
    from _walle import bytes as feature_bytes
    from _walle import coverage, gateway, triggers, vm

    found: dict[str, Any] = {}
    for name, part in (
        ("triggers", triggers),
        ("gateway", gateway),
        ("vm", vm),
        ("bytes", feature_bytes),
        ("coverage", coverage),
    ):
        start = time.perf_counter()
        figures = part.run(quick, seed)
        seconds = time.perf_counter() - start
        print(f"{name}: {seconds:.1f} s", flush=True)
        found[name] = {**figures, "seconds": round(seconds, 1)}
    return found


def print_table(figures: dict[str, float]) -> None:
    """Print each figure with its bar."""
    for name, (side, bar) in BARS.items():
        value = figures[name]
        held = value >= bar if side == ">=" else value <= bar
        print(f"{name:24} {value:>10.4g}   bar {side} {bar:<6g} {'held' if held else 'MISSED'}")


def write(found: dict[str, Any], figures: dict[str, float], seed: int, load: float) -> None:
    """Write the evidence of a full run."""
    from shoal.core.evidence import (
        Claim,
        EvidenceRecord,
        Peer,
        library_versions,
        this_machine,
        today,
        write_evidence,
    )

    detail = found["bytes"]["detail"]["bytes"]
    latency = detail["event_to_feature"]
    rows = detail["sqlite_row"]
    mixed = found["triggers"]["detail"]["mixed"]
    reach, gray = found["coverage"], found["coverage"]
    claims = [
        Claim(
            id="walle.reach",
            statement="push-then-pull on ordinary requests reaches a large cohort in minutes",
            status="direction",
            ours=f"largest gap to 1 - mean(exp(-rate t)) {figures['coverage_gap']:.5f} in a "
            f"simulated fleet of {reach['coverage_devices']:,} devices",
            note="The published minutes depend on request rates that are not public; what is "
            "shown is that the platform adds nothing to the limit that the rates set.",
        ),
        Claim(
            id="walle.rollback",
            statement="failing releases are stopped automatically",
            status="direction",
            ours=f"5 % failing against a limit of 1 %: stopped after "
            f"{gray['faulty_stopped_s']:.0f} s of simulated time, "
            f"{gray['faulty_harmed']} devices harmed",
            note="No published figure.",
        ),
        Claim(
            id="walle.trie",
            statement="one trie serves many trigger conditions at once",
            status="direction",
            ours=f"1,000 triggers: {figures['trigger_us']:.2f} us CPU an event, "
            f"{figures['trigger_ratio']:.0f} times faster than a list scan, same matches",
            note="No published figure. Plain sequences, as published; with conditions on "
            "content and gaps between steps (ours) "
            f"{mixed['us_per_event']:.2f} us, {mixed['ratio']:.0f} times.",
        ),
        Claim(
            id="walle.ipv-latency",
            statement="an item page view becomes a feature in milliseconds on the device",
            status="direction",
            ours=f"exit event to stored feature {latency['wall_ms_p50']} ms (p50), "
            f"{latency['wall_ms_p99']} ms (p99) on this machine, generated sessions",
            note="A server-class core, not a phone; the published figure is of phones.",
        ),
        Claim(
            id="walle.ipv-bytes",
            statement="features take a tenth or less of the traffic of raw events",
            status="direction",
            ours=f"{detail['per_visit']['raw']:.0f} bytes a visit raw, "
            f"{detail['per_visit']['record']:.0f} as a record, 128 as a vector; "
            f"ratio {figures['bytes_ratio']:.4f}",
            note="Generated sessions, fitted to the published size of a visit.",
        ),
        Claim(
            id="walle.collective",
            statement="collected writes cost a fraction of single ones",
            status="direction",
            ours=f"{rows['autocommit_us']} us a row each, {rows['group_us']} us a row in groups",
            note="No published figure.",
        ),
        Claim(
            id="walle.vm",
            statement="tasks in virtual machines of their own beat threads under one lock",
            status="direction",
            ours=f"resident sandboxed processes: {figures['vm_ratio']:.1f} times the calls of "
            f"ProcessPoolExecutor, two workers {figures['vm_scaling']:.2f} times one",
            note="The published system isolates threads inside a modified interpreter; "
            "ours isolates processes of the stock one, so only the direction compares.",
        ),
        *(
            Claim(id=f"walle.{name}", statement=statement, status="not attempted", note=note)
            for name, statement, note in (
                ("tunnel", "up to 30 KB within 500 ms", "needs recorded mobile traces in the run"),
                ("decomposition", "fewer units to tune by hand", "the raster engine is not built"),
                ("search", "an engine is chosen in about 100 ms", "the cost model is not built"),
                ("mnn", "MNN is fastest on most models", "no engine table in this run"),
                ("cascade", "a device model first takes load off the cloud", "no cascade yet"),
            )
        ),
    ]
    record = EvidenceRecord(
        method="walle",
        command=f"python benchmarks/walle.py --seed {seed}",
        date=today(),
        seed=seed,
        machine=this_machine(),
        versions=library_versions("shoal", "numpy", "sqlalchemy", "uvicorn", "msgspec"),
        claims=claims,
        figures=figures,
        details=found,
        peers=[
            Peer(name="list scan of the triggers", version="ours, in the benchmark"),
            *(
                Peer(name=name, version=version)
                for name, version in library_versions("fastapi", "uvicorn").items()
            ),
            Peer(name="concurrent.futures.ProcessPoolExecutor", version="standard library"),
            Peer(name="polling at a fixed interval", version="ours, in the benchmark"),
        ],
        load=load,
    )
    write_evidence(HERE.parent / "evidence" / "walle.json", record)
    print("wrote evidence/walle.json")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="within a minute, smaller inputs")
    parser.add_argument("--data", type=Path, help="no effect: all input is generated")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(options.quick, options.seed)
    figures: dict[str, float] = {}
    for part in found.values():
        figures.update({key: float(part[key]) for key in KEYS if key in part})
    if not options.quick:
        write(found, figures, options.seed, load)
    print_table(figures)
    print(json.dumps({**{key: figures[key] for key in KEYS}, "load": round(load, 2)}))


if __name__ == "__main__":
    main()
