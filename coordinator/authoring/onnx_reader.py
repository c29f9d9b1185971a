"""Reads a forward ONNX file within bounds: what it holds is checked before memory is taken for it.

Weights are converted to arrays only when a node asks for them. Data outside of the file comes through a function of the
caller, after its length is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError as ProtobufError
from onnx import TensorProto, numpy_helper

from edge_sdk.errors import TrainingError
from edge_sdk.protocol.limits import PARAMETERS_MAX, TENSOR_RANK_MAX

if TYPE_CHECKING:
    import numpy.typing as npt

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Four times the largest model in float32."""
GRAPH_NODES_MAX: Final = 4_096
OPSET_MIN, OPSET_MAX = 9, 24
_KINDS: Final[dict[int, str]] = {
    TensorProto.FLOAT: "<f4",
    TensorProto.DOUBLE: "<f8",
    TensorProto.FLOAT16: "<f2",
    TensorProto.INT64: "<i8",
    TensorProto.INT32: "<i4",
    TensorProto.BOOL: "|b1",
}
ReadExternal = Callable[[str, int, int], bytes]
"""(location, offset, length) -> bytes, or TrainingError."""
_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})


@dataclass(slots=True)
class OnnxFile:
    """A checked graph with one input. Nodes are in execution order."""

    nodes: list[onnx.NodeProto]
    input_name: str
    input_shape: tuple[int, ...]
    """Without the batch axis."""
    batch: int | None
    """Size of the batch axis if the exporter fixed it."""
    outputs: list[onnx.ValueInfoProto]
    read_external: ReadExternal
    initializers: dict[str, TensorProto]
    _elements: int = field(default=0)

    def array(self, tensor: TensorProto, *, name: str = "") -> npt.NDArray[Any]:
        """A stored tensor as an array.

        Raises:
            TrainingError: wrong size, type or place, a value that is not finite, or too much in total.
        """
        place = f"tensor {(name or tensor.name)[:80]!r}"
        count = _count(place, tensor)
        self._elements += count
        if self._elements > 2 * PARAMETERS_MAX:
            raise TrainingError(f"{place}: the tensors in use exceed {2 * PARAMETERS_MAX} elements in total")
        kind = np.dtype(_KINDS[tensor.data_type])
        if tensor.data_location == TensorProto.EXTERNAL:
            raw = _external(place, tensor, self.read_external, count * kind.itemsize)
            array = np.frombuffer(raw, kind).reshape(tuple(tensor.dims))
        else:
            _check_inline(place, tensor, count, kind.itemsize)
            array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = int(np.argmin(np.isfinite(array.ravel())))
            raise TrainingError(f"{place}: element {where} is {array.ravel()[where]}: expected finite weights")
        return array


def refuse_external(location: str, offset: int, length: int) -> bytes:
    """For models that must be whole in themselves.

    Raises:
        TrainingError: always.
    """
    raise TrainingError(f"external data {location[:80]!r} ({length} bytes at {offset}): expected all data in the model")


def read_onnx(data: bytes, *, read_external: ReadExternal = refuse_external) -> OnnxFile:
    """Parse and check a model.

    Raises:
        TrainingError: not ONNX, too large, or of a kind that cannot be trained; the text says what and where.
    """
    if len(data) > FILE_BYTES_MAX:
        raise TrainingError(f"more than {FILE_BYTES_MAX} bytes")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except ProtobufError as error:
        raise TrainingError(f"not an ONNX model: {error}") from error
    graph = model.graph
    _check_model(model)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise TrainingError(f"inputs {[value.name for value in inputs][:8]}: expected exactly one")
    batch, shape = _input_shape(inputs[0])
    return OnnxFile(
        nodes=list(graph.node),
        input_name=inputs[0].name,
        input_shape=shape,
        batch=batch,
        outputs=list(graph.output),
        read_external=read_external,
        initializers=initializers,
    )


def _check_model(model: onnx.ModelProto) -> None:
    if not model.graph.node or not model.graph.output:
        raise TrainingError("not an ONNX model with nodes and outputs")
    if len(model.graph.node) > GRAPH_NODES_MAX:
        raise TrainingError(f"{len(model.graph.node)} nodes, at most {GRAPH_NODES_MAX}")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    version = opsets.get("", opsets.get("ai.onnx", 0))
    if not OPSET_MIN <= version <= OPSET_MAX:
        raise TrainingError(f"opset {version}, expected {OPSET_MIN}..{OPSET_MAX}")
    if model.functions or model.graph.sparse_initializer:
        raise TrainingError("model functions and sparse tensors are not supported: export them expanded")
    for node in model.graph.node:
        if node.domain not in _DOMAINS:
            raise TrainingError(f"node {node.name or node.op_type!r}: operator domain {node.domain!r} is not supported")


def _input_shape(value: onnx.ValueInfoProto) -> tuple[int | None, tuple[int, ...]]:
    """Batch size, if fixed, and the shape of an example."""
    place, kind = f"input {value.name!r}", value.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        raise TrainingError(f"{place}: expected float32 features; convert other types before the model")
    if not kind.HasField("shape") or not 2 <= len(kind.shape.dim) <= TENSOR_RANK_MAX:
        raise TrainingError(f"{place}: expected a shape (batch, ...) of 2..{TENSOR_RANK_MAX} axes")
    first, *rest = kind.shape.dim
    for axis, size in enumerate(rest, 1):
        if size.dim_value < 1:
            label = repr(size.dim_param) if size.dim_param else "unknown"
            raise TrainingError(f"{place}: axis {axis} is dynamic ({label}): export the model with a fixed size")
    if math.prod(size.dim_value for size in rest) > PARAMETERS_MAX:
        raise TrainingError(f"{place}: an example has more than {PARAMETERS_MAX} elements")
    return (first.dim_value if first.dim_value > 0 else None), tuple(size.dim_value for size in rest)


def _count(place: str, tensor: TensorProto) -> int:
    if tensor.data_type not in _KINDS:
        raise TrainingError(f"{place}: element type {TensorProto.DataType.Name(tensor.data_type)} is not supported")
    count = math.prod(tensor.dims)
    if len(tensor.dims) > TENSOR_RANK_MAX or any(size < 0 for size in tensor.dims) or count > PARAMETERS_MAX:
        raise TrainingError(f"{place}: shape {list(tensor.dims)[:8]} has more than {PARAMETERS_MAX} elements or 6 axes")
    return count


def _check_inline(place: str, tensor: TensorProto, count: int, item_bytes: int) -> None:
    if tensor.HasField("raw_data"):
        found, expected = len(tensor.raw_data), count * item_bytes
    else:
        found = max(len(tensor.float_data), len(tensor.double_data), len(tensor.int32_data), len(tensor.int64_data))
        expected = count
    if found != expected:
        raise TrainingError(f"{place}: data of length {found} does not fit shape {list(tensor.dims)}")


def _external(place: str, tensor: TensorProto, read_external: ReadExternal, length: int) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, declared = int(entries.get("offset", "0")), int(entries.get("length", str(length)))
    except ValueError as error:
        raise TrainingError(f"{place}: external data: {error}") from error
    if declared != length:
        raise TrainingError(f"{place}: {declared} bytes of external data do not fit shape {list(tensor.dims)}")
    try:
        data = read_external(entries.get("location", ""), offset, length)
    except TrainingError as error:
        raise TrainingError(f"{place}: {error}") from error
    if len(data) != length:
        raise TrainingError(f"{place}: {len(data)} bytes of external data, expected {length}")
    return data
