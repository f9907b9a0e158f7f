"""A shop app's event streams, generated: page sessions as a phone would record them.

Walle sheet 11. A semi-Markov walk over the pages home, list, search, detail,
cart and order; list pages expose Zipf-popular items and are scrolled; an item
is clicked by its quality and the user's taste; a detail visit has 8 to 30
widget clicks, lasts a log-normal time with median 18 s and averages 19 events
and 21 KB. On top come what real phones add: events out of order, duplicates,
missing exits, a wrong clock, and the app going to the background.

All figures are ours except those of a detail visit, which follow what is
publicly said about the paper's app.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from shoal.core.errors import InputError
from shoal.core.seeds import derive_seed

__all__ = ["PAGES", "WIDGETS", "Shop", "ShopConfig", "ShopEvent"]

PAGES = ("home", "list", "search", "detail", "cart", "order")

# Kinds as in shoal.wire.EventKind, which this floor may not import.
_ENTER, _SCROLL, _EXPOSURE, _CLICK, _EXIT, _FOREGROUND, _BACKGROUND = 1, 2, 3, 4, 5, 16, 17

#: Widgets of the detail page and how often they are clicked.
WIDGETS: dict[str, float] = {
    "image": 0.24, "detail": 0.16, "sku": 0.13, "comment": 0.12, "recommend": 0.09,
    "shop": 0.06, "cart": 0.05, "video": 0.05, "favourite": 0.03, "ask": 0.025,
    "share": 0.02, "buy": 0.015, "chat": 0.01,
}  # fmt: skip

# Where a visit of a page leads next when no item was clicked; "" ends the session.
_NEXT: dict[str, dict[str, float]] = {
    "home": {"list": 0.55, "search": 0.25, "cart": 0.1, "": 0.1},
    "list": {"list": 0.45, "search": 0.2, "home": 0.15, "": 0.2},
    "search": {"list": 0.75, "home": 0.1, "": 0.15},
    "detail": {"list": 0.6, "home": 0.1, "cart": 0.1, "": 0.2},
    "cart": {"order": 0.3, "home": 0.3, "list": 0.2, "": 0.2},
    "order": {"home": 0.4, "": 0.6},
}

# Share of sessions that begin in each hour of the day (UTC): quiet nights, busy evenings.
_HOURS = [
    2, 1, 1, 1, 1, 2, 3, 4, 5, 5, 6, 6, 7, 6, 5, 5, 5, 6, 7, 8, 9, 9, 7, 4,
]  # fmt: skip
_BACKGROUND_LIMIT_US = 300_000_000
_DAY_US = 86_400_000_000


class ShopEvent(NamedTuple):
    """One event, with the fields of :class:`shoal.wire.Event` in its order."""

    id: bytes
    kind: int
    page: str
    ts_us: int
    mono_us: int
    boot: int
    visit: bytes | None
    content: dict[str, Any]


@dataclass(frozen=True)
class ShopConfig:
    """What the shop and its users are like.

    Attributes
    ----------
    items, categories : int
        Size of the catalogue.
    out_of_order, duplicates, missing_exits, background : float
        Shares: of events that arrive late (by up to ``late_s`` seconds), of
        events that arrive twice, of visits without exit event, of visits
        during which the app goes to the background.
    skew_s : float
        A device's clock is wrong by up to this much, either way.
    visit_ids : bool
        Whether the app names its page visits.
    trace_bytes : int
        Length of the tracing strings that each event carries, as apps do.
    start_us : int
        First day, microseconds since 1970.
    """

    items: int = 5000
    categories: int = 40
    out_of_order: float = 0.01
    duplicates: float = 0.005
    missing_exits: float = 0.02
    background: float = 0.03
    skew_s: float = 300.0
    late_s: float = 20.0
    visit_ids: bool = True
    trace_bytes: int = 985
    start_us: int = 1_700_006_400_000_000  # 2023-11-15 00:00 UTC

    def __post_init__(self) -> None:
        for name in ("out_of_order", "duplicates", "missing_exits", "background"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError("must be a share", field=name, value=getattr(self, name))
        for name in ("items", "categories"):
            if getattr(self, name) < 1:
                raise InputError("must be at least 1", field=name, value=getattr(self, name))


def _poisson(rng: random.Random, mean: float) -> int:
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count


class Shop:
    """A catalogue and its users' sessions, all from one seed.

    Parameters
    ----------
    config : ShopConfig
        What it is like.
    seed : int
        The same seed gives the same bits, whichever devices are asked for and
        in whichever order.
    """

    def __init__(self, config: ShopConfig | None = None, seed: int = 0) -> None:
        self.config = config or ShopConfig()
        self.seed = seed
        rng = random.Random(derive_seed(seed, "shop", "catalogue"))  # noqa: S311 - not for secrets
        count = self.config.items
        self.category = [rng.randrange(self.config.categories) for _ in range(count)]
        self.quality = [rng.betavariate(2.0, 5.0) for _ in range(count)]
        self._popular = list(accumulate((n + 1) ** -1.05 for n in range(count)))

    def device(self, device: int, sessions: int = 3) -> list[ShopEvent]:
        """Return the events of one device in the order in which they reach its log.

        Parameters
        ----------
        device : int
            Which device, from 0.
        sessions : int
            How many times its user opens the app.
        """
        events: list[ShopEvent] = []
        rng = random.Random(derive_seed(self.seed, "shop", "device", device))  # noqa: S311
        skew = int(rng.uniform(-1.0, 1.0) * self.config.skew_s * 1e6)
        clock, boot, booted = self.config.start_us, 1, self.config.start_us - 3_600_000_000
        for number in range(sessions):
            hour = rng.choices(range(24), _HOURS)[0]
            start = clock - clock % _DAY_US + hour * 3_600_000_000 + rng.randrange(3_600_000_000)
            if start < clock:
                start += _DAY_US
            if number and rng.random() < 0.3:
                boot, booted = boot + 1, start - rng.randrange(1, 3_600_000_000)
            walk = _Walk(self, device, number, start, boot, booted, skew)
            events += walk.arrivals()
            clock = walk.clock + 600_000_000
        return events

    def devices(self, count: int, sessions: int = 3) -> Iterator[list[ShopEvent]]:
        """Yield the events of devices 0 to ``count`` - 1."""
        for device in range(count):
            yield self.device(device, sessions)

    def pick(self, rng: random.Random) -> int:
        """Return an item number by popularity."""
        return bisect_left(self._popular, rng.random() * self._popular[-1])


class _Walk:
    """One session of one user."""

    def __init__(self, shop: Shop, device: int, number: int, start: int, *boot: int) -> None:
        self.shop = shop
        self.config = shop.config
        self.clock = start
        self.boot, self.booted, self.skew = boot
        names = (shop.seed, "shop", "session", device, number)
        self.rng = random.Random(derive_seed(*names))  # noqa: S311
        user = random.Random(derive_seed(shop.seed, "shop", "taste", device))  # noqa: S311
        self.taste = [user.gammavariate(0.5, 2.0) for _ in range(self.config.categories)]
        self.user_part = user.randbytes(self.config.trace_bytes * 3 // 8).hex()
        self.visit: bytes | None = None
        # (arrival time, event): disorder is a late arrival.
        self.found: list[tuple[int, int, ShopEvent]] = []

    def arrivals(self) -> list[ShopEvent]:
        page, item, source = "home", -1, "home"
        self._emit(_FOREGROUND, "app", {})
        for _ in range(200):
            if page == "detail":
                following, chosen = self._detail(item, source)
            else:
                following, chosen = self._page(page)
            self.clock += int(self.rng.expovariate(1 / 300_000))
            if not following:
                break
            page, item, source = following, chosen, page
        self._emit(_BACKGROUND, "app", {})
        self.found.sort(key=lambda one: one[:2])
        return [event for _, _, event in self.found]

    # -- pages -----------------------------------------------------------------------------

    def _page(self, page: str) -> tuple[str, int]:
        rng = self.rng
        self._enter(page, {"source": page})
        clicked = -1
        if page in ("home", "list", "search"):
            for position in range(2 + _poisson(rng, 6.0 if page == "list" else 2.0)):
                self._wait(1.2)
                if rng.random() < 0.35:
                    self._emit(_SCROLL, page, self._scroll())
                item = self.shop.pick(rng)
                category = self.shop.category[item]
                shown = {
                    **self._item(item), "position": position,
                    "duration_ms": int(rng.expovariate(1 / 1500)),
                }  # fmt: skip
                self._emit(_EXPOSURE, page, shown)
                if rng.random() < 0.6 * self.shop.quality[item] * min(1.5, self.taste[category]):
                    self._wait(0.8)
                    self._emit(_CLICK, page, {**self._item(item), "position": position})
                    clicked = item
                    break
        else:
            for _ in range(1 + _poisson(rng, 2.0)):
                self._wait(2.0)
                self._emit(
                    _CLICK, page, {"widget": rng.choice(("count", "remove", "pay", "coupon"))}
                )
        self._leave(page)
        return ("detail", clicked) if clicked >= 0 else (self._next(page), -1)

    def _detail(self, item: int, source: str) -> tuple[str, int]:
        rng, item_part = self.rng, self._item(item)
        self._enter("detail", {**item_part, "source": source})
        dwell_us = rng.lognormvariate(math.log(18.0), 0.8) * 1e6
        kinds = [_CLICK] * min(30, 8 + _poisson(rng, 4.0))
        kinds += [_SCROLL] * _poisson(rng, 2.5) + [_EXPOSURE] * _poisson(rng, 2.8)
        rng.shuffle(kinds)
        times = sorted(rng.random() for _ in kinds)
        entered, following, chosen = self.clock, "", -1
        for kind, share in zip(kinds, times, strict=True):
            self.clock = max(self.clock, entered + int(share * dwell_us))
            if kind == _CLICK:
                widget = rng.choices(list(WIDGETS), list(WIDGETS.values()))[0]
                content: dict[str, Any] = {**item_part, "widget": widget}
                if rng.random() < 0.002:
                    content |= {"widget": "delete", "reason": rng.randrange(1, 5)}
                self._emit(_CLICK, "detail", content)
                if widget == "buy":
                    following = "order"
            elif kind == _SCROLL:
                self._emit(_SCROLL, "detail", item_part | self._scroll())
            else:
                other = self.shop.pick(rng)
                shown = {**item_part, "shown": other, "duration_ms": int(rng.expovariate(1 / 900))}
                self._emit(_EXPOSURE, "detail", shown)
                if rng.random() < 0.1:
                    following, chosen = "detail", other
        self.clock = max(self.clock, entered + int(dwell_us))
        self._leave("detail", item_part)
        if following == "detail":
            return "detail", chosen
        return following or self._next("detail"), -1

    def _next(self, page: str) -> str:
        choice = _NEXT[page]
        return self.rng.choices(list(choice), list(choice.values()))[0]

    # -- events ----------------------------------------------------------------------------

    def _item(self, item: int) -> dict[str, Any]:
        return {"item": item, "category": self.shop.category[item]}

    def _scroll(self) -> dict[str, Any]:
        rng = self.rng
        return {
            "speed": round(rng.lognormvariate(6.5, 0.7), 1),
            "distance": round(rng.lognormvariate(6.0, 0.6), 1),
            "duration_ms": int(rng.lognormvariate(6.0, 0.5)),
            "depth": round(rng.random(), 3),
        }

    def _wait(self, mean_s: float) -> None:
        self.clock += int(self.rng.expovariate(1.0 / mean_s) * 1e6)

    def _enter(self, page: str, content: dict[str, Any]) -> None:
        self.visit = self.rng.randbytes(16) if self.config.visit_ids else None
        self._emit(_ENTER, page, content)

    def _leave(self, page: str, content: dict[str, Any] | None = None) -> None:
        rng = self.rng
        if rng.random() < self.config.background:
            self._emit(_BACKGROUND, "app", {})
            gap = int(rng.lognormvariate(math.log(90.0), 1.5) * 1e6)
            self.clock += gap
            self._emit(_FOREGROUND, "app", {})
            if gap > _BACKGROUND_LIMIT_US:  # the visit ended with the background
                self.visit = None
                return
        if rng.random() >= self.config.missing_exits:
            self._emit(_EXIT, page, content or {})
        self.visit = None

    def _emit(self, kind: int, page: str, content: dict[str, Any]) -> None:
        rng, config = self.rng, self.config
        if page != "app" and config.trace_bytes:
            # Most of a trace repeats from event to event, as in real apps.
            own = rng.randbytes(config.trace_bytes // 8).hex()
            content = {**content, "trace": self.user_part, "span": own}
        stamp = self.clock + self.skew
        event = ShopEvent(
            (stamp // 1000 & (1 << 48) - 1).to_bytes(6, "big") + rng.randbytes(10),
            kind,
            page,
            stamp,
            self.clock - self.booted,
            self.boot,
            self.visit if page != "app" else None,
            content,
        )
        self.clock += rng.randrange(1000, 20_000)  # no two events at one moment
        late = config.late_s * 1e6
        arrival = event.ts_us - self.skew
        if rng.random() < config.out_of_order:
            arrival += int(rng.random() * late)
        self.found.append((arrival, len(self.found), event))
        if rng.random() < config.duplicates:
            again = arrival + int(rng.random() * late)
            self.found.append((again, len(self.found), event))
