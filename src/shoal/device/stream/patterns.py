"""A trigger, what it remembers about the stream, and what comes out when it fires."""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal.core.errors import InputError
from shoal.device.stream.conditions import compile_condition
from shoal.device.stream.trie import StepSpec
from shoal.wire.events import Event
from shoal.wire.manifest import TriggerSpec, parse_pattern

__all__ = ["NEVER", "End", "Firing", "Reset", "Trigger"]

#: A time before all others.
NEVER = -(1 << 63)

_MAX_STEPS = 32
_MAX_PENDING = 4096


@dataclass(frozen=True)
class Trigger:
    """When a task wakes.

    Attributes
    ----------
    name : str
        Unique within a task.
    steps : tuple of str
        ``kind@page`` patterns; each side may be ``*``.
    mode : {"strict", "relaxed"}
        Strict (as published): consecutive events. Relaxed: others may lie
        between; of several partial matches the one that started latest counts.
    within_ms : int
        Longest time from the first event to the last; 0 = no limit. With
        ``count`` above 1 it spans all counted completions. With
        ``not_followed_by`` it is the time to wait for the event that must not come.
    where : tuple of (step, field, operator, value)
        Conditions on the content of the event at ``step`` (from 0); all must hold.
    not_followed_by : str, optional
        Fire, by :meth:`TriggerEngine.on_watermark`, only if no event of this
        pattern came up to ``within_ms`` after the completion.
    count : int
        Fire at every ``count``-th completion.
    without : str, optional
        An event of this pattern after the start ends the match and the count.
        An event that both matches it and is the first step starts anew.
    cooldown_ms : int
        After firing, stay silent for this long; what completes meanwhile is spent.
    """

    name: str
    steps: tuple[str, ...]
    mode: str = "strict"
    within_ms: int = 0
    where: tuple[tuple[int, str, str, Any], ...] = ()
    not_followed_by: str | None = None
    count: int = 1
    without: str | None = None
    cooldown_ms: int = 0

    @classmethod
    def sequence(cls, *steps: str, name: str = "", **options: Any) -> Trigger:
        """Make a trigger of ``steps``; its name defaults to the steps themselves."""
        where = tuple(tuple(one) for one in options.pop("where", ()))
        return cls(name=name or ">".join(steps), steps=steps, where=where, **options)

    @classmethod
    def from_spec(cls, spec: TriggerSpec) -> Trigger:
        """Make a trigger from a manifest's specification."""
        return cls(
            name=spec.name,
            steps=tuple(spec.sequence),
            mode=spec.mode,
            within_ms=spec.within_ms,
            where=tuple((one.step, one.field, one.op, one.value) for one in spec.where),
            not_followed_by=spec.not_followed_by,
            count=spec.count,
            without=spec.without,
            cooldown_ms=spec.cooldown_ms,
        )

    def check(self) -> None:
        """Raise :class:`InputError`, naming the field, if the trigger makes no sense."""
        for field, good, message in (
            ("name", bool(self.name), "must not be empty"),
            ("steps", 1 <= len(self.steps) <= _MAX_STEPS, f"needs 1 to {_MAX_STEPS} steps"),
            ("mode", self.mode in ("strict", "relaxed"), "must be 'strict' or 'relaxed'"),
            ("within_ms", self.within_ms >= 0, "must not be negative"),
            ("cooldown_ms", self.cooldown_ms >= 0, "must not be negative"),
            ("count", 1 <= self.count <= 100_000, "must lie in [1, 100000]"),
            (
                "within_ms",
                self.not_followed_by is None or self.within_ms > 0,
                "not_followed_by needs a time to wait",
            ),
        ):
            if not good:
                raise InputError(
                    message,
                    field=field,
                    value=getattr(self, field),
                    source=f"trigger {self.name!r}",
                )
        for step, *_ in self.where:
            if not 0 <= step < len(self.steps):
                raise InputError("is not a step (from 0)", field="where.step", value=step)

    def compiled(self) -> list[StepSpec]:
        """Return the steps ready for the trie; raises :class:`InputError` if one is wrong."""
        specs = []
        for number, pattern in enumerate(self.steps):
            conditions = tuple(
                (field, op, value) for step, field, op, value in self.where if step == number
            )
            for one in conditions:
                compile_condition(*one)
            specs.append(StepSpec(*parse_pattern(pattern), conditions))
        return specs

    def digest(self) -> bytes:
        """Return 8 bytes that change with any part of the trigger."""
        raw = msgspec.json.encode(self, order="deterministic")
        return hashlib.blake2b(raw, digest_size=8).digest()


