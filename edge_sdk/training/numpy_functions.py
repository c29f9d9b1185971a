"""Activations and losses of the numpy backend: each a function and its derivative, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.training.operators import Node, Op

if TYPE_CHECKING:
    import numpy.typing as npt

_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_THREE: Final = np.float32(3)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) in the type of x, without overflow: the exponent is never positive."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, _ONE, small) / (_ONE + small)


def _bounds(node: Node) -> tuple[np.float32, np.float32]:
    low, high = node.constants
    return np.float32(low), np.float32(high)


Activation = Callable[[Node, Any], Any]
Slope = Callable[[Node, Any, Any], Any]
"""(node, x, y) -> dy/dx."""


def _clip_slope(node: Node, x: npt.NDArray[np.float32], _y: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    low, high = _bounds(node)
    return (x > low) & (x < high)


def _leaky(node: Node, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(x >= 0, x, x * np.float32(node.constants[0]))


def _leaky_slope(node: Node, x: npt.NDArray[np.float32], _y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(x >= 0, _ONE, np.float32(node.constants[0]))


def _hard_swish(_node: Node, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    gate: npt.NDArray[np.float32] = np.clip(x / np.float32(6) + _HALF, np.float32(0), _ONE)
    return x * gate


def _hard_swish_slope(_node: Node, x: npt.NDArray[np.float32], _y: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(np.abs(x) < _THREE, x / _THREE + _HALF, (x >= _THREE).astype(np.float32))


ACTIVATIONS: Final[dict[Op, tuple[Activation, Slope]]] = {
    Op.RELU: (lambda _, x: np.maximum(x, np.float32(0)), lambda _, __, y: y > 0),
    Op.CLIP: (lambda node, x: np.clip(x, *_bounds(node)), _clip_slope),
    Op.LEAKY_RELU: (_leaky, _leaky_slope),
    Op.SIGMOID: (lambda _, x: sigmoid(x), lambda _, __, y: y * (_ONE - y)),
    Op.TANH: (lambda _, x: np.tanh(x), lambda _, __, y: _ONE - y * y),
    Op.HARD_SWISH: (_hard_swish, _hard_swish_slope),
}


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Logarithm of the softmax over axis 1."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p: npt.NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def loss_and_slope(
    node: Node, z: npt.NDArray[np.float32], y: npt.NDArray[Any], share: npt.NDArray[np.float32]
) -> tuple[float, npt.NDArray[np.float32]]:
    """A loss and its derivative by the network's outputs.

    Args:
        node: The loss.
        z: Outputs, (n, outputs).
        y: Labels, (n,), for the softmax cross-entropy; else targets, (n, outputs).
        share: What each example counts, (n,).
    """
    column = share[:, np.newaxis]
    match node.op:
        case Op.MEAN_SQUARED_ERROR:
            column = column / np.float32(z.shape[1])
            error = z - y
            return float((error * error * column).sum()), np.float32(2) * error * column
        case Op.BINARY_CROSS_ENTROPY:
            column = column / np.float32(z.shape[1])
            losses = np.maximum(z, np.float32(0)) - z * y + np.log1p(np.exp(-np.abs(z)))
            return float((losses * column).sum()), (sigmoid(z) - y) * column
        case _:
            log_p = log_softmax(z)
            wanted = np.zeros_like(z)
            wanted[np.arange(len(y)), y] = _ONE
            if node.constants:
                smoothing = np.float32(node.constants[0])
                wanted = wanted * (_ONE - smoothing) + smoothing / np.float32(z.shape[1])
            return -float((log_p * wanted * column).sum()), (np.exp(log_p) - wanted) * column
