"""MobileNetV2 of width 0.35, made for 96x96 images; its last two blocks and what follows are trained.

Source: Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv:1801.04381), table 2.
Normalization is folded into the convolutions, so that running statistics never leave a board. Everything before the
last two blocks is frozen: fine-tuning a network that somebody trained elsewhere; import that one's weights with
``flchain model build MODEL.onnx --trainable ...``, the recipe itself begins at random filters.
"""

from __future__ import annotations

from typing import Final

from coordinator.authoring.recipes.classifiers import IMAGE_RANK
from coordinator.authoring.recipes.layers import Layers
from edge_sdk.errors import ConfigError
from edge_sdk.training.network import Op

WIDTH: Final = 0.35
_BLOCKS: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, repetitions, stride of the first."""
_STEM, _HEAD = 32, 1280
_CHANNEL_STEP: Final = 8
_ROUNDING_LOSS_MAX: Final = 0.9
_SIDE_MIN: Final = 32
"""Five halvings leave 1x1."""
_BLOCKS_TRAINED: Final = 2


def mobilenetv2(layers: Layers, class_count: int) -> None:
    """Images of 32x32 and more."""
    if len(layers.shape) != IMAGE_RANK or min(layers.shape[1:]) < _SIDE_MIN:
        raise ConfigError(
            f"model mobilenetv2 for examples of shape {layers.shape}: "
            f"expected images (channels, height, width) of {_SIDE_MIN}x{_SIDE_MIN} or more"
        )
    layers.is_trained = False
    layers.conv(_channels(_STEM), 3, stride=2, padding=1)
    layers.relu6()
    blocks = [
        (expansion, channels, stride if index == 0 else 1)
        for expansion, channels, count, stride in _BLOCKS
        for index in range(count)
    ]
    for index, (expansion, channels, stride) in enumerate(blocks):
        layers.is_trained = index >= len(blocks) - _BLOCKS_TRAINED
        _inverted_residual(layers, expansion, _channels(channels), stride)
    layers.conv(_HEAD, 1)
    layers.relu6()
    layers.average()
    layers.head((), class_count, Op.SOFTMAX_CROSS_ENTROPY)


def _inverted_residual(layers: Layers, expansion: int, channels: int, stride: int) -> None:
    start, width = layers.mark(), layers.shape[0]
    if expansion > 1:
        layers.conv(width * expansion, 1)
        layers.relu6()
    layers.depthwise(3, stride=stride)
    layers.relu6()
    layers.conv(channels, 1)
    if stride == 1 and width == channels:
        layers.add(start)


def _channels(full: int) -> int:
    """A multiple of 8 near ``full`` times the width, never more than a tenth below (as the authors' code rounds)."""
    wanted = full * WIDTH
    rounded = max(_CHANNEL_STEP, int(wanted + _CHANNEL_STEP / 2) // _CHANNEL_STEP * _CHANNEL_STEP)
    return rounded + _CHANNEL_STEP if rounded < _ROUNDING_LOSS_MAX * wanted else rounded
