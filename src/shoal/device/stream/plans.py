"""What the trigger engine has to do at an event, worked out once for each class of events.

Events of one kind and page that meet the same conditions are alike to the
engine: they form one :class:`EventClass`. A :class:`Plan` holds what one (kind,
page) needs, and finds an event's class by one look-up for each field that any
condition on such events asks for, however many conditions there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.device.stream.conditions import Test, compile_test, condition_key, find
from shoal.device.stream.patterns import End, Reset
from shoal.device.stream.trie import NEVER, Node, NodeSets, takes

__all__ = ["EventClass", "Plan", "Tries"]

_Pattern = tuple[int | None, str | None]

# Field values that one plan remembers; others are tested anew each time.
_MAX_VALUES = 16_384
_NONE: frozenset[int] = frozenset()
_SWEEP_US = 120_000_000


class EventClass:
    """Events that the engine cannot tell apart.

    Attributes
    ----------
    met : frozenset of int
        The conditions that hold.
    live : tuple of NodeSet
        The strict nodes at depth 1 that such an event reaches through conditions and
        that go on: one set or none.
    ends : tuple of End
        The strict sequences of one step that it completes.
    firsts : list of Node
        Relaxed nodes at depth 1 that it reaches.
    later : list of (Node, Node)
        Deeper relaxed nodes with conditions, each with its parent.
    relaxed : bool
        Whether there are any of these two.
    """

    __slots__ = ("ends", "firsts", "later", "live", "met", "plan", "relaxed")

    def __init__(self, plan: Plan, met: frozenset[int]) -> None:
        self.plan = plan
        self.met = met
        guarded = plan.sets.get(tuple(sorted(plan.roots.guarded(met), key=_number)))
        self.live = () if guarded.live is None else (guarded.live,)
        self.ends = guarded.ends + tuple(end for node in plan.roots.plain for end in node.ends)
        self.firsts = plan.firsts.met(met)
        self.later = [(node, node.parent) for node in plan.later.met(met) if node.parent]
        self.relaxed = bool(self.firsts or self.later)


class _Field:
    """The conditions on one field: those on single values in an index, the others in a list."""

    __slots__ = ("_index", "_others", "name")

    def __init__(self, name: str, conditions: Mapping[int, tuple[str, Any]]) -> None:
        self.name = name
        index: dict[Any, set[int]] = {}
        self._others: list[tuple[int, Test]] = []
        for number, (op, value) in conditions.items():
            wanted = [value] if op == "==" else value if op == "in" else None
            if wanted is None or any(isinstance(one, list | tuple | dict) for one in wanted):
                self._others.append((number, compile_test(op, value)))
            else:
                for one in wanted:
                    index.setdefault(one, set()).add(number)
        self._index = {value: frozenset(numbers) for value, numbers in index.items()}

    def met(self, value: Any) -> frozenset[int]:
        """Return the numbers of the conditions that ``value`` meets."""
        try:
            met = self._index.get(value, _NONE)
        except TypeError:  # a list or a map equals no single value
            met = _NONE
        if not self._others:
            return met
        return met.union([number for number, test in self._others if test(value)])


class FieldTable(dict[Any, Any]):
    """Maps a field's value to the next field's table, or from the last field to the class.

    A dictionary of the values seen so far: a value seen before costs one
    look-up. Values that meet the same conditions share what they lead to.
    """

    __slots__ = ("_level", "_met", "_plan", "_under")

    def __init__(self, plan: Plan, level: int, met: frozenset[int]) -> None:
        super().__init__()
        self._plan = plan
        self._level = level
        self._met = met
        self._under: dict[frozenset[int], FieldTable | EventClass] = {}

    def look(self, value: Any) -> FieldTable | EventClass:
        """Return what ``value`` leads to, without remembering the value."""
        met = self._plan.fields[self._level].met(value)
        found = self._under.get(met)
        if found is None:
            found = self._under[met] = self._plan.below(self._level + 1, self._met | met)
        return found

    def __missing__(self, value: Any) -> FieldTable | EventClass:
        found = self.look(value)
        plan = self._plan
        if plan.remembered < _MAX_VALUES:
            plan.remembered += 1
            self[value] = found
        return found


def _number(node: Node) -> int:
    return node.number


class _ByCondition:
    """Nodes found by the conditions that hold, without asking each node."""

    def __init__(self, nodes: Iterable[Node], rare: Mapping[int, int]) -> None:
        self.plain: list[Node] = []
        self._under: dict[int, list[Node]] = {}
        for node in nodes:
            if node.conditions:
                under = min(node.conditions, key=lambda number: (rare[number], number))
                self._under.setdefault(under, []).append(node)
            else:
                self.plain.append(node)

    def guarded(self, met: frozenset[int]) -> list[Node]:
        """Return the nodes with conditions, all of which hold."""
        found: list[Node] = []
        for number in met:
            found += [n for n in self._under.get(number, ()) if n.conditions <= met]
        return found

    def met(self, met: frozenset[int]) -> list[Node]:
        """Return these and the nodes without conditions."""
        return self.plain + self.guarded(met)


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
        # Nodes by the pattern of their step: a plan finds its own without a walk.
        self.strict_at: dict[_Pattern, list[Node]] = {}
        self.relaxed_at: dict[_Pattern, list[Node]] = {}
        for trie, at in ((self.strict, self.strict_at), (self.relaxed, self.relaxed_at)):
            for node in trie.walk():
                at.setdefault((node.step.kind, node.step.page), []).append(node)
        self._patient = [n for n in self.relaxed.walk() if n.depth > 1 and not n.conditions]
        self._plans: dict[_Pattern, Plan] = {}

    def plan(self, kind: int, page: str) -> Plan:
        """Return the plan for events of this kind and page."""
        # Kinds and pages that no trigger names are all alike, so they share one plan.
        alike = (kind if kind in self._kinds else None, page if page in self._pages else None)
        plan = self._plans.get(alike)
        if plan is None:
            plan = self._plans[alike] = Plan(len(self._plans), alike, self)
        return plan

    def starts(self) -> list[tuple[bytes, int, int]]:
        """Return (path, number of first event, its time) of every live relaxed node."""
        return [(n.path, *n.start) for n in self.relaxed.walk() if n.start[0] >= self.floor]

    def begin_with(self, starts: Iterable[tuple[bytes, int, int]]) -> None:
        """Make the relaxed nodes live that :meth:`starts` (of other tries) tells of."""
        at = {path: (seq, at_us) for path, seq, at_us in starts}
        for node in self.relaxed.walk():
            node.start = at.get(node.path, NEVER)
            if node.start is not NEVER:
                node.wake()

    def forget(self, seq: int) -> None:
        """Drop every partial match; only what starts from event ``seq`` on counts."""
        self.floor = seq
        for node in self._patient:
            if node.waiting:
                node.sleep()
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
        "a", "b", "c", "cancels", "d", "fields", "firsts", "kind", "later", "number", "page",
        "remembered", "resets", "roots", "sets", "sweep_us", "table", "waiting", "watched", "width",
    )  # fmt: skip

    def __init__(self, number: int, at: _Pattern, tries: Tries) -> None:
        self.number = number
        self.kind, self.page = at
        # A set: where no trigger names the kind or the page, two of these are the same.
        patterns = sorted({at, (at[0], None), (None, at[1]), (None, None)}, key=str)
        strict = [node for one in patterns for node in tries.strict_at.get(one, ())]
        relaxed = [node for one in patterns for node in tries.relaxed_at.get(one, ())]
        asked: dict[str, dict[int, tuple[str, Any]]] = {}
        rare: dict[int, int] = {}
        ordered: set[str] = set()
        for node in (*strict, *relaxed):
            for field, op, value in node.step.conditions:
                which = tries.conditions[condition_key(field, op, value)]
                asked.setdefault(field, {})[which] = (op, value)
                rare[which] = ("==", "in").index(op) if op in ("==", "in") else 2
                if op not in ("==", "in"):
                    ordered.add(field)
        # Fields with many values but few outcomes first: that keeps the tables below few.
        names = sorted(asked, key=lambda name: (name not in ordered, -len(asked[name]), name))
        self.fields = [_Field(name, asked[name]) for name in names]
        #: How many fields to look up; -1: by :meth:`look`, which always works.
        self.width = len(names)
        if self.width > 4 or any("." in name for name in names):
            self.width = -1
        self.a, self.b, self.c, self.d = (names + [""] * 4)[:4]
        self.remembered = 0
        self.roots = _ByCondition((n for n in strict if n.depth == 1), rare)
        self.firsts = _ByCondition((n for n in relaxed if n.depth == 1), rare)
        self.later = _ByCondition((n for n in relaxed if n.depth > 1 and n.conditions), rare)
        #: Live relaxed nodes without conditions, with their parents.
        self.waiting: dict[Node, Node] = {}
        #: When to look for those that have become too old.
        self.sweep_us = 0
        for node in relaxed:
            if node.depth > 1 and not node.conditions and node.parent is not None:
                node.homes.append(self.waiting)
                if node.waiting:
                    self.waiting[node] = node.parent
        self.resets = [one for pattern, one in tries.resets.items() if takes(pattern, *at)]
        self.cancels = [end for end in tries.ends if end.negated and takes(end.negated, *at)]
        #: Whether its events end counts or waits.
        self.watched = bool(self.resets or self.cancels)
        self.sets = tries.sets
        #: Leads through the fields' values to the event's class.
        self.table: Any = self.below(0, frozenset())

    def sweep(self, now: int) -> None:
        """Let the nodes sleep whose partial matches are too old for any sequence below."""
        for node, parent in list(self.waiting.items()):
            if node.longest_us and now - parent.start[1] > node.longest_us:
                node.sleep()
        self.sweep_us = now + _SWEEP_US

    def below(self, level: int, met: frozenset[int]) -> FieldTable | EventClass:
        """Make what the fields before ``level`` lead to when they meet ``met``."""
        self.sets.size += 1
        if level == len(self.fields):
            return EventClass(self, met)
        return FieldTable(self, level, met)

    def look(self, content: Mapping[str, Any]) -> EventClass:
        """Return an event's class by the way that always works."""
        table = self.table
        for field in self.fields:
            value = find(content, field.name)
            try:
                table = table[value]
            except TypeError:  # a list or a map cannot be remembered
                table = table.look(value)
        found: EventClass = table
        return found
