"""What users would pick instead: NetworKit, the published code's own style, pynetim.

Each returns its seeds alone; coverage and spread are counted by our checker and by
one estimator for all.
"""

from __future__ import annotations

import heapq
import importlib.util
from typing import Any

import numpy as np

from shoal.influence import Graph


def has(name: str) -> bool:
    """Say whether a peer is installed; if not, say that it is left out."""
    found = importlib.util.find_spec(name) is not None
    if not found:
        print(f"left out: {name} is not installed (pip install shoal[bench])", flush=True)
    return found


def networkit_graph(graph: Graph) -> Any:
    """Return the graph in NetworKit's form."""
    import networkit as nk

    nk.setNumberOfThreads(1)
    sources = np.repeat(np.arange(graph.n, dtype=np.uint64), graph.out_degrees())
    made = nk.GraphFromCoo(
        (np.ones(graph.m), (sources, graph.out_ids.astype(np.uint64))),
        n=graph.n,
        weighted=False,
        directed=True,
    )
    return made


def group_degree(made: Any, k: int) -> np.ndarray:
    """Return NetworKit's group of greatest degree (out-neighbours, the group counted)."""
    import networkit as nk

    run = nk.centrality.GroupDegree(made, k, True)
    run.run()
    return np.array(run.groupMaxDegree(), dtype=np.int64)


def closure_greedy(adjacency: list[list[int]], k: int, hops: int) -> list[int]:
    """Choose as the published baseline does: all balls by a search in Python, then a heap.

    Plain lists and sets, a lazy greedy over marginal set sizes (Minoux).
    """
    balls = []
    for node in range(len(adjacency)):
        ball, front = {node}, [node]
        for _ in range(hops):
            following = []
            for u in front:
                for v in adjacency[u]:
                    if v not in ball:
                        ball.add(v)
                        following.append(v)
            front = following
        balls.append(ball)
    heap = [(-len(ball), node, 0) for node, ball in enumerate(balls)]
    heapq.heapify(heap)
    chosen: list[int] = []
    reached: set[int] = set()
    while heap and len(chosen) < k:
        _, node, turn = heapq.heappop(heap)
        if turn == len(chosen):
            chosen.append(node)
            reached |= balls[node]
            continue
        left = len(balls[node] - reached)
        if left:
            heapq.heappush(heap, (-left, node, len(chosen)))
    return chosen


def adjacency_lists(graph: Graph) -> list[list[int]]:
    """Return the out-neighbours as lists, which the closure starts from."""
    ids = graph.out_ids.tolist()
    ptr = graph.out_ptr.tolist()
    return [ids[ptr[v] : ptr[v + 1]] for v in range(graph.n)]


def pynetim_graph(graph: Graph) -> Any:
    """Return the graph in pynetim's form, with weighted cascade's probabilities."""
    from pynetim import IMGraph

    sources = np.repeat(np.arange(graph.n), graph.out_degrees())
    chance = 1.0 / graph.in_degrees()[graph.out_ids]
    arcs = list(zip(sources.tolist(), graph.out_ids.tolist(), strict=True))
    return IMGraph(arcs, weights=chance.tolist(), directed=True, renumber=False)


def pynetim_seeds(made: Any, k: int, method: str, eps: float, seed: int) -> list[int]:
    """Return pynetim's seeds under independent cascade."""
    from pynetim.algorithms import IMMAlgorithm, OPIMCAlgorithm

    if method == "imm":
        return sorted(IMMAlgorithm(made, "IC", epsilon=eps, random_seed=seed).run(k))
    return sorted(OPIMCAlgorithm(made, "IC", random_seed=seed).run(k, eps))
