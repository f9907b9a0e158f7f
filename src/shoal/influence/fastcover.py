"""FastCover: a learned network scores every node, and the best k are the seeds."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, IntegrityError, NotFoundError, UnavailableError
from shoal.core.files import sha256_file, write_text
from shoal.data.arrayfile import ArrayFile, Arrays, read_arrays, write_arrays
from shoal.influence import ballots
from shoal.influence.counting import FAR
from shoal.influence.fused import forward, layer_count
from shoal.influence.graph import Graph
from shoal.influence.problem import MAX_HOPS

__all__ = ["BUNDLED_HOPS", "BUNDLED_SEEDS", "FORMS", "FastCover"]

#: "paper": GRAT as published. "improved": learned strengths, votes over d hops, and the
#: overlap discounted between passes (:mod:`shoal.influence.ballots`).
FORMS = ("paper", "improved")

#: Weights come with the package for these.
BUNDLED_HOPS = (1, 2, 3)

#: Seeds of the paper form's bundled models; the first one is used unless another is named.
BUNDLED_SEEDS = (42, 43, 44)

#: Version of the files that :meth:`FastCover.save` writes.
SCHEMA = 1

#: The improved form's scores are those of a choice of this many, as in the paper's check.
_SCORED_BATCH = 32

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.uint8]


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    form: str
    hops: int
    seed: int
    weights: ArrayFile
    config: dict[str, Any]
    training: dict[str, Any]


class FastCover:
    """Choose seeds by a network that learned, without labels or from greedy, who covers much.

    Ni, Li, Li, Gao and Chen, "FastCover: An Unsupervised Learning Framework for
    Multi-Hop Influence Maximization in Social Networks", arXiv 2111.00463. Scoring needs
    no torch; training does.

    * ``form="paper"``: GRAT of three layers, trained by the paper's loss; one forward pass
      and the k best, so the choice for k is a prefix of that for more.
    * ``form="improved"``: ours. What is learned is a strength of each node, in imitation
      of the exact greedy; uncovered nodes vote for the strongest within d hops, and what
      the chosen cover is discounted between passes. A choice for k is not a prefix.

    Either is a heuristic: :func:`~shoal.influence.cover.max_cover` is better and, at one
    hop, also cheaper where the whole graph is at hand.

    Parameters
    ----------
    hops : int
        d, 1 to 126; a model is of one d.
    form : "paper" or "improved"
    seed : int
        Of the first weights, and of what the improved form draws in training.
    config : GRATConfig or BallotConfig, optional
        How to train; see :mod:`~shoal.influence.training` and
        :mod:`~shoal.influence.ballot_training`.

    Attributes
    ----------
    weights : dict of float32 arrays, or None before training
    training : dict
        How the weights came about: epochs, ratios, graphs.
    """

    def __init__(
        self, hops: int = 1, *, form: str = "paper", seed: int = 42, config: Any = None
    ) -> None:
        if isinstance(hops, bool) or not isinstance(hops, int | np.integer):
            raise InputError("must be a whole number", field="hops", value=hops)
        if not 1 <= hops <= MAX_HOPS:
            raise InputError(f"must be 1 to {MAX_HOPS}", field="hops", value=hops)
        if form not in FORMS:
            raise InputError(f"must be one of {', '.join(FORMS)}", field="form", value=form)
        self.hops, self.form, self.seed = int(hops), form, int(seed)
        self.config = config
        self.weights: Arrays | None = None
        self.training: dict[str, Any] = {}
        self._config_values: dict[str, Any] = {}

    def __repr__(self) -> str:
        state = "not trained" if self.weights is None else "trained"
        return f"<FastCover {self.form}, hops={self.hops}, {state}>"

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        graphs: Sequence[Graph],
        *,
        validation: Sequence[Graph] | None = None,
        epochs: int | None = None,
        device: str = "cpu",
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        start: FastCover | None = None,
    ) -> FastCover:
        """Train on graphs; heavy-tailed ones teach more than uniform random ones.

        Parameters
        ----------
        graphs : sequence of Graph
            Their closure over d hops must fit in memory.
        validation : sequence of Graph, optional
            The best epoch is chosen on these; on ``graphs`` if there are none.
        epochs : int, optional
            At most; the configuration's number without it.
        device : str
            As torch names it.
        progress : bool
            Show a bar on a terminal.
        checkpoint : path, optional
            A file that is written after each epoch; training goes on from it.
        start : FastCover, optional
            A trained model of the same form and size, of any number of hops, whose
            weights are the first ones.

        Raises
        ------
        UnavailableError
            torch is not installed, or has no such device here.
        InputError
            There are no graphs, or one has no arc.
        """
        _check_graphs(graphs, "graphs")
        watched = graphs if validation is None else validation
        _check_graphs(watched, "validation")
        first = None if start is None else start._trained()
        if start is not None and start.form != self.form:
            raise InputError("is of another form", field="start", value=start.form)
        _torch_on(device)
        if self.form == "paper":
            module: Any = importlib.import_module("shoal.influence.training")
            kind, train = module.GRATConfig, module.train_grat
        else:
            module = importlib.import_module("shoal.influence.ballot_training")
            kind, train = module.BallotConfig, module.train_ballots
        config = kind() if self.config is None else self.config
        if not isinstance(config, kind):
            raise InputError(f"must be a {kind.__name__} for this form", field="config")
        if epochs is not None:
            config = kind(**{**config.model_dump(), "epochs": epochs})
        weights, report = train(
            graphs,
            watched,
            self.hops,
            config=config,
            seed=self.seed,
            device=device,
            progress=progress,
            checkpoint=checkpoint,
            start=first,
        )
        if report.degree_correlation < 0:
            warnings.warn(
                f"the scores rank against the degrees ({report.degree_correlation:.2f}): train "
                "on graphs with hubs, or with more patience",
                RuntimeWarning,
                stacklevel=2,
            )
        self.weights = weights
        self._config_values = config.model_dump(mode="json")
        self.training = {
            "epochs": len(report.losses),
            "start_ratio": round(report.start_ratio, 5),
            "best_epoch": report.best_epoch,
            "ratios": [round(ratio, 5) for ratio in report.ratios],
            "degree_correlation": round(report.degree_correlation, 4),
            "stopped": report.stopped,
        }
        return self

    # --- using --------------------------------------------------------------------------------

    def score(self, graph: Graph, *, fused: bool = True, device: str | None = None) -> Floats:
        """Return a score of each node, float64 [n]; higher is better.

        Parameters
        ----------
        graph : Graph
        fused : bool
            False: run the paper form's network layer by layer in torch, to compare.
        device : str, optional
            Run it in torch there.

        Returns
        -------
        float64 [n]
            Paper form: the logit. Improved form: the votes of the first pass, plus a
            number below 1 that ranks nodes of equal votes by strength.

        Raises
        ------
        InputError
            A score is not finite; the row is named.
        """
        weights = self._trained()
        scores: npt.NDArray[Any]
        if self.form == "improved":
            net = ballots.BallotNet(weights)
            labels = np.full(graph.n, FAR, dtype=np.int8)
            strength = net.strengths(
                ballots.features(graph, labels, self.hops, min(_SCORED_BATCH, graph.n))
            )
            votes = ballots.cast_votes(graph, labels, self.hops, strength)
            scores = votes + 0.5 + 0.499 * strength / (1.0 + np.abs(strength))
        elif fused and device is None:
            scores = forward(weights, graph)
        else:
            scores = _torch_scores(weights, graph, device or "cpu")
        return _finite(np.asarray(scores, dtype=np.float64))

    def select(
        self, graph: Graph, k: int, *, allowed: npt.ArrayLike | None = None, passes: int = 4
    ) -> Rows:
        """Return up to ``k`` rows, best first, int64.

        Parameters
        ----------
        graph : Graph
        k : int
            1 to n.
        allowed : array-like [n], optional
            Non-zero where a node may be chosen; there may be fewer than ``k``.
        passes : int
            Of the improved form; the paper's has one.

        Raises
        ------
        InputError
            ``k`` is out of range, ``allowed`` has another length, or a score is not finite.
        """
        weights = self._trained()
        if isinstance(k, bool) or not isinstance(k, int | np.integer):
            raise InputError("must be a whole number", field="k", value=k)
        if not 1 <= k <= graph.n:
            raise InputError(f"must be 1 to {graph.n}, the number of nodes", field="k", value=k)
        if passes < 1:
            raise InputError("must be at least 1", field="passes", value=passes)
        mask: Mask | None = None
        if allowed is not None:
            mask = (np.asarray(allowed) != 0).astype(np.uint8)
            if mask.shape != (graph.n,):
                raise InputError(
                    f"must be one flag for each of {graph.n} nodes",
                    field="allowed",
                    value=mask.shape,
                )
        if self.form == "improved":
            net = ballots.BallotNet(weights)
            return ballots.select(graph, int(k), self.hops, net, passes=passes, allowed=mask)
        scores = self.score(graph)
        rows = np.arange(graph.n) if mask is None else np.flatnonzero(mask)
        return rows[np.lexsort((rows, -scores[rows]))[:k]].astype(np.int64)

    def _trained(self) -> Arrays:
        if self.weights is None:
            raise InputError(
                "is not trained", field="FastCover", hint="call fit(), or use FastCover.bundled()"
            )
        return self.weights

    # --- keeping ------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a folder: ``weights.safetensors`` and ``manifest.json``."""
        weights = self._trained()
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        draft = folder / "weights.new"
        draft.unlink(missing_ok=True)
        known = write_arrays(draft, weights)
        manifest = _Manifest(
            SCHEMA, self.form, self.hops, self.seed, known, self._config_values, self.training
        )
        draft.replace(folder / "weights.safetensors")
        text = json.dumps(msgspec.to_builtins(manifest), indent=1) + "\n"
        write_text(folder / "manifest.json", text)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FastCover:
        """Return the model of a folder; nothing in it is run.

        Raises
        ------
        NotFoundError
            There is no model.
        IntegrityError
            A file was altered, or is of a version that this one does not read.
        """
        folder = Path(path)
        try:
            text = (folder / "manifest.json").read_bytes()
            manifest = msgspec.json.decode(text, type=_Manifest)
        except FileNotFoundError:
            raise NotFoundError(f"{folder} holds no model: manifest.json is missing") from None
        except msgspec.DecodeError as error:
            raise IntegrityError(f"{folder / 'manifest.json'} is damaged: {error}") from None
        if manifest.schema != SCHEMA:
            raise IntegrityError(f"{folder} has version {manifest.schema}; {SCHEMA} is read")
        file = folder / "weights.safetensors"
        if not file.exists():
            raise NotFoundError(f"{folder} holds no model: weights.safetensors is missing")
        if sha256_file(file).hex() != manifest.weights.sha256:
            raise IntegrityError(f"{file} was altered: it has another checksum")
        model = cls(manifest.hops, form=manifest.form, seed=manifest.seed)
        model.weights = {
            name: np.array(array)
            for name, array in read_arrays(file, manifest.weights, mmap=False).items()
        }
        model.training, model._config_values = manifest.training, manifest.config
        return model

    @classmethod
    def bundled(cls, hops: int, form: str = "paper", *, seed: int | None = None) -> FastCover:
        """Return a model that comes with the package, trained on four social networks.

        Parameters
        ----------
        hops : int
            1 to 3.
        form : "paper" or "improved"
        seed : int, optional
            One of :meth:`bundled_seeds`, which differ in their first weights; the
            improved form has the first of them alone.

        Raises
        ------
        InputError
            There is none for this form or number of hops.
        """
        if form not in FORMS:
            raise InputError(f"must be one of {', '.join(FORMS)}", field="form", value=form)
        if hops not in BUNDLED_HOPS:
            raise InputError(
                "trained weights come for 1 to 3 hops",
                field="hops",
                value=hops,
                hint="train your own with FastCover(hops).fit(graphs), or use another method",
            )
        seeds = cls.bundled_seeds(form)
        chosen = seeds[0] if seed is None else seed
        if chosen not in seeds:
            raise InputError(f"must be one of {seeds}", field="seed", value=seed)
        return cls.load(Path(__file__).parent / "weights" / f"{form}-{hops}-seed{chosen}")

    @classmethod
    def bundled_seeds(cls, form: str = "paper") -> tuple[int, ...]:
        """Return the seeds of the models that come with the package."""
        return BUNDLED_SEEDS if form == "paper" else BUNDLED_SEEDS[:1]