class Firing(msgspec.Struct, frozen=True):
    """A trigger's sequence is complete.

    ``start_seq`` and ``seq`` number the first and the last event of the match,
    ``event`` is the last.
    """

    task: str
    trigger: str
    start_seq: int
    event: Event
    seq: int


class Reset:
    """When an event of one ``without`` pattern last came; its triggers share it."""

    __slots__ = ("seq",)

    def __init__(self) -> None:
        self.seq = -1


class End:
    """Where a sequence ends in the trie: one (task, trigger) and what it remembers.

    Attributes
    ----------
    since : int
        Events up to this number came before the trigger was added.
    simple : bool
        Every completion fires, but for the cooldown.
    span_us : int
        How long a partial match can be of use; 0 = for ever.
    quiet_until_us : int
        End of the cooldown.
    starts : deque of (seq, us)
        Starts of the completions counted so far.
    pending : deque of (deadline, start, seq, event)
        Completions that wait for what must not follow; of more than 4,096 the
        oldest are dropped and counted in ``dropped``.
    """

    __slots__ = (
        "cooldown_us", "count", "depth", "dropped", "name", "negated", "pending",
        "quiet_until_us", "reset",
        "simple", "since", "span_us", "starts", "task", "trigger", "within_us", "without",
    )  # fmt: skip

    def __init__(self, task: str, trigger: Trigger, since: int) -> None:
        self.task = task
        self.trigger = trigger
        self.name = trigger.name
        self.depth = len(trigger.steps)
        self.since = since
        self.within_us = trigger.within_ms * 1000
        self.cooldown_us = trigger.cooldown_ms * 1000
        self.count = trigger.count
        self.without = parse_pattern(trigger.without) if trigger.without else None
        self.negated = parse_pattern(trigger.not_followed_by) if trigger.not_followed_by else None
        self.span_us = 0 if self.negated else self.within_us
        # A single step within any duration takes no time at all.
        timed = self.within_us and (self.depth > 1 or self.count > 1)
        self.simple = not (timed or self.count > 1 or self.without or self.negated)
        self.reset = Reset()
        self.dropped = 0
        self.quiet_until_us = NEVER
        self.starts: deque[tuple[int, int]] = deque(maxlen=self.count)
        self.pending: deque[tuple[int, int, int, Event]] = deque()

    def forget(self) -> None:
        """Drop everything that belongs to partial matches."""
        self.starts.clear()
        self.pending.clear()

    def complete(
        self, start: tuple[Any, ...], last: tuple[int, int, Event], fired: list[Firing]
    ) -> None:
        """Take one completion of the sequence; add to ``fired`` if it fires now.

        ``start`` begins with (seq, us) of the first event, ``last`` is (seq, us, event) of
        the last.
        """
        start_seq = start[0]
        if start_seq <= self.since:
            return
        seq, now, event = last
        if not self.simple:
            reset_seq = self.reset.seq
            if start_seq < reset_seq:
                return
            if self.count > 1:
                starts = self.starts
                if starts and starts[-1][0] < reset_seq:
                    starts.clear()
                starts.append((start_seq, start[1]))
                if len(starts) < self.count:
                    return
                start = starts[0]
                start_seq = start[0]
            if self.negated:
                self.starts.clear()
                self.pending.append((now + self.within_us, start_seq, seq, event))
                if len(self.pending) > _MAX_PENDING:
                    self.pending.popleft()
                    self.dropped += 1
                return
            if self.within_us and now - start[1] > self.within_us:
                return
            self.starts.clear()
        if self.cooldown_us:
            if now < self.quiet_until_us:
                return
            self.quiet_until_us = now + self.cooldown_us
        fired.append(Firing(self.task, self.name, start_seq, event, seq))

    def expire(self, ts_us: int, due: list[tuple[int, Firing]]) -> None:
        """Add to ``due`` what was not followed up to ``ts_us``, with its deadline."""
        pending = self.pending
        while pending and pending[0][0] < ts_us:
            deadline, start_seq, seq, event = pending.popleft()
            if self.cooldown_us:
                if deadline < self.quiet_until_us:
                    continue
                self.quiet_until_us = deadline + self.cooldown_us
            due.append((deadline, Firing(self.task, self.name, start_seq, event, seq)))
