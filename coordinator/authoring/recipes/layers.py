"""A network while a recipe stacks it up: the running shape, the nodes and tensors so far."""

from __future__ import annotations

import math

from coordinator.authoring.parameters import EXPONENT
from edge_sdk.training.network import INPUT, Network, Node, Op, Role, TensorSpec
from edge_sdk.training.shape_rules import output_shape

Sizes = int | tuple[int, ...]


class Layers:
    """Appends layers. ``shape`` is that of one example: channel first, no batch axis."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        """Start with the input."""
        self.input_shape = self.shape = input_shape
        self.is_trained = True
        """Whether the layers from here on are trained; those before may be frozen."""
        self._value = INPUT
        self._nodes: list[Node] = []
        self._tensors: list[TensorSpec] = []

    def conv(self, channels: int, size: Sizes, *, stride: int = 1, padding: Sizes = 0, groups: int = 1) -> None:
        """A convolution with bias; ``padding`` per axis, or all beginnings and then all ends."""
        axes = len(self.shape) - 1
        kernel, pads = _per_axis(size, axes), _per_axis(padding, axes)
        shape = (channels, self.shape[0] // groups, *kernel)
        weight = self._layer_tensors("conv", shape, channel_axis=0)
        self._node(Op.CONV, *weight, kernel=kernel, stride=(stride,) * axes, padding=pads, groups=groups)

    def depthwise(self, size: int, *, stride: int = 1) -> None:
        """One filter per channel, padded so that only the stride makes the image smaller."""
        self.conv(self.shape[0], size, stride=stride, padding=size // 2, groups=self.shape[0])

    def pool(self, size: int) -> None:
        """Largest value of windows that do not overlap."""
        axes = len(self.shape) - 1
        self._node(Op.MAX_POOL, kernel=(size,) * axes, stride=(size,) * axes, padding=(0,) * axes)

    def average(self) -> None:
        """Mean over space, then one vector per example."""
        self._node(Op.GLOBAL_AVERAGE_POOL)
        self.flatten()

    def relu(self) -> None:
        """Rectifier."""
        self._node(Op.RELU)

    def relu6(self) -> None:
        """Rectifier that ends at 6 (Sandler et al. 2018)."""
        self._node(Op.CLIP, constants=(0.0, 6.0))

    def flatten(self) -> None:
        """One axis, if there are more."""
        if len(self.shape) > 1:
            self._node(Op.FLATTEN)

    def dense(self, width: int) -> None:
        """A linear layer."""
        self._node(Op.GEMM, *self._layer_tensors("dense", (self.shape[0], width), channel_axis=1))

    def mark(self) -> str:
        """Name of the value reached so far, for ``add``."""
        return self._value

    def add(self, other: str) -> None:
        """Sum with an earlier value of the same shape."""
        self._node(Op.ADD, values=(other, self._value))

    def head(self, hidden: tuple[int, ...], outputs: int, loss: Op) -> None:
        """Linear layers with rectifiers between, then the loss."""
        self.flatten()
        for width in hidden:
            self.dense(width)
            self.relu()
        self.dense(outputs)
        self._node(loss)

    def network(self, class_count: int) -> Network:
        """What was stacked."""
        return Network(
            input_shape=self.input_shape,
            class_count=class_count,
            tensors=tuple(self._tensors),
            nodes=tuple(self._nodes),
        )

    def _node(
        self,
        op: Op,
        *parameters: str,
        values: tuple[str, ...] = (),
        kernel: tuple[int, ...] = (),
        stride: tuple[int, ...] = (),
        padding: tuple[int, ...] = (),
        groups: int = 1,
        constants: tuple[float, ...] = (),
    ) -> None:
        inputs = values or (self._value,)
        node = Node(
            op=op,
            inputs=(*inputs, *parameters),
            output=f"h{len(self._nodes)}",
            kernel=kernel,
            stride=stride,
            padding=padding,
            groups=groups,
            constants=constants,
        )
        specs = [spec for spec in self._tensors if spec.name in parameters]
        shapes = [(1, *self.shape)] * len(inputs)
        self.shape = output_shape(f"layer {len(self._nodes)} ({op.name})", node, shapes, specs)[1:]
        self._nodes.append(node)
        self._value = node.output

    def _layer_tensors(self, kind: str, shape: tuple[int, ...], *, channel_axis: int) -> tuple[str, str]:
        index = len(self._tensors) // 2
        weight, bias = f"{kind}{index}_weight", f"{kind}{index}_bias"
        for name, sizes, role, axis in (
            (weight, shape, Role.WEIGHT, channel_axis),
            (bias, (shape[channel_axis],), Role.BIAS, -1),
        ):
            self._tensors.append(
                TensorSpec(
                    name=name,
                    shape=sizes,
                    role=role,
                    channel_axis=axis,
                    exponent=EXPONENT,
                    is_trainable=self.is_trained,
                )
            )
        return weight, bias


def fan_in(spec: TensorSpec) -> int:
    """Inputs that one output of a weight sums up."""
    return math.prod(spec.shape) // spec.shape[spec.channel_axis]


def _per_axis(sizes: Sizes, axes: int) -> tuple[int, ...]:
    return (sizes,) * axes if isinstance(sizes, int) else sizes
