"""Error feedback: from a float32 delta to the integers of an update, and back.

Order on the device: delta + residual -> clip to the L2 norm C -> integers of the task's codec -> residual of the rest.
The grid of a tensor is a power of two, never finer than the global model's. What an update does not say is
``input - sent`` and is added to the next delta; what the clip takes away is dropped, so the residual is never longer
than C. It is exact but for the last bit of float32: where a codec sends more than a value holds (a sign stands for the
mean of its channel), the difference may need a bit more than float32 has, at most 2**-24 of what was sent.

A tensor that the task does not carry - frozen, or not of the output layer - appears neither in the update nor in the
residual. SPSA has no residual: what a device moves is what it sends (``spsa_trainer.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from edge_sdk.errors import DecodeError, LocalProtocolError, NonFiniteError
from edge_sdk.protocol import codec as cbor
from edge_sdk.protocol.messages import Codec, ModelParams, PayloadTensor, Reason, UpdatePayload
from edge_sdk.training.codecs.dense import TYPES, write_dense, write_int4
from edge_sdk.training.codecs.reading import read_update
from edge_sdk.training.codecs.sign import write_sign
from edge_sdk.training.codecs.topk import choose_largest, write_topk
from edge_sdk.training.codecs.values import BLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.codecs.grid import Sent
    from edge_sdk.training.codecs.values import Values
    from edge_sdk.training.network import TensorSpec

_T = TypeVar("_T", np.int64, np.float32)
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


def trained_positions(specs: tuple[TensorSpec, ...]) -> tuple[int, ...] | None:
    """Positions of the tensors that an artifact trains, which an update is to carry; None: all of them."""
    trained = tuple(position for position, spec in enumerate(specs) if spec.is_trainable)
    return None if len(trained) == len(specs) else trained


def carried_specs(specs: tuple[TensorSpec, ...], carried: tuple[int, ...] | None) -> tuple[TensorSpec, ...]:
    """Rows of the tensor table that updates of a task carry; None: all of them."""
    return specs if carried is None else tuple(specs[position] for position in carried)


def encode_delta(
    delta: Mapping[str, npt.NDArray[np.float32]],
    residual: Mapping[str, npt.NDArray[np.float32]] | None,
    specs: tuple[TensorSpec, ...],
    *,
    clip_norm: float,
    codec: Codec,
    top_share: float = 1.0,
) -> EncodedDelta:
    """Clip, quantize and keep the rest.

    Args:
        delta: By tensor name.
        residual: From the last call, or None.
        specs: The carried tensors of the artifact; fixes order, shapes and the finest grid of each.
        clip_norm: C, > 0: largest L2 norm over these tensors; what is sent never exceeds it.
        codec: Any but ``SPSA``.
        top_share: ``INT8_TOPK``: share of all values that is sent, 0 < share <= 1.

    Raises:
        NonFiniteError: delta or residual is not finite.
        QuantizationError: a value lies beyond the coarsest grid that can be aligned with the model.
    """
    total = {
        s.name: delta[s.name] + residual[s.name] if residual is not None else delta[s.name].astype(np.float32)
        for s in specs
    }
    norm = l2_norm(total)
    if not math.isfinite(norm):
        raise NonFiniteError("delta: a value is not finite")
    factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0
    while True:
        clipped = {name: value * np.float32(factor) if factor < 1.0 else value for name, value in total.items()}
        sent = _write(clipped, specs, codec, top_share)
        sent_norm = math.sqrt(sum(math.ldexp(_square_sum(one.integers), 2 * one.exponent) for one in sent.values()))
        if sent_norm <= clip_norm:
            break
        factor *= _RECLIP * clip_norm / sent_norm  # rounding had carried it over the bound
    tensors = [PayloadTensor(name=name, exponent=one.exponent, values=one.values) for name, one in sent.items()]
    return EncodedDelta(
        payload=UpdatePayload(codec=codec, tensors=tuple(tensors)),
        residual={name: _rest(clipped[name], one) for name, one in sent.items()},
        norm=norm,
        clip_factor=factor,
    )


def decode_aligned(
    payload: UpdatePayload, params: ModelParams, carried: tuple[int, ...] | None = None
) -> dict[str, npt.NDArray[np.int64]]:
    """The update as integers on the model's exponents, by the tensors that it carries: exact, ready to be summed.

    |result| < 2**24 * 2**EXPONENT_SPAN_MAX = 2**48.

    Raises:
        DecodeError: tensors, lengths or exponents do not fit the model (``.reason`` says which).
    """
    return {
        tensor.name: np.left_shift(_unfold(sent.values, tensor.shape, np.int64), sent.shift)
        for sent, tensor in zip(read_update(payload, params, carried), params.tensors, strict=True)
        if sent is not None
    }


def decode_floats(
    payload: UpdatePayload, params: ModelParams, carried: tuple[int, ...] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """The update as float32 arrays, by the tensors that it carries: for scoring.

    Raises:
        DecodeError: as ``decode_aligned``.
    """
    return {
        tensor.name: np.ldexp(_unfold(sent.values, tensor.shape, np.float32), sent.shift + tensor.exponent)
        for sent, tensor in zip(read_update(payload, params, carried), params.tensors, strict=True)
        if sent is not None
    }


def l2_norm(arrays: Mapping[str, npt.NDArray[np.floating[Any]]]) -> float:
    """Length of a whole update."""
    return math.sqrt(math.fsum(float(np.square(value, dtype=np.float64).sum()) for value in arrays.values()))


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


def _write(
    clipped: Mapping[str, npt.NDArray[np.float32]], specs: tuple[TensorSpec, ...], codec: Codec, top_share: float
) -> dict[str, Sent]:
    if codec in TYPES:
        return {spec.name: write_dense(clipped[spec.name], spec, codec) for spec in specs}
    match codec:
        case Codec.INT8_TOPK:
            chosen = choose_largest(clipped, top_share)
            return {spec.name: write_topk(clipped[spec.name], chosen[spec.name], spec) for spec in specs}
        case Codec.INT4_DENSE:
            return {spec.name: write_int4(clipped[spec.name], spec) for spec in specs}
        case Codec.SIGN_DENSE:
            return {spec.name: write_sign(clipped[spec.name], spec) for spec in specs}
        case _:
            raise LocalProtocolError(f"codec {codec.name} does not carry a delta")


def _rest(value: npt.NDArray[np.float32], sent: Sent) -> npt.NDArray[np.float32]:
    """What an update does not say, rounded once."""
    exact = value.astype(np.float64) - np.ldexp(sent.integers.astype(np.float64), sent.exponent)
    return exact.astype(np.float32)


def _square_sum(integers: npt.NDArray[Any]) -> int:
    """Exact sum of squares."""
    wide = integers.astype(np.int64).ravel()
    return int(wide @ wide)


def _unfold(values: Values, shape: tuple[int, ...], kind: type[_T]) -> npt.NDArray[_T]:
    """All integers of a tensor; those of a payload are exact in float32, which holds 24 bits."""
    flat = np.empty(math.prod(shape), kind)
    for start in range(0, flat.size, BLOCK):
        flat[start : start + BLOCK] = values[start : start + BLOCK]
    return flat.reshape(shape)
