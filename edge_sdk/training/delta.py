"""Update codecs with error feedback: from a float32 delta to integers on power-of-two grids, and back.

Order on the device: delta + residual -> clip to the L2 norm C -> integers -> residual of the rest. Per tensor the
grid is 2**e with the smallest e that holds the largest value, never finer than the global model's. What the grid
cannot carry is exactly ``input - sent`` and is added to the next delta; what the clip takes away is dropped, so that
the residual stays below half a grid step per value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError, NonFiniteError, QuantizationError
from edge_sdk.protocol import codec as cbor
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX
from edge_sdk.protocol.messages import Codec, ModelParams, PayloadTensor, Reason, UpdatePayload

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.network import TensorSpec

_TYPES: Final[dict[Codec, np.dtype[Any]]] = {Codec.INT8_DENSE: np.dtype("<i1"), Codec.INT16_DENSE: np.dtype("<i2")}
_RECLIP: Final = 0.999
_RESIDUAL_OVERHEAD_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDelta:
    """What is sent, and what is kept for the next time."""

    payload: UpdatePayload
    residual: dict[str, npt.NDArray[np.float32]]
    norm: float
    """L2 norm of delta + residual before the clip."""
    clip_factor: float
    """1 when nothing was clipped."""


def encode_delta(
    delta: Mapping[str, npt.NDArray[np.float32]],
    residual: Mapping[str, npt.NDArray[np.float32]] | None,
    specs: tuple[TensorSpec, ...],
    *,
    clip_norm: float,
    codec: Codec,
) -> EncodedDelta:
    """Clip, quantize and keep the rest.

    Args:
        delta: By tensor name.
        residual: From the last call, or None.
        specs: The artifact's tensor table; fixes order, shapes and the finest grid of each tensor.
        clip_norm: C, > 0: largest L2 norm over all tensors; what is sent never exceeds it.
        codec: ``INT8_DENSE`` or ``INT16_DENSE``.

    Raises:
        NonFiniteError: delta or residual is not finite.
        QuantizationError: a value lies beyond the coarsest grid that can be aligned with the model.
    """
    total = {
        s.name: delta[s.name] + residual[s.name] if residual is not None else delta[s.name].astype(np.float32)
        for s in specs
    }
    norm = math.sqrt(math.fsum(float(np.square(value, dtype=np.float64).sum()) for value in total.values()))
    if not math.isfinite(norm):
        raise NonFiniteError("delta: a value is not finite")
    factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0
    while True:
        clipped = {name: value * np.float32(factor) if factor < 1.0 else value for name, value in total.items()}
        sent = {spec.name: _quantize(clipped[spec.name], spec, _TYPES[codec]) for spec in specs}
        sent_norm = math.sqrt(
            sum(math.ldexp(_square_sum(integers), 2 * exponent) for integers, exponent in sent.values())
        )
        if sent_norm <= clip_norm:
            break
        factor *= _RECLIP * clip_norm / sent_norm  # rounding had carried it over the bound
    tensors = [PayloadTensor(name=name, exponent=e, values=integers.tobytes()) for name, (integers, e) in sent.items()]
    rest = {name: clipped[name] - np.ldexp(integers.astype(np.float32), e) for name, (integers, e) in sent.items()}
    return EncodedDelta(
        payload=UpdatePayload(codec=codec, tensors=tuple(tensors)), residual=rest, norm=norm, clip_factor=factor
    )


def decode_aligned(payload: UpdatePayload, params: ModelParams) -> dict[str, npt.NDArray[np.int64]]:
    """The update as integers on the model's exponents: exact, ready to be summed.

    |result| <= 2**15 * 2**EXPONENT_SPAN_MAX < 2**40.

    Raises:
        DecodeError: tensors, lengths or exponents do not fit the model (``.reason`` says which).
    """
    check_payload(payload, params)
    return {
        sent.name: np.left_shift(
            _integers(sent, payload.codec).astype(np.int64), sent.exponent - tensor.exponent
        ).reshape(tensor.shape)
        for sent, tensor in zip(payload.tensors, params.tensors, strict=True)
    }


def decode_floats(payload: UpdatePayload, params: ModelParams) -> dict[str, npt.NDArray[np.float32]]:
    """The update as float32 arrays, for scoring.

    Raises:
        DecodeError: as ``decode_aligned``.
    """
    check_payload(payload, params)
    return {
        sent.name: np.ldexp(_integers(sent, payload.codec).astype(np.float32), sent.exponent).reshape(tensor.shape)
        for sent, tensor in zip(payload.tensors, params.tensors, strict=True)
    }


def check_payload(payload: UpdatePayload, params: ModelParams) -> None:
    """Check that an update fits a model, before any array is made.

    Raises:
        DecodeError: it does not; ``.reason`` is CODEC, SHAPE or EXPONENT.
    """
    if payload.codec not in _TYPES:
        raise DecodeError(f"codec {payload.codec} is not supported", reason=Reason.CODEC)
    if tuple(t.name for t in payload.tensors) != tuple(t.name for t in params.tensors):
        raise DecodeError("the update's tensors are not those of the model, in its order", reason=Reason.SHAPE)
    for sent, tensor in zip(payload.tensors, params.tensors, strict=True):
        if len(sent.values) != math.prod(tensor.shape) * _TYPES[payload.codec].itemsize:
            raise DecodeError(
                f"tensor {tensor.name}: {len(sent.values)} bytes do not fit shape {tensor.shape}", reason=Reason.SHAPE
            )
        if not 0 <= sent.exponent - tensor.exponent <= EXPONENT_SPAN_MAX:
            raise DecodeError(
                f"tensor {tensor.name}: exponent {sent.exponent} cannot be aligned with the model",
                reason=Reason.EXPONENT,
            )


def pack_residual(residual: Mapping[str, npt.NDArray[np.float32]], specs: tuple[TensorSpec, ...]) -> bytes:
    """Bytes of a residual, to be stored with the outbox row."""
    return cbor.encode([residual[spec.name].astype("<f4").tobytes() for spec in specs])


def unpack_residual(data: bytes, specs: tuple[TensorSpec, ...]) -> dict[str, npt.NDArray[np.float32]]:
    """A residual from its bytes.

    Raises:
        DecodeError: it does not fit the tensor table, or is not finite.
    """
    bytes_max = _RESIDUAL_OVERHEAD_BYTES + sum(4 * spec.size + 16 for spec in specs)
    rows = cbor.decode(data, bytes_max=bytes_max)
    if not isinstance(rows, list) or [len(r) if isinstance(r, bytes) else -1 for r in rows] != [
        4 * spec.size for spec in specs
    ]:
        raise DecodeError("residual: does not fit the artifact's tensors", reason=Reason.SHAPE)
    arrays = {
        spec.name: np.frombuffer(row, "<f4").astype(np.float32).reshape(spec.shape)
        for row, spec in zip(rows, specs, strict=True)
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise DecodeError("residual: a value is not finite", reason=Reason.MALFORMED)
    return arrays


def _quantize(value: npt.NDArray[np.float32], spec: TensorSpec, kind: np.dtype[Any]) -> tuple[npt.NDArray[Any], int]:
    """Integers on the finest grid 2**e that holds every value, halves to even; e is at least the model's."""
    largest = int(np.iinfo(kind).max)
    magnitude = float(np.abs(value).max())
    exponent = spec.exponent
    if magnitude > 0.0:
        exponent = max(exponent, math.frexp(magnitude / largest)[1] - 1)
        while round(math.ldexp(magnitude, -exponent)) > largest:
            exponent += 1
    if exponent - spec.exponent > EXPONENT_SPAN_MAX:
        raise QuantizationError(
            f"tensor {spec.name}: {magnitude:.3g} is beyond the grids that can be aligned with 2**{spec.exponent}"
        )
    return np.rint(np.ldexp(value, -exponent)).astype(kind), exponent


def _square_sum(integers: npt.NDArray[Any]) -> int:
    """Exact sum of squares."""
    wide = integers.astype(np.int64).ravel()
    return int(wide @ wide)


def _integers(sent: PayloadTensor, codec: Codec) -> npt.NDArray[Any]:
    return np.frombuffer(sent.values, _TYPES[codec])
