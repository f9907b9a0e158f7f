"""What the trigger engine has to do at an event, worked out once for each class of events.

Events of one kind and page that meet the same conditions are alike to the
engine: they form one :class:`EventClass`. A :class:`Plan` holds what one (kind,
page) needs, and finds an event's class by one look-up for each field that any
condition on such events asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.device.stream.conditions import FieldCodes, compile_test, condition_key, find
from shoal.device.stream.patterns import End, Reset
from shoal.device.stream.trie import Node, NodeSet, NodeSets, takes

__all__ = ["EventClass", "Group", "Plan", "Tries"]

_Pattern = tuple[int | None, str | None]


class Group:
    """Relaxed nodes of one (kind, page) pattern without conditions.

    ``waiting`` are those whose parent has been reached since they last were:
    the others have nothing to gain from an event.
    """

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: dict[Node, None] = {}


class EventClass:
    """Events that the engine cannot tell apart.

    Attributes
    ----------
    met : frozenset of int
        The conditions that hold.
    roots : NodeSet
        Strict nodes at depth 1 that such an event reaches.
    firsts, later : list of Node
        Relaxed nodes at depth 1, and deeper ones with conditions, that it reaches.
    idle : bool
        Nothing to do but to move on in the strict trie.
    """

    __slots__ = ("firsts", "idle", "later", "met", "plan", "roots")

    def __init__(self, plan: Plan, met: frozenset[int]) -> None:
        self.plan = plan
        self.met = met
        self.roots: NodeSet = plan.sets.get(tuple(sorted(plan.roots.met(met), key=_number)))
        self.firsts = plan.firsts.met(met)
        self.later = plan.later.met(met)
        self.idle = not (
            self.roots.ends
            or self.firsts
            or self.later
            or plan.groups
            or plan.resets
            or plan.cancels
        )


def _number(node: Node) -> int:
    return node.number


class _ByCondition:
    """Nodes found by the conditions that hold, without asking each node."""

    def __init__(self, nodes: Iterable[Node], rare: Mapping[int, int]) -> None:
        self._plain: list[Node] = []
        self._under: dict[int, list[Node]] = {}
        for node in nodes:
            if node.conditions:
                under = min(node.conditions, key=lambda number: (rare[number], number))
                self._under.setdefault(under, []).append(node)
            else:
                self._plain.append(node)

    def met(self, met: frozenset[int]) -> list[Node]:
        """Return the nodes all of whose conditions are among ``met``."""
        found = list(self._plain)
        for number in met:
            found += [n for n in self._under.get(number, ()) if n.conditions <= met]
        return found


class Tries:
    """Every armed trigger in the two tries, strict and relaxed, and the plans made for them.

    Attributes
    ----------
    ends : list of End
        Every armed trigger.
    depth : int
        Steps of the longest.
    """

    def __init__(self, ends: list[End]) -> None:
        self.ends = ends
        self.negated = [end for end in ends if end.negated]
        self.remembering = [end for end in ends if end.negated or end.count > 1]
        #: Partial matches that began before this event do not count any more.
        self.floor = 0
        self.resets: dict[_Pattern, Reset] = {}
        for end in ends:
            if end.without:
                shared = self.resets.setdefault(end.without, end.reset)
                shared.seq = max(shared.seq, end.reset.seq)
                end.reset = shared
        self.strict, self.relaxed = Node.root(), Node.root()
        self.sets = NodeSets()
        self.depth = 1
        patterns: list[_Pattern] = []
        for end in ends:
            steps = end.trigger.compiled()
            self.depth = max(self.depth, len(steps))
            # With a single step the two modes mean the same, and strict costs less.
            relaxed = end.trigger.mode == "relaxed" and len(steps) > 1
            (self.relaxed if relaxed else self.strict).insert(steps, end)
            patterns += [(step.kind, step.page) for step in steps]
            patterns += [one for one in (end.without, end.negated) if one]
        self._kinds = {kind for kind, _ in patterns}
        self._pages = {page for _, page in patterns}
        self.conditions: dict[bytes, int] = {}
        for trie in (self.strict, self.relaxed):
            for node in trie.walk():
                for key in node.step.keys:
                    self.conditions.setdefault(key, len(self.conditions))
            trie.finish(self.conditions)
        self.groups: dict[_Pattern, Group] = {}
        for node in self.relaxed.walk():
            if node.depth > 1 and not node.conditions:
                self.groups.setdefault((node.step.kind, node.step.page), Group())
        self._plans: dict[_Pattern, Plan] = {}

    def plan(self, kind: int, page: str) -> Plan:
        """Return the plan for events of this kind and page."""
        # Kinds and pages that no trigger names are all alike, so they share one plan.
        alike = (kind if kind in self._kinds else None, page if page in self._pages else None)
        plan = self._plans.get(alike)
        if plan is None:
            plan = self._plans[alike] = Plan(len(self._plans), alike, self)
        return plan

    def wake(self, nodes: Iterable[Node]) -> None:
        """Let relaxed nodes without conditions wait for their event."""
        for node in nodes:
            if not node.waiting:
                node.waiting = True
                self.groups[node.step.kind, node.step.page].waiting[node] = None

    def starts(self) -> list[tuple[bytes, int, int]]:
        """Return (path, number of first event, its time) of every live relaxed node."""
        return [(n.path, n.seq, n.at_us) for n in self.relaxed.walk() if n.seq >= self.floor]

    def begin_with(self, starts: Iterable[tuple[bytes, int, int]]) -> None:
        """Make the relaxed nodes live that :meth:`starts` (of other tries) tells of."""
        at = {path: (seq, at_us) for path, seq, at_us in starts}
        for node in self.relaxed.walk():
            node.seq, node.at_us = at.get(node.path, (-1, 0))
        for node in self.relaxed.walk():
            if node.seq >= 0:
                self.wake(node.plain)

    def forget(self, seq: int) -> None:
        """Drop every partial match; only what starts from event ``seq`` on counts."""
        self.floor = seq
        for group in self.groups.values():
            for node in group.waiting:
                node.waiting = False
            group.waiting.clear()
        for end in self.remembering:
            end.forget()


class Plan:
    """What the engine needs for events of one kind and page.

    Parameters
    ----------
    number : int
        Distinguishes plans of the same tries.
    at : tuple of (kind, page)
        ``None`` stands for every kind or page that no trigger names.
    tries : Tries
        The armed triggers.
    """

    __slots__ = (
        "cancels", "classes", "fields", "firsts", "groups", "kind", "later", "number", "only",
        "page", "resets", "roots", "sets", "simple", "width",
    )  # fmt: skip

    def __init__(self, number: int, at: _Pattern, tries: Tries) -> None:
        self.number = number
        self.kind, self.page = at
        strict = [node for node in tries.strict.walk() if node.takes(*at)]
        relaxed = [node for node in tries.relaxed.walk() if node.takes(*at)]
        tests: dict[str, dict[int, Any]] = {}
        rare: dict[int, int] = {}
        for node in (*strict, *relaxed):
            for field, op, value in node.step.conditions:
                which = tries.conditions[condition_key(field, op, value)]
                tests.setdefault(field, {})[which] = compile_test(op, value)
                rare[which] = ("==", "in").index(op) if op in ("==", "in") else 2
        self.fields = tuple((field, FieldCodes(held)) for field, held in sorted(tests.items()))
        self.width = len(self.fields)
        #: Whether every field is found by one look-up in the content.
        self.simple = self.width <= 4 and not any("." in field for field, _ in self.fields)
        self.roots = _ByCondition((n for n in strict if n.depth == 1), rare)
        self.firsts = _ByCondition((n for n in relaxed if n.depth == 1), rare)
        self.later = _ByCondition((n for n in relaxed if n.depth > 1 and n.conditions), rare)
        self.groups = [group for pattern, group in tries.groups.items() if takes(pattern, *at)]
        self.resets = [one for pattern, one in tries.resets.items() if takes(pattern, *at)]
        self.cancels = [end for end in tries.ends if end.negated and takes(end.negated, *at)]
        self.sets = tries.sets
        self.classes: dict[Any, EventClass] = {}
        self.only = EventClass(self, frozenset())

    def class_of(self, content: Mapping[str, Any]) -> EventClass:
        """Return an event's class, by the way that always works."""
        if not self.width:
            return self.only
        key = self.codes(content)
        return self.classes.get(key) or self.new_class(key)

    def codes(self, content: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the key of an event's class, by the way that always works."""
        found = []
        for field, codes in self.fields:
            value = find(content, field)
            try:
                found.append(codes[value])
            except TypeError:  # a list or a map cannot be remembered
                found.append(codes.code(value))
        return tuple(found)

    def new_class(self, key: tuple[int, ...]) -> EventClass:
        """Make and remember the class with this key."""
        met: frozenset[int] = frozenset().union(
            *(codes.met[code] for (_, codes), code in zip(self.fields, key, strict=True))
        )
        self.sets.size += 1
        found = self.classes[key] = EventClass(self, met)
        return found
