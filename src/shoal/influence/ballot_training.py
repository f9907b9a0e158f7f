"""Training of the strengths of overlap-aware FastCover: vote as the exact greedy assigns.

The exact greedy is run on the training graphs. Whoever it covers is assigned to the seed
that covered it first; the network learns to make that seed the strongest within d hops.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from shoal.core.errors import InputError
from shoal.core.progress import progress as progress_bar
from shoal.core.seeds import philox
from shoal.core.settings import Settings
from shoal.data.arrayfile import Arrays
from shoal.influence.ballots import FEATURES, BallotNet, features, select
from shoal.influence.counting import FAR, distance_labels
from shoal.influence.cover import max_cover
from shoal.influence.graph import Graph
from shoal.influence.losses import closure_of
from shoal.influence.training import (
    Judge,
    TrainingReport,
    degree_correlation,
    read_checkpoint,
    write_checkpoint,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BallotConfig", "assignment", "train_ballots"]


#: The feature that strengths start from, and by how much its logarithm is multiplied.
_START, _SHARPNESS = 1, 3.0


class BallotConfig(Settings):
    """How the strengths are learned.

    Attributes
    ----------
    hidden : int
        Width of the network's hidden layer.
    learning_rate : float
        Of Adam.
    epochs, steps : int
        Most epochs, and steps in each.
    voters : int
        Nodes drawn in a step.
    seeds : int
        Seeds of the exact greedy that are imitated.
    states : tuple of (int, int)
        What is learned from: numbers of seeds already chosen, and chosen next.
    passes : int
        Of the choice that is judged on the validation graphs.
    sizes : tuple of int
        Numbers of seeds that are judged.
    patience : int
        Epochs without a better ratio before training stops.
    """

    hidden: int = Field(16, ge=1)
    learning_rate: float = Field(1e-2, gt=0)
    epochs: int = Field(40, ge=1)
    steps: int = Field(40, ge=1)
    voters: int = Field(256, ge=1)
    seeds: int = Field(1000, ge=1)
    states: tuple[tuple[int, int], ...] = (
        (0, 1), (0, 3), (0, 10), (0, 100), (0, 1000),
        (3, 3), (5, 8), (15, 20), (30, 60), (60, 100), (120, 200), (300, 300), (500, 500),
    )  # fmt: skip
    passes: int = Field(4, ge=1)
    sizes: tuple[int, ...] = (10, 50, 200, 1000)
    patience: int = Field(40, ge=1)


@dataclass(frozen=True)
class _State:
    """A graph with some seeds chosen: features, and who is to vote for whom."""

    inputs: Tensor
    voters: np.ndarray[Any, np.dtype[np.int64]]
    wanted: np.ndarray[Any, np.dtype[np.int64]]
    ball_ptr: np.ndarray[Any, np.dtype[np.int64]]
    ball_ids: Tensor


class _Strength(nn.Module):  # type: ignore[misc]
    """The network of :class:`~shoal.influence.ballots.BallotNet` with gradients."""

    def __init__(self, hidden: int, inputs: Tensor) -> None:
        super().__init__()
        width = len(FEATURES)
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", inputs.std(0).clamp_min(1e-3))
        # It starts as the best ranking known without learning (lane 1), and learns to depart.
        self.linear = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.linear[_START] = self.scale[_START] * _SHARPNESS
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Parameter(torch.randn(hidden) * 0.01)

    def forward(self, inputs: Tensor) -> Tensor:
        x = (inputs - self.mean) / self.scale
        strength: Tensor = x @ self.linear + torch.relu(self.hidden(x)) @ self.output
        return strength


def assignment(
    graph: Graph, rows: np.ndarray[Any, np.dtype[np.int64]], hops: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return for each node the place in ``rows`` of the first seed within ``hops``, or -1."""
    first = np.full(graph.n, -1, dtype=np.int64)
    for place, row in enumerate(rows.tolist()):
        near = distance_labels(graph, [row], hops) <= hops
        first[near & (first < 0)] = place
    return first


def _states(graph: Graph, hops: int, config: BallotConfig, device: str) -> list[_State]:
    k = min(config.seeds, graph.n)
    rows = max_cover(graph, k, hops, method="exact").rows
    first = assignment(graph, rows, hops)
    closure = closure_of(graph, hops)
    counts = np.bincount(closure.influenced.numpy(), minlength=graph.n)
    ptr = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    ids = closure.influencer.to(device).long()
    states = []
    for size, batch in config.states:
        voters = np.flatnonzero((first >= size) & (first < size + batch))
        if len(voters):
            labels = distance_labels(graph, rows[:size], hops)
            inputs = torch.from_numpy(features(graph, labels, hops, batch)).to(device)
            states.append(_State(inputs, voters, rows[first[voters]], ptr, ids))
    return states


