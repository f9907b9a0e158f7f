"""A generated fleet: who the devices are, how often they talk, what fails on them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import special

from shoal.cloud.counters import CounterRandom

__all__ = ["FleetConfig", "Population", "combinations"]

_Positive = Annotated[float, Field(gt=0)]
_Share = Annotated[float, Field(ge=0, le=1)]

_OS: Final = ("linux", "android", "windows", "macos")
_CLASSES: Final = ("low", "middle", "high")


class FleetConfig(BaseModel):
    """A fleet to simulate (Walle sheet A.7).

    Attributes
    ----------
    devices : int
    horizon_s : float
        Simulated time.
    rates : str
        Spread of request rates over devices: ``"gamma"`` or ``"lognormal"``.
    rate_shape : float
        Gamma: shape a. Log-normal: standard deviation of the logarithm.
    mean_gap_s : float
        One over the mean rate, seconds.
    on_mean_s, off_mean_s : float
        Mean lengths of the exponential times in which a device is on and off;
        0 for off: always on.
    app_versions : int
        App versions 1, 2, ...; the newest is the most frequent (Zipf).
    predicate : str
        The release's cohort, in CEL over ``app.version`` (int), ``device.os``,
        ``device.class`` and ``user.group`` (``"a"`` or ``"b"``).
    package_bytes : int
    bandwidths : tuple of (share, bytes per second)
    pull_limit_per_s : float
        Pulls a second that the file servers take; notices carry a jitter for it.
    failure_rate : dict
        Share of devices on which the new version fails, by OS; ``"*"``: others.
    silent_rate : float
        Share of devices that crash without being able to report.
    wrong_clock : float
        Share of devices whose clock is so wrong that installs wait.
    runs_per_s : float
        Runs of the task per second and device, after installation.
    tick_s : float
        How often the release controller looks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    devices: Annotated[int, Field(ge=1, le=50_000_000)] = 1_000_000
    horizon_s: _Positive = 3_600.0
    rates: Literal["gamma", "lognormal"] = "gamma"
    rate_shape: _Positive = 3.0
    mean_gap_s: _Positive = 600.0
    on_mean_s: _Positive = 1_800.0
    off_mean_s: Annotated[float, Field(ge=0)] = 0.0
    app_versions: Annotated[int, Field(ge=1, le=64)] = 5
    predicate: str = "true"
    package_bytes: Annotated[int, Field(ge=0)] = 200_000
    bandwidths: tuple[tuple[_Positive, _Positive], ...] = ((0.3, 5e4), (0.5, 5e5), (0.2, 5e6))
    pull_limit_per_s: _Positive = 20_000.0
    failure_rate: dict[str, _Share] = Field(default_factory=lambda: {"*": 0.0})
    silent_rate: _Share = 0.0
    wrong_clock: _Share = 0.0
    runs_per_s: _Positive = 0.02
    tick_s: _Positive = 10.0


def combinations(config: FleetConfig) -> list[dict[str, dict[str, Any]]]:
    """Return the attributes of every kind of device, in the order of ``Population.kind``."""
    return [
        {
            "app": {"name": "simulated", "version": version},
            "device": {"os": os, "class": grade},
            "user": {"group": group},
            "agent": {"virtual": False},
        }
        for version, os, grade, group in itertools.product(
            range(1, config.app_versions + 1), _OS, _CLASSES, "ab"
        )
    ]


def _zipf(number: int) -> NDArray[np.float64]:
    weights = 1.0 / np.arange(1, number + 1)
    return np.cumsum(weights / weights.sum())


