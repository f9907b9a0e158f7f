"""Training of GRAT as the official code of FastCover does it, able to stop and go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from shoal.core.errors import InputError, IntegrityError
from shoal.core.progress import progress as progress_bar
from shoal.core.settings import Settings
from shoal.data.arrayfile import Arrays, read_arrays, write_arrays
from shoal.influence.counting import distance_labels
from shoal.influence.cover import max_cover
from shoal.influence.graph import Graph
from shoal.influence.grat import GRAT, Arcs, arcs_of
from shoal.influence.losses import Closure, closure_of, cover_loss

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "GRATConfig",
    "Judge",
    "TrainingReport",
    "degree_correlation",
    "read_checkpoint",
    "top_rows",
    "train_grat",
    "write_checkpoint",
]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


class GRATConfig(Settings):
    """How GRAT is built and trained; the defaults are the official code's.

    Attributes
    ----------
    layers, hidden, variant
        Of :class:`~shoal.influence.grat.GRAT`.
    learning_rate : float
        Of plain gradient descent.
    epochs, steps : int
        Most epochs, and steps on each graph in each.
    patience : int
        Epochs without a better ratio before training stops.
    size_weight : float
        C of the loss.
    top : int
        Seeds of the ratio: coverage of the best ``top`` over that of the exact greedy.
    """

    layers: int = Field(3, ge=2, le=4)
    hidden: int = Field(32, ge=1)
    variant: str = "GRAT"
    learning_rate: float = Field(5e-4, gt=0)
    epochs: int = Field(50, ge=1)
    steps: int = Field(2, ge=1)
    patience: int = Field(5, ge=1)
    size_weight: float = Field(1.0, ge=0)
    top: int = Field(32, ge=1)


@dataclass
class TrainingReport:
    """What happened in training.

    Attributes
    ----------
    losses : list of float
        Mean loss a node, by epoch.
    ratios : list of float
        Mean ratio to the exact greedy on the validation graphs, by epoch.
    start_ratio : float
        Of the weights before training, where these are a ranking already.
    best_epoch : int
        Counted from 1; its weights are kept. 0: those before training.
    degree_correlation : float
        Lowest correlation of the scores' ranks with those of the out-degrees over the
        validation graphs. Below zero the ranking is upside down.
    stopped : str
        "epochs" or "patience".
    """

    losses: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    start_ratio: float = 0.0
    best_epoch: int = 0
    degree_correlation: float = 0.0
    stopped: str = "epochs"

    @property
    def best_ratio(self) -> float:
        """Ratio of the epoch that was kept."""
        return self.ratios[self.best_epoch - 1] if self.best_epoch else self.start_ratio


def top_rows(scores: Floats, k: int) -> Rows:
    """Return the rows of the ``k`` largest scores, ties by row, int64."""
    return np.lexsort((np.arange(len(scores)), -scores))[:k].astype(np.int64)


class Judge:
    """Holds choices against the exact greedy on validation graphs.

    Parameters
    ----------
    graphs : sequence of Graph
    hops : int
    sizes : sequence of int
        Numbers of seeds; those above a graph's nodes are cut.
    """

    def __init__(self, graphs: Sequence[Graph], hops: int, sizes: Sequence[int]) -> None:
        self.graphs, self.hops = list(graphs), hops
        self.sizes = [sorted({min(k, graph.n) for k in sizes}) for graph in self.graphs]
        self._greedy: list[list[float]] = []
        for graph, ks in zip(self.graphs, self.sizes, strict=True):
            curve = np.cumsum(max_cover(graph, ks[-1], hops, method="exact").gains)
            self._greedy.append([float(curve[min(k, len(curve)) - 1]) for k in ks])

    def ratios(self, place: int, rows: Rows) -> list[float]:
        """Return coverage over greedy's of the first k of ``rows``, for each size."""
        graph = self.graphs[place]
        shares = []
        for k, best in zip(self.sizes[place], self._greedy[place], strict=True):
            labels = distance_labels(graph, rows[:k], self.hops)
            shares.append(int(np.count_nonzero(labels <= self.hops)) / best)
        return shares


