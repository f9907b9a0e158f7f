"""The release state machine, searched exhaustively for what must never happen."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import pytest
from pydantic import ValidationError

from shoal.cloud import releases as machine
from shoal.cloud.guardrails import Verdict
from shoal.cloud.plans import CohortPlan
from shoal.cloud.policy import Guardrail, ReleasePolicy
from shoal.cloud.release_plans import ManagedRelease, build_plans
from shoal.cloud.releases import (
    LIVE,
    TERMINAL,
    Change,
    Command,
    Facts,
    Release,
    ReleaseState,
    apply,
    decide,
    settled_version,
)
from shoal.core.errors import ConflictError, NotFoundError
from shoal.wire.notices import DesiredTask, FileRef

S = ReleaseState
STEPS = (2_000, 5_000, 10_000)
POLICY = ReleasePolicy(steps=STEPS, beta_devices=("ab" * 16,))
World = tuple[Release, ...]


def desired(task: str, version: int) -> DesiredTask:
    return DesiredTask(
        task=task, version=version, package=FileRef(sha256=b"\0" * 32, size=1, path="p")
    )


def plans(world: World) -> dict[int, CohortPlan]:
    """Plans of the sets {1}, {2} and {1, 2}; every release is for cohort 1."""
    found = build_plans(
        {1: [1], 2: [2], 3: [1, 2]},
        [ManagedRelease(release=r, policy=POLICY, salt=f"s{r.id}") for r in world],
        desired,
        device_sets={"ab" * 16: 1},
    )
    return {plan.cohort: plan for plan in found}


def content(plan: CohortPlan) -> tuple[object, ...]:
    return (plan.base, plan.gray, plan.overrides)


def all_facts() -> Iterator[Facts]:
    names = [field.name for field in fields(Facts) if field.name != "verdict"]
    for values in itertools.product([False, True], repeat=len(names)):
        for verdict in Verdict:
            yield Facts(verdict=verdict, **dict(zip(names, values, strict=True)))


FACTS = list(all_facts())


def key(world: World) -> tuple[object, ...]:
    """A world up to the absolute size of epochs: only their order matters."""
    order = sorted({r.epoch for r in world})
    return tuple(replace(r, epoch=order.index(r.epoch)) for r in world)


def check_transition(world: World, after: World, changes: list[Change], command: Command) -> None:
    """Raise AssertionError if a transition breaks an invariant."""
    live = [r for r in after if r.state in LIVE]
    assert len(live) <= 1, f"two releases in motion: {live}"
    assert sum(r.state is S.FULL for r in after) <= 1, "two full releases"
    epoch = max(r.epoch for r in world)
    for change in changes:
        before, now = change.before, change.after
        assert before.state not in TERMINAL, f"{before.state} is final"
        assert now.threshold >= before.threshold, "a share fell"
        if now.state is S.FULL and before.state is not S.FULL:
            gray = before.state is S.GRAY and before.step == len(STEPS) - 1
            assert gray or command is Command.OVERRIDE, f"full from {before.state} by {command}"
        if now.state is S.ROLLING_BACK:
            assert now.epoch > epoch, "a rollback did not raise the epoch"
            assert now.previous == settled_version(after) != now.version
        if now.state is S.GRAY and before.state is not S.PAUSED:
            assert now.step == before.step + 1, "a gray step was skipped"
        if change.concerns_devices and now.state is not S.SUPERSEDED:
            assert now.epoch > epoch, "devices are concerned, but the epoch stays"
    earlier, later = plans(world), plans(after)
    for number in (1, 2, 3):
        if content(earlier[number]) != content(later[number]):
            assert later[number].epoch > earlier[number].epoch, "a plan changed in silence"
        assert later[number].epoch >= earlier[number].epoch, "an epoch went backwards"
    assert not later[2].base, "a device outside the cohort is served"
    assert not later[2].gray
    assert not later[2].overrides
    for change in changes:
        if change.after.state in (S.ROLLING_BACK, S.ABORTED):
            served = {t.version for plan in later.values() for t in plan.base}
            served |= {e.desired.version for p in later.values() for e in p.gray if e.desired}
            assert change.after.version not in served, "a withdrawn version is still served"


def search(number: int, step: Callable[..., list[Change]]) -> tuple[int, Counter[str]]:
    """Visit every world that ``number`` releases of one task can get into."""
    start = tuple(
        Release(id=i, task="t", version=i, cohort=1, steps=STEPS, epoch=i)
        for i in range(1, number + 1)
    )
    seen = {key(start)}
    queue = deque([start])
    fired: Counter[str] = Counter()
    while queue:
        world = queue.popleft()
        epoch = max(r.epoch for r in world) + 1
        for release, command, supersede in itertools.product(world, Command, (False, True)):
            try:
                changes = step(world, release.id, command, epoch=epoch, supersede=supersede)
            except ConflictError:
                continue
            moved = {change.after.id: change.after for change in changes}
            after = tuple(moved.get(r.id, r) for r in world)
            check_transition(world, after, changes, command)
            fired[command] += 1
            fired[f"state:{moved[release.id].state}"] += 1
            if key(after) not in seen:
                seen.add(key(after))
                queue.append(after)
        for release in world:
            others = any(r.id != release.id and r.state in LIVE for r in world)
            for facts in FACTS if number == 1 else FACTS[::211]:
                decision = decide(release, facts, blocked=others)
                if decision is not None:
                    # What the facts call for must always be possible ...
                    redundant = settled_version(r for r in world if r.id != release.id)
                    if decision.command is Command.BEGIN and redundant == release.version:
                        continue  # ... unless the facts are untrue
                    step(world, release.id, decision.command, epoch=epoch, supersede=False)
    return len(seen), fired


@pytest.mark.parametrize("number", [1, 2])
def test_no_reachable_world_breaks_an_invariant(number: int) -> None:
    worlds, fired = search(number, apply)
    assert worlds > 10**number
    assert {str(command) for command in Command} <= set(fired), "a command never fired"
    assert {f"state:{state}" for state in S} - {"state:superseded"} <= set(fired)


@pytest.mark.slow
def test_no_reachable_world_of_three_releases_breaks_an_invariant() -> None:
    worlds, _ = search(3, apply)
    assert worlds > 1_000


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("pair", "two releases in motion"),
        ("epoch", "did not raise the epoch|epoch stays|in silence"),
        ("jump", "full from"),
    ],
)
def test_negative_control_the_search_finds_planted_faults(fault: str, message: str) -> None:
    def faulty(world: World, release: int, command: Command, **options: object) -> list[Change]:
        if fault == "pair" and command is Command.BEGIN:
            own = tuple(r for r in world if r.id == release)
            return apply(own, release, command, **options)  # type: ignore[arg-type]
        changes = apply(world, release, command, **options)  # type: ignore[arg-type]
        if fault == "epoch" and command is Command.ROLLBACK:
            return [replace(c, after=replace(c.after, epoch=c.before.epoch)) for c in changes]
        if fault == "jump" and command is Command.BETA_PASSED:
            last = len(STEPS)
            return [
                replace(c, after=replace(c.after, state=S.FULL, step=last, threshold=10_000))
                for c in changes
            ]
        return changes

    with pytest.raises(AssertionError, match=message):
        search(2, faulty)


def test_every_state_and_fact_has_a_safe_decision() -> None:
    """Nothing advances while a guardrail is worse, and terminal states rest."""
    for state in S:
        release = Release(id=1, task="t", version=1, cohort=1, steps=STEPS, state=state, step=1)
        for facts in FACTS:
            decision = decide(release, facts)
            if state in TERMINAL:
                assert decision is None
            if facts.verdict is Verdict.WORSE and state in (S.GRAY, S.PAUSED, S.FULL):
                assert decision is not None
                assert decision.command is Command.WORSE
            if decision is not None and decision.command is Command.SAFE:
                assert facts.verdict is Verdict.SAFE
                assert facts.dwelt
                assert facts.enough_devices


def test_a_full_release_that_is_rolled_back_gives_way_to_the_one_before() -> None:
    world: World = tuple(
        Release(id=i, task="t", version=i, cohort=1, steps=STEPS, state=S.SIMULATED, epoch=i)
        for i in (1, 2)
    )

    def do(release: int, command: Command) -> None:
        nonlocal world
        epoch = max(r.epoch for r in world) + 1
        moved = {c.after.id: c.after for c in apply(world, release, command, epoch=epoch)}
        world = tuple(moved.get(r.id, r) for r in world)

    do(1, Command.OVERRIDE)
    do(2, Command.OVERRIDE)
    assert [r.state for r in world] == [S.SUPERSEDED, S.FULL]
    assert [t.version for t in plans(world)[1].base] == [2]
    do(2, Command.ROLLBACK)
    assert world[1].previous == 1
    assert [t.version for t in plans(world)[1].base] == [1]
    assert not plans(world)[2].base


def test_rollback_without_a_previous_version_leaves_the_task_out() -> None:
    world = (Release(id=1, task="t", version=1, cohort=1, steps=STEPS, state=S.FULL,
                     threshold=10_000, step=3, epoch=4),)  # fmt: skip
    assert [t.version for t in plans(world)[1].base] == [1]
    change = apply(world, 1, Command.WORSE, epoch=5)[0]
    assert change.after.previous == 0
    assert plans((change.after,))[1].base == []


def test_a_version_that_one_cohort_rolled_back_is_not_served_by_another() -> None:
    """A device in both cohorts falls back to what was good in the first."""

    def release(number: int, version: int, cohort: int, state: ReleaseState, epoch: int) -> Release:
        return Release(id=number, task="t", version=version, cohort=cohort, steps=STEPS,
                       state=state, threshold=10_000, step=3, epoch=epoch)  # fmt: skip

    world = [
        release(1, 1, 1, S.SUPERSEDED, 1),
        release(2, 2, 1, S.ROLLED_BACK, 3),
        release(3, 2, 2, S.FULL, 2),
    ]
    found = build_plans(
        {1: [1], 2: [2], 3: [1, 2]},
        [ManagedRelease(release=r, policy=POLICY, salt="s") for r in world],
        desired,
    )
    assert [[t.version for t in plan.base] for plan in found] == [[1], [2], [1]]


def test_gray_entries_follow_buckets_and_named_devices_override() -> None:
    world = (
        Release(id=1, task="t", version=1, cohort=1, steps=STEPS, state=S.FULL,
                threshold=10_000, step=3, epoch=1),
        Release(id=2, task="t", version=2, cohort=1, steps=STEPS, state=S.BETA, epoch=2),
    )  # fmt: skip
    plan = plans(world)[1]
    assert [t.version for t in plan.base] == [1]
    assert plan.gray[0].threshold == 0
    assert plan.overrides == {"ab" * 16: 1}
    assert plans(world)[3].overrides == {}  # the named device is in set 1


def test_unknown_and_impossible_commands() -> None:
    world = (Release(id=1, task="t", version=1, cohort=1),)
    with pytest.raises(NotFoundError, match="no release 9"):
        apply(world, 9, Command.START, epoch=1)
    with pytest.raises(ConflictError, match="is draft: cannot resume") as caught:
        apply(world, 1, Command.RESUME, epoch=1)
    assert "paused" in (caught.value.hint or "")


def test_transitions_table_covers_every_command_and_no_terminal_state() -> None:
    assert set(machine._ALLOWED) == set(Command)
    assert not TERMINAL & set().union(*machine._ALLOWED.values())


# -- the policy and its planner ----------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", [2_000, 2_000, 10_000]),
        ("steps", [10_000]),
        ("steps", [2_000, 5_000]),
        ("steps", [0, 10_000]),
        ("alpha", 0),
        ("guardrails", []),
        ("guardrails", [{"name": "a"}, {"name": "a"}]),
        ("guardrails", [{"name": "slow", "kind": "latency"}]),
        ("beta_devices", ["nobody"]),
        ("beta_devices", ["ab" * 16, "ab" * 16]),
        ("max_dwell_s", 1),
        ("unheard_of", 1),
    ],
)
def test_bad_policies_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field.split("_", maxsplit=1)[0]):
        ReleasePolicy.model_validate({field: value})


def test_the_planner_knows_which_fleets_can_be_decided() -> None:
    strict = ReleasePolicy(guardrails=(Guardrail(name="failure", limit=0.01),))
    warnings = strict.feasibility(60)
    assert warnings[0].startswith("cannot leave gray step 1")
    assert "needs 377" in warnings[0]
    demo = ReleasePolicy(
        steps=(2_000, 5_000, 10_000),
        beta_devices=("ab" * 16, "cd" * 16),
        guardrails=(Guardrail(name="failure", limit=0.3),),
        alpha=0.05,
        beta=0.05,
    )
    assert demo.devices_needed(demo.guardrails[0]) == 11
    assert not any(line.startswith("cannot") for line in demo.feasibility(60))
    assert demo.feasibility(60, exposed=[12, 29, 58]) == []
    assert demo.feasibility(60, exposed=[8, 29, 58])[0].startswith("cannot leave gray step 1")
    assert demo.feasibility(0)[0].startswith("cannot start")
    million = ReleasePolicy(guardrails=(Guardrail(name="failure", limit=0.01),))
    assert not any(line.startswith("cannot") for line in million.feasibility(1_000_000))
    versus = ReleasePolicy(rule="versus_control", guardrails=(Guardrail(name="f", margin=0.05),))
    assert any("control" in line or "cannot" in line for line in versus.feasibility(500))
