"""What becomes of a finished job on the board: the payload in the codec of its task, and the residual that stays.

Everything here runs on the work thread; numpy and the training engine are imported on first use.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from edge_sdk.device import adversary
from edge_sdk.errors import TrainingError
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, SPSA_SEED_BYTES
from edge_sdk.protocol.messages import Codec, ModelParams, TaskParams, UpdatePayload
from edge_sdk.protocol.wire import from_bytes

if TYPE_CHECKING:
    import numpy as np

    from edge_sdk.protocol.ids import Digest
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.spsa_trainer import SpsaTrainer
    from edge_sdk.training.trainer import Trainer

    JobTrainer: TypeAlias = Trainer | SpsaTrainer

_Q16: Final = 2**16


@dataclass(frozen=True, slots=True)
class Encoded:
    """What leaves and what stays."""

    payload: UpdatePayload
    residual: bytes


def check_form(artifact: Artifact, params: TaskParams) -> None:
    """Check that the artifact trains what updates of the task carry; a task of before carries all, zeros too.

    Raises:
        TrainingError: it trains other tensors: what they learn would never leave the board, or never come.
    """
    from edge_sdk.training.delta import trained_positions

    if params.carried is not None and params.carried != trained_positions(artifact.network.tensors):
        raise TrainingError(f"artifact {artifact.name}: it does not train the tensors that the task's updates carry")


def new_trainer(
    artifact: Artifact, params: TaskParams, *, backend: str, device_id: str, root: Digest, kind: str
) -> JobTrainer:
    """Trainer of one job, by the task's codec.

    Args:
        artifact: Of the task.
        params: Rules of the task.
        backend: As ``Trainer`` takes it.
        device_id: Whose job it is.
        root: Of the model that it starts from.
        kind: Attack that is played, or empty.

    Raises:
        ConfigError: unknown backend, or its package is not installed.
        TrainingError: the artifact does not fit the codec.
    """
    if params.codec is Codec.SPSA:
        from edge_sdk.training.spsa_trainer import SpsaTrainer

        return SpsaTrainer(
            artifact,
            backend=backend,
            carried=params.carried,
            clip_norm=adversary.clip_norm(kind, params.clip_norm_q16 / _Q16),
            seed=hashlib.sha256(b"fl/spsa/seed" + root + device_id.encode()).digest()[:SPSA_SEED_BYTES],
        )
    from edge_sdk.training.trainer import Trainer

    return Trainer(artifact, backend=backend)


def encode(
    trainer: JobTrainer,
    base: ModelParams,
    params: TaskParams,
    *,
    residual: bytes | None,
    kind: str,
    rng: np.random.Generator,
) -> Encoded:
    """Turn a finished job into a payload.

    Args:
        trainer: At the end of its job.
        base: What it started from.
        params: Rules of the task.
        residual: What earlier updates did not say, or None.
        kind: Attack that is played, or empty.
        rng: For the attack.

    Raises:
        TrainingError: the delta is not finite or cannot be written.
        DecodeError: the stored residual does not fit the artifact.
    """
    from edge_sdk.training.codecs.reading import UpdateForm
    from edge_sdk.training.delta import carried_specs, encode_delta, pack_residual, unpack_residual
    from edge_sdk.training.quantize import dequantize
    from edge_sdk.training.spsa_trainer import SpsaTrainer

    if isinstance(trainer, SpsaTrainer):
        return Encoded(adversary.corrupt_probes(kind, trainer.payload(), rng), pack_residual({}, ()))
    specs = carried_specs(trainer.artifact.network.tensors, params.carried)
    encoded = encode_delta(
        adversary.corrupt_delta(kind, trainer.delta(), dequantize(base), rng),
        None if residual is None else unpack_residual(residual, specs),
        specs,
        clip_norm=adversary.clip_norm(kind, params.clip_norm_q16 / _Q16),
        codec=params.codec,
        top_share=UpdateForm.of_task(params).top_share,
    )
    return Encoded(encoded.payload, pack_residual(encoded.residual, specs))


def returned_residual(
    artifact: Artifact, params: TaskParams, *, residual: bytes | None, blob: bytes, model: ModelParams
) -> bytes:
    """The residual with the delta of a refused update added, its norm bounded by the clip.

    An SPSA message does not return: its slopes were measured on a base that is gone, and a residual of all parameters
    is what no later message of a few bytes could say.

    Raises:
        DecodeError: stored bytes do not fit the artifact.
    """
    import numpy as np

    from edge_sdk.training.delta import carried_specs, decode_floats, l2_norm, pack_residual, unpack_residual

    if params.codec is Codec.SPSA:
        return pack_residual({}, ())
    specs = carried_specs(artifact.network.tensors, params.carried)
    total = decode_floats(from_bytes(UpdatePayload, blob, bytes_max=BLOB_BYTES_MAX), model, params.carried)
    if residual is not None:
        kept = unpack_residual(residual, specs)
        total = {name: value + kept[name] for name, value in total.items()}
    norm, bound = l2_norm(total), params.clip_norm_q16 / _Q16
    if norm > bound:
        total = {name: value * np.float32(bound / norm) for name, value in total.items()}
    return pack_residual(total, specs)
