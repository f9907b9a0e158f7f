"""The cloud's end of the platform: tasks, releases, the fleet, and what comes back.

Names are loaded on first use, so that ``shoal.cloud.middleware`` inside a business
service does not import the whole cloud.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.cloud.cohorts import Cohort, CohortBook
    from shoal.cloud.config import CloudConfig
    from shoal.cloud.controller import ReleaseController
    from shoal.cloud.fleet import Fleet
    from shoal.cloud.http import CloudServer, create_app, serve
    from shoal.cloud.middleware import ReleaseMiddleware
    from shoal.cloud.plans import CohortPlan, GrayEntry, PlanTable
    from shoal.cloud.policy import Guardrail, ReleasePolicy
    from shoal.cloud.registry import Registry
    from shoal.cloud.releases import Release
    from shoal.cloud.service import Cloud
    from shoal.cloud.simulate import FleetSimulation
    from shoal.cloud.store import Store

__all__ = [
    "Cloud",
    "CloudConfig",
    "CloudServer",
    "Cohort",
    "CohortBook",
    "CohortPlan",
    "Fleet",
    "FleetSimulation",
    "GrayEntry",
    "Guardrail",
    "PlanTable",
    "Registry",
    "Release",
    "ReleaseController",
    "ReleaseMiddleware",
    "ReleasePolicy",
    "Store",
    "create_app",
    "serve",
]

_HOME = {
    "Cloud": "service",
    "CloudConfig": "config",
    "CloudServer": "http",
    "Cohort": "cohorts",
    "CohortBook": "cohorts",
    "CohortPlan": "plans",
    "Fleet": "fleet",
    "FleetSimulation": "simulate",
    "GrayEntry": "plans",
    "Guardrail": "policy",
    "PlanTable": "plans",
    "Registry": "registry",
    "Release": "releases",
    "ReleaseController": "controller",
    "ReleaseMiddleware": "middleware",
    "ReleasePolicy": "policy",
    "Store": "store",
    "create_app": "http",
    "serve": "http",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
