"""What ONNX Runtime makes of a graph when it loads it, as far as that changes which tensors a run needs.

Two things happen to what depends on constants alone. It is computed at once. And a convolution of images whose kernel
and bias are constants gets a kernel that is laid out in blocks of channels, and works on values that are laid out so:
ReorderInput and ReorderOutput go between where a neighbour wants the usual order, and an activation behind it becomes
a part of it. Source: ``onnxruntime/core/optimizer/constant_folding.cc`` and ``nchwc_transformer.cc`` (1.16 to 1.31).

Blocks have 16 channels with AVX-512 and 8 without; where a processor has none of it, a run needs less memory than
is predicted here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from onnx import helper

from coordinator.authoring.runtime_tensors import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import NodeProto

BLOCK: Final = 16
BLOCKED_CONV: Final = "BlockedConv"
_IMAGE_RANK: Final = 4
_FUSED: Final = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu"})
_IN_BLOCKS: Final = frozenset({"Add", "Mul"})
"""What works on values in blocks, if all its inputs lie so."""


@dataclass(slots=True)
class _Preparation:
    tensors: dict[str, Tensor]
    """Grows by the values in blocks."""
    constants: set[str]
    """Grows by what is folded."""
    uses: Counter[str]
    nodes: list[NodeProto] = field(default_factory=list)
    blocked: dict[str, str] = field(default_factory=dict)
    """By value: its name in blocks."""
    usual: set[str] = field(default_factory=set)
    """Values in blocks that also have been written in the usual order."""
    convolved: set[str] = field(default_factory=set)
    """Values in blocks that a convolution makes, with no activation so far."""

    def visit(self, node: NodeProto) -> None:
        """One node of the graph, in order."""
        if all(name in self.constants for name in node.input if name):
            self.constants.update(node.output)
        elif self._is_in_blocks(node):
            self._convolve(node)
        elif node.op_type in _FUSED and self._is_alone(node.input[0]):
            self.blocked[node.output[0]] = self.blocked[node.input[0]]
        elif node.op_type in _IN_BLOCKS and all(name in self.blocked for name in node.input):
            names = [self.blocked[name] for name in node.input]
            self.nodes.append(helper.make_node(node.op_type, names, [self._block(node.output[0])]))
        else:
            for name in node.input:
                self._restore(name)
            self.nodes.append(node)

    def _is_alone(self, value: str) -> bool:
        """Whether a convolution makes a value that only one node reads."""
        return value in self.convolved and self.uses[value] == 1

    def _is_in_blocks(self, node: NodeProto) -> bool:
        if node.op_type != "Conv" or not self.constants.issuperset(node.input[1:]):
            return False
        shape = self.tensors[node.input[1]].shape
        if len(shape) != _IMAGE_RANK:
            return False
        groups = _groups(node)
        return groups == 1 or (shape[1] == 1 and shape[0] == groups and groups % BLOCK == 0)

    def _convolve(self, node: NodeProto) -> None:
        value, kernel, _ = node.input
        if _groups(node) == 1 and self.tensors[kernel].shape[1] < BLOCK:  # from the usual order into blocks
            self._restore(value)
            source = value
        else:
            if value not in self.blocked:
                self.nodes.append(helper.make_node("ReorderInput", [value], [self._block(value)]))
                self.usual.add(value)
            source = self.blocked[value]
        self.nodes.append(helper.make_node(BLOCKED_CONV, [source, kernel], [self._block(node.output[0])]))
        self.convolved.add(node.output[0])

    def _block(self, value: str) -> str:
        """Name of a value in blocks, whose channels are filled up to whole ones."""
        tensor = self.tensors[value]
        batch, channels, *space = tensor.shape
        name = self.blocked[value] = f"{value} in blocks"
        self.tensors[name] = Tensor((batch, -(-channels // BLOCK) * BLOCK, *space), tensor.item_bytes)
        return name

    def _restore(self, value: str) -> None:
        """Write a value in the usual order, unless it lies so."""
        if value in self.blocked and value not in self.usual:
            self.nodes.append(helper.make_node("ReorderOutput", [self.blocked[value]], [value]))
            self.usual.add(value)


def prepare(nodes: Sequence[NodeProto], tensors: dict[str, Tensor], constants: set[str]) -> list[NodeProto]:
    """The nodes that are left to run, in order.

    Args:
        nodes: Of the graph.
        tensors: All its tensors; those in blocks are added.
        constants: Initializers, and inputs that a session has as constants; what is folded is added.
    """
    preparation = _Preparation(tensors, constants, Counter(name for node in nodes for name in node.input if name))
    for node in nodes:
        preparation.visit(node)
    return preparation.nodes


def _groups(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
