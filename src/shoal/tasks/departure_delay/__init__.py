"""An aircraft predicts whether its next departure will be late, from its own event stream."""

from shoal.tasks.departure_delay.features import matrix, offline_features
from shoal.tasks.departure_delay.folder import (
    rainy_trace,
    write_broken_folder,
    write_task_folder,
)
from shoal.tasks.departure_delay.training import TrainedModels, auc, train

__all__ = [
    "TrainedModels",
    "auc",
    "matrix",
    "offline_features",
    "rainy_trace",
    "train",
    "write_broken_folder",
    "write_task_folder",
]
