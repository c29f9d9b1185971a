"""What the networks of the zoo reach on the real data that they are for; the folder is named by FLCHAIN_DATA.

Central training for seconds: a check that recipe, int8 state and data set fit together, not a record.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.authoring.zoo import build
from coordinator.datasets.beijing import load_beijing
from coordinator.datasets.measured import MeasuredData
from coordinator.datasets.measures import f1_score, r_squared, roc_auc
from coordinator.datasets.skab import load_skab
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ALARM_QUANTILE = 0.99
"""An alarm is an error above that of 99 % of the normal windows that were trained on."""


def trained(
    model: str, data: MeasuredData, *, steps: int, lr: float, scheme: Scheme = Scheme.INT8
) -> tuple[Trainer, dict[str, npt.NDArray[np.float32]]]:
    artifact, params = build(model, data.input_shape, data.output_count, batch=32, scheme=scheme, seed=1)
    trainer = Trainer(artifact)
    trainer.load(params)
    examples = ArrayDataset(
        data.x_train,
        data.y_train,
        input_shape=data.input_shape,
        class_count=data.output_count,
        has_labels=False,
    )
    trainer.train(examples, steps=steps, lr=lr, rng=np.random.default_rng(0))
    start = dequantize(params)
    return trainer, {name: start[name] + moved for name, moved in trainer.delta().items()}


def test_regressor_explains_more_than_a_line(data_dir: Path, record_property: Any) -> None:
    data = load_beijing(data_dir)
    ones = np.ones((len(data.x_train), 1))
    line = np.linalg.lstsq(np.hstack([data.x_train, ones]), data.y_train, rcond=None)[0]
    guess = np.hstack([data.x_test, np.ones((len(data.x_test), 1))]) @ line
    linear = r_squared(float(np.square(guess - data.y_test).mean()), data.y_test)
    trainer, params = trained("regressor", data, steps=4_000, lr=0.05)
    reached = r_squared(trainer.evaluate(params, data.x_test, data.y_test).loss_mean, data.y_test)
    record_property("r_squared", (reached, linear))
    assert linear == pytest.approx(0.894, abs=0.005)
    assert reached > linear + 0.02


def test_autoencoder_finds_anomalies_of_the_pump(data_dir: Path, record_property: Any) -> None:
    data = load_skab(data_dir)
    assert data.is_anomaly is not None
    trainer, params = trained("autoencoder", data, steps=3_000, lr=0.5)

    def errors(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return np.array(
            [
                trainer.evaluate(params, x[row : row + 1], x[row : row + 1].reshape(1, -1)).loss_mean
                for row in range(0, len(x), 4)  # windows overlap by 15 of 16 samples
            ]
        )

    normal, later = errors(data.x_train), errors(data.x_test)
    is_anomaly = data.is_anomaly[::4]
    auc = roc_auc(later, is_anomaly)
    f1 = f1_score(later > np.quantile(normal, ALARM_QUANTILE), is_anomaly)
    record_property("auc_f1", (auc, f1))
    assert auc > 0.75
    assert f1 > 0.75
