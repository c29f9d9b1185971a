"""Networks that hold every operator once, for comparing backends."""

from __future__ import annotations

from typing import Any

from coordinator.authoring.parameters import EXPONENT
from edge_sdk.training.network import INPUT, Network, Node, Op, Role, TensorSpec


class _Net:
    """Appends nodes; each is named by its place."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.tensors: list[TensorSpec] = []

    def add(
        self, op: Op, *values: str, weight: tuple[int, ...] = (), is_trainable: bool = True, **settings: Any
    ) -> str:
        """A node; with ``weight``, its shape, also a weight and a bias, or for AFFINE two vectors of that length."""
        place = len(self.nodes)
        names: list[str] = []
        if weight:
            axis = {Op.GEMM: 1, Op.CONV: 0, Op.AFFINE: -1}[op]
            names = [f"t{place}_weight", f"t{place}_bias"]
            role = Role.BIAS if op is Op.AFFINE else Role.WEIGHT
            self._tensor(names[0], weight, role, axis, is_trainable=is_trainable)
            self._tensor(names[1], (weight[max(axis, 0)],), Role.BIAS, -1, is_trainable=is_trainable)
        self.nodes.append(Node(op=op, inputs=(*values, *names), output=f"h{place}", **settings))
        return f"h{place}"

    def network(self, input_shape: tuple[int, ...], outputs: int) -> Network:
        """What was added."""
        return Network(
            input_shape=input_shape, class_count=outputs, tensors=tuple(self.tensors), nodes=tuple(self.nodes)
        )

    def _tensor(self, name: str, shape: tuple[int, ...], role: Role, axis: int, *, is_trainable: bool) -> None:
        self.tensors.append(
            TensorSpec(
                name=name, shape=shape, role=role, channel_axis=axis, exponent=EXPONENT, is_trainable=is_trainable
            )
        )


def image_network() -> Network:
    """Strided, padded, depthwise and gated convolutions, both poolings, every arrangement, label smoothing."""
    net = _Net()
    twos, ones = (2, 2), (1, 1)
    h = net.add(
        Op.CONV, INPUT, weight=(6, 2, 3, 3), is_trainable=False, kernel=(3, 3), stride=ones, padding=(1, 0, 1, 0)
    )
    h = net.add(Op.CONV, h, weight=(8, 6, 3, 2), kernel=(3, 2), stride=twos, padding=(1, 0, 1, 1))
    start = net.add(Op.CLIP, h, constants=(0.0, 6.0))
    h = net.add(Op.CONV, start, weight=(8, 1, 3, 3), kernel=(3, 3), stride=ones, padding=ones, groups=8)
    h = net.add(Op.HARD_SWISH, h)
    h = net.add(Op.ADD, start, h)
    gate = net.add(Op.GLOBAL_AVERAGE_POOL, h)
    gate = net.add(Op.CONV, gate, weight=(8, 8, 1, 1), kernel=ones, stride=ones, padding=(0, 0))
    gate = net.add(Op.SIGMOID, gate)
    wide = net.add(Op.MUL, h, gate)
    average = net.add(Op.AVERAGE_POOL, wide, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1), counts_padding=False)
    h = net.add(Op.CONCAT, wide, average, axes=(1,))
    h = net.add(Op.MAX_POOL, h, kernel=twos, stride=twos, padding=(0, 0))
    h = net.add(Op.TRANSPOSE, h, axes=(2, 3, 1))
    h = net.add(Op.RESHAPE, h, shape=(4, 3 * 16))
    h = net.add(Op.FLATTEN, h)
    h = net.add(Op.DROPOUT, h, constants=(0.25,))
    h = net.add(Op.GEMM, h, weight=(192, 12))
    h = net.add(Op.LEAKY_RELU, h, constants=(0.1,))
    h = net.add(Op.GEMM, h, weight=(12, 5))
    net.add(Op.SOFTMAX_CROSS_ENTROPY, h, constants=(0.1,))
    return net.network((2, 16, 13), 5)


def series_network(loss: Op) -> Network:
    """Dilated, grouped and strided convolutions over time, a frozen normalization, another loss."""
    net = _Net()
    h = net.add(Op.AFFINE, INPUT, weight=(4,), is_trainable=False)
    h = net.add(Op.CONV, h, weight=(6, 2, 3), kernel=(3,), stride=(1,), padding=(2, 2), dilation=(2,), groups=2)
    h = net.add(Op.TANH, h)
    h = net.add(Op.CONV, h, weight=(6, 1, 5), kernel=(5,), stride=(2,), padding=(2,), groups=6)
    h = net.add(Op.RELU, h)
    h = net.add(Op.AFFINE, h, weight=(6,))
    h = net.add(Op.AVERAGE_POOL, h, kernel=(2,), stride=(2,), padding=(0,))
    h = net.add(Op.MAX_POOL, h, kernel=(2,), stride=(2,), padding=(0,))
    h = net.add(Op.FLATTEN, h)
    h = net.add(Op.GEMM, h, weight=(6 * 4, 3))
    net.add(loss, h)
    return net.network((4, 32), 3)
