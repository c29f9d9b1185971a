"""The form that an update of this task must have: what a miner checks before it stores a blob."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import wire
from edge_sdk.protocol.limits import SPSA_CODES_MAX, SPSA_SEED_BYTES
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, Reason, UpdateManifest, UpdatePayload
from edge_sdk.training.codecs.dense import TYPES
from edge_sdk.training.codecs.reading import UpdateForm, check_payload
from edge_sdk.training.codecs.sign import channel_count
from edge_sdk.training.codecs.topk import LEB_BYTES_MAX, kept_count

if TYPE_CHECKING:
    from coordinator.pool import BlobCheck

TENSOR_OVERHEAD_BYTES: Final = 96
"""Name, exponent and CBOR heads of one tensor."""
PAYLOAD_OVERHEAD_BYTES: Final = 64
_GAP_PER_BYTE: Final = 128
"""A gap of so many values costs one byte more."""


def blob_bytes_max(model: ModelParams, form: UpdateForm) -> int:
    """No honest update of this model in this form is longer."""
    carried = model.tensors if form.carried is None else [model.tensors[position] for position in form.carried]
    named = 1 if form.codec is Codec.SPSA else len(carried)
    return _values_bytes_max(carried, form) + TENSOR_OVERHEAD_BYTES * named + PAYLOAD_OVERHEAD_BYTES


def upload_check(model: ModelParams, form: UpdateForm) -> BlobCheck:
    """Check against a model of the task; all versions have the same names, shapes and exponents."""

    def check(manifest: UpdateManifest, blob: bytes) -> Reason:
        try:
            payload = wire.from_bytes(UpdatePayload, blob)
            if payload.codec is not manifest.codec:
                return Reason.CODEC
            check_payload(payload, model, form)
        except DecodeError as error:
            return error.reason or Reason.MALFORMED
        return Reason.NONE

    return check


def _values_bytes_max(carried: Sequence[ModelTensor], form: UpdateForm) -> int:
    sizes = [math.prod(tensor.shape) for tensor in carried]
    if form.codec in TYPES:
        return sum(sizes) * TYPES[form.codec].itemsize
    match form.codec:
        case Codec.INT8_TOPK:
            # A value and a gap of at least one byte each; gaps that need more leave out that many values.
            count = kept_count(sum(sizes), form.top_share)
            return 2 * count + 2 * sum(sizes) // _GAP_PER_BYTE + LEB_BYTES_MAX * len(sizes)
        case Codec.INT4_DENSE:
            return sum(-(-size // 2) for size in sizes)
        case Codec.SIGN_DENSE:
            channels = sum(channel_count(tensor.shape, tensor.channel_axis) for tensor in carried)
            return channels + sum(-(-size // 8) for size in sizes)
        case _:
            return SPSA_SEED_BYTES + SPSA_CODES_MAX
