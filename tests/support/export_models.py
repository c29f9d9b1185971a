"""``python -m tests.support.export_models DIR``: forward models as people export them from Keras and scikit-learn.

Runs in the environment with tensorflow; writes NAME.onnx and NAME.npz with x and what the original makes of it, y.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import skl2onnx
import tensorflow as tf
import tf2onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LinearRegression, LogisticRegression

OPSET = 17


def keras_models() -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Networks of the common layers, with the shape of one example."""
    layers = keras.layers
    keras.utils.set_random_seed(5)
    mlp = keras.Sequential([layers.Dense(16, activation="tanh"), layers.Dropout(0.2), layers.Dense(3)])
    image = keras.Sequential(
        [
            layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(max_value=6.0),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.MaxPooling2D(2),
            layers.Conv2D(8, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4, activation="softmax"),
        ]
    )
    series = keras.Sequential(
        [
            layers.Conv1D(4, 5, activation="relu"),
            layers.MaxPooling1D(2),
            layers.Flatten(),
            layers.Dense(2, activation="sigmoid"),
        ]
    )
    return {"keras_mlp": (mlp, (10,)), "keras_image": (image, (16, 16, 2)), "keras_series": (series, (24, 3))}


def export_keras(folder: Path) -> None:
    """By tf2onnx, from a traced function."""
    rng = np.random.default_rng(0)
    for name, (model, shape) in keras_models().items():
        x = rng.normal(size=(4, *shape)).astype(np.float32)
        model(x, training=True)  # builds it, and moves the running statistics
        signature = [tf.TensorSpec((None, *shape), tf.float32, name="input")]
        forward = tf.function(lambda x, model=model: model(x, training=False), autograph=False)
        tf2onnx.convert.from_function(forward, signature, opset=OPSET, output_path=str(folder / f"{name}.onnx"))
        np.savez(folder / f"{name}.npz", x=x, y=np.asarray(model(x, training=False)))


def export_sklearn(folder: Path) -> None:
    """By skl2onnx, with its default options: a classifier with labels and a map of probabilities."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    labels = x[:, :3].argmax(axis=1)
    targets = x @ rng.normal(size=(5, 2)).astype(np.float32)
    models = {
        "sklearn_logistic": LogisticRegression().fit(x, labels),
        "sklearn_linear": LinearRegression().fit(x, targets),
    }
    for name, model in models.items():
        exported = skl2onnx.convert_sklearn(
            model, initial_types=[("input", FloatTensorType([None, 5]))], target_opset=OPSET
        )
        (folder / f"{name}.onnx").write_bytes(exported.SerializeToString())
        y = model.predict_proba(x[:4]) if hasattr(model, "predict_proba") else model.predict(x[:4])
        np.savez(folder / f"{name}.npz", x=x[:4], y=y.astype(np.float32))


if __name__ == "__main__":
    export_keras(Path(sys.argv[1]))
    export_sklearn(Path(sys.argv[1]))
