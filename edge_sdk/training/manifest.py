"""What an artifact's manifest is made of, as CBOR rows: tensors, nodes, update rule, grids. Read strictly, by type.

The codec has no floats: they are little-endian float32 in bytes. Reading something else raises DecodeError.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, TypeVar

from edge_sdk.errors import DecodeError
from edge_sdk.training.grids import NO_GRIDS, Grid, Grids, check_grids
from edge_sdk.training.network import Network, Node, Op, Role, Scheme, TensorSpec
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule, check_rule

_TENSOR_FIELDS, _NODE_FIELDS, _NODE_EXTRAS = 5, 6, 6
_FROZEN: Final = 0
_CONSTANT_BYTES_MAX: Final = 8
_E = TypeVar("_E", bound=IntEnum)


def rule_bytes(rule: UpdateRule) -> bytes:
    """Momentum, clip norm and prox."""
    return struct.pack("<3f", rule.momentum, rule.clip_norm, rule.prox)


def grid_rows(grids: Grids) -> list[list[object]]:
    """Value, scale and zero point of each grid."""
    return [[value, struct.pack("<f", grid.scale), grid.zero] for value, grid in grids.items()]


def read_grids(value: object, network: Network, scheme: Scheme) -> Grids:
    """Calibrated grids, for exactly the values that need one; without them the step takes the range of each batch."""
    if value is None:
        return NO_GRIDS
    if scheme is Scheme.FP32:
        raise DecodeError("artifact: activation grids in a float32 scheme")
    grids: dict[str, Grid] = {}
    for entry in read_list(value, "activation grids"):
        name, scale, zero = read_row(entry, 3, "activation grid")
        data = read_bytes(scale, "scale of an activation grid")
        if len(data) != struct.calcsize("<f"):
            raise DecodeError(f"artifact activation grid: {len(data)} bytes of scale")
        grids[read_text(name)] = Grid(struct.unpack("<f", data)[0], read_int(zero))
    check_grids(network, grids)
    return grids


def read_rule(value: object) -> UpdateRule:
    """Momentum, clip norm and prox as little-endian float32; without them plain SGD."""
    if value is None:
        return PLAIN_SGD
    data = read_bytes(value, "update rule")
    if len(data) != struct.calcsize("<3f"):
        raise DecodeError(f"artifact update rule: {len(data)} bytes")
    momentum, clip_norm, prox = struct.unpack("<3f", data)
    rule = UpdateRule(momentum=momentum, clip_norm=clip_norm, prox=prox)
    check_rule(rule)
    if rule.is_plain:
        raise DecodeError("artifact update rule: plain SGD is written by leaving it out")
    return rule


def tensor_row(spec: TensorSpec) -> list[object]:
    """Five fields, and a mark where the tensor is frozen."""
    row: list[object] = [spec.name, list(spec.shape), int(spec.role), spec.channel_axis, spec.exponent]
    return row if spec.is_trainable else [*row, _FROZEN]


def read_tensor(row: object) -> TensorSpec:
    """A tensor from its row."""
    fields = read_list(row, "tensor")
    is_trainable = len(fields) != _TENSOR_FIELDS + 1
    if not is_trainable and fields[-1] != _FROZEN:
        raise DecodeError("artifact tensor: its mark is not the one of a frozen tensor")
    name, shape, role, axis, exponent = read_row(fields[:_TENSOR_FIELDS] if not is_trainable else row, 5, "tensor")
    return TensorSpec(
        name=read_text(name),
        shape=read_ints(shape),
        role=read_enum(Role, role),
        channel_axis=read_int(axis),
        exponent=read_int(exponent),
        is_trainable=is_trainable,
    )


def node_row(node: Node) -> list[object]:
    """Six fields that every node has, and a map of what differs from its default."""
    row: list[object] = [
        int(node.op),
        list(node.inputs),
        node.output,
        list(node.kernel),
        list(node.stride),
        list(node.padding),
    ]
    extras: dict[int, object] = {}
    if node.dilation:
        extras[1] = list(node.dilation)
    if node.groups != 1:
        extras[2] = node.groups
    if node.axes:
        extras[3] = list(node.axes)
    if node.shape:
        extras[4] = list(node.shape)
    if node.constants:
        extras[5] = struct.pack(f"<{len(node.constants)}f", *node.constants)
    if not node.counts_padding:
        extras[6] = 0
    return [*row, extras] if extras else row


def read_node(row: object) -> Node:
    """A node from its row."""
    fields = read_list(row, "node")
    extras: dict[int, object] = {}
    if len(fields) == _NODE_FIELDS + 1:
        *fields, found = fields
        if not isinstance(found, dict) or not found or not set(found) <= set(range(1, _NODE_EXTRAS + 1)):
            raise DecodeError(f"artifact node: expected a map with keys out of 1..{_NODE_EXTRAS}")
        extras = found
    op, inputs, output, kernel, stride, padding = read_row(fields, _NODE_FIELDS, "node")
    return Node(
        op=read_enum(Op, op),
        inputs=tuple(read_text(name) for name in read_list(inputs, "node inputs")),
        output=read_text(output),
        kernel=read_ints(kernel),
        stride=read_ints(stride),
        padding=read_ints(padding),
        dilation=read_ints(extras.get(1, [])),
        groups=read_int(extras.get(2, 1)),
        axes=read_ints(extras.get(3, [])),
        shape=read_ints(extras.get(4, [])),
        constants=_read_floats(extras.get(5, b"")),
        counts_padding=bool(read_int(extras.get(6, 1))),
    )


def read_map(value: object, size: int, what: str, *, optional: frozenset[int] = frozenset()) -> dict[int, object]:
    """A map with the keys 1..size, and perhaps some of the optional ones."""
    required = set(range(1, size + 1))
    if not isinstance(value, dict) or not required <= set(value) <= required | optional:
        raise DecodeError(f"artifact {what}: expected a map with the keys 1..{size}")
    return value


def read_list(value: object, what: str) -> list[object]:
    """A list."""
    if not isinstance(value, list):
        raise DecodeError(f"artifact {what}: expected a list, found {type(value).__name__}")
    return value


def read_row(value: object, size: int, what: str) -> list[object]:
    """A list of so many fields."""
    row = read_list(value, what)
    if len(row) != size:
        raise DecodeError(f"artifact {what}: expected {size} fields, found {len(row)}")
    return row


def read_int(value: object) -> int:
    """An integer, and no boolean."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise DecodeError(f"artifact: expected an integer, found {type(value).__name__}")
    return value


def read_ints(value: object) -> tuple[int, ...]:
    """Integers, such as a shape."""
    return tuple(read_int(item) for item in read_list(value, "shape"))


def _read_floats(value: object) -> tuple[float, ...]:
    """Constants as little-endian float32: the codec has no floats."""
    data = read_bytes(value, "node constants")
    if len(data) % 4 or len(data) > _CONSTANT_BYTES_MAX:
        raise DecodeError(f"artifact node: {len(data)} bytes of constants")
    return struct.unpack(f"<{len(data) // 4}f", data)


def read_text(value: object) -> str:
    """A text."""
    if not isinstance(value, str):
        raise DecodeError(f"artifact: expected text, found {type(value).__name__}")
    return value


def read_bytes(value: object, what: str) -> bytes:
    """Bytes."""
    if not isinstance(value, bytes):
        raise DecodeError(f"artifact {what}: expected bytes, found {type(value).__name__}")
    return value


def read_enum(kind: type[_E], value: object) -> _E:
    """A member by its number; ValueError where there is none."""
    return kind(read_int(value))
