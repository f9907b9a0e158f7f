"""How a release may proceed: its steps, its guardrails, its error rates; and whether it can."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from scipy import special

from shoal.cloud.guardrails import ArmCount, Form, Rule, Verdict, devices_to_advance, judge
from shoal.wire.buckets import BUCKETS

__all__ = ["DEFAULT_STEPS", "Guardrail", "ReleasePolicy"]

#: Share of the cohort in each gray step, in 1/10,000; the last one is full.
DEFAULT_STEPS = (10, 100, 500, 2_000, 5_000, BUCKETS)

_Share = Annotated[float, Field(gt=0, lt=1)]


class Guardrail(BaseModel):
    """One thing that may go wrong on a device, and how often it may.

    Attributes
    ----------
    name : str
        Unique within a policy.
    kind : str
        What makes a device a failure within its window of observation:
        ``"failure"``: a run ended with an error, or the package was refused or
        given up; ``"latency"``: a run took longer than ``budget`` milliseconds;
        ``"memory"``: a run's peak was above ``budget`` KB; ``"no_report"``: it
        pulled the version and was not heard of; ``"custom"``: the task emitted
        a result called ``signal`` with a true or positive value.
    limit : float
        The share of devices p0 that must not be exceeded, in (0, 1).
    margin : float
        Rule ``"versus_control"``: allowed excess over the control arm.
    budget : float or None
        Milliseconds or KB, for the kinds that need one.
    signal : str or None
        Name of the task's output; the guardrail's own name if absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
    limit: _Share = 0.01
    kind: Literal["failure", "latency", "memory", "no_report", "custom"] = "failure"
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.01
    budget: Annotated[float, Field(gt=0)] | None = None
    signal: str | None = None

    @model_validator(mode="after")
    def _needs_budget(self) -> Self:
        if self.kind in ("latency", "memory") and self.budget is None:
            raise ValueError(f"guardrail {self.name!r} of kind {self.kind} needs a budget")
        return self


