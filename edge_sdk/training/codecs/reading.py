"""Reads an update against the model that it is for: form and bounds first, and no array before they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, ModelTensor, PayloadTensor, Reason, UpdatePayload
from edge_sdk.training.codecs.dense import TYPES, read_dense, read_int4
from edge_sdk.training.codecs.sign import read_sign
from edge_sdk.training.codecs.spsa import MESSAGE_NAME, ProbeValues, read_probes
from edge_sdk.training.codecs.topk import SparseValues, kept_count, read_topk
from edge_sdk.training.codecs.values import SentTensor, Values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_sdk.protocol.messages import TaskParams

_Q16: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateForm:
    """What every update of a task must be; ``of_task`` takes it from the rules in genesis."""

    codec: Codec
    carried: tuple[int, ...] | None = None
    """Positions of the tensors that it carries; None: all."""
    top_share_q16: int = _Q16

    @classmethod
    def of_task(cls, params: TaskParams) -> UpdateForm:
        """Form that the rules of a task ask for."""
        share = _Q16 if params.top_share_q16 is None else params.top_share_q16
        return cls(codec=params.codec, carried=params.carried, top_share_q16=share)

    @property
    def top_share(self) -> float:
        """Largest share of the carried values; exact."""
        return self.top_share_q16 / _Q16


def read_update(
    payload: UpdatePayload, params: ModelParams, carried: tuple[int, ...] | None = None
) -> tuple[SentTensor | None, ...]:
    """Open an update of a model.

    Args:
        payload: Untrusted.
        params: The model, for names, shapes and exponents.
        carried: Positions of the tensors that updates of the task carry; None: all.

    Returns:
        One item per tensor of the model, None for those that updates do not carry.

    Raises:
        DecodeError: it does not fit; ``.reason`` is CODEC, SHAPE, EXPONENT or MALFORMED.
    """
    positions = range(len(params.tensors)) if carried is None else carried
    if payload.codec is Codec.SPSA:
        found = _read_probes(payload, params, positions)
    else:
        found = _read_tensors(payload, params, positions)
    opened = dict(zip(positions, found, strict=True))
    return tuple(opened.get(position) for position in range(len(params.tensors)))


def check_payload(payload: UpdatePayload, params: ModelParams, form: UpdateForm) -> tuple[SentTensor | None, ...]:
    """Open an update that has the form that its task asks for.

    Raises:
        DecodeError: as ``read_update``; SHAPE too for more values than the task's share.
    """
    if payload.codec is not form.codec:
        raise DecodeError(f"codec {payload.codec.name}, the task takes {form.codec.name}", reason=Reason.CODEC)
    opened = read_update(payload, params, form.carried)
    if form.codec is Codec.INT8_TOPK:
        carried = [(sent.values, tensor) for sent, tensor in zip(opened, params.tensors, strict=True) if sent]
        size = sum(math.prod(tensor.shape) for _, tensor in carried)
        count = sum(values.integers.size for values, _ in carried if isinstance(values, SparseValues))
        if count > kept_count(size, form.top_share):
            raise DecodeError(f"{count} values of {size}: more than the task's share", reason=Reason.SHAPE)
    return opened


def _read_tensors(payload: UpdatePayload, params: ModelParams, positions: Sequence[int]) -> list[SentTensor]:
    tensors = [params.tensors[position] for position in positions]
    if [sent.name for sent in payload.tensors] != [tensor.name for tensor in tensors]:
        raise DecodeError("the update's tensors are not those that the task carries, in order", reason=Reason.SHAPE)
    found = []
    for sent, tensor in zip(payload.tensors, tensors, strict=True):
        try:
            found.append(SentTensor(_shift(sent, tensor), _values(sent, tensor, payload.codec)))
        except DecodeError as error:
            raise DecodeError(f"tensor {tensor.name}: {error}", reason=error.reason) from error
    return found


def _read_probes(payload: UpdatePayload, params: ModelParams, positions: Sequence[int]) -> list[SentTensor]:
    if len(payload.tensors) != 1 or payload.tensors[0].name != MESSAGE_NAME:
        raise DecodeError(f"not one message with the name {MESSAGE_NAME}", reason=Reason.SHAPE)
    message = payload.tensors[0]
    probes = read_probes(message.values)
    return [
        SentTensor(_shift(message, tensor), ProbeValues(probes, position, math.prod(tensor.shape)))
        for position, tensor in ((position, params.tensors[position]) for position in positions)
    ]


def _shift(sent: PayloadTensor, tensor: ModelTensor) -> int:
    shift = sent.exponent - tensor.exponent
    if not 0 <= shift <= EXPONENT_SPAN_MAX:
        raise DecodeError(f"exponent {sent.exponent} cannot be aligned with the model", reason=Reason.EXPONENT)
    return shift


def _values(sent: PayloadTensor, tensor: ModelTensor, codec: Codec) -> Values:
    size = math.prod(tensor.shape)
    if codec in TYPES:
        return read_dense(sent.values, size, codec)
    match codec:
        case Codec.INT8_TOPK:
            return read_topk(sent.values, size)
        case Codec.INT4_DENSE:
            return read_int4(sent.values, size)
        case Codec.SIGN_DENSE:
            return read_sign(sent.values, tensor.shape, tensor.channel_axis)
        case _:
            raise DecodeError(f"codec {codec} is not supported", reason=Reason.CODEC)