def _check_graphs(graphs: Sequence[Graph], field: str) -> None:
    if isinstance(graphs, Graph) or not len(graphs):
        raise InputError("must be a sequence of at least one graph", field=field)
    for place, graph in enumerate(graphs, 1):
        if not isinstance(graph, Graph):
            raise InputError(
                "is no shoal.influence.Graph", field=field, value=type(graph).__name__, row=place
            )
        if graph.m == 0:
            raise InputError("has no arc to learn from", field=field, row=place)


def _finite(scores: Floats) -> Floats:
    """Sorting puts what is no number first or last without a word; such a net is refused."""
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"{len(wrong)} of {len(scores)} scores are not finite",
            field="weights",
            value=float(scores[row]),
            row=row + 1,
            hint="the weights are damaged, or were trained with too high a learning rate",
        )
    return scores


def _torch_on(device: str) -> Any:
    """Return torch once it has shown that it can compute on the device."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise UnavailableError(
            f"FastCover's network needs torch: {error}", hint="install shoal[influence,torch]"
        ) from error
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UnavailableError(f"torch cannot use the device {device!r}: {reason}") from error
    return torch


def _torch_scores(weights: Arrays, graph: Graph, device: str) -> npt.NDArray[Any]:
    torch = _torch_on(device)
    grat: Any = importlib.import_module("shoal.influence.grat")
    variant = "GRAT" if "layers.0.linear.bias" in weights else "GRATV"
    hidden = weights["layers.0.linear.weight"].shape[1]
    net = grat.GRAT(layer_count(weights), hidden, variant=variant)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        scores = net.to(device)(grat.arcs_of(graph, device=device))
    return np.asarray(scores.cpu().numpy())