class ReleasePolicy(BaseModel):
    """Everything that decides how far and how fast a release goes (Walle sheet A.6).

    Attributes
    ----------
    steps : tuple of int
        Thresholds in 1/10,000 of the cohort, strictly rising; at least one gray
        step and then 10,000 (full).
    beta_devices : tuple of str
        Ids (32 hex digits) of named devices that get the version first.
    min_dwell_s, max_dwell_s : float
        Shortest stay in a gray step; longest stay without a verdict before the
        release pauses by itself as inconclusive.
    min_devices : int
        Devices that must have been observed before a gray step is left.
    alpha, beta : float
        Allowed probabilities of ever rolling back a harmless release, and of
        ever letting an unsafe one advance.
    rule : str
        ``"always_valid"``: sequential test against each guardrail's limit;
        ``"versus_control"``: against devices that do not have the version yet;
        ``"threshold"``: the published fixed rule (no error rate holds).
    form : str
        Confidence sequences for ``"versus_control"``.
    guardrails : tuple of Guardrail
    runs_per_outcome, outcome_after_s : int, float
        A device is counted at its n-th run, or this long after it was first
        heard of with the version, whichever comes first.
    sticky : bool
        A device that has installed the version stays in should the share fall.
    simulation : str
        ``"required"``: a passed simulation test before beta, always;
        ``"if_possible"``: when a virtual device is enrolled; ``"off"``.
    on_inconclusive : str
        ``"pause"`` and wait for an operator when ``max_dwell_s`` is over, or
        ``"roll_back"``: what was not proven safe in time goes. For small fleets,
        where statistics may not be able to tell; alpha does not cover it.
    on_beta_failure : str
        ``"roll_back"`` at the first failed named device, or ``"hold"`` and wait
        for an operator.
    rollback_target : float
        Share of the devices that had the version which must have left it before
        a rollback is closed.
    rollback_timeout_s : float
        A rollback is closed after this long in any case; the rest is counted.
    watch_full_s : float
        How long the guardrails are watched after the release is full.
    force : bool
        Asks devices that had given the version up to try it again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[Annotated[int, Field(ge=1, le=BUCKETS)], ...] = DEFAULT_STEPS
    beta_devices: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")], ...] = ()
    min_dwell_s: Annotated[float, Field(ge=0)] = 3_600.0
    max_dwell_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    min_devices: Annotated[int, Field(ge=0)] = 0
    alpha: _Share = 0.01
    beta: _Share = 0.05
    rule: Rule = "always_valid"
    form: Form = "one_sided"
    guardrails: tuple[Guardrail, ...] = (Guardrail(name="failure", limit=0.02, kind="failure"),)
    runs_per_outcome: Annotated[int, Field(ge=1)] = 3
    outcome_after_s: Annotated[float, Field(gt=0)] = 600.0
    sticky: bool = False
    simulation: Literal["required", "if_possible", "off"] = "if_possible"
    on_inconclusive: Literal["pause", "roll_back"] = "pause"
    on_beta_failure: Literal["roll_back", "hold"] = "roll_back"
    rollback_target: Annotated[float, Field(gt=0, le=1)] = 0.99
    rollback_timeout_s: Annotated[float, Field(gt=0)] = 86_400.0
    watch_full_s: Annotated[float, Field(ge=0)] = 7 * 86_400.0
    force: bool = False

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):
            raise ValueError("steps must rise strictly")
        if len(steps) < 2 or steps[-1] != BUCKETS:
            raise ValueError(
                f"steps must hold at least one gray step and end with {BUCKETS} (full)"
            )
        return steps

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [guardrail.name for guardrail in self.guardrails]
        if not names:
            raise ValueError("a release needs at least one guardrail")
        if len(names) != len(set(names)):
            raise ValueError("two guardrails have one name")
        if self.max_dwell_s < self.min_dwell_s:
            raise ValueError("max_dwell_s must not be below min_dwell_s")
        if len(set(self.beta_devices)) != len(self.beta_devices):
            raise ValueError("a beta device is named twice")
        return self

    def threshold(self, step: int) -> int:
        """Return the threshold of gray step ``step`` (from 1); 0 before the first."""
        return self.steps[step - 1] if step else 0

    def devices_needed(self, guardrail: Guardrail) -> int:
        """Return the fewest devices, none failing, that let a guardrail be called safe."""
        if self.rule == "threshold":
            return max(1, self.min_devices)
        if self.rule == "always_valid":
            return max(devices_to_advance(guardrail.limit, self.beta), self.min_devices)
        low, high = 0, 1
        while not self._safe_against_control(guardrail, high):
            low, high = high, high * 2
            if high > 1 << 30:
                return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (
                (low, middle) if self._safe_against_control(guardrail, middle) else (middle, high)
            )
        return max(high, self.min_devices)

    def _safe_against_control(self, guardrail: Guardrail, devices: int) -> bool:
        arm = ArmCount(devices, 0)
        verdict = self.judge(guardrail, arm, arm)["verdict"]
        return bool(verdict == Verdict.SAFE)

    def judge(
        self, guardrail: Guardrail, new: ArmCount, control: ArmCount | None = None
    ) -> dict[str, Any]:
        """Judge one guardrail by this policy; the answer is JSON-able evidence."""
        reading = judge(
            guardrail.name,
            new,
            limit=guardrail.limit,
            alpha=self.alpha,
            beta=self.beta,
            rule=self.rule,
            guardrails=len(self.guardrails),
            control=control,
            margin=guardrail.margin,
            min_devices=self.min_devices,
            form=self.form,
        )
        return {
            "guardrail": reading.guardrail,
            "verdict": str(reading.verdict),
            **reading.evidence,
        }

    def feasibility(self, eligible: int, *, exposed: Sequence[int] | None = None) -> list[str]:
        """Tell why this policy cannot, or may not, get through a fleet of a given size.

        Parameters
        ----------
        eligible : int
            Devices in the cohort.
        exposed : sequence of int, optional
            Devices inside each step, where their buckets are known; else what
            the shares give on average, with the chance of drawing too few.

        Returns
        -------
        list of str
            One line each, the worst first; empty when nothing speaks against it.
            Lines that start with ``"cannot"`` mean that the release will stop.
        """
        counted = max(0, eligible - len(self.beta_devices))
        cannot: list[str] = []
        may: list[str] = []
        if eligible <= 0:
            return ["cannot start: no device is in the cohort"]
        if not self.beta_devices:
            may.append("no beta devices are named: the first gray step is the first contact")
        needs = {guardrail.name: self.devices_needed(guardrail) for guardrail in self.guardrails}
        name, need = max(needs.items(), key=lambda item: item[1])
        limit = {guardrail.name: guardrail.limit for guardrail in self.guardrails}[name]
        for index, step in enumerate(self.steps[:-1]):
            share = step / BUCKETS
            inside = exposed[index] if exposed is not None else math.floor(counted * share + 0.5)
            where = f"gray step {index + 1} ({share:.2%})"
            if inside < need:
                cannot.append(
                    f"cannot leave {where} by statistics: it exposes about {inside} of {eligible}"
                    f" devices, guardrail {name!r} (limit {limit:.3g}) needs {need} without a"
                    " failure; use larger steps, a higher limit, or rule 'threshold'"
                )
            elif exposed is None:
                chance = float(special.bdtrc(need - 1, counted, share))
                if chance < 0.95:
                    may.append(
                        f"{where} exposes {inside} devices on average and needs {need}:"
                        f" enough in {chance:.0%} of the draws"
                    )
            if self.rule == "versus_control" and counted - inside < need:
                cannot.append(
                    f"cannot leave {where} by statistics: only {counted - inside} devices remain"
                    f" for control, guardrail {name!r} needs {need}"
                )
        if self.rule == "threshold":
            may.append("rule 'threshold' holds no error rate when it is watched continuously")
        return cannot + may
