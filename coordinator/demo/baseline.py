"""The yardstick of a demo: the same network, trained in one place on all training data in float32, to its plateau."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.authoring.builder import build_artifact
from coordinator.datasets.labelled import LabelledData
from coordinator.datasets.task import TaskData, quality
from edge_sdk.errors import NonFiniteError
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Network, Scheme
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer

BATCH: Final = 32
LEARNING_RATES: Final = (0.1, 0.02)
PATIENCE_STEPS: Final = 1_000
PATIENCE_EPOCHS_MIN, PATIENCE_EPOCHS_MAX = 2, 8
"""A plateau is so many steps without a better loss on the held-out tenth of the training data, in whole epochs."""
EPOCHS_MAX: Final = 60
HOLD_OUT_STRIDE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Centralized training: accuracy on the test set at the epoch that the held-out training data chose."""

    accuracy: float
    """Or what ``measure_of`` says."""
    epochs: int
    lr: float
    train_n: int
    test_n: int


def train_baseline(
    data: TaskData, network: Network, params: ModelParams, *, seed: int, epochs_max: int = EPOCHS_MAX
) -> Baseline:
    """Train to the plateau with each learning rate and return the run with the smallest held-out loss.

    The test set chooses nothing: epoch and learning rate are chosen on a tenth of the training data.
    """
    runs = [_train(data, network, params, lr, seed=seed, epochs_max=epochs_max) for lr in LEARNING_RATES]
    return min(runs, key=lambda run: run[0])[1]


def _train(
    data: TaskData, network: Network, params: ModelParams, lr: float, *, seed: int, epochs_max: int
) -> tuple[float, Baseline]:
    """Return the best held-out loss and the baseline at that epoch."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(data.y_train))
    held, used = order[::HOLD_OUT_STRIDE], np.delete(order, np.s_[::HOLD_OUT_STRIDE])
    trainer = Trainer(build_artifact("baseline", network, batch=BATCH, scheme=Scheme.FP32))
    trainer.load(params)
    start = dequantize(params)
    dataset = ArrayDataset(
        data.x_train[used],
        data.y_train[used],
        input_shape=data.input_shape,
        class_count=data.class_count,
        has_labels=isinstance(data, LabelledData),
    )
    steps_per_epoch = -(-len(used) // BATCH)
    patience_epochs = min(max(PATIENCE_STEPS // steps_per_epoch, PATIENCE_EPOCHS_MIN), PATIENCE_EPOCHS_MAX)
    best_loss, best = float("inf"), Baseline(accuracy=0.0, epochs=0, lr=lr, train_n=len(used), test_n=len(data.y_test))
    for epoch in range(1, epochs_max + 1):
        # Every epoch draws a fresh order; start_step counts from the beginning of this call.
        try:
            trainer.train(dataset, steps=steps_per_epoch, lr=lr, rng=rng)
        except NonFiniteError:
            break  # this learning rate is too large for the network; what it reached before still counts
        values = {name: start[name] + moved for name, moved in trainer.delta().items()}
        loss = trainer.evaluate(values, data.x_train[held], data.y_train[held]).loss_mean
        if loss < best_loss:
            accuracy = quality(trainer, values, data)
            best_loss = loss
            best = Baseline(accuracy=accuracy, epochs=epoch, lr=lr, train_n=len(used), test_n=len(data.y_test))
        elif epoch - best.epochs >= patience_epochs:
            break
    trainer.release()
    return best_loss, best
