"""Tensor engines behind one interface: ONNX Runtime by default, MNN and PyTorch optional."""

from shoal.device.engine.base import (
    Engine,
    Model,
    ModelError,
    TensorInfo,
    engine_versions,
    load_engine,
)

__all__ = ["Engine", "Model", "ModelError", "TensorInfo", "engine_versions", "load_engine"]
