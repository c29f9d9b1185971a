"""One training step while it is written: names of values, what rules save, where gradients flow.

A rule is a pair. Its forward writes a node and returns the ONNX name of the output. Its backward takes dL/d(output),
hands the gradients of those of the node's tensors that are not frozen to ``Step.descend``, and passes dL/d(input) on
with ``Step.flow``. It is called only where something at or before the node is trainable.

A value lies with its batch axis first or with its channels first (``layout``), and its gradient likewise. A rule works
in the order of its output: ``Step.read`` gives a value in that order, ``Step.flow`` takes a gradient in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from coordinator.authoring.graph import GraphWriter
from coordinator.authoring.update import Gradient, write_updates
from edge_sdk.training.grids import NO_GRIDS, Grids
from edge_sdk.training.network import Network, Node, Op, Role, Scheme, TensorSpec
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(slots=True, kw_only=True)
class Step:
    """One training step while it is written, or one evaluation: then nothing is saved for a backward."""

    writer: GraphWriter
    network: Network
    shapes: Mapping[str, tuple[int, ...]]
    is_training: bool
    values: dict[str, str]
    """ONNX name of each forward value, in its own order."""
    channel_major: frozenset[str] = frozenset()
    """Values whose order is (channel, batch, *space)."""
    is_channel_major: bool = False
    """Whether that is the order of the node that is being written."""
    exchanged: dict[str, str] = field(default_factory=dict)
    """By value: ONNX name of a copy in the order that is not its own."""
    pooled: Mapping[str, Node] = field(default_factory=dict)
    """Convolutions whose values lie as (batch, place of the pool's window and channel, *pooled space): their pools."""
    placed: dict[str, str] = field(default_factory=dict)
    """By kernel: ONNX name of the kernel of such a convolution."""
    scheme: Scheme = Scheme.FP32
    rule: UpdateRule = PLAIN_SGD
    grids: Grids = field(default_factory=lambda: NO_GRIDS)
    """Of calibrated activations."""
    saved: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By the name of a node's output: ONNX names that its backward rule needs."""
    trainable: frozenset[str] = frozenset()
    """Values that depend on a trainable tensor: a gradient must reach them."""
    gradients: dict[str, str] = field(default_factory=dict)
    """By value: ONNX name of the gradient, as far as it is written."""
    tensor_gradients: dict[str, Gradient] = field(default_factory=dict)
    """By trained tensor."""
    next_states: dict[str, str] = field(default_factory=dict)
    """By tensor or velocity: ONNX name of the state after the step."""

    def spec(self, name: str) -> TensorSpec:
        """The tensor's row in the table."""
        return next(spec for spec in self.network.tensors if spec.name == name)

    def is_trained(self, tensor: str) -> bool:
        """Whether a tensor is updated; a frozen one gets no gradient nodes."""
        return self.spec(tensor).is_trainable

    def is_quantized(self, tensor: str) -> bool:
        """Whether a tensor's state moves on an int8 grid."""
        return self.scheme is not Scheme.FP32 and self.spec(tensor).role is Role.WEIGHT

    def needs_gradient(self, value: str) -> bool:
        """Whether something upstream of a value is trainable."""
        return value in self.trainable

    def read(self, value: str) -> str:
        """ONNX name of a value in the order of the node; a copy in another order is made once."""
        if (value in self.channel_major) == self.is_channel_major:
            return self.values[value]
        if value not in self.exchanged:
            self.exchanged[value] = self._exchange(value, self.values[value])
        return self.exchanged[value]

    def shape(self, value: str) -> tuple[int, ...]:
        """Sizes of a value's axes in the order of the node."""
        batch, channels, *space = self.shapes[value]
        return (channels, batch, *space) if self.is_channel_major else (batch, channels, *space)

    def begin(self, node: Node) -> None:
        """Work in the order of a node's output."""
        self.is_channel_major = node.output in self.channel_major

    def flow(self, value: str, gradient: str) -> None:
        """Add a part of dL/d(value), given in the order of the node: several nodes may read the value."""
        if (value in self.channel_major) != self.is_channel_major:
            gradient = self._exchange(value, gradient)
        known = self.gradients.get(value)
        self.gradients[value] = gradient if known is None else self.writer.add("Add", known, gradient)

    def descend(self, tensor: str, gradient: Gradient) -> None:
        """Hand over lr dL/d(tensor)."""
        self.tensor_gradients[tensor] = gradient
        if not self.rule.clip_norm:
            write_updates(self, (tensor,))

    def _exchange(self, value: str, name: str) -> str:
        return self.writer.transpose(name, 1, 0, *range(2, len(self.shapes[value])))


Forward = Callable[[Step, Node], str]
Backward = Callable[[Step, Node, str], None]
Rule = tuple[Forward, Backward]


def write_forward(step: Step, rules: Mapping[Op, Rule], nodes: tuple[Node, ...]) -> None:
    """Write the forward pass of ``nodes`` in order."""
    for node in nodes:
        step.begin(node)
        step.values[node.output] = rules[node.op][0](step, node)


def write_backward(step: Step, rules: Mapping[Op, Rule]) -> None:
    """Write the backward pass from the loss; dL/dL = 1 is left out."""
    step.gradients[step.network.nodes[-1].output] = ""
    for node in reversed(step.network.nodes):
        if step.needs_gradient(node.output) and node.output in step.gradients:
            step.begin(node)
            rules[node.op][1](step, node, step.gradients[node.output])
    if step.rule.clip_norm:
        write_updates(step, step.tensor_gradients)
