"""The trie of trigger sequences, and its strict half as an automaton built on demand.

Walle sheet B.2. Sequences that begin alike share nodes. In *strict* mode the
next event must match the next step, so the set of live nodes after an event
depends only on the set before it, on the event's kind and page, and on which
conditions held. Each such set becomes one :class:`StrictState`, and each step
from one to the next is computed once and then looked up (the subset
construction of automata, done lazily as in Thompson's matcher; Ken Thompson,
"Regular expression search algorithm", CACM 1968).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from shoal.device.stream.conditions import Check, Guarded, GuardTable, condition_key

if TYPE_CHECKING:
    from shoal.device.stream.patterns import End

__all__ = ["Node", "StepSpec", "StrictAutomaton", "StrictMove", "StrictState", "matches"]

# Sets of live nodes that are kept ready; beyond it the table starts anew.
_MAX_STATES = 4096


class StepSpec(NamedTuple):
    """One step of a sequence: kind and page (``None`` = any) and compiled conditions."""

    kind: int | None
    page: str | None
    conditions: tuple[tuple[str, str, Any], ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def key(self) -> bytes:
        """Bytes that are equal for equal steps."""
        conditions = b"&".join(sorted(condition_key(*one) for one in self.conditions))
        return f"{self.kind}@{self.page!r}".encode() + b"?" + conditions


class Node:
    """A prefix of one or more sequences.

    Attributes
    ----------
    seq, at_us : int
        Relaxed mode: the latest start of a partial match that has reached this
        node (number of its first event, and when); ``seq`` is -1 when none has.
    """

    __slots__ = ("at_us", "children", "depth", "ends", "parent", "path", "seq", "step")

    def __init__(self, parent: Node | None, step: StepSpec | None) -> None:
        self.parent = parent
        self.step = step
        self.depth: int = 0 if parent is None else parent.depth + 1
        prefix = b"" if parent is None else parent.path
        key = b"" if step is None else step.key
        self.path: bytes = hashlib.blake2b(prefix + key, digest_size=16).digest()
        self.children: dict[bytes, Node] = {}
        self.ends: list[End] = []
        self.seq = -1
        self.at_us = 0

    def insert(self, steps: Iterable[StepSpec], end: End) -> None:
        """Add the sequence ``steps`` below this node, with ``end`` at its last node."""
        node = self
        for step in steps:
            key = step.key
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, step)
            node = child
        node.ends.append(end)

    def walk(self) -> Iterator[Node]:
        """Yield every node below this one, parents first."""
        stack = list(reversed(self.children.values()))
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children.values()))


def matches(node: Node, kind: int | None, page: str | None) -> bool:
    """Say whether the step into ``node`` takes events of this kind and page."""
    step = node.step
    return (
        step is not None
        and (step.kind is None or step.kind == kind)
        and (step.page is None or step.page == page)
    )


class StrictState:
    """A set of live nodes, and the moves from it that have been needed so far."""

    __slots__ = ("moves", "nodes")

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes
        # Keyed by the plan of a (kind, page); typed loosely to stay free of a cycle.
        self.moves: dict[Any, StrictMove] = {}


class StrictMove(NamedTuple):
    """Where an event leads: at once, or by which conditions its content meets.

    ``state`` and ``ends`` hold when no guarded step is taken; ``guards`` finds
    those that are, and ``by_hits`` remembers where each set of them leads.
    """

    state: StrictState
    ends: tuple[End, ...]
    guards: GuardTable[Node] | None
    by_hits: dict[tuple[Node, ...], tuple[StrictState, tuple[End, ...]]]
    plain: tuple[Node, ...]


class StrictAutomaton:
    """The strict trie below ``root`` as an automaton over (kind, page)."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._states: dict[tuple[Node, ...], StrictState] = {}
        self.start = self._state(())

    def __len__(self) -> int:
        return len(self._states)

    def _state(self, nodes: tuple[Node, ...]) -> StrictState:
        state = self._states.get(nodes)
        if state is None:
            if len(self._states) >= _MAX_STATES:
                # A state in use stays valid through its holder; only what was computed goes.
                for old in self._states.values():
                    old.moves.clear()
                self._states.clear()
            state = self._states[nodes] = StrictState(nodes)
        return state

    def _outcome(self, targets: Iterable[Node]) -> tuple[StrictState, tuple[End, ...]]:
        reached = sorted(targets, key=lambda node: node.path)
        ends = tuple(end for node in reached for end in node.ends)
        return self._state(tuple(node for node in reached if node.children)), ends

    def move(
        self, state: StrictState, plan: object, kind: int | None, page: str | None
    ) -> StrictMove:
        """Compute and remember the move from ``state`` at (kind, page), known as ``plan``."""
        plain: list[Node] = []
        guarded: list[Guarded[Node]] = []
        for parent in (self._root, *state.nodes):
            for child in parent.children.values():
                if not matches(child, kind, page):
                    continue
                step = child.step
                if step is not None and step.checks:
                    guarded.append(Guarded(step.conditions, step.checks, child))
                else:
                    plain.append(child)
        target, ends = self._outcome(plain)
        move = StrictMove(target, ends, GuardTable(guarded) if guarded else None, {}, tuple(plain))
        state.moves[plan] = move
        return move

    def guarded_outcome(
        self, move: StrictMove, hits: tuple[Node, ...]
    ) -> tuple[StrictState, tuple[End, ...]]:
        """Compute and remember where ``move`` leads when the steps ``hits`` are taken too."""
        outcome = self._outcome((*move.plain, *hits))
        if len(move.by_hits) >= _MAX_STATES:
            move.by_hits.clear()
        move.by_hits[hits] = outcome
        return outcome
