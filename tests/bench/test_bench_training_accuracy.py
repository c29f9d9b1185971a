"""Accuracy after equal steps: int8 training against float32 in torch, from the same start on the same batches.

Three quarters of the steps at the learning rate, the rest at a tenth of it, so that the last steps do not decide. Seeds
choose version 0 and the order: $FLCHAIN_BENCH_SEEDS (default 1 to 5). MNIST and HAPT need the optional data folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import genesis_params, network
from coordinator.datasets.digits import load_digits
from coordinator.datasets.hapt import load_hapt
from coordinator.datasets.idx import load_idx
from coordinator.datasets.labelled import LabelledData
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule
from tests.support.measurements import Row, record

pytestmark = [pytest.mark.bench, pytest.mark.torch]

SEEDS: Final = [int(seed) for seed in os.environ.get("FLCHAIN_BENCH_SEEDS", "1,2,3,4,5").split(",")]
BATCH: Final = 32
POINTS: Final = 100.0
STATES: Final = {Scheme.INT8: "q8.8", Scheme.INT8_SR: "int8-sr"}
MOMENTUM: Final = UpdateRule(momentum=0.875)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learned, and how far int8 may fall behind."""

    name: str
    model: str
    steps: int
    lr: float
    bar_points: float
    rule: UpdateRule = PLAIN_SGD


DIGITS: Final = Task(name="digits, mlp", model="mlp", steps=900, lr=0.1, bar_points=1.0)
DIGITS_LENET: Final = Task(name="digits, lenet", model="lenet", steps=900, lr=0.1, bar_points=1.0)
DIGITS_MOMENTUM: Final = Task(
    name="digits, mlp, momentum", model="mlp", steps=450, lr=0.02, bar_points=1.0, rule=MOMENTUM
)
MNIST: Final = Task(name="MNIST, lenet", model="lenet", steps=1_875, lr=0.1, bar_points=0.5)
HAPT: Final = Task(name="HAPT, cnn1d", model="cnn1d", steps=1_500, lr=0.05, bar_points=1.0)


def accuracy_after(task: Task, data: LabelledData, scheme: Scheme, *, backend: str, seed: int) -> float:
    """Test accuracy in points."""
    forward = network(task.model, data.input_shape, data.class_count)
    params = genesis_params(forward.tensors, seed=seed)
    trainer = Trainer(build_artifact("accuracy", forward, batch=BATCH, scheme=scheme, rule=task.rule), backend=backend)
    trainer.load(params)
    examples = ArrayDataset(data.x_train, data.y_train, input_shape=data.input_shape, class_count=data.class_count)
    start = 0
    for end, lr in ((task.steps * 3 // 4, task.lr), (task.steps, task.lr / 10)):
        trainer.train(examples, steps=end, lr=lr, rng=np.random.default_rng(seed), start_step=start)
        start = end
    trained = {name: value + trainer.delta()[name] for name, value in dequantize(params).items()}
    accuracy = Trainer(trainer.artifact).evaluate(trained, data.x_test, data.y_test).accuracy
    trainer.release()
    return POINTS * accuracy


def measure(task: Task, data: LabelledData) -> None:
    """Record one row per state: its accuracy less torch's, in points, mean over the seeds."""
    reference = [accuracy_after(task, data, Scheme.FP32, backend="torch", seed=seed) for seed in SEEDS]
    rows = []
    for scheme, state in STATES.items():
        found = [accuracy_after(task, data, scheme, backend="onnxruntime", seed=seed) for seed in SEEDS]
        differences = [mine - theirs for mine, theirs in zip(found, reference, strict=True)]
        rows.append(
            Row(
                key=f"training-accuracy-{task.name.replace(', ', '-').lower()}-{state}",
                what=f"{task.name}: accuracy of {state} less float32 torch, {task.steps} steps",
                unit="points",
                figure=fmean(differences),
                low=min(differences),
                high=max(differences),
                count=len(differences),
                bar=-task.bar_points,
                is_bar_upper=False,
                note=f"mean {fmean(found):.2f} %, float32 {fmean(reference):.2f} %; batch {BATCH}, lr {task.lr}",
                details={"seeds": SEEDS, state: found, "torch": reference},
            )
        )
    for row in rows:
        record(row)
    assert all(row.verdict == "reached" for row in rows)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", [DIGITS, DIGITS_LENET, DIGITS_MOMENTUM], ids=["mlp", "lenet", "momentum"])
def test_training_accuracy_without_downloads(task: Task) -> None:
    measure(task, load_digits())


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(
    ("task", "load", "folder"), [(MNIST, load_idx, "mnist"), (HAPT, load_hapt, "hapt_har")], ids=["mnist", "hapt"]
)
def test_training_accuracy_of_the_optional_folder(
    task: Task, load: Callable[[Path], LabelledData], folder: str, data_dir: Path
) -> None:
    measure(task, load(data_dir / folder))
