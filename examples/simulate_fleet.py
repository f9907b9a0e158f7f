"""A release to 6,000 simulated devices, one version of which fails on every fifth Android."""

from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.simulate import FleetConfig, FleetSimulation

policy = ReleasePolicy(
    steps=(2_000, 10_000),
    min_dwell_s=120,
    guardrails=(Guardrail(name="failure", kind="failure", limit=0.02),),
)
good = FleetConfig(devices=6_000, horizon_s=5_400)
bad = FleetConfig(devices=6_000, horizon_s=5_400, failure_rate={"android": 0.2, "*": 0.0})

for name, fleet in (("good", good), ("bad", bad)):
    report = FleetSimulation(fleet, seed=1).run(policy)
    print(
        f"{name}: ended as {report.state}, {report.installed_devices:,} devices had installed it, "
        f"it harmed {report.harmed_devices:,}, outside of the cohort {report.outside_received}"
    )
