"""Triggers: which sequences of events wake which tasks.

Walle sheet B.2 (the trie of trigger conditions is Walle's, OSDI 2022). The
published form is strict matching of plain sequences; wildcards, conditions on
content, relaxed matching, durations, not-followed-by, counts and cooldowns are
ours. The cost of an event depends on the partial matches that it touches, not
on the number of triggers.

What "time" means: an event's ``ts_us``, never running backwards: a late event
counts at the time it arrives. A new boot, or a clock set back by more than an
hour, ends all partial matches (:attr:`TriggerEngine.counts`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import msgspec

from shoal.core.errors import InputError
from shoal.device.stream.conditions import Guarded, GuardTable
from shoal.device.stream.patterns import End, Firing, Trigger
from shoal.device.stream.trie import Node, StrictAutomaton, StrictState, matches
from shoal.wire.events import Event
from shoal.wire.manifest import TriggerSpec, parse_pattern

__all__ = ["Firing", "Trigger", "TriggerEngine"]

_MAX_PLANS = 4096
_MAX_PENDING = 4096
_CLOCK_TOLERANCE_US = 3_600_000_000


class _Plan:
    """What the engine has to look at for one (kind, page), besides the strict automaton."""

    __slots__ = ("cancels", "firsts", "guarded", "kind", "later", "page", "quiet", "resets")

    def __init__(
        self, kind: int | None, page: str | None, relaxed: Node, ends: Iterable[End]
    ) -> None:
        self.kind = kind
        self.page = page
        nodes = [node for node in relaxed.walk() if matches(node, kind, page)]
        plain = [node for node in nodes if node.step and not node.step.checks]
        self.later = [(node, node.parent) for node in plain if node.depth > 1 and node.parent]
        self.firsts = [node for node in plain if node.depth == 1]
        guarded = [
            Guarded(node.step.conditions, node.step.checks, node)
            for node in nodes
            if node.step and node.step.checks
        ]
        self.guarded = GuardTable(guarded) if guarded else None
        self.resets = [end for end in ends if _takes(end.without, kind, page)]
        self.cancels = [end for end in ends if _takes(end.negated, kind, page)]
        self.quiet = not (nodes or self.resets or self.cancels)


def _takes(
    pattern: tuple[int | None, str | None] | None, kind: int | None, page: str | None
) -> bool:
    return (
        pattern is not None
        and (pattern[0] is None or pattern[0] == kind)
        and (pattern[1] is None or pattern[1] == page)
    )


def _place(firing: Firing) -> tuple[str, str]:
    return firing.task, firing.trigger


class TriggerEngine:
    """Matches the event stream against the triggers of every task at once.

    Events must come in the order of their log numbers. A trigger sees only
    events that come after it was added.

    Attributes
    ----------
    counts : Counter
        ``restarts`` (partial matches ended by a new boot), ``clock_resets`` (by a
        clock set back), ``pending_dropped`` (waiting not-followed-by matches
        beyond 4,096 of one trigger).
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._ends: dict[str, dict[str, End]] = {}
        self._boot: int | None = None
        self._now = -(1 << 63)
        self._seq = -1
        self._recent: deque[tuple[int, int, Event]] = deque(maxlen=1)
        self._relaxed = Node(None, None)
        self._stale()

    # -- editing ---------------------------------------------------------------------------

    def add(self, task: str, trigger: Trigger | TriggerSpec) -> None:
        """Arm a trigger of ``task``; it sees the events that come from now on.

        Raises
        ------
        InputError
            The trigger makes no sense, or the task has one of this name.
        """
        if isinstance(trigger, TriggerSpec):
            trigger = Trigger.from_spec(trigger)
        trigger.check()
        trigger.compiled()
        mine = self._ends.setdefault(task, {})
        if trigger.name in mine:
            raise InputError(f"task {task!r} has this trigger", field="name", value=trigger.name)
        mine[trigger.name] = End(task, trigger, self._seq)
        self._stale()

    def remove(self, task: str) -> int:
        """Disarm every trigger of ``task``; return how many. Others keep their matches."""
        gone = self._ends.pop(task, {})
        if gone:
            self._stale()
        return len(gone)

    def __len__(self) -> int:
        return sum(map(len, self._ends.values()))

    def tasks(self) -> list[str]:
        """Return the tasks that have triggers."""
        return list(self._ends)

    def _all_ends(self) -> list[End]:
        return [end for mine in self._ends.values() for end in mine.values()]

    def _stale(self) -> None:
        """Make the next event rebuild the tries; costs nothing on the path of an event."""
        self._fresh = False
        self._plans: dict[tuple[int, str], _Plan] = {}

    def _rebuild(self) -> None:
        starts = {n.path: (n.seq, n.at_us) for n in self._relaxed.walk() if n.seq >= 0}
        strict, self._relaxed = Node(None, None), Node(None, None)
        depth = 1
        ends = self._all_ends()
        for end in ends:
            steps = end.trigger.compiled()
            depth = max(depth, len(steps))
            (strict if end.trigger.mode == "strict" else self._relaxed).insert(steps, end)
        for node in self._relaxed.walk():
            node.seq, node.at_us = starts.get(node.path, (-1, 0))
        patterns = [
            parse_pattern(text)
            for end in ends
            for text in (*end.trigger.steps, end.trigger.without, end.trigger.not_followed_by)
            if text
        ]
        self._kinds = {kind for kind, _ in patterns}
        self._pages = {page for _, page in patterns}
        self._negated = [end for end in ends if end.negated]
        self._automaton = StrictAutomaton(strict)
        self._plans = {}
        self._same: dict[tuple[int | None, str | None], _Plan] = {}
        self._fresh = True
        # What is live in strict mode depends on the last few events alone: replay them.
        self._recent = deque(self._recent, maxlen=depth)
        self._state = self._automaton.start
        for _, _, event in self._recent:
            self._state, _ = self._strict_step(self._state, event)

    def _plan(self, kind: int, page: str) -> _Plan:
        if not self._fresh:
            self._rebuild()
        # Kinds and pages that no trigger names are all alike, so they share one plan.
        alike = (kind if kind in self._kinds else None, page if page in self._pages else None)
        plan = self._same.get(alike)
        if plan is None:
            plan = self._same[alike] = _Plan(*alike, self._relaxed, self._all_ends())
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[kind, page] = plan
        return plan

    def _strict_step(self, state: StrictState, event: Event) -> tuple[StrictState, tuple[End, ...]]:
        plan = self._plans.get((event.kind, event.page)) or self._plan(event.kind, event.page)
        move = state.moves.get(plan) or self._automaton.move(state, plan, plan.kind, plan.page)
        if move.guards is not None:
            hits = move.guards.hits(event.content)
            if hits:
                key = tuple(hits)
                return move.by_hits.get(key) or self._automaton.guarded_outcome(move, key)
        return move.state, move.ends

    # -- matching --------------------------------------------------------------------------

    def on(self, event: Event, seq: int) -> list[Firing]:
        """Take the next event; return what fires, ordered by task and trigger name."""
        plan = self._plans.get((event.kind, event.page))
        if plan is None:
            plan = self._plan(event.kind, event.page)
        now = event.ts_us
        if event.boot != self._boot:
            self._restart(event)
        if now < self._now:
            if self._now - now > _CLOCK_TOLERANCE_US:
                self._reset_clock(now)
            else:
                now = self._now
        self._now = now
        self._seq = seq
        self._recent.append((seq, now, event))

        # Strict triggers: one look-up, or one more when contents decide.
        move = self._state.moves.get(plan)
        if move is None:
            move = self._automaton.move(self._state, plan, plan.kind, plan.page)
        self._state, ends, guards, by_hits, _ = move
        if guards is not None:
            hits = guards.hits(event.content)
            if hits:
                key = tuple(hits)
                outcome = by_hits.get(key)
                if outcome is None:
                    outcome = self._automaton.guarded_outcome(move, key)
                self._state, ends = outcome
        if plan.quiet and not ends:
            return []
        return self._touched(plan, ends, event, seq, now)

    def _touched(
        self, plan: _Plan, ends: tuple[End, ...], event: Event, seq: int, now: int
    ) -> list[Firing]:
        """Take an event that completes a strict sequence or concerns a relaxed one."""
        for end in plan.resets:
            end.reset_seq = seq
            end.starts.clear()
        for end in plan.cancels:
            if end.pending:
                end.pending = deque(one for one in end.pending if one[0] < event.ts_us)
        fired: list[Firing] = []
        for end in ends:
            start_seq, start_us, _ = self._recent[-end.depth]
            self._complete(end, (start_seq, start_us), (seq, now, event), fired)
        # First find out which nodes are reached, then move: one event must not carry a match
        # over two steps.
        reached: list[tuple[Node, int, int]] = []
        if plan.guarded is not None:
            for node in plan.guarded.hits(event.content):
                parent = node.parent
                if node.depth == 1:
                    reached.append((node, seq, now))
                elif parent is not None and parent.seq >= 0:
                    reached.append((node, parent.seq, parent.at_us))
        for node, parent in plan.later:
            # Without ends there is nothing to do unless a later start has arrived.
            if parent.seq > node.seq or (node.ends and parent.seq >= 0):
                reached.append((node, parent.seq, parent.at_us))
        reached.extend((node, seq, now) for node in plan.firsts)
        for node, start_seq, start_us in reached:
            node.seq, node.at_us = start_seq, start_us
            for end in node.ends:
                self._complete(end, (start_seq, start_us), (seq, now, event), fired)
        if len(fired) > 1:
            fired.sort(key=_place)
        return fired

    def _complete(
        self, end: End, start: tuple[int, int], last: tuple[int, int, Event], fired: list[Firing]
    ) -> None:
        start_seq, start_us = start
        if start_seq <= end.since:
            return
        seq, now, event = last
        if end.simple:
            fired.append(Firing(end.task, end.name, start_seq, event, seq))
            return
        firing = end.complete(start_seq, start_us, seq, now, event)
        if firing is not None:
            fired.append(firing)
        elif len(end.pending) > _MAX_PENDING:
            end.pending.popleft()
            self.counts["pending_dropped"] += 1

    def on_watermark(self, ts_us: int) -> list[Firing]:
        """Say that no event before ``ts_us`` will come; return what was not followed.

        Matches fire in the order of their deadlines.
        """
        due: list[tuple[int, Firing]] = []
        if not self._fresh:
            self._rebuild()
        for end in self._negated:
            pending = end.pending
            while pending and pending[0][0] < ts_us:
                deadline, start_seq, seq, event = pending.popleft()
                firing = end.fire(start_seq, seq, deadline, event)
                if firing is not None:
                    due.append((deadline, firing))
        due.sort(key=lambda one: (one[0], *_place(one[1])))
        return [firing for _, firing in due]

    def _forget(self) -> None:
        self._recent.clear()
        self._state = self._automaton.start
        for node in self._relaxed.walk():
            node.seq = -1
        for end in self._all_ends():
            end.forget()

    def _restart(self, event: Event) -> None:
        if self._boot is not None:
            self.counts["restarts"] += 1
            self._forget()
        self._boot = event.boot

    def _reset_clock(self, now: int) -> None:
        self.counts["clock_resets"] += 1
        self._forget()
        for end in self._all_ends():
            end.fired_us = None
        self._now = now

    # -- surviving a restart ---------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Return everything that is remembered about past events (msgpack).

        Together with the events after it, a restored engine fires exactly as
        if nothing had happened.
        """
        if not self._fresh:
            self._rebuild()
        return msgspec.msgpack.encode(
            {
                "schema": 1,
                "boot": self._boot,
                "now": self._now,
                "seq": self._seq,
                "recent": list(self._recent),
                "relaxed": [
                    (node.path, node.seq, node.at_us)
                    for node in self._relaxed.walk()
                    if node.seq >= 0
                ],
                "ends": [
                    (
                        end.task, end.trigger.name, end.trigger.digest(), end.since,
                        end.reset_seq, end.fired_us, list(end.starts), list(end.pending),
                    )
                    for end in self._all_ends()
                ],
            }
        )  # fmt: skip

    def restore(self, snapshot: bytes) -> None:
        """Take over a snapshot; call it after the present triggers were added.

        A trigger that the snapshot does not know, or knows in another form,
        starts with the events that come after the snapshot.

        Raises
        ------
        InputError
            Not a snapshot of this engine.
        """
        try:
            held = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        except msgspec.DecodeError as error:
            raise InputError(f"not a snapshot: {error}", field="snapshot") from error
        if held.schema != 1:
            raise InputError("unknown schema", field="snapshot.schema", value=held.schema)
        known = {(one[0], one[1]): one for one in held.ends}
        for end in self._all_ends():
            end.forget()
            end.since, end.fired_us = held.seq, None
            one = known.get((end.task, end.trigger.name))
            if one is not None and one[2] == end.trigger.digest():
                _, _, _, end.since, end.reset_seq, end.fired_us, starts, pending = one
                end.starts.extend(starts)
                end.pending.extend(pending)
        self._boot, self._now, self._seq = held.boot, held.now, held.seq
        self._recent = deque(held.recent)
        self._rebuild()
        at = {path: (seq, us) for path, seq, us in held.relaxed}
        for node in self._relaxed.walk():
            node.seq, node.at_us = at.get(node.path, (-1, 0))


class _Snapshot(msgspec.Struct):
    schema: int
    boot: int | None
    now: int
    seq: int
    recent: list[tuple[int, int, Event]]
    relaxed: list[tuple[bytes, int, int]]
    ends: list[
        tuple[
            str, str, bytes, int, int, int | None, list[tuple[int, int]],
            list[tuple[int, int, int, Event]],
        ]
    ]  # fmt: skip
