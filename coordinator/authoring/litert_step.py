"""One training step while it is written in tensorflow: the counterpart of ``step`` for the flatbuffer.

Values with space are kept as LiteRT's kernels want them, (batch, height, width, channel); a series has height 1. Values
without are (batch, features). The artifact's order, channel before space, is restored where it shows: in front of a
Flatten, around a Reshape or Transpose, and in the states.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from edge_sdk.training.network import Network, Node

if TYPE_CHECKING:
    from collections.abc import Mapping

_IMAGE_RANK, _SERIES_RANK = 4, 3


@dataclass(slots=True, kw_only=True)
class LitertStep:
    """One step, or one evaluation, as tensors of a traced function."""

    network: Network
    shapes: Mapping[str, tuple[int, ...]]
    """Of every value, in the artifact's order of axes."""
    states: Mapping[str, Any]
    """By tensor: what the forward pass reads."""
    masks: Mapping[str, Any]
    """Of each dropout, by its output, as the value is kept; empty in evaluation."""
    values: dict[str, Any]
    trainable: frozenset[str] = frozenset()
    """Values that a gradient must reach."""
    upstream: dict[str, Any] = field(default_factory=dict)
    """By value: dL/d(value), as far as it is known."""
    gradients: dict[str, Any] = field(default_factory=dict)
    """By trained tensor: dL/d(tensor), in the artifact's order of axes."""

    def flow(self, value: str, gradient: Any) -> None:
        """Add a part of dL/d(value): several nodes may read the value."""
        known = self.upstream.get(value)
        self.upstream[value] = gradient if known is None else known + gradient

    def needs_gradient(self, value: str) -> bool:
        """Whether something upstream of a value is trained."""
        return value in self.trainable

    def is_trained(self, tensor: str) -> bool:
        """Whether a tensor is updated."""
        return next(spec for spec in self.network.tensors if spec.name == tensor).is_trainable

    def input_shape(self, node: Node) -> tuple[int, ...]:
        """Shape of a node's first value, in the artifact's order of axes."""
        return self.shapes[node.values[0]]


def to_kept(x: Any) -> Any:
    """From the artifact's order of axes to the one that values are kept in."""
    match len(x.shape):
        case 4:
            return tf.transpose(x, (0, 2, 3, 1))
        case 3:
            return tf.expand_dims(tf.transpose(x, (0, 2, 1)), 1)
        case _:
            return x


def from_kept(x: Any, rank: int) -> Any:
    """Back to the artifact's order of axes, of a value of that rank."""
    if rank == _IMAGE_RANK:
        return tf.transpose(x, (0, 3, 1, 2))
    return tf.transpose(tf.squeeze(x, 1), (0, 2, 1)) if rank == _SERIES_RANK else x


def kept_axis(axis: int, rank: int) -> int:
    """Where an axis of the artifact's order is kept."""
    if rank == _IMAGE_RANK:
        return (0, 3, 1, 2)[axis]
    return (0, 3, 2)[axis] if rank == _SERIES_RANK else axis
