"""The cloud's part: train two small networks on earlier weeks and write them as ONNX."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import onnx
import polars as pl
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier

from shoal.core.errors import InputError
from shoal.core.seeds import derive_seed
from shoal.tasks.departure_delay.features import SCHEDULE_COLUMNS, STREAM_COLUMNS, matrix

__all__ = ["TrainedModels", "auc", "network_to_onnx", "train"]

_HIDDEN = (32, 16)


@dataclass(frozen=True)
class TrainedModels:
    """Two ONNX files and the rows they were trained on.

    Attributes
    ----------
    stream, schedule : bytes
        ONNX models with input ``x`` (n, features) and output ``p`` (n, 1), float32.
    rows : int
        Departures they were trained on.
    before_week : int
        Only weeks below this one were used.
    """

    stream: bytes
    schedule: bytes
    rows: int
    before_week: int


def auc(labels: NDArray[np.int8], scores: NDArray[np.float32]) -> float:
    """Return the area under the ROC curve.

    Raises
    ------
    InputError
        Only one class is present, so that the area is undefined.
    """
    if np.unique(labels).size < 2:
        raise InputError("AUC is undefined: only one class is present", field="labels")
    return float(roc_auc_score(labels, scores))


def network_to_onnx(
    weights: list[NDArray[np.float64]], biases: list[NDArray[np.float64]], name: str
) -> bytes:
    """Write a ReLU network with a logistic output as an ONNX model.

    Parameters
    ----------
    weights : list of ndarray
        One (inputs, outputs) matrix a layer.
    biases : list of ndarray
        One (outputs,) vector a layer.
    name : str
        Name of the graph.

    Returns
    -------
    bytes
        A model with input ``x`` and output ``p``, checked by ``onnx.checker``.
    """
    nodes, constants, last = [], [], "x"
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{layer}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"b{layer}"))
        final = layer == len(weights) - 1
        nodes.append(helper.make_node("Gemm", [last, f"w{layer}", f"b{layer}"], [f"z{layer}"]))
        last = "p" if final else f"a{layer}"
        nodes.append(helper.make_node("Sigmoid" if final else "Relu", [f"z{layer}"], [last]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weights[0].shape[0]])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="shoal", ir_version=9
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _fit(inputs: NDArray[np.float32], labels: NDArray[np.int8], seed: int, name: str) -> bytes:
    network = MLPClassifier(
        hidden_layer_sizes=_HIDDEN,
        alpha=1e-3,
        batch_size=512,
        max_iter=14,
        random_state=derive_seed(seed, "departure_delay", name) % 2**32,
    )
    with warnings.catch_warnings():
        # The number of passes is fixed on purpose; more of them only overfit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(inputs, labels)
    return network_to_onnx(network.coefs_, network.intercepts_, name)


def train(features: pl.DataFrame, *, before_week: int = 26, seed: int = 0) -> TrainedModels:
    """Train on the weeks before ``before_week``.

    Parameters
    ----------
    features : polars.DataFrame
        From :func:`~shoal.tasks.departure_delay.features.offline_features`.
    before_week : int
        First week that the networks must not see.
    seed : int
        Start of the weights and order of the batches.

    Raises
    ------
    InputError
        No labelled departures lie before that week, or all have one label.
    """
    rows = features.filter((pl.col("week") < before_week) & pl.col("late").is_not_null())
    labels = rows["late"].to_numpy()
    if np.unique(labels).size < 2:
        raise InputError(
            "the weeks to train on need late and punctual departures",
            field="before_week",
            value=before_week,
        )
    stream, schedule = (
        _fit(matrix(rows, columns), labels, seed, name)
        for name, columns in (("stream", STREAM_COLUMNS), ("schedule", SCHEDULE_COLUMNS))
    )
    return TrainedModels(stream, schedule, rows.height, before_week)
