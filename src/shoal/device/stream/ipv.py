"""The IPV feature: everything a user did on one item's page, folded into one record.

Walle sheet B.5 (item page view: Walle, OSDI 2022; its fields after EdgeRec,
CIKM 2020). Standard library only: this file is loaded by its path inside a
task's VM. An event costs O(1). The record is about 1 KB of JSON, the vector 128
bytes; the published encoding is not public in detail, so the slots of
:func:`ipv_vector` are ours.

Sums are kept in whole thousandths, so the order of events within a visit
changes nothing, to the last bit.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

__all__ = ["ACTIONS", "CLOSINGS", "SCHEMA", "SOURCES", "IpvFold", "encode_record", "ipv_vector"]

#: Number of this layout of records and vectors.
SCHEMA = 1
#: Widgets that have a slot of their own.
ACTIONS = (
    "cart", "buy", "favourite", "comment", "sku", "ask", "chat", "detail", "shop", "recommend",
)  # fmt: skip
#: Pages from which an item page is entered; others count as "other".
SOURCES = ("home", "list", "search", "detail", "cart", "order", "other")
#: How a visit ends.
CLOSINGS = ("exit", "timeout", "restart", "background", "implied")

_ENTER, _SCROLL, _EXPOSURE, _CLICK, _EXIT, _BACKGROUND, _TIMER = 1, 2, 3, 4, 5, 17, 18
_MINUTE_US = 60_000_000
_DAY_US = 86_400_000_000
# Upper bounds in seconds of the buckets of the time since the item's last visit.
_DECAY = (60, 600, 3600, 6 * 3600, 86_400, 3 * 86_400)
_MAX_PATH = 32
_MAX_ITEMS, _MAX_CATEGORIES, _MAX_CLOSED = 2000, 500, 64


def _thousandths(content: dict[str, Any], name: str) -> int:
    """Return a number of the content in thousandths; 0 if it is no finite number."""
    value = content.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    if isinstance(value, float) and not math.isfinite(value):
        return 0
    return round(min(max(value, -1e12), 1e12) * 1000)


class IpvFold:
    """Folds an event stream into one record for each visit of an item page.

    Parameters
    ----------
    state : dict, optional
        :attr:`state` of an earlier fold, to go on with (it stays JSON-able).
    page : str
        The item page.
    utc_offset_s : int
        Local time minus UTC, for the hour and the day.
    idle_us, background_us, late_us : int
        A visit ends after so long without events, or in the background; events
        change a closed visit, as a new revision, for ``late_us`` after its end.

    Attributes
    ----------
    state : dict
        Everything remembered: open and lately closed visits, when each item was
        last visited, and counters ``late`` and ``late_dropped``.
    """

    def __init__(
        self,
        state: dict[str, Any] | None = None,
        *,
        page: str = "detail",
        utc_offset_s: int = 0,
        idle_us: int = 30 * _MINUTE_US,
        background_us: int = 5 * _MINUTE_US,
        late_us: int = 10 * _MINUTE_US,
    ) -> None:
        self.state: dict[str, Any] = state or _new_state()
        self._page = page
        self._offset_us = utc_offset_s * 1_000_000
        self._idle_us = idle_us
        self._background_us = background_us
        self._late_us = late_us

    def on(self, event: Any) -> list[dict[str, Any]]:
        """Take one event (with kind, page, ts_us, content; visit, mono_us, boot if known).

        Returns
        -------
        list of dict
            Records of the visits that ended or changed: usually none or one.
        """
        state = self.state
        boot = getattr(event, "boot", 0)
        now = getattr(event, "mono_us", 0) or event.ts_us
        out: list[dict[str, Any]] = []
        if boot != state["boot"]:
            if state["boot"] is not None and boot < state["boot"]:
                return self._late(event, now)  # of an earlier start of the device
            out += self._end_all("restart", None)
            state["boot"], state["newest"], state["background"] = boot, now, None
        began = state["background"]
        if began is not None and now > began and event.kind != _TIMER:
            if now - began > self._background_us:
                out += self._end_all("background", began)
            state["background"] = None
        state["newest"] = max(state["newest"], now)
        out += self._expire(state["newest"])
        if event.kind == _BACKGROUND:
            state["background"] = now
        if event.page != self._page:
            return out
        key = self._key(event)
        if key not in state["open"]:
            if key in state["closed"] and (event.visit or event.kind != _ENTER):
                return out + self._late(event, now)
            if state["newest"] - now > self._late_us:  # its visit is long forgotten
                state["late_dropped"] += 1
                return out
            state["open"][key] = _new_visit(key, event, now, boot)
        elif event.kind == _ENTER and not event.visit:
            out += self._end(key, "implied")  # a new visit without the exit of the last
            state["open"][key] = _new_visit(key, event, now, boot)
        visit = state["open"].pop(key)
        state["open"][key] = visit  # last in order: active most lately
        _fold(visit, event, now)
        if event.kind == _EXIT:
            out += self._end(key, "exit")
        return out

    def close(self, closed_by: str = "restart") -> list[dict[str, Any]]:
        """End every open visit, as a restart does."""
        return self._end_all(closed_by, None)

    @staticmethod
    def _key(event: Any) -> str:
        visit = getattr(event, "visit", None)
        if visit is None:
            return "@"
        return visit.hex() if isinstance(visit, bytes) else str(visit)

    def _expire(self, now: int) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for visits, limit in (("open", self._idle_us), ("closed", self._late_us)):
            held = self.state[visits]
            while held:
                key = next(iter(held))
                if now - held[key]["last"] <= limit:
                    break
                if visits == "open":
                    out += self._end(key, "timeout")
                else:
                    del held[key]
        return out

    def _end_all(self, closed_by: str, at: int | None) -> list[dict[str, Any]]:
        out: list[dict[str, Any]] = []
        for key in list(self.state["open"]):
            if at is not None:
                self.state["open"][key]["exit"] = max(at, self.state["open"][key]["last"])
            out += self._end(key, closed_by)
        return out

    def _end(self, key: str, closed_by: str) -> list[dict[str, Any]]:
        state = self.state
        visit = state["open"].pop(key)
        visit["closed_by"] = closed_by
        visit["history"] = self._history(visit)
        state["closed"].pop(key, None)
        state["closed"][key] = visit
        while len(state["closed"]) > _MAX_CLOSED:
            del state["closed"][next(iter(state["closed"]))]
        return [self._record(visit)]

    def _late(self, event: Any, now: int) -> list[dict[str, Any]]:
        key = self._key(event)
        visit = self.state["closed"].get(key)
        fits = visit is not None and visit["boot"] == getattr(event, "boot", 0)
        if event.page != self._page or event.kind == _TIMER:
            return []
        if visit is None or not fits or (key == "@" and now > (visit["exit"] or visit["last"])):
            self.state["late_dropped"] += 1
            return []
        self.state["late"] += 1
        _fold(visit, event, now)
        if event.kind == _EXIT:
            visit["closed_by"] = "exit"
        visit["revision"] += 1
        return [self._record(visit)]

    def _history(self, visit: dict[str, Any]) -> list[Any]:
        """Note the visit; return seconds since the item's last, today's of item and category."""
        items, categories = self.state["items"], self.state["categories"]
        entered = visit["ts_us"]
        day = (entered + self._offset_us) // _DAY_US
        item, category = str(visit["item"]), str(visit["category"])
        last = items.pop(item, None)
        since = None if last is None else max(0, entered - last[0]) // 1_000_000
        today = last[2] if last is not None and last[1] == day else 0
        items[item] = [entered, day, today + 1]
        if len(items) > _MAX_ITEMS:
            del items[next(iter(items))]
        held = categories.pop(category, None)
        of_category = held[1] if held is not None and held[0] == day else 0
        categories[category] = [day, of_category + 1]
        if len(categories) > _MAX_CATEGORIES:
            del categories[next(iter(categories))]
        return [since, today, of_category]

    def _record(self, visit: dict[str, Any]) -> dict[str, Any]:
        began = visit["first"] if visit["enter"] is None else visit["enter"]
        ended = visit["last"] if visit["exit"] is None else visit["exit"]
        since, item_today, category_today = visit["history"]
        clicks, exposures = visit["clicks"], visit["exposures"]
        left = visit["closed_by"] == "exit"
        return {
            "schema": SCHEMA,
            "visit": visit["visit"],
            "revision": visit["revision"],
            "item": visit["item"],
            "category": visit["category"],
            "source": visit["source"],
            "entered_us": visit["ts_us"],
            "exited_us": visit["ts_us"] + max(0, ended - began),
            "dwell_s": max(0, ended - began) / 1e6,
            "closed_by": visit["closed_by"],
            "completeness": ((visit["enter"] is not None) + left) / 2,
            "events": visit["events"],
            "clicks": clicks,
            "exposures": exposures,
            "scrolls": visit["scrolls"],
            "scroll_speed_max": visit["speed"] / 1000,
            "scroll_distance": visit["distance"] / 1000,
            "scroll_depth_max": min(max(visit["depth"] / 1000, 0.0), 1.0),
            "scroll_duration_max_s": visit["scroll_ms"] / 1e6,
            "exposure_duration_max_s": visit["exposure_max"] / 1e6,
            "exposure_duration_mean_s": visit["exposure_sum"] / 1e6 / exposures
            if exposures
            else 0.0,
            "actions": {name: visit["widgets"].get(name, 0) for name in ACTIONS},
            "widgets": {n: c for n, c in sorted(visit["widgets"].items()) if n not in ACTIONS},
            "path": [[widget, (at - began) // 1000] for at, widget in visit["path"]],
            "delete_reason": visit["reason"],
            "since_item_s": since,
            "item_visits_today": item_today,
            "category_visits_today": category_today,
            "hour": (visit["ts_us"] + self._offset_us) % _DAY_US // 3_600_000_000,
        }


def _new_state() -> dict[str, Any]:
    return {
        "open": {}, "closed": {}, "items": {}, "categories": {}, "boot": None, "newest": 0,
        "background": None, "late": 0, "late_dropped": 0,
    }  # fmt: skip


def _new_visit(key: str, event: Any, now: int, boot: int) -> dict[str, Any]:
    name = key if key != "@" else f"{boot}-{now}"
    return {
        "visit": name, "boot": boot, "item": None, "category": None, "source": "other",
        "ts_us": event.ts_us, "enter": None, "exit": None, "first": now, "last": now,
        "events": 0, "clicks": 0, "exposures": 0, "scrolls": 0, "speed": 0, "distance": 0,
        "depth": 0, "scroll_ms": 0, "exposure_max": 0, "exposure_sum": 0, "widgets": {},
        "path": [], "reason": 0, "revision": 0, "closed_by": "", "history": None,
    }  # fmt: skip


def _fold(visit: dict[str, Any], event: Any, now: int) -> None:
    """Take one event into a visit: O(1), whatever the order."""
    content = event.content
    kind = event.kind
    visit["events"] += 1
    if now < visit["first"]:
        visit["first"] = now
        if visit["enter"] is None:
            visit["ts_us"] = event.ts_us
    visit["last"] = max(visit["last"], now)
    if visit["item"] is None and isinstance(content.get("item"), int | str):
        visit["item"] = content["item"]
        visit["category"] = content.get("category")
    if kind == _ENTER:
        visit["enter"], visit["ts_us"] = now, event.ts_us
        source = content.get("source")
        visit["source"] = source if source in SOURCES else "other"
    elif kind == _EXIT:
        visit["exit"] = now
    elif kind == _CLICK:
        visit["clicks"] += 1
        widget = str(content.get("widget", "none"))[:32]
        widgets = visit["widgets"]
        if widget in widgets or len(widgets) < 64:
            widgets[widget] = widgets.get(widget, 0) + 1
        # The earliest clicks, in order; a full path gives up its latest.
        path = visit["path"]
        path.append([now, widget])
        if len(path) > 1 and path[-2] > path[-1]:
            path.sort()
        del path[_MAX_PATH:]
        if widget == "delete":
            reason = content.get("reason", 0)
            visit["reason"] = max(visit["reason"], reason if isinstance(reason, int) else 0)
    elif kind == _SCROLL:
        visit["scrolls"] += 1
        visit["speed"] = max(visit["speed"], _thousandths(content, "speed"))
        visit["distance"] += max(0, _thousandths(content, "distance"))
        visit["depth"] = max(visit["depth"], _thousandths(content, "depth"))
        visit["scroll_ms"] = max(visit["scroll_ms"], _thousandths(content, "duration_ms"))
    elif kind == _EXPOSURE:
        visit["exposures"] += 1
        shown = max(0, _thousandths(content, "duration_ms"))
        visit["exposure_max"] = max(visit["exposure_max"], shown)
        visit["exposure_sum"] += shown


def encode_record(record: dict[str, Any]) -> bytes:
    """Return a record as compact JSON (no NaN), the same bytes for equal records."""
    text = json.dumps(record, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return text.encode()


def _decay(since_s: int | None) -> int:
    """Return 0 for a first visit, else 1 (under a minute) to 7 (three days and more)."""
    if since_s is None:
        return 0
    return 1 + sum(since_s >= bound for bound in _DECAY)


def ipv_vector(record: dict[str, Any]) -> bytes:
    """Return 32 little-endian float32 (128 bytes) for a record; the slots are the sheet's.

    0-6 log1p of dwell s, events, clicks, exposures, scrolls, largest scroll
    speed, scroll distance · 7 deepest scroll · 8-17 :data:`ACTIONS` · 18
    deleted · 19 its reason / 4 · 20-22 log1p of longest and mean exposure s,
    longest scroll s · 23 decay bucket / 7 · 24-25 log1p of visits of the item
    and of its category earlier today · 26-27 sine and cosine of the hour · 28
    source / 7 · 29 closing / 5 · 30 completeness · 31 schema number.
    """
    log1p = math.log1p
    hour = 2 * math.pi * record["hour"] / 24
    deleted = record["widgets"].get("delete", 0) > 0
    values = [
        log1p(record["dwell_s"]),
        log1p(record["events"]),
        log1p(record["clicks"]),
        log1p(record["exposures"]),
        log1p(record["scrolls"]),
        log1p(max(0.0, record["scroll_speed_max"])),
        log1p(record["scroll_distance"]),
        record["scroll_depth_max"],
        *(float(record["actions"][name] > 0) for name in ACTIONS),
        float(deleted),
        min(max(record["delete_reason"], 0), 4) / 4,
        log1p(record["exposure_duration_max_s"]),
        log1p(record["exposure_duration_mean_s"]),
        log1p(max(0.0, record["scroll_duration_max_s"])),
        _decay(record["since_item_s"]) / 7,
        log1p(record["item_visits_today"]),
        log1p(record["category_visits_today"]),
        math.sin(hour),
        math.cos(hour),
        SOURCES.index(record["source"]) / len(SOURCES),
        CLOSINGS.index(record["closed_by"]) / len(CLOSINGS),
        record["completeness"],
        float(SCHEMA),
    ]
    return struct.pack("<32f", *values)
