"""What a run can learn from: labelled examples or measurements; and the one number by which its models are judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.labelled import LabelledData, Labels
from coordinator.datasets.measured import MeasuredData
from coordinator.datasets.measures import r_squared, roc_auc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_sdk.protocol.messages import ModelParams
    from edge_sdk.training.trainer import Trainer

TaskData = LabelledData | MeasuredData
ACCURACY, R_SQUARED, AUC = "accuracy", "R2", "AUC"
ANOMALY_STRIDE: Final = 16
"""Every so many windows of a recording one is judged: they overlap, and each is an evaluation of its own."""


def measure_of(data: TaskData) -> str:
    """Name of the number: share of right answers, share of variance explained, or area under the ROC curve."""
    if isinstance(data, LabelledData):
        return ACCURACY
    return R_SQUARED if data.is_anomaly is None else AUC


def quality(trainer: Trainer, params: ModelParams | Mapping[str, npt.NDArray[np.float32]], data: TaskData) -> float:
    """The number of a model on the test part. R2 may be below 0: worse than always the mean."""
    if isinstance(data, LabelledData):
        return trainer.evaluate(params, data.x_test, data.y_test).accuracy
    if data.is_anomaly is None:
        return r_squared(trainer.evaluate(params, data.x_test, data.y_test).loss_mean, data.y_test)
    rows = np.arange(0, len(data.x_test), ANOMALY_STRIDE)
    errors = [
        trainer.evaluate(params, data.x_test[row : row + 1], data.y_test[row : row + 1]).loss_mean for row in rows
    ]
    return roc_auc(np.array(errors), data.is_anomaly[rows])


def classes_of(data: TaskData) -> Labels:
    """Labels of the training examples, (n,); of measurements all alike, so that only their number and owners count."""
    return data.y_train if isinstance(data, LabelledData) else np.zeros(len(data.y_train), np.int64)