def degree_correlation(scores: Floats, graph: Graph) -> float:
    """Return the rank correlation (Spearman) of scores with out-degrees, 0 if one is constant."""
    ranks = []
    for values in (scores, graph.out_degrees().astype(np.float64)):
        unique, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(unique) < 2:
            return 0.0
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def train_grat(
    graphs: Sequence[Graph],
    validation: Sequence[Graph],
    hops: int,
    *,
    config: GRATConfig,
    seed: int,
    device: str = "cpu",
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    start: Arrays | None = None,
    network: Callable[[], Any] | None = None,
) -> tuple[Arrays, TrainingReport]:
    """Return the best weights and what happened.

    Gradient descent on :func:`~shoal.influence.losses.cover_loss`, each graph in turn,
    ``config.steps`` steps a graph and epoch. d enters through the closure of the loss
    alone. The same seed gives the same bits on one machine's cpu.

    Parameters
    ----------
    graphs, validation : sequence of Graph
    hops : int
        d.
    config : GRATConfig
    seed : int
        Of the first weights; nothing else is drawn.
    device : str
    progress : bool
        Show a bar on a terminal.
    checkpoint : path, optional
        Written after each epoch, and read first if it is there: training goes on
        where it was interrupted.
    start : dict of arrays, optional
        First weights, instead of drawn ones.
    network : callable, optional
        Makes another network to train in the same way, called with arcs like GRAT.

    Raises
    ------
    InputError
        A loss is not finite, or the checkpoint is of another training.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = (
            GRAT(config.layers, config.hidden, variant=config.variant)
            if (network is None)
            else network()
        )
        net.to(device)
    if start is not None:
        net.load_state_dict({n: torch.from_numpy(np.array(a)) for n, a in start.items()})
    optimizer = torch.optim.SGD(net.parameters(), lr=config.learning_rate)
    report = TrainingReport()
    best = _weights(net)
    sizes = [[graph.n, graph.m] for graph in (*graphs, *validation)]
    about = {"hops": hops, "seed": seed, "config": config.model_dump(), "graphs": sizes}
    if checkpoint is not None and Path(checkpoint).exists():
        arrays, state = read_checkpoint(Path(checkpoint), about)
        net.load_state_dict({n: torch.from_numpy(a) for n, a in _below(arrays, "now").items()})
        best, report = _below(arrays, "best"), TrainingReport(**state)
    inputs = [(arcs_of(g, device=device), closure_of(g, hops, device=device)) for g in graphs]
    judge = Judge(validation, hops, [config.top])
    watched = [arcs_of(graph, device=device) for graph in validation]
    with progress_bar(f"FastCover d={hops}", config.epochs if progress else None) as bar:
        bar.advance(len(report.losses))
        while len(report.losses) < config.epochs:
            if len(report.losses) - report.best_epoch >= config.patience and report.best_epoch:
                report.stopped = "patience"
                break
            loss = _epoch(net, optimizer, inputs, config)
            scored = [_scores(net, arcs) for arcs in watched]
            report.losses.append(loss)
            report.ratios.append(
                float(
                    np.mean(
                        [judge.ratios(i, top_rows(s, config.top))[0] for i, s in enumerate(scored)]
                    )
                )
            )
            if report.best_epoch == 0 or report.ratios[-1] > report.best_ratio:
                report.best_epoch, best = len(report.losses), _weights(net)
                report.degree_correlation = min(
                    degree_correlation(s, g) for s, g in zip(scored, validation, strict=True)
                )
            if checkpoint is not None:
                arrays = {f"best.{n}": a for n, a in best.items()}
                arrays |= {f"now.{n}": a for n, a in _weights(net).items()}
                write_checkpoint(Path(checkpoint), arrays, about, asdict(report))
            bar.advance()
            bar.say(f"FastCover d={hops}: ratio {report.ratios[-1]:.3f}")
    return best, report


def _epoch(
    net: Any, optimizer: Any, inputs: list[tuple[Arcs, Closure]], config: GRATConfig
) -> float:
    total, nodes = 0.0, 0
    for arcs, closure in inputs:
        for _ in range(config.steps):
            optimizer.zero_grad()
            loss: Tensor = cover_loss(net(arcs), closure, size_weight=config.size_weight)
            if not torch.isfinite(loss):
                raise InputError("the loss is no longer finite", field="learning_rate")
            loss.backward()
            optimizer.step()
        total += float(loss.detach())
        nodes += arcs.n
    return total / max(nodes, 1)


def _scores(net: Any, arcs: Arcs) -> Floats:
    with torch.no_grad():
        return np.asarray(net(arcs).cpu().numpy(), dtype=np.float64)


def _weights(net: Any) -> Arrays:
    return {n: t.detach().cpu().numpy().copy() for n, t in net.state_dict().items()}


def _below(arrays: Arrays, prefix: str) -> Arrays:
    return {n.partition(".")[2]: a for n, a in arrays.items() if n.startswith(prefix + ".")}


def write_checkpoint(
    path: Path, arrays: Arrays, about: dict[str, Any], state: dict[str, Any]
) -> None:
    """Write a training's state: arrays as safetensors, the rest as JSON in one of them."""
    text = json.dumps({"about": about, "state": state}).encode()
    packed = {**arrays, "json": np.frombuffer(text, dtype=np.uint8)}
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    write_arrays(draft, packed)
    draft.replace(path)


def read_checkpoint(path: Path, about: dict[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays and the state of a checkpoint of this very training.

    Raises
    ------
    InputError
        It belongs to another training.
    IntegrityError
        It is damaged.
    """
    arrays = {name: np.array(array) for name, array in read_arrays(path, mmap=False).items()}
    try:
        found = msgspec.json.decode(arrays.pop("json").tobytes())
        state: dict[str, Any] = found["state"]
        same = found["about"] == json.loads(json.dumps(about))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is no checkpoint: {error}") from None
    if not same:
        raise InputError(
            "is the checkpoint of another training",
            field="checkpoint",
            value=str(path),
            hint="name another file, or delete it to start anew",
        )
    return arrays, state
