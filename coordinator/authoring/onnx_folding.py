"""Evaluates nodes whose inputs are all constants: shapes that exporters compute, weights that they transform.

A small set of operators in numpy; each result is bounded before it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper

from edge_sdk.errors import TrainingError
from edge_sdk.protocol.limits import PARAMETERS_MAX

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import NodeProto

Array = Any
BATCH_MARK: Final = -(1 << 40)
"""Stands for the batch axis in a shape that a graph computes; arithmetic on it gives no valid size."""


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute; text as str."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return default


def _bounded(size: int) -> None:
    if size > PARAMETERS_MAX:
        raise TrainingError(f"a constant of {size} elements, at most {PARAMETERS_MAX}")


def _arithmetic(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def fold(_node: NodeProto, a: Array, b: Array) -> Array:
        _bounded(math.prod(np.broadcast_shapes(a.shape, b.shape)))
        return np.asarray(function(a, b), np.result_type(a, b))

    return fold


def _divide(a: Array, b: Array) -> Array:
    """Integers toward zero, as ONNX has it."""
    if np.result_type(a, b).kind != "i":
        return a / b
    if not np.all(b):
        raise TrainingError("division of a shape by zero")
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _cast(node: NodeProto, a: Array) -> Array:
    kinds = {
        TensorProto.FLOAT: np.float32,
        TensorProto.DOUBLE: np.float64,
        TensorProto.INT64: np.int64,
        TensorProto.INT32: np.int32,
        TensorProto.BOOL: np.bool_,
    }
    to = attribute(node, "to")
    if to not in kinds:
        raise TrainingError("a cast of a constant to a type that is not supported")
    return a.astype(kinds[to])


def _axes(node: NodeProto, axes: Array | None) -> tuple[int, ...]:
    found = attribute(node, "axes") if axes is None else axes
    return () if found is None else tuple(int(axis) for axis in np.atleast_1d(found))


def _concat(node: NodeProto, *parts: Array) -> Array:
    _bounded(sum(part.size for part in parts))
    return np.concatenate(parts, axis=attribute(node, "axis"))


def _gather(node: NodeProto, a: Array, indices: Array) -> Array:
    _bounded(a.size * max(1, indices.size))
    return np.take(a, indices, axis=attribute(node, "axis", 0), mode="raise")


def _slice(node: NodeProto, a: Array, *places: Array) -> Array:
    if not places:
        places = tuple(np.array(attribute(node, name, [])) for name in ("starts", "ends"))
        places = (*places, np.array(attribute(node, "axes", range(len(places[0])))))
    starts, ends = places[0], places[1]
    axes = places[2] if len(places) > 2 else np.arange(len(starts))
    steps = places[3] if len(places) > 3 else np.ones(len(starts), np.int64)
    cut = [slice(None)] * a.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[int(axis)] = slice(int(start), int(end), int(step))
    return a[tuple(cut)]


def _constant_of_shape(node: NodeProto, shape: Array) -> Array:
    if shape.size and int(shape.min()) < 0:
        raise TrainingError("a constant whose shape depends on the batch")
    _bounded(math.prod(int(size) for size in shape))
    value = attribute(node, "value")
    fill = np.float32(0) if value is None or value.raw_data == b"" else np.frombuffer(value.raw_data, np.float32)[0]
    if value is not None and value.data_type == TensorProto.INT64:
        fill = np.frombuffer(value.raw_data, np.int64)[0] if value.raw_data else np.int64(value.int64_data[0])
    return np.full(tuple(int(size) for size in shape), fill)


def _reshape(_node: NodeProto, a: Array, shape: Array) -> Array:
    kept = [a.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)]
    return a.reshape(kept)


FOLDED: Final[dict[str, Callable[..., Array]]] = {
    "Add": _arithmetic(np.add),
    "Sub": _arithmetic(np.subtract),
    "Mul": _arithmetic(np.multiply),
    "Div": _arithmetic(_divide),
    "Neg": lambda _, a: -a,
    "Sqrt": lambda _, a: np.sqrt(a),
    "Reciprocal": lambda _, a: np.asarray(1, a.dtype) / a,
    "Identity": lambda _, a: a,
    "Cast": _cast,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "ConstantOfShape": _constant_of_shape,
    "Reshape": _reshape,
    "Transpose": lambda node, a: a.transpose(attribute(node, "perm", tuple(reversed(range(a.ndim))))),
    "Unsqueeze": lambda node, a, axes=None: np.expand_dims(a, _axes(node, axes)),
    "Squeeze": lambda node, a, axes=None: np.squeeze(a, _axes(node, axes) or None),
    "Shape": lambda _, a: np.array(a.shape, np.int64),
}


def fold(node: NodeProto, inputs: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The constant that a node makes of constants.

    Raises:
        TrainingError: it cannot be computed or would be too large.
    """
    try:
        with np.errstate(all="ignore"):
            return np.asarray(FOLDED[node.op_type](node, *inputs))
    except (ValueError, IndexError, TypeError, OverflowError) as error:
        raise TrainingError(f"its constants do not fit: {error}") from error
