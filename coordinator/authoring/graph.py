"""Writing an ONNX graph node by node: the only place that knows ``onnx.helper``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, checker, helper, numpy_helper, shape_inference

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import IR_VERSION, OPSET

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

FLOAT = TensorProto.FLOAT
INT8 = TensorProto.INT8
INT16 = TensorProto.INT16
INT32 = TensorProto.INT32
INT64 = TensorProto.INT64


class GraphWriter:
    """Collects nodes, constants, inputs and outputs; equal constants are stored once."""

    def __init__(self, name: str) -> None:
        """Start an empty graph."""
        self._name = name
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[TensorProto] = []
        self._counter = 0

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a text as size is a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, value: str, name: str, kind: int, shape: Sequence[int | str]) -> None:
        """Give ``value`` out under ``name``."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, kind, list(shape)))

    def constant(self, value: npt.NDArray[np.generic]) -> str:
        """A constant tensor."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._constants[key] = name
            self._initializers.append(numpy_helper.from_array(value, name))
        return self._constants[key]

    def scalar(self, value: float) -> str:
        """A float32 constant without axes."""
        return self.constant(np.array(value, np.float32))

    def shape(self, *sizes: int) -> str:
        """An int64 vector, as Reshape, Slice and Reduce take their shapes and axes."""
        return self.constant(np.array(sizes, np.int64))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node with one output; return the output's name."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Append a node with several outputs; return their names."""
        names = [f"v{self._counter + i}" for i in range(outputs)]
        self._counter += outputs
        self._nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def transpose(self, value: str, *order: int) -> str:
        """``value`` with its axes in another order."""
        return self.add("Transpose", value, perm=list(order))

    def cast(self, value: str, kind: int) -> str:
        """``value`` as another element type."""
        return self.add("Cast", value, to=kind)

    def serialize(self) -> bytes:
        """Check the graph and return the bytes of its model.

        Raises:
            TrainingError: the graph is not valid ONNX: a fault of a rule.
        """
        graph: GraphProto = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, self._initializers)
        model = helper.make_model(
            graph, producer_name="edge-flchain", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        try:
            checker.check_model(model, full_check=True)
        except (checker.ValidationError, shape_inference.InferenceError) as error:
            raise TrainingError(f"graph {self._name}: {error}") from error
        data: bytes = model.SerializeToString(deterministic=True)
        return data
