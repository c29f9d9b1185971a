"""Classifiers of features, images and windows of sensor signals.

- mlp: in-128-64-classes.
- lenet: conv 6, pool, conv 16, pool, 120-84-classes with 5x5 kernels from a side of 20 up (LeCun et al. 1998: 61,706
  parameters at 28x28); below, 3x3 kernels and 64-classes.
- cnn1d: conv 16, pool 4, conv 32, pool 8 over time, 64-classes; for windows of sensor channels. Wide pooling makes it
  insensitive to where in the window a movement starts.
- dscnn: the depthwise separable network of Zhang et al. 2017, "Hello Edge: Keyword Spotting on Microcontrollers"
  (arXiv:1711.07128), size S: conv 64 of 10x4, four blocks of depthwise 3x3 and pointwise 64, average, classes; 22,604
  parameters for 12 words and 49 frames of 10 MFCC coefficients. Its batch normalization is folded.
"""

from __future__ import annotations

from typing import Final

from coordinator.authoring.recipes.layers import Layers
from edge_sdk.errors import ConfigError
from edge_sdk.training.network import Op

_LENET_SIDE_MIN: Final = 20
_LENET_SIDE_UNPADDED: Final = 32
IMAGE_RANK: Final = 3
_SERIES_RANK: Final = 2
_SERIES_STEPS_MIN: Final = 64
"""Kernels of 7 and poolings of 4 and 8 leave one step of 62."""
_DSCNN_CHANNELS, _DSCNN_BLOCKS = 64, 4
_DSCNN_KERNEL: Final = (10, 4)
_DSCNN_PADDING: Final = (4, 1, 5, 1)
"""Beginnings, then ends: 49x10 becomes 25x5, as with TensorFlow's SAME."""
_DSCNN_SIDES_MIN: Final = (10, 4)


def mlp(layers: Layers, class_count: int) -> None:
    """Features, or anything flattened."""
    layers.head((128, 64), class_count, Op.SOFTMAX_CROSS_ENTROPY)


def lenet(layers: Layers, class_count: int) -> None:
    """Images of 8x8 and more."""
    if len(layers.shape) != IMAGE_RANK or min(layers.shape[1:]) < 8:  # two halvings leave 2x2
        raise ConfigError(
            f"model lenet for examples of shape {layers.shape}: "
            "expected images (channels, height, width) of 8x8 or more"
        )
    side = min(layers.shape[1:])
    hidden: tuple[int, ...]
    if side >= _LENET_SIDE_MIN:
        kernel, hidden = 5, (120, 84)
        paddings = (2 if side < _LENET_SIDE_UNPADDED else 0, 0)
    else:
        kernel, hidden = 3, (64,)
        paddings = (1, 1)
    for channels, padding in zip((6, 16), paddings, strict=True):
        layers.conv(channels, kernel, padding=padding)
        layers.pool(2)  # before ReLU: the same result on a quarter of the values
        layers.relu()
    layers.head(hidden, class_count, Op.SOFTMAX_CROSS_ENTROPY)


def cnn1d(layers: Layers, class_count: int) -> None:
    """Windows of sensor channels."""
    if len(layers.shape) != _SERIES_RANK or layers.shape[1] < _SERIES_STEPS_MIN:
        raise ConfigError(
            f"model cnn1d for examples of shape {layers.shape}: "
            f"expected series (channels, time) of {_SERIES_STEPS_MIN} steps or more"
        )
    for channels, pool in ((16, 4), (32, 8)):
        layers.conv(channels, 7)
        layers.pool(pool)
        layers.relu()
    layers.head((64,), class_count, Op.SOFTMAX_CROSS_ENTROPY)


def dscnn(layers: Layers, class_count: int) -> None:
    """Spectrograms, (1, frames, coefficients)."""
    is_image = len(layers.shape) == IMAGE_RANK
    if not is_image or any(a < b for a, b in zip(layers.shape[1:], _DSCNN_SIDES_MIN, strict=True)):
        raise ConfigError(
            f"model dscnn for examples of shape {layers.shape}: expected (channels, frames, coefficients) of "
            f"{_DSCNN_SIDES_MIN[0]}x{_DSCNN_SIDES_MIN[1]} or more"
        )
    layers.conv(_DSCNN_CHANNELS, _DSCNN_KERNEL, stride=2, padding=_DSCNN_PADDING)
    layers.relu()
    for _ in range(_DSCNN_BLOCKS):
        layers.depthwise(3)
        layers.relu()
        layers.conv(_DSCNN_CHANNELS, 1)
        layers.relu()
    layers.average()
    layers.head((), class_count, Op.SOFTMAX_CROSS_ENTROPY)
