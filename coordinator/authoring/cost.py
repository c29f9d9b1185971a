"""What a training step costs: multiply-accumulates from the network, bytes from the graph's tensors and their lives.

The memory of the runtime and of the process is not in these figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper, shape_inference

from edge_sdk.training.artifact import LOSS
from edge_sdk.training.network import Op, infer_shapes

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One node of the forward network."""

    node: Node
    output_shape: tuple[int, ...]
    """Without the batch axis."""
    parameters: int
    trainable: int
    forward_macs: int
    """Of a batch."""
    backward_macs: int
    """Of a batch; 0 where nothing at or before the node is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A whole training step."""

    layers: tuple[LayerCost, ...]
    parameter_bytes: int
    """States and scales that go in, and the states that come out."""
    activation_bytes: int
    """Largest sum of the other tensors alive at the same time, when each is freed after its last use."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates, forward and backward."""
        return sum(layer.forward_macs + layer.backward_macs for layer in self.layers)


def step_cost(artifact: Artifact) -> StepCost:
    """Predict a step of an artifact."""
    network = artifact.network
    shapes = infer_shapes(network, batch=artifact.batch)
    specs = {spec.name: spec for spec in network.tensors}
    reached = network.trainable_values
    layers = []
    for node in network.nodes:
        tensors = [specs[name] for name in node.tensors]
        forward = 0
        if node.op in {Op.GEMM, Op.CONV}:
            weight = tensors[0]
            positions = artifact.batch * math.prod(shapes[node.output][2:])
            forward = positions * weight.size
        products = int(bool(tensors) and tensors[0].is_trainable) + int(node.values[0] in reached)
        layers.append(
            LayerCost(
                node=node,
                output_shape=shapes[node.output][1:],
                parameters=sum(spec.size for spec in tensors),
                trainable=sum(spec.size for spec in tensors if spec.is_trainable),
                forward_macs=forward,
                backward_macs=forward * products,
            )
        )
    parameters, activations = _graph_bytes(artifact)
    return StepCost(layers=tuple(layers), parameter_bytes=parameters, activation_bytes=activations)


def _graph_bytes(artifact: Artifact) -> tuple[int, int]:
    """Bytes of the state in and out, and the peak of all other tensors."""
    model = onnx.load_model_from_string(artifact.train_onnx)
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    sizes = {value.name: _value_bytes(value.type.tensor_type) for value in values}
    sizes |= {tensor.name: _tensor_bytes(tensor) for tensor in graph.initializer}
    examples = {name for name in artifact.train_inputs if not name.endswith((".state", ".scale"))} | {LOSS}
    state = {*artifact.train_inputs, *artifact.train_outputs} - examples
    last_use = {name: place for place, node in enumerate(graph.node) for name in node.input}
    alive = sum(sizes[name] for name in (*examples, *(tensor.name for tensor in graph.initializer)))
    peak = alive
    for place, node in enumerate(graph.node):
        made = [name for name in node.output if name and name not in state and node.op_type != "Identity"]
        alive += sum(sizes[name] for name in made)
        peak = max(peak, alive)
        ended = {name for name in (*node.input, *made) if name in sizes and last_use.get(name, place) == place}
        alive -= sum(sizes[name] for name in ended if name not in state and name not in examples)
    return sum(sizes[name] for name in state), peak


def _value_bytes(kind: Any) -> int:
    elements: int = math.prod(size.dim_value for size in kind.shape.dim)
    return elements * _item_bytes(kind.elem_type)


def _tensor_bytes(tensor: TensorProto) -> int:
    return math.prod(tensor.dims) * _item_bytes(tensor.data_type)


def _item_bytes(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
