"""Local training with forward passes only: a slope along a random direction per step, sent as one byte.

    slope = (L(theta + eps z) - L(theta - eps z)) / (2 eps),   theta <- theta - lr * slope * z

The device moves by the step that its byte says, not by the one it measured, so it is where whoever replays the message
will be, and nothing is left to keep: there is no residual. The whole state of a job is the bytes so far.

Source: Spall 1992 (doi 10.1109/9.119632); one byte per step: Bazzi et al. 2023 (arXiv:2306.10015).
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_sdk.errors import DecodeError, LocalProtocolError, NonFiniteError, TrainingError
from edge_sdk.protocol import codec as cbor
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX, SPSA_CODES_MAX, SPSA_SEED_BYTES
from edge_sdk.protocol.messages import Codec, ModelParams, PayloadTensor, UpdatePayload
from edge_sdk.training.codecs.spsa import MESSAGE_NAME, STEPS, Probes, nearest_code, read_probes, signs
from edge_sdk.training.codecs.values import BLOCK
from edge_sdk.training.quantize import check_params, dequantize
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.dataset import Dataset

PERTURBATION: Final = 2.0**-10
"""eps: float32 logits still resolve the difference, and the loss is straight over it."""
PROBE_EXAMPLES: Final = 128
"""Both losses of a step are over the same examples."""
_CHECKPOINT_FORMAT: Final = 1
_CHECKPOINT_BYTES_MAX: Final = 256


class SpsaTrainer:
    """Runs one job on one artifact. Not thread-safe."""

    def __init__(
        self, artifact: Artifact, *, backend: str, carried: tuple[int, ...] | None, clip_norm: float, seed: bytes
    ) -> None:
        """Import the backend; nothing is allocated until it is used.

        Args:
            artifact: Only its evaluation graph is used.
            backend: As ``Trainer`` takes it.
            carried: Positions of the tensors that move; None: all.
            clip_norm: C, > 0: the whole move of a job is never longer.
            seed: ``SPSA_SEED_BYTES`` that nobody else uses for this base; the same at a resumption.

        Raises:
            ConfigError: unknown backend, or its package is not installed.
            TrainingError: the exponents of the tensors lie too far apart for one message.
        """
        assert len(seed) == SPSA_SEED_BYTES, "a seed has a fixed length"
        self.artifact = artifact
        specs = artifact.network.tensors
        self._positions = tuple(range(len(specs))) if carried is None else carried
        exponents = [specs[position].exponent for position in self._positions]
        self._exponent = max(exponents)
        if self._exponent - min(exponents) > EXPONENT_SPAN_MAX:
            raise TrainingError(f"exponents {min(exponents)}..{self._exponent} do not fit into one SPSA message")
        self._forward = Trainer(artifact, backend=backend)
        self._clip_norm = clip_norm
        self._seed = seed
        self._codes: list[int] = []
        self._values: dict[str, npt.NDArray[np.float32]] = {}
        self._moved: dict[int, npt.NDArray[np.int32]] = {}
        """By position, flat, in units of 2**exponent."""
        self._base_digest = b""

    @property
    def steps_done(self) -> int:
        """Directions that have been tried."""
        return len(self._codes)

    def load(self, params: ModelParams) -> None:
        """Start from a global model.

        Raises:
            QuantizationError: it does not fit the artifact.
        """
        specs = self.artifact.network.tensors
        check_params(params, specs)
        digest = hashlib.sha256()
        for tensor in params.tensors:
            digest.update(tensor.values)
        self._base_digest = digest.digest()
        self._values = dequantize(params)
        self._moved = {position: np.zeros(specs[position].size, np.int32) for position in self._positions}
        self._codes = []

    def train(
        self,
        dataset: Dataset,
        *,
        steps: int,
        lr: float,
        rng: np.random.Generator,
        on_step: Callable[[int, float], None] | None = None,
        start_step: int = 0,
    ) -> None:
        """Take the steps ``start_step`` .. ``steps`` - 1; arguments as ``Trainer.train`` has them.

        Raises:
            TrainingError: more steps than a message holds, or a learning rate that is none.
            NonFiniteError: the loss is not finite.
            LocalProtocolError: no model is loaded, or another number of steps is done.
        """
        if not self._values or start_step != self.steps_done:
            raise LocalProtocolError(f"{self.steps_done} steps are done, or no model is loaded")
        if not (math.isfinite(lr) and lr > 0) or not start_step < steps <= SPSA_CODES_MAX:
            raise TrainingError(
                f"learning rate {lr}, steps {start_step}..{steps}: expected lr > 0 and at most {SPSA_CODES_MAX} steps"
            )
        batches = dataset.batches(rng, size=min(PROBE_EXAMPLES, len(dataset)), start=start_step)
        for number, batch in zip(range(start_step, steps), batches, strict=False):
            real = batch.weight > 0
            x, y = batch.x[real], batch.y[real]
            direction = self._direction(number)
            ahead = self._forward.evaluate(self._at(direction, PERTURBATION), x, y).loss_mean
            behind = self._forward.evaluate(self._at(direction, -PERTURBATION), x, y).loss_mean
            wanted = -lr * (ahead - behind) / (2 * PERTURBATION) * 2.0**-self._exponent
            if not math.isfinite(wanted):
                raise NonFiniteError(f"losses are {ahead} and {behind} at step {number}")
            self._move(direction, self._within_clip(direction, nearest_code(wanted)))
            if on_step is not None:
                on_step(number + 1, (ahead + behind) / 2)

    def payload(self) -> UpdatePayload:
        """The message of the job."""
        values = Probes(self._seed, tuple(self._codes)).to_bytes()
        message = PayloadTensor(name=MESSAGE_NAME, exponent=self._exponent, values=values)
        return UpdatePayload(codec=Codec.SPSA, tensors=(message,))

    def state_bytes(self) -> bytes:
        """A checkpoint of the running job, bound to artifact and base."""
        message = Probes(self._seed, tuple(self._codes)).to_bytes()
        return cbor.encode({1: _CHECKPOINT_FORMAT, 2: self.artifact.digest, 3: self._base_digest, 4: message})

    def restore(self, data: bytes) -> None:
        """Continue from a checkpoint, after ``load`` of the same base.

        Raises:
            DecodeError: not a checkpoint of this job.
        """
        match cbor.decode(data, bytes_max=_CHECKPOINT_BYTES_MAX):
            case {1: 1, 2: self.artifact.digest, 3: self._base_digest, 4: bytes(message), **more} if not more:
                pass
            case _:
                raise DecodeError("checkpoint: not one of this artifact and base")
        codes = () if message == self._seed else read_probes(message).codes
        if not message.startswith(self._seed) or self._codes:
            raise DecodeError("checkpoint: of another job")
        for number, code in enumerate(codes):
            self._move(self._direction(number), code)

    def release(self) -> None:
        """Give back sessions and arrays."""
        self._forward.release()
        self._values, self._moved, self._codes = {}, {}, []

    def _direction(self, number: int) -> dict[int, npt.NDArray[np.int8]]:
        """Direction of a step, flat, by the positions of the tensors."""
        direction = {}
        for position, moved in self._moved.items():
            blocks = [
                signs(self._seed, number, position, start, min(start + BLOCK, moved.size))
                for start in range(0, moved.size, BLOCK)
            ]
            direction[position] = np.concatenate(blocks)
        return direction

    def _at(self, direction: dict[int, npt.NDArray[np.int8]], distance: float) -> dict[str, npt.NDArray[np.float32]]:
        """The parameters where the job is now, ``distance`` further in a direction."""
        found = dict(self._values)
        for position, moved in self._moved.items():
            spec = self.artifact.network.tensors[position]
            offset = np.ldexp(moved.astype(np.float32), self._exponent) + direction[position] * np.float32(distance)
            found[spec.name] = self._values[spec.name] + offset.reshape(spec.shape)
        return found

    def _within_clip(self, direction: dict[int, npt.NDArray[np.int8]], code: int) -> int:
        """The code, or a smaller one with which the whole move is not longer than the clip; zero always is."""
        squares = sum(int(np.square(moved, dtype=np.int64).sum()) for moved in self._moved.values())
        along = sum(int(moved.astype(np.int64) @ direction[position]) for position, moved in self._moved.items())
        size = sum(moved.size for moved in self._moved.values())
        limit = math.ldexp(self._clip_norm**2, -2 * self._exponent)
        sign = -1 if code < 0 else 1
        for smaller in range(abs(code), 0, -1):
            step = sign * STEPS[smaller]
            if squares + 2 * step * along + step * step * size <= limit:
                return sign * smaller
        return 0

    def _move(self, direction: dict[int, npt.NDArray[np.int8]], code: int) -> None:
        step = -STEPS[-code] if code < 0 else STEPS[code]
        for position, part in direction.items():
            self._moved[position] += step * part.astype(np.int32)
        self._codes.append(code)
