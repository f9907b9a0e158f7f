"""Pictures of answers: the curve with its proven bound, methods side by side, a seed's reach.

Figures are plain objects on the Agg canvas: nothing global is touched, no window opens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.core.errors import InputError, LimitError
from shoal.core.files import write_bytes
from shoal.influence.counting import distance_labels
from shoal.influence.results import CoverResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_comparison", "draw_curve", "draw_reach", "save_picture"]

#: Colours that stay apart for colour-blind readers (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#6b6b6b"
#: Most nodes of a picture of a reach: more would be a blot.
_MOST_NODES = 400
#: From so many nodes on only seeds and the inner ring carry names.
_FEW_NODES = 40


def draw_curve(result: CoverResult, *, title: str | None = None) -> Figure:
    """Return the share covered by the first 0, 1, ... seeds, with the bound if there is one.

    Raises
    ------
    InputError
        The result has no seeds.
    """
    figure, axes = _canvas(title or f"What {len(result.rows)} seeds cover within {_hops(result)}")
    share = _share(result)
    count = np.arange(len(share))
    axes.fill_between(count, 0, share, color=_COLOURS[0], alpha=0.10, linewidth=0)
    axes.plot(count, share, color=_COLOURS[0], linewidth=2.2)
    axes.plot(count[-1], share[-1], "o", color=_COLOURS[0], markersize=6, clip_on=False)
    text = f"{share[-1]:.2%} covered"
    if result.upper_bound is not None and result.total > 0:
        bound = result.upper_bound / result.total
        axes.axhline(bound, color=_COLOURS[1], linewidth=1.4, linestyle=(0, (5, 3)))
        kind = "proven" if result.bound_kind == "proven" else "statistical"
        axes.annotate(
            f"no choice can cover more than {np.ceil(bound * 1e4) / 100:.2f}% ({kind})",
            (0.01, bound),
            xycoords=("axes fraction", "data"),
            xytext=(0, 5),
            textcoords="offset points",
            color=_COLOURS[1],
        )
        if result.ratio is not None:
            text += f"\nat least {np.floor(result.ratio * 1e4) / 100:.2f}% of the best"
    axes.annotate(
        text,
        (0.97, 0.06),
        xycoords="axes fraction",
        ha="right",
        va="bottom",
        color=_COLOURS[0],
        fontsize=12,
    )
    _finish(axes, len(share) - 1, float(max(share[-1], _bound_share(result))))
    return figure


def draw_comparison(results: Mapping[str, CoverResult], *, title: str | None = None) -> Figure:
    """Return coverage against the number of seeds for several methods on one graph.

    Parameters
    ----------
    results : mapping of label to CoverResult
        Of the same graph and hops.

    Raises
    ------
    InputError
        There are none, or they speak of different totals or hops.
    """
    if not results:
        raise InputError("needs at least one result", field="results")
    first = next(iter(results.values()))
    for name, result in results.items():
        if result.hops != first.hops or result.total != first.total:
            raise InputError(
                "is not comparable: another graph, weights or hops", field="results", value=name
            )
    figure, axes = _canvas(title or f"Coverage within {_hops(first)} by method")
    styles = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1, 2)))
    last = 0
    ends = []
    for place, (name, result) in enumerate(results.items()):
        share = _share(result)
        colour = _COLOURS[place % len(_COLOURS)]
        axes.plot(share, color=colour, linewidth=2, linestyle=styles[place % len(styles)])
        ends.append((float(share[-1]), len(share) - 1, f"{name}  {share[-1]:.1%}", colour))
        last = max(last, len(share) - 1)
    top = max(end[0] for end in ends)
    # Names stand at the curves' ends, moved apart where they would overlap.
    at = np.inf
    for height, _, text, colour in sorted(ends, reverse=True):
        at = min(height, at - 0.055 * top * 1.12)
        axes.annotate(
            text,
            (last, at),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            annotation_clip=False,
        )
    _finish(axes, last, top)
    return figure


def draw_reach(result: CoverResult, node: Any, *, title: str | None = None) -> Figure:
    """Return a node's reach as rings by distance; dark points no other seed covers.

    Raises
    ------
    LimitError
        It reaches more than 400 nodes.
    NotFoundError
        There is no such node.
    """
    graph = result.graph
    row = int(graph.rows([node], field="node")[0])
    label = distance_labels(graph, [row], result.hops)
    ball = np.flatnonzero(label <= result.hops)
    if len(ball) > _MOST_NODES:
        raise LimitError(
            f"reaches {len(ball)} nodes; a picture shows at most {_MOST_NODES}",
            field="node",
            value=node,
        )
    others = result.rows[result.rows != row]
    shared = distance_labels(graph, others, result.hops) <= result.hops
    figure, axes = _canvas(title or f"Whom {node} reaches within {_hops(result)}", size=(7.5, 7.5))
    place = _rings(ball, label)
    for u in ball.tolist():
        for w in graph.out_ids[graph.out_ptr[u] : graph.out_ptr[u + 1]].tolist():
            if label[w] == label[u] + 1 and w in place:
                axes.annotate(
                    "",
                    place[w],
                    place[u],
                    arrowprops={
                        "arrowstyle": "-|>",
                        "color": "#b5b5b5",
                        "linewidth": 0.7,
                        "shrinkA": 5,
                        "shrinkB": 5,
                        "mutation_scale": 7,
                    },
                    zorder=1,
                )
    for mask, colour, text in (
        (~shared[ball], _COLOURS[0], "it alone covers"),
        (shared[ball], "#a9c9de", "other seeds cover too"),
    ):
        spots = np.array([place[u] for u in ball[mask].tolist()]).reshape(-1, 2)
        size = 55 if len(ball) <= _FEW_NODES else 22
        axes.scatter(*spots.T, s=size, color=colour, label=f"{text} ({len(spots)})", zorder=2)
    axes.scatter(0, 0, s=190, color=_COLOURS[1], marker="*", label="the node", zorder=3)
    names = graph.labels(ball)
    for u, name in zip(ball.tolist(), names, strict=True):
        if len(ball) <= _FEW_NODES or u == row:
            # Outwards, off the arrows that come from within.
            away = np.array(place[u]) / max(np.hypot(*place[u]), 1e-9)
            axes.annotate(
                str(name),
                place[u],
                xytext=(0, 14) if u == row else (7 * away[0], 11 * away[1]),
                textcoords="offset points",
                ha="center" if abs(away[0]) < 0.3 else ("left" if away[0] > 0 else "right"),
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
                zorder=4,
            )
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.margins(0.08)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.06), ncols=3, frameon=False)
    return figure


def save_picture(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG or SVG, by the path's ending; the file is whole or absent.

    Raises
    ------
    InputError
        The ending is another.
    """
    ending = Path(path).suffix.lower()
    if ending not in (".png", ".svg"):
        raise InputError("must end in .png or .svg", field="path", value=str(path))
    buffer = BytesIO()
    # No date in the file: the same picture is the same bytes.
    facts = {"Date": None} if ending == ".svg" else {"Software": None}
    figure.savefig(
        buffer, format=ending[1:], dpi=150, metadata=facts, bbox_inches="tight", pad_inches=0.15
    )
    write_bytes(path, buffer.getvalue())


