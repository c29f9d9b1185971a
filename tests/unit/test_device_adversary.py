"""The attack called nan does what its name says, on every board: training ends in values that are not finite."""

import numpy as np
import pytest

from coordinator.authoring import zoo
from edge_sdk.device import adversary
from edge_sdk.errors import NonFiniteError
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.trainer import Trainer


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize(("model", "shape"), [("mlp", (1, 8, 8)), ("lenet", (1, 8, 8)), ("cnn1d", (3, 64))])
def test_a_diverging_rate_is_not_finite(backend: str, model: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    artifact, params = zoo.build(model, shape, 4, batch=16, seed=1)
    x, y = rng.random((64, *shape), np.float32), rng.integers(0, 4, 64)
    trainer = Trainer(artifact, backend=backend)
    trainer.load(params)
    dataset = ArrayDataset(x, y, input_shape=shape, class_count=4)
    with np.errstate(all="ignore"), pytest.raises(NonFiniteError):
        trainer.train(dataset, steps=40, lr=adversary.learning_rate("nan", 0.1), rng=rng)
