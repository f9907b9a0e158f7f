"""The trie of trigger sequences, and how the live part of it moves at an event.

Walle sheet B.2. Sequences that begin alike share nodes. In *strict* mode the
next event must match the next step, so which nodes are live depends only on
what the last few events were. As far as steps have no conditions, it depends on
their kinds and pages alone: such a set of live nodes is one state of an
automaton, whose moves are worked out when they first come up (the subset
construction, done lazily as in Thompson's matcher: Ken Thompson, "Regular
expression search algorithm", CACM 1968). Nodes reached through conditions are
kept in sets of their own beside it, since their combinations are many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.device.stream.conditions import condition_key

if TYPE_CHECKING:
    from shoal.device.stream.patterns import End
    from shoal.device.stream.plans import EventClass, Plan

__all__ = ["NEVER", "Move", "Node", "NodeSet", "NodeSets", "StepSpec", "takes"]

#: The start of a partial match that there has not been: before every event.
NEVER = (-1, 0)


class StepSpec(NamedTuple):
    """One step of a sequence: kind and page (``None`` = any) and its conditions."""

    kind: int | None
    page: str | None
    conditions: tuple[tuple[str, str, Any], ...] = ()

    @property
    def keys(self) -> list[bytes]:
        """One key for each condition, sorted."""
        return sorted({condition_key(*one) for one in self.conditions})

    @property
    def key(self) -> bytes:
        """Bytes that are equal for equal steps."""
        return f"{self.kind}@{self.page!r}?".encode() + b"&".join(self.keys)


def takes(pattern: tuple[int | None, str | None], kind: int | None, page: str | None) -> bool:
    """Say whether a (kind, page) pattern, ``None`` = any, takes this kind and page."""
    return pattern[0] in (None, kind) and pattern[1] in (None, page)


class Node:
    """A prefix of one or more sequences.

    Attributes
    ----------
    number : int
        Position in its trie.
    conditions : frozenset of int
        Numbers of the conditions of the step into this node.
    start : tuple of (seq, us)
        Relaxed mode: the latest start of a partial match that has reached this
        node (number of its first event, and when).
    homes : list of dict
        Relaxed mode, nodes without conditions: where it waits for its event, one
        for each plan whose events it takes.
    waiting : bool
        Relaxed mode: whether it waits there.
    awake : bool
        Relaxed mode: whether all its children without conditions are waiting.
    """

    __slots__ = (
        "_below", "awake", "children", "conditions", "depth", "ends", "homes", "longest_us",
        "number", "parent", "path", "plain", "start", "step", "waiting",
    )  # fmt: skip

    def __init__(self, parent: Node | None, step: StepSpec) -> None:
        self.parent = parent
        self.step = step
        self.depth: int = 0 if parent is None else parent.depth + 1
        prefix = b"" if parent is None else parent.path
        self.path: bytes = hashlib.blake2b(prefix + step.key, digest_size=16).digest()
        self.children: dict[bytes, Node] = {}
        self._below: dict[int, list[Node]] = {}
        self.conditions: frozenset[int] = frozenset()
        self.ends: list[End] = []
        self.number = 0
        self.start = NEVER
        self.homes: list[dict[Node, Node]] = []
        self.waiting = False
        self.awake = True
        #: Children without conditions; filled in when the trie is complete.
        self.plain: tuple[Node, ...] = ()
        #: Longest duration of any sequence through this node; 0 = no limit.
        self.longest_us = 0

    @classmethod
    def root(cls) -> Node:
        """Make the root of an empty trie."""
        return cls(None, StepSpec(None, None))

    def insert(self, steps: Iterable[StepSpec], end: End) -> None:
        """Add the sequence ``steps`` below this node, with ``end`` at its last node."""
        node = self
        for step in steps:
            key = step.key
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, step)
                child.longest_us = -1
            node = child
            if end.span_us == 0 or node.longest_us == 0:
                node.longest_us = 0
            else:
                node.longest_us = max(node.longest_us, end.span_us)
        node.ends.append(end)

    def walk(self) -> Iterator[Node]:
        """Yield every node below this one, parents first."""
        stack = list(reversed(self.children.values()))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))

    def finish(self, conditions: dict[bytes, int]) -> None:
        """Number the nodes below this one and their conditions."""
        for number, node in enumerate(self.walk()):
            node.number = number
            node.conditions = frozenset(conditions[key] for key in node.step.keys)
        for node in self.walk():
            node.plain = tuple(one for one in node.children.values() if not one.conditions)
            node.awake = not node.plain

    def wake(self) -> None:
        """Let the children without conditions wait for their events."""
        for child in self.plain:
            if not child.waiting:
                child.waiting = True
                for home in child.homes:
                    home[child] = self
        self.awake = True

    def sleep(self) -> None:
        """Stop waiting; the parent's next start wakes it."""
        self.waiting = False
        for home in self.homes:
            home.pop(self, None)
        if self.parent is not None:
            self.parent.awake = False

    def below(self, plan: Plan) -> list[Node]:
        """Return the children that events of this plan may reach, whatever they contain."""
        found = self._below.get(plan.number)
        if found is None:
            found = self._below[plan.number] = [
                child for child in self.children.values() if child.takes(plan.kind, plan.page)
            ]
        return found

    def takes(self, kind: int | None, page: str | None) -> bool:
        """Say whether the step into this node takes events of this kind and page."""
        return takes((self.step.kind, self.step.page), kind, page)