def _canvas(title: str, size: tuple[float, float] = (7.5, 4.4)) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - slow to load
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, pad=12)
    return figure, axes


def _finish(axes: Any, last: int, top: float) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter  # noqa: PLC0415 - as above

    axes.set_xlim(0, max(last, 1))
    axes.set_ylim(0, min(max(top, 1e-9) * 1.12, 1.06))
    axes.set_xlabel("seeds")
    axes.set_ylabel("share covered")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.grid(visible=True, axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)


def _share(result: CoverResult) -> npt.NDArray[np.float64]:
    if not len(result.rows):
        raise InputError("has no seeds", field="result")
    return result.curve() / max(result.total, 1e-300)


def _bound_share(result: CoverResult) -> float:
    if result.upper_bound is None or result.total <= 0:
        return 0.0
    return result.upper_bound / result.total


def _hops(result: CoverResult) -> str:
    return "one hop" if result.hops == 1 else f"{result.hops} hops"


def _rings(
    ball: npt.NDArray[np.int64], label: npt.NDArray[np.int8]
) -> dict[int, tuple[float, float]]:
    """Return where nodes stand: depth t on circle t, evenly, by row."""
    place = {}
    for depth in range(int(label[ball].max()) + 1):
        ring = ball[label[ball] == depth].tolist()
        for turn, u in enumerate(ring):
            angle = 2 * np.pi * (turn + 0.5 * (depth % 2)) / len(ring) + np.pi / 2
            place[u] = (float(depth * np.cos(angle)), float(depth * np.sin(angle)))
    return place