class Population:
    """Everything about a fleet that does not change, as arrays over devices.

    Each device draws from its own counters, so device 7 is the same in a fleet
    of ten and in one of a million.

    Attributes
    ----------
    kind : ndarray of int32
        Index into :func:`combinations`.
    rate : ndarray of float64
        Requests per second while on.
    bandwidth : ndarray of float64
        Bytes per second.
    fails, silent, stuck : ndarray of bool
        The new version fails here; the device crashes without a report; its
        clock is too wrong to install anything.
    names : list of str
        Device ids in hex.
    """

    def __init__(self, config: FleetConfig, seed: int) -> None:
        self.config = config
        self.size = config.devices
        index = np.arange(self.size, dtype=np.uint64)

        def draw(stream: str) -> NDArray[np.float64]:
            return CounterRandom(seed, "fleet", stream).uniform(index)

        # Newest app first in frequency, as in stores that update by themselves.
        app = config.app_versions - 1 - np.searchsorted(_zipf(config.app_versions), draw("app"))
        os = np.searchsorted(_zipf(len(_OS)), draw("os"))
        grade = np.searchsorted(np.cumsum([0.3, 0.5]), draw("class"))
        group = (draw("group") < 0.5).astype(np.int64)
        self.kind = (((app * len(_OS) + os) * len(_CLASSES) + grade) * 2 + group).astype(np.int32)
        if config.rates == "gamma":
            scale = 1.0 / (config.mean_gap_s * config.rate_shape)
            self.rate = special.gammaincinv(config.rate_shape, draw("rate")) * scale
        else:
            shift = -np.log(config.mean_gap_s) - 0.5 * config.rate_shape**2
            self.rate = np.exp(shift + config.rate_shape * special.ndtri(draw("rate")))
        shares = np.cumsum([share for share, _ in config.bandwidths])
        speeds = np.array([speed for _, speed in config.bandwidths])
        place = np.searchsorted(shares / shares[-1], draw("bandwidth"))
        self.bandwidth = speeds[np.minimum(place, speeds.size - 1)]
        other = config.failure_rate.get("*", 0.0)
        by_os = np.array([config.failure_rate.get(name, other) for name in _OS])
        self.fails = draw("fails") < by_os[os]
        self.silent = draw("silent") < config.silent_rate
        self.stuck = draw("clock") < config.wrong_clock
        words = CounterRandom(seed, "fleet", "id").words(index)
        raw = np.stack(words, axis=1).astype(">u4").tobytes().hex()
        self.names = [raw[place : place + 32] for place in range(0, len(raw), 32)]
        self._gaps = CounterRandom(seed, "fleet", "gap")
        self._pauses = CounterRandom(seed, "fleet", "off")
        self.jitter: Callable[..., NDArray[np.float64]] = CounterRandom(
            seed, "fleet", "jitter"
        ).uniform
        self._runs = CounterRandom(seed, "fleet", "runs")

    def first(self) -> NDArray[np.float64]:
        """Return the time of every device's first request, seconds; some start switched off."""
        everyone = np.arange(self.size)
        gap = self.gap(everyone, np.zeros(self.size, dtype=np.int64))
        if self.config.off_mean_s:
            off, on = self.config.off_mean_s, self.config.on_mean_s
            chance, length = self._pauses.two(everyone, 1 << 40)
            gap += np.where(chance < off / (on + off), -off * np.log(length), 0.0)
        return gap

    def gap(self, device: NDArray[Any], event: NDArray[Any]) -> NDArray[np.float64]:
        """Return the seconds between requests ``event`` and ``event + 1`` of some devices.

        Time on until the next request is exponential. The off times that fall
        into it are Poisson in number and exponential in length, so their sum is
        a Gamma variable: exact, without following each switch.
        """
        with np.errstate(divide="ignore"):
            on = -np.log(self._gaps.uniform(device, event)) / self.rate[device]
        if not self.config.off_mean_s:
            return np.asarray(on)
        count, length = self._pauses.two(device, event)
        mean = on / self.config.on_mean_s
        # Smallest number of off times whose cumulative probability reaches `count`.
        number = np.ceil(np.maximum(special.pdtrik(count, mean), 0.0))
        number = np.where(count <= np.exp(-mean), 0.0, np.nan_to_num(number))
        off = special.gammaincinv(np.maximum(number, 1.0), length) * self.config.off_mean_s
        return np.asarray(on + np.where(number > 0, off, 0.0))

    def time_of_run(self, device: NDArray[Any], number: int) -> NDArray[np.float64]:
        """Return the seconds from installation to the ``number``-th run."""
        u = self._runs.uniform(device)
        return np.asarray(special.gammaincinv(number, u) / self.config.runs_per_s)

    def limit(
        self, eligible: NDArray[np.bool_], entry_s: NDArray[np.float64], times_s: NDArray[Any]
    ) -> NDArray[np.float64]:
        """Return the best possible coverage of the eligible devices at each time.

        Device d is let in at ``entry_s[d]`` (infinite: never) and is reached at
        its first request from then on.
        """
        rates, total = self.rate[eligible], int(eligible.sum())
        entries = entry_s[eligible]
        covered = np.zeros(len(times_s))
        for entry in np.unique(entries[np.isfinite(entries)]):
            group = rates[entries == entry]
            for place, moment in enumerate(times_s):
                if moment > entry:
                    covered[place] += self._reached(group, float(moment - entry)).sum()
        return covered / max(total, 1)

    def _reached(self, rate: NDArray[np.float64], after_s: float) -> NDArray[np.float64]:
        """Probability of a request within ``after_s`` of a random moment."""
        off = self.config.off_mean_s
        if not off:
            return np.asarray(-np.expm1(-rate * after_s))
        # Two-state chain killed at rate r while on: survival is a sum of two
        # exponentials, whose exponents are the eigenvalues of its generator.
        leave, back = 1.0 / self.config.on_mean_s, 1.0 / off
        total = rate + leave + back
        root = np.sqrt(np.maximum(total**2 - 4.0 * rate * back, 0.0))
        slow, fast = 0.5 * (total - root), 0.5 * (total + root)
        share_on = back / (leave + back)
        # At time 0 the survival falls at rate r times the share that is on.
        weight = (fast - rate * share_on) / (fast - slow)
        return np.asarray(
            1.0 - weight * np.exp(-slow * after_s) - (1 - weight) * np.exp(-fast * after_s)
        )
