"""The tensors of a graph, as ONNX Runtime knows them before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import helper, numpy_helper, shape_inference

from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto


@dataclass(frozen=True, slots=True)
class Tensor:
    """Sizes of the axes, and bytes of an element."""

    shape: tuple[int, ...]
    item_bytes: int
    is_foreseen: bool = True
    """Whether the runtime knows the shape before it runs; else it reuses nothing for it."""

    @property
    def size_bytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * self.item_bytes


def graph_tensors(model: ModelProto) -> tuple[GraphProto, dict[str, Tensor]]:
    """Every tensor of the graph; shapes behind a MaxUnpool are ours alone, the runtime learns them while it runs."""
    foreseen = {value.name for value in _values(model.graph)}
    graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    foreseen |= {value.name for value in _values(graph)}
    constants = {constant.name: constant for constant in graph.initializer}
    for node in graph.node:
        if node.op_type == "MaxUnpool":
            sizes = numpy_helper.to_array(constants[node.input[2]])
            element = next(value.type.tensor_type.elem_type for value in _values(graph) if value.name == node.input[0])
            model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], element, sizes.tolist()))
            graph = shape_inference.infer_shapes(model, strict_mode=True).graph
    tensors = {}
    for value in _values(graph):
        kind = value.type.tensor_type
        shape = tuple(size.dim_value for size in kind.shape.dim)
        tensors[value.name] = Tensor(shape, _item_bytes(kind.elem_type), value.name in foreseen)
    for constant in graph.initializer:
        tensors[constant.name] = Tensor(tuple(constant.dims), _item_bytes(constant.data_type))
    for node in graph.node:
        for name in node.output:
            if name and name not in tensors:
                raise TrainingError(f"graph {graph.name}: tensor {name} has no fixed shape")
    return graph, tensors


def _values(graph: GraphProto) -> list[ValueInfoProto]:
    """Values whose shape is known in every axis."""
    return [
        value
        for value in (*graph.input, *graph.output, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
        and all(size.HasField("dim_value") for size in value.type.tensor_type.shape.dim)
    ]


def _item_bytes(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)