def _ballot_loss(
    net: _Strength, state: _State, drawn: np.ndarray[Any, np.dtype[np.int64]]
) -> Tensor:
    """Return the mean of -log softmax over each voter's ball, at the seed that it is to name."""
    device = state.inputs.device
    voters = state.voters[drawn]
    starts, counts = state.ball_ptr[voters], np.diff(state.ball_ptr)[voters]
    owner = np.repeat(np.arange(len(voters)), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    pairs = torch.from_numpy(np.repeat(starts, counts) + offset).to(device)
    group = torch.from_numpy(owner).to(device)
    strength = net(state.inputs)
    logits = strength[state.ball_ids[pairs]]
    top = logits.new_zeros(len(voters)).scatter_reduce(
        0, group, logits.detach(), "amax", include_self=False
    )
    total = torch.zeros_like(top).index_add(0, group, torch.exp(logits - top[group]))
    wanted = strength[torch.from_numpy(state.wanted[drawn]).to(device)]
    return (torch.log(total) + top - wanted).mean()


def train_ballots(
    graphs: Sequence[Graph],
    validation: Sequence[Graph],
    hops: int,
    *,
    config: BallotConfig,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    start: Arrays | None = None,
) -> tuple[Arrays, TrainingReport]:
    """Return the best weights and what happened.

    Parameters and checkpoints as in :func:`~shoal.influence.training.train_grat`.

    Raises
    ------
    InputError
        A loss is not finite, or the checkpoint is of another training.
    """
    states = [_states(graph, hops, config, device) for graph in graphs]
    states = [some for some in states if some]
    if not states:
        raise InputError("have nothing to learn from", field="graphs")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        every = torch.cat([state.inputs.cpu() for some in states for state in some])
        net = _Strength(config.hidden, every).to(device)
    if start is not None:
        net.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in start.items()})
    optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    report, best = TrainingReport(), _arrays(net)
    sizes = [[graph.n, graph.m] for graph in (*graphs, *validation)]
    about = {"hops": hops, "seed": seed, "config": config.model_dump(mode="json"), "graphs": sizes}
    if checkpoint is not None and Path(checkpoint).exists():
        best = _resume(Path(checkpoint), about, net, optimizer, report)
    judge = Judge(validation, hops, config.sizes)
    if not report.losses:
        report.start_ratio = _judged(best, judge, config)
        report.degree_correlation = _with_degree(best, validation, hops)
    with progress_bar(f"FastCover d={hops}", config.epochs if progress else None) as bar:
        bar.advance(len(report.losses))
        while len(report.losses) < config.epochs:
            share = len(report.losses) / config.epochs
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * share)) / 2
            if len(report.losses) - report.best_epoch >= config.patience:
                report.stopped = "patience"
                break
            # By epoch, so that a training that goes on draws what it would have drawn.
            rng = philox(seed, "influence", "ballots", len(report.losses))
            report.losses.append(_epoch(net, optimizer, states, config, rng))
            arrays = _arrays(net)
            report.ratios.append(_judged(arrays, judge, config))
            if report.ratios[-1] > max(report.best_ratio, report.start_ratio):
                report.best_epoch, best = len(report.losses), arrays
                report.degree_correlation = _with_degree(arrays, validation, hops)
            if checkpoint is not None:
                _keep(Path(checkpoint), about, net, optimizer, (best, report))
            bar.advance()
            bar.say(f"FastCover d={hops}: ratio {report.ratios[-1]:.4f}")
    return best, report


def _epoch(
    net: _Strength,
    optimizer: Any,
    states: list[list[_State]],
    config: BallotConfig,
    rng: np.random.Generator,
) -> float:
    total = 0.0
    for _ in range(config.steps):
        some = states[int(rng.integers(len(states)))]
        state = some[int(rng.integers(len(some)))]
        drawn = rng.permutation(len(state.voters))[: config.voters]
        optimizer.zero_grad()
        loss = _ballot_loss(net, state, drawn)
        if not torch.isfinite(loss):
            raise InputError("the loss is no longer finite", field="learning_rate")
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
    return total / config.steps


def _arrays(net: _Strength) -> Arrays:
    return {n: t.detach().cpu().numpy().copy() for n, t in net.state_dict().items()}


def _with_degree(arrays: Arrays, graphs: Sequence[Graph], hops: int) -> float:
    """Return the lowest rank correlation of the first strengths with the out-degrees."""
    found = []
    for graph in graphs:
        labels = np.full(graph.n, FAR, dtype=np.int8)
        strengths = BallotNet(arrays).strengths(features(graph, labels, hops, 1))
        found.append(degree_correlation(np.asarray(strengths, dtype=np.float64), graph))
    return min(found)


def _judged(arrays: Arrays, judge: Judge, config: BallotConfig) -> float:
    """Return the mean ratio; each size is a choice of its own, as the passes depend on k."""
    net, ratios = BallotNet(arrays), []
    for place, graph in enumerate(judge.graphs):
        for at, k in enumerate(judge.sizes[place]):
            rows = select(graph, k, judge.hops, net, passes=config.passes)
            ratios.append(judge.ratios(place, rows)[at])
    return float(np.mean(ratios))


def _keep(
    path: Path,
    about: dict[str, Any],
    net: _Strength,
    optimizer: Any,
    result: tuple[Arrays, TrainingReport],
) -> None:
    best, report = result
    arrays = {f"best.{n}": a for n, a in best.items()}
    arrays |= {f"now.{n}": a for n, a in _arrays(net).items()}
    for place, moments in optimizer.state_dict()["state"].items():
        arrays |= {f"adam.{place}.{n}": t.cpu().numpy().copy() for n, t in moments.items()}
    write_checkpoint(path, arrays, about, asdict(report))


def _resume(
    path: Path, about: dict[str, Any], net: _Strength, optimizer: Any, report: TrainingReport
) -> Arrays:
    arrays, state = read_checkpoint(path, about)
    for name, value in state.items():
        setattr(report, name, value)
    parts: dict[str, Arrays] = {"best": {}, "now": {}, "adam": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = array
    net.load_state_dict({n: torch.from_numpy(a) for n, a in parts["now"].items()})
    moments: dict[int, dict[str, Tensor]] = {}
    for name, array in parts["adam"].items():
        place, _, rest = name.partition(".")
        moments.setdefault(int(place), {})[rest] = torch.from_numpy(array)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return parts["best"]
