"""The form that an update of this task must have: what a miner checks before it stores a blob."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import ModelParams, Reason, UpdateManifest, UpdatePayload
from edge_sdk.training.delta import check_payload

if TYPE_CHECKING:
    from coordinator.pool import BlobCheck

VALUE_BYTES_MAX: Final = 2
"""int16, the widest codec."""
TENSOR_OVERHEAD_BYTES: Final = 96
"""Name, exponent and CBOR heads of one tensor."""
PAYLOAD_OVERHEAD_BYTES: Final = 64


def blob_bytes_max(model: ModelParams) -> int:
    """No honest update of this model is longer."""
    values = sum(math.prod(tensor.shape) for tensor in model.tensors)
    return VALUE_BYTES_MAX * values + TENSOR_OVERHEAD_BYTES * len(model.tensors) + PAYLOAD_OVERHEAD_BYTES


def upload_check(model: ModelParams) -> BlobCheck:
    """Check against a model of the task; all versions have the same names, shapes and exponents."""

    def check(manifest: UpdateManifest, blob: bytes) -> Reason:
        try:
            payload = wire.from_bytes(UpdatePayload, blob)
            if payload.codec is not manifest.codec:
                return Reason.CODEC
            check_payload(payload, model)
        except DecodeError as error:
            return error.reason or Reason.MALFORMED
        return Reason.NONE

    return check
