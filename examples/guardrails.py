"""How many devices a release needs: to be called safe, and to be caught when it is not."""

import numpy as np

from shoal.cloud.guardrails import ArmCount, Verdict, devices_to_advance, judge

print("devices without a failure until a step may advance (chance of a wrong advance 5 %)")
for limit in (0.005, 0.01, 0.02, 0.05, 0.1):
    print(f"  at most {limit:5.1%} may fail: {devices_to_advance(limit, 0.05):5d}")

rng = np.random.default_rng(7)
print("devices until the rollback of a release that may fail on 1 %, and really fails on")
for rate in (0.5, 0.2, 0.05):
    stops = []
    for _ in range(50):
        failures = 0
        for devices in range(1, 2001):
            failures += int(rng.random() < rate)
            reading = judge(
                "failure", ArmCount(devices, failures), limit=0.01, alpha=0.01, beta=0.05
            )
            if reading.verdict is Verdict.WORSE:
                stops.append(devices)
                break
    print(f"  {rate:4.0%}: {int(np.median(stops)):4d} (median of {len(stops)})")
