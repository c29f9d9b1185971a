"""The global model as a value: its root and its bounds, without numpy."""

from __future__ import annotations

import sys
from array import array
from typing import Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import merkle
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import MODEL_VALUE_MAX, PARAMETERS_MAX
from edge_sdk.protocol.messages import ModelParams, Reason
from edge_sdk.protocol.schema import check_tensor
from edge_sdk.protocol.wire import to_bytes

_VALUE_BYTES: Final = 4


def model_root(params: ModelParams) -> Digest:
    """Merkle root over the tensors in their order: names, shapes, exponents, values and scales."""
    return merkle.root([to_bytes(tensor) for tensor in params.tensors])


def check_params(params: ModelParams) -> None:
    """Check that each tensor's parts fit together, that the tensors do, and every value.

    Raises:
        DecodeError: parts that contradict each other, two tensors of one name, too many parameters, or a value beyond
        ``MODEL_VALUE_MAX``.

    Cost: two passes over the values, about 20 ns each; one copy of the largest tensor.
    """
    names = {tensor.name for tensor in params.tensors}
    if len(names) != len(params.tensors):
        raise DecodeError("two tensors of one name", reason=Reason.SHAPE)
    count = sum(len(tensor.values) for tensor in params.tensors) // _VALUE_BYTES
    if count > PARAMETERS_MAX:
        raise DecodeError(f"{count} parameters, at most {PARAMETERS_MAX} are accepted", reason=Reason.SHAPE)
    for tensor in params.tensors:
        check_tensor(tensor)
        values = array("i", tensor.values)
        if sys.byteorder == "big":
            values.byteswap()
        if max(values) > MODEL_VALUE_MAX or min(values) < -MODEL_VALUE_MAX:
            raise DecodeError(
                f"tensor {tensor.name!r} has a value beyond {MODEL_VALUE_MAX}", reason=Reason.OUT_OF_BOUNDS
            )
