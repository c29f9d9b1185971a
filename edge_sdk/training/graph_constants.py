"""Turns inputs of a serialized ONNX graph into constants, without the ``onnx`` package, which no board has.

A runtime prepares what it knows when it loads a graph: it computes what depends on constants alone, and lays out the
weights of a convolution for its fastest kernels. Weights that come in with each step are none of that. So the frozen
tensors of a model, inputs of the training-step graph like all others, become constants of the session.

Only as much of protobuf is read as that takes: a message is a list of fields, each a key, 8 number + wire type, and a
varint or so many bytes. Field numbers are those of ``onnx.proto``, which never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER, _GRAPH_INPUT = 5, 11
_VALUE_NAME: Final = 1
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 8, 9
_ELEMENT_TYPES: Final = {"float32": 1, "int8": 3, "int16": 5}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES_MAX: Final = 10


def with_constants(graph: bytes, constants: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """A serialized model whose inputs of these names are initializers.

    Args:
        graph: A serialized ``ModelProto``.
        constants: By input: float32, int8 or int16.

    Raises:
        TrainingError: this is no ONNX model, or it has no such input.
    """
    if not constants:
        return graph
    parts: list[bytes] = []
    has_graph = False
    for number, start, payload, end in _fields(graph):
        if number == _MODEL_GRAPH:
            has_graph = True
            bound = _bound(graph[payload:end], constants)
            parts += (_key(_MODEL_GRAPH, _BYTES), _varint(sum(map(len, bound))), *bound)
        else:
            parts.append(graph[start:end])
    if not has_graph:
        raise TrainingError("graph: the model has none")
    return b"".join(parts)


def _bound(graph: bytes, constants: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    """Parts of a ``GraphProto``: without the inputs, with the initializers."""
    parts: list[bytes] = []
    missing = set(constants)
    for number, start, payload, end in _fields(graph):
        if number == _GRAPH_INPUT:
            name = _name(graph[payload:end])
            if name in constants:
                missing.discard(name)
                continue
        parts.append(graph[start:end])
    if missing:
        raise TrainingError(f"graph has no inputs {', '.join(sorted(missing))}")
    for name, value in constants.items():
        head, raw = _tensor(name, value)
        parts += (_key(_GRAPH_INITIALIZER, _BYTES), _varint(len(head) + len(raw)), head, raw)
    return parts


def _name(value_info: bytes) -> str:
    for number, _, payload, end in _fields(value_info):
        if number == _VALUE_NAME:
            return value_info[payload:end].decode(errors="replace")
    return ""


def _tensor(name: str, value: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """A ``TensorProto``: all before the content of its last field, and that content."""
    raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
    text = name.encode()
    head = [_key(_TENSOR_DIMS, _VARINT) + _varint(size) for size in value.shape]
    head += (
        _key(_TENSOR_TYPE, _VARINT) + _varint(_ELEMENT_TYPES[value.dtype.name]),
        _key(_TENSOR_NAME, _BYTES) + _varint(len(text)) + text,
        _key(_TENSOR_RAW, _BYTES) + _varint(len(raw)),
    )
    return b"".join(head), raw


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number of each field, and where it, its content and the next one start."""
    place = 0
    while place < len(message):
        key, payload = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            _, end = _read_varint(message, payload)
        elif kind == _BYTES:
            size, payload = _read_varint(message, payload)
            end = payload + size
        elif kind in _FIXED_BYTES:
            end = payload + _FIXED_BYTES[kind]
        else:
            raise TrainingError(f"graph: wire type {kind} at byte {place}")
        if end > len(message):
            raise TrainingError(f"graph: a field at byte {place} ends behind its message")
        yield number, place, payload, end
        place = end


def _read_varint(message: bytes, place: int) -> tuple[int, int]:
    """An unsigned number, seven bits per byte, lowest first, and where it ends."""
    value = 0
    for index, byte in enumerate(message[place : place + _VARINT_BYTES_MAX]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise TrainingError(f"graph: no number at byte {place}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)