class NodeSet:
    """Some nodes of the strict trie that the last event reached.

    Attributes
    ----------
    nodes : tuple of Node
        Those that a further event can carry on.
    ends : tuple of End
        Sequences that the last event completed.
    live : NodeSet or None
        The set of ``nodes`` alone; ``None`` if there are none.
    moves : dict
        What events of each plan make of it, as far as it has come up.
    """

    __slots__ = ("ends", "live", "moves", "nodes")

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = tuple(node for node in nodes if node.children)
        self.ends = tuple(end for node in nodes for end in node.ends)
        self.live: NodeSet | None = None
        self.moves: dict[Plan, Move] = {}


class Move(NamedTuple):
    """What events of one plan make of a set of nodes.

    Attributes
    ----------
    target : NodeSet
        What they reach without conditions; for the automaton's states the first
        nodes of all sequences are among them.
    live : NodeSet or None
        Its part that goes on.
    ends : tuple of End
        Sequences of several steps that they complete, whatever they contain.
    guarded : tuple of Node
        Nodes that they reach if their conditions hold.
    met : dict
        By class of events: the set of those whose conditions hold, or ``None``.
    """

    target: NodeSet
    live: NodeSet | None
    ends: tuple[End, ...]
    guarded: tuple[Node, ...]
    met: dict[EventClass, NodeSet | None]


class NodeSets:
    """Every set of nodes that has come up, and the moves between them."""

    def __init__(self) -> None:
        self._sets: dict[tuple[Node, ...], NodeSet] = {}
        #: How much has been remembered; whoever owns this starts anew when it is too much.
        self.size = 0
        #: The automaton before the first event.
        self.start = self.get(())

    def get(self, nodes: tuple[Node, ...]) -> NodeSet:
        """Return the one set of these nodes."""
        found = self._sets.get(nodes)
        if found is None:
            self.size += 1
            found = self._sets[nodes] = NodeSet(nodes)
            if len(found.nodes) == len(nodes):
                found.live = found if nodes else None
            else:
                found.live = self.get(found.nodes).live
        return found

    def move(self, start: NodeSet, plan: Plan) -> Move:
        """Work out and remember what events of ``plan`` make of a set beside the automaton."""
        below = [child for node in start.nodes for child in node.below(plan)]
        return self._remember(start, plan, below, [])

    def step(self, state: NodeSet, plan: Plan) -> Move:
        """Work out and remember what events of ``plan`` make of a state of the automaton."""
        below = [child for node in state.nodes for child in node.below(plan)]
        return self._remember(state, plan, below, plan.roots.plain)

    def _remember(self, start: NodeSet, plan: Plan, below: list[Node], roots: list[Node]) -> Move:
        self.size += 1
        plain = [child for child in below if not child.conditions]
        guarded = tuple([child for child in below if child.conditions])
        target = self.get((*roots, *plain))
        ends = tuple([end for child in plain for end in child.ends])
        move = start.moves[plan] = Move(target, target.live, ends, guarded, {})
        return move

    def met(self, move: Move, event_class: EventClass) -> NodeSet | None:
        """Work out and remember which guarded nodes of ``move`` such events reach, if any."""
        self.size += 1
        conditions = event_class.met
        reached = tuple([node for node in move.guarded if node.conditions <= conditions])
        found = move.met[event_class] = self.get(reached) if reached else None
        return found
