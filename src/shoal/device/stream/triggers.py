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
from collections.abc import Sequence

import msgspec

from shoal.core.errors import InputError
from shoal.device.stream.conditions import MISSING
from shoal.device.stream.patterns import NEVER, End, Firing, Trigger
from shoal.device.stream.plans import EventClass, Plan, Tries
from shoal.device.stream.trie import Node, NodeSet
from shoal.wire.events import Event
from shoal.wire.manifest import TriggerSpec

__all__ = ["Firing", "Trigger", "TriggerEngine"]

_MAX_PLANS = 4096
# Moves, classes and unions of node sets that are kept ready (some 100 bytes each).
_MAX_REMEMBERED = 50_000
_CLOCK_TOLERANCE_US = 3_600_000_000
_UNKNOWN = NodeSet(())  # what a class of events makes of a move, before it is worked out


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
        beyond 4,096 of one trigger; counted at the next watermark).
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._ends: dict[str, dict[str, End]] = {}
        self._boot: int | None = None
        self._now = NEVER
        self._recent: deque[tuple[int, int, Event]] = deque(maxlen=1)
        self._began_at = -1  # number of the event before the first in _recent
        self._tries = Tries([])
        self._state = self._tries.sets.start
        self._beside: tuple[NodeSet, ...] = ()
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
        mine[trigger.name] = End(task, trigger, self._last_seq)
        self._stale()

    def remove(self, task: str) -> int:
        """Disarm every trigger of ``task``; return how many. Others keep their matches."""
        gone = self._ends.pop(task, {})
        if gone:
            self._stale()
        return len(gone)

    @property
    def _last_seq(self) -> int:
        return self._recent[-1][0] if self._recent else self._began_at

    def __len__(self) -> int:
        return sum(map(len, self._ends.values()))

    def tasks(self) -> list[str]:
        """Return the tasks that have triggers."""
        return list(self._ends)

    def _stale(self) -> None:
        """Make the next event rebuild the tries; costs nothing on the path of an event."""
        self._fresh = False
        self._plans: dict[tuple[int, str], Plan] = {}

    def _rebuild(self) -> None:
        starts = self._tries.starts()
        self._tries = Tries([end for mine in self._ends.values() for end in mine.values()])
        self._tries.begin_with(starts)
        self._plans = {}
        self._fresh = True
        sets = self._tries.sets
        # What is live in strict mode depends on the last few events alone: replay them.
        self._recent = deque(self._recent, maxlen=self._tries.depth)
        self._state, self._beside = sets.start, ()
        for _, _, event in self._recent:
            plan = self._plan(event.kind, event.page)
            self._advance(plan, plan.look(event.content))

    def _plan(self, kind: int, page: str) -> Plan:
        if not self._fresh:
            self._rebuild()
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[kind, page] = self._tries.plan(kind, page)
        return plan

    # -- matching --------------------------------------------------------------------------

    def on(self, event: Event, seq: int) -> list[Firing]:
        """Take the next event; return what fires, ordered by task and trigger name."""
        plan = self._plans.get((event.kind, event.page))
        if plan is None:
            plan = self._plan(event.kind, event.page)
        now = event.ts_us
        if event.boot != self._boot:
            self._restart(event, seq)
        if now < self._now:
            if self._now - now > _CLOCK_TOLERANCE_US:
                self._reset_clock(seq)
            else:
                now = self._now
        self._now = now
        last = (seq, now, event)
        self._recent.append(last)

        # The event's class: one look-up for each field that conditions ask for. Written
        # out by their number, because a loop would cost as much as the look-ups.
        width = plan.width
        if width == 0:
            event_class = plan.table
        elif width < 0:
            event_class = plan.look(event.content)
        else:
            get = event.content.get
            try:
                event_class = plan.table[get(plan.a, MISSING)]
                if width > 1:
                    event_class = event_class[get(plan.b, MISSING)]
                    if width > 2:
                        event_class = event_class[get(plan.c, MISSING)]
                        if width > 3:
                            event_class = event_class[get(plan.d, MISSING)]
            except TypeError:  # a list or a map as value
                event_class = plan.look(event.content)

        # Strict sequences: one look-up, unless contents play a part.
        move = self._state.moves.get(plan)
        if move is None or self._beside:
            ends = self._advance(plan, event_class)
        else:
            target, _, ends, guarded, _ = move
            if guarded:
                ends = self._advance(plan, event_class)
            else:
                self._state = target
                self._beside = event_class.live
        if event_class.ends:
            ends += event_class.ends
        if plan.watched:
            self._end_waits(plan, seq, event)
        if event_class.relaxed or plan.waiting:
            return self._relaxed(event_class, ends, last)
        return self._ended(ends, (), last) if ends else []

    def _relaxed(
        self, event_class: EventClass, ends: tuple[End, ...], last: tuple[int, int, Event]
    ) -> list[Firing]:
        """Move on in the relaxed trie too.

        First find out which nodes are reached, then move, because one event must
        not carry a match over two steps. A node without ends has something to gain
        only if its parent has a start that it has not seen.
        """
        seq, now, _ = last
        plan = event_class.plan
        floor = self._tries.floor
        reached: list[tuple[Node, tuple[int, int]]] = []
        for node, parent in event_class.later:
            begun = parent.start
            if (begun is not node.start or node.ends) and begun[0] >= floor:
                reached.append((node, begun))
        if plan.waiting:
            if now >= plan.sweep_us:
                plan.sweep(now)
            for node, parent in plan.waiting.items():
                begun = parent.start
                if begun is not node.start or node.ends:
                    reached.append((node, begun))
        if event_class.firsts:
            here = (seq, now)
            for node in event_class.firsts:
                node.start = here
                if not node.awake:
                    node.wake()
        over = bool(ends)
        for node, begun in reached:
            node.start = begun
            if not node.awake:
                node.wake()
            if node.ends:
                over = True
        return self._ended(ends, reached, last) if over else []

    def _advance(self, plan: Plan, event_class: EventClass) -> tuple[End, ...]:
        """Move on in the strict trie; return the sequences of several steps now complete."""
        sets = self._tries.sets
        if sets.size > _MAX_REMEMBERED:
            self._stale()
        move = self._state.moves.get(plan)
        if move is None:
            move = sets.step(self._state, plan)
        self._state, _, ends, guarded, met = move
        live = event_class.live
        if guarded:
            found = met.get(event_class, _UNKNOWN)
            if found is _UNKNOWN:
                found = sets.met(move, event_class)
            if found is not None:
                ends += found.ends
                if found.live is not None:
                    live = (*live, found.live)
        for start in self._beside:
            move = start.moves.get(plan)
            if move is None:
                move = sets.move(start, plan)
            _, following, done, guarded, met = move
            ends += done
            if following is not None:
                live = (*live, following)
            if guarded:
                found = met.get(event_class, _UNKNOWN)
                if found is _UNKNOWN:
                    found = sets.met(move, event_class)
                if found is not None:
                    ends += found.ends
                    if found.live is not None:
                        live = (*live, found.live)
        self._beside = live
        return ends

    @staticmethod
    def _end_waits(plan: Plan, seq: int, event: Event) -> None:
        """End the counts and waits that events of this plan put an end to."""
        for reset in plan.resets:
            reset.seq = seq
        for end in plan.cancels:
            if end.pending:
                end.pending = deque(one for one in end.pending if one[0] < event.ts_us)

    def _ended(
        self,
        ends: tuple[End, ...],
        reached: Sequence[tuple[Node, tuple[int, int]]],
        last: tuple[int, int, Event],
    ) -> list[Firing]:
        """Take an event that completes a sequence."""
        fired: list[Firing] = []
        recent = self._recent
        for end in ends:
            end.complete(recent[-end.depth], last, fired)
        for node, start in reached:
            for end in node.ends:
                end.complete(start, last, fired)
        if len(fired) > 1:
            fired.sort(key=_place)
        return fired

    def on_watermark(self, ts_us: int) -> list[Firing]:
        """Say that no event before ``ts_us`` will come; return what was not followed.

        Matches fire in the order of their deadlines.
        """
        due: list[tuple[int, Firing]] = []
        if not self._fresh:
            self._rebuild()
        for end in self._tries.negated:
            end.expire(ts_us, due)
            self.counts["pending_dropped"] += end.dropped
            end.dropped = 0
        due.sort(key=lambda one: (one[0], *_place(one[1])))
        return [firing for _, firing in due]

    def _forget(self, seq: int) -> None:
        self._began_at = self._last_seq
        self._recent.clear()
        self._state, self._beside = self._tries.sets.start, ()
        self._tries.forget(seq)

    def _restart(self, event: Event, seq: int) -> None:
        if self._boot is not None:
            self.counts["restarts"] += 1
            self._forget(seq)
        self._boot = event.boot

    def _reset_clock(self, seq: int) -> None:
        self.counts["clock_resets"] += 1
        self._forget(seq)
        for end in self._tries.ends:
            end.quiet_until_us = NEVER

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
                "seq": self._last_seq,
                "recent": list(self._recent),
                "relaxed": self._tries.starts(),
                "ends": [
                    (
                        end.task, end.trigger.name, end.trigger.digest(), end.since,
                        end.reset.seq, end.quiet_until_us, list(end.starts), list(end.pending),
                    )
                    for end in self._tries.ends
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
        self._boot, self._now, self._began_at = held.boot, held.now, held.seq
        self._recent = deque(held.recent)
        self._rebuild()
        self._tries.forget(0)
        self._tries.begin_with(held.relaxed)
        known = {(one[0], one[1]): one for one in held.ends}
        for end in self._tries.ends:
            end.since, end.quiet_until_us, end.reset.seq = held.seq, NEVER, -1
            one = known.get((end.task, end.name))
            if one is not None and one[2] == end.trigger.digest():
                _, _, _, end.since, reset_seq, end.quiet_until_us, starts, pending = one
                end.reset.seq = max(end.reset.seq, reset_seq)
                end.starts.extend(starts)
                end.pending.extend(pending)


class _Snapshot(msgspec.Struct):
    schema: int
    boot: int | None
    now: int
    seq: int
    recent: list[tuple[int, int, Event]]
    relaxed: list[tuple[bytes, int, int]]
    ends: list[
        tuple[
            str, str, bytes, int, int, int, list[tuple[int, int]],
            list[tuple[int, int, int, Event]],
        ]
    ]  # fmt: skip
