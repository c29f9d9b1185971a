"""Local training of one artifact: load a global model, take steps, give the difference back.

    trainer = Trainer(artifact)
    trainer.load(params)
    trainer.train(dataset, steps=40, lr=0.1, rng=np.random.default_rng(seed))
    delta = trainer.delta()

The base is kept beside the state, so that delta = (Q_end - Q_start) * S / 2**8 holds no rounding of the base.
Training is not bit-reproducible across processors; never verify an update by recomputing it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import DecodeError, LocalProtocolError, NonFiniteError, TrainingError
from edge_sdk.protocol import codec
from edge_sdk.protocol.limits import MODEL_VALUE_MAX
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.backends import load_backend
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.dropout import DropoutMasks
from edge_sdk.training.memory import return_memory
from edge_sdk.training.operators import Op
from edge_sdk.training.quantize import (
    STATE_LIMITS,
    STATES_PER_STEP,
    align,
    check_params,
    dequantize,
    initial_state,
    int8_model,
    scale_values,
)
from edge_sdk.training.rounding_noise import RoundingNoise

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Batch
    from edge_sdk.training.dataset import Dataset

EVALUATION_BATCH: Final = 64
STEP_RATE: Final = 0.05
"""Learning rate of a single step where none is given: that of a task of production size."""
_CHECKPOINT_FORMAT: Final = 1
_CHECKPOINT_OVERHEAD_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a call of ``Trainer.train`` did."""

    steps: int
    examples: int
    loss_first: float
    loss_mean: float
    saturated: int
    """Quantized weights at the end of their range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Sums over a set of examples, so that folds can be added up."""

    count: int
    correct: int
    """Examples whose largest logit is their label, or, of a binary cross-entropy, whose outputs are all on the side of
    their targets. 0 for a regression: nothing is right or wrong."""
    loss_sum: float
    class_count: tuple[int, ...]
    """Examples per class; empty where the network is no classifier."""
    class_correct: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        """Share of examples that are correct."""
        return self.correct / self.count

    @property
    def loss_mean(self) -> float:
        """Mean loss; of a cross-entropy in nats, without label smoothing."""
        return self.loss_sum / self.count


class Trainer:
    """Trains and evaluates one artifact on one backend. Not thread-safe."""

    def __init__(self, artifact: Artifact, *, backend: str = "onnxruntime") -> None:
        """Import the backend; nothing is allocated until it is used.

        Raises:
            ConfigError: unknown backend, or its package is not installed.
        """
        self.artifact = artifact
        self.steps_done = 0
        self._backend = load_backend(backend, artifact)
        self._loaded: ModelParams | None = None
        self._chance: tuple[DropoutMasks, RoundingNoise] | None = None
        """Of single steps."""
        self._start: dict[str, npt.NDArray[Any]] = {}
        self._states: dict[str, npt.NDArray[Any]] = {}
        self._scales: dict[str, npt.NDArray[np.float32]] = {}

    def load(self, params: ModelParams) -> None:
        """Start from a global model.

        Raises:
            QuantizationError: it does not fit the artifact.
        """
        check_params(params, self.artifact.network.tensors)
        values = dequantize(params)
        self._scales = {}
        for tensor, spec in zip(params.tensors, self.artifact.network.tensors, strict=True):
            if self.artifact.is_quantized(spec):
                scales = self._scales[spec.name] = scale_values(tensor.scale_m, tensor.scale_k)
                values[spec.name] = initial_state(values[spec.name], scales, spec, self.artifact.scheme)
        self._loaded, self._start, self._chance, self.steps_done = params, values, None, 0
        self._states = values | self._job_states()

    def train(
        self,
        dataset: Dataset,
        *,
        steps: int,
        lr: float,
        rng: np.random.Generator,
        on_step: Callable[[int, float], None] | None = None,
        start_step: int = 0,
    ) -> TrainReport:
        """Take the steps ``start_step`` .. ``steps`` - 1.

        Args:
            dataset: Examples.
            steps: Steps of the whole job.
            lr: Learning rate, > 0.
            rng: Decides the order, the masks of dropout and the noise of rounding; seed it equally to resume a job.
            on_step: Called after each step with the number of steps done and the loss. May raise to stop: the state
                is then that of whole steps.
            start_step: Steps that an earlier call or a restored checkpoint has done.

        Raises:
            NonFiniteError: the loss or a parameter is not finite; the state is not to be published.
            LocalProtocolError: no model is loaded.
        """
        self._check_loaded()
        if not (math.isfinite(lr) and lr > 0) or not 0 <= start_step < steps:
            raise TrainingError(
                f"learning rate {lr}, steps {start_step}..{steps}: expected lr > 0 and 0 <= start < steps"
            )
        losses: list[float] = []
        examples = 0
        dropout, noise = self._draws(rng)
        batches = dataset.batches(rng, size=self.artifact.batch, start=start_step)
        for step, batch in zip(range(start_step, steps), batches, strict=False):
            losses.append(self._advance(step, batch, lr, dropout, noise))
            examples += int(batch.weight.sum())
            if on_step is not None:
                on_step(step + 1, losses[-1])
        self._check_finite()
        return TrainReport(
            steps=len(losses),
            examples=examples,
            loss_first=losses[0],
            loss_mean=math.fsum(losses) / len(losses),
            saturated=self._count_saturated(),
        )

    def step(self, x: npt.NDArray[Any], y: npt.NDArray[Any], *, lr: float = STEP_RATE) -> float:
        """Take one step on examples of your own, for a loop without a dataset; chance is that of seed 0.

        Args:
            x: (n, *input_shape), 1 <= n <= batch, of the types that ``ArrayDataset`` takes; fewer are padded.
            y: (n,) labels, or (n, class_count) targets.
            lr: Learning rate, > 0.

        Returns:
            Mean loss of these examples, before the step.

        Raises:
            TrainingError: examples that do not fit, or a learning rate that is none.
            NonFiniteError: the loss or a parameter is not finite.
            LocalProtocolError: no model is loaded.
        """
        self._check_loaded()
        network, batch = self.artifact.network, self.artifact.batch
        examples = ArrayDataset(
            x,
            y,
            input_shape=network.input_shape,
            class_count=network.class_count,
            has_labels=network.is_classifier,
        )
        if len(examples) > batch:
            raise TrainingError(f"{len(examples)} examples in one step: expected at most {batch}, the artifact's batch")
        if not (math.isfinite(lr) and lr > 0):
            raise TrainingError(f"learning rate {lr}: expected more than 0")
        if self._chance is None:
            self._chance = self._draws(np.random.default_rng(0))
        loss = self._advance(self.steps_done, examples.batch(np.arange(len(examples)), batch), lr, *self._chance)
        self._check_finite()
        return loss

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]:
        """Parameters now, by tensor name: those that were loaded and the delta since.

        Raises:
            LocalProtocolError: no model is loaded.
        """
        moved = self.delta()
        return {name: value + moved[name] for name, value in dequantize(self._base()).items()}

    def delta(self, base: ModelParams | None = None) -> dict[str, npt.NDArray[np.float32]]:
        """Parameters now minus those of ``base``, or of what was loaded, by tensor name.

        Of a quantized weight that was loaded (Q_end - Q_start) * S / N; N: states per step of the grid, 2**8 for Q8.8
        and 1 for int8.

        Raises:
            LocalProtocolError: no model is loaded.
            QuantizationError: ``base`` does not fit the artifact.
        """
        if base is not None and base is not self._loaded:
            check_params(base, self.artifact.network.tensors)
            mine, theirs = self.parameters(), dequantize(base)
            return {name: mine[name] - theirs[name] for name in mine}
        self._check_loaded()
        deltas: dict[str, npt.NDArray[np.float32]] = {}
        for spec in self.artifact.network.tensors:
            start, now = self._start[spec.name], self._states[spec.name]
            if spec.name in self._scales:
                moved = (now.astype(np.int32) - start).astype(np.float32)
                per_step = np.float32(STATES_PER_STEP[self.artifact.scheme])
                deltas[spec.name] = moved * (align(self._scales[spec.name], spec) / per_step)
            else:
                deltas[spec.name] = now - start
        return deltas

    def evaluate(
        self,
        params: ModelParams | Mapping[str, npt.NDArray[np.float32]],
        x: npt.NDArray[np.float32],
        y: npt.NDArray[Any],
    ) -> Evaluation:
        """Score parameters on examples, in slices of bounded memory.

        Args:
            params: A global model: of a calibrated artifact with the int8 network, as a board infers. Or float32 arrays
                by tensor name: with the float32 network, which sees differences below an int8 step.
            x: (n, *input_shape), n >= 1.
            y: (n,), labels in 0..class_count - 1; for other losses (n, class_count), float32.

        Raises:
            NonFiniteError: a logit is not finite.
        """
        logits_of = self._inference(params)
        network = self.artifact.network
        classes = network.class_count if network.is_classifier else 0
        loss_sum, right = 0.0, 0
        correct = np.zeros(classes, np.int64)
        for start in range(0, len(y), EVALUATION_BATCH):
            targets = y[start : start + EVALUATION_BATCH]
            rows = np.ascontiguousarray(x[start : start + EVALUATION_BATCH], np.float32)
            logits = logits_of(rows).astype(np.float64)
            if not np.isfinite(logits).all():
                raise NonFiniteError("evaluation: a logit is not finite")
            losses, is_right = _judge(network.loss, logits, targets)
            loss_sum += float(losses.sum())
            right += int(is_right.sum())
            if network.is_classifier:
                correct += np.bincount(targets[is_right], minlength=classes)
        counts = np.bincount(y, minlength=classes) if network.is_classifier else ()
        return Evaluation(
            count=len(y),
            correct=right,
            loss_sum=loss_sum,
            class_count=tuple(int(n) for n in counts),
            class_correct=tuple(int(n) for n in correct),
        )

    def state_bytes(self) -> bytes:
        """A checkpoint of the running job: state and steps done, bound to artifact and base.

        Raises:
            LocalProtocolError: no model is loaded.
        """
        self._check_loaded()
        states = [np.ascontiguousarray(self._states[name]).tobytes() for name in self._saved_keys]
        return codec.encode(
            {1: _CHECKPOINT_FORMAT, 2: self.artifact.digest, 3: self._start_digest(), 4: self.steps_done, 5: states}
        )

    def restore(self, data: bytes) -> None:
        """Continue from a checkpoint, after ``load`` of the same base.

        Raises:
            DecodeError: not a checkpoint of this artifact and base.
            LocalProtocolError: no model is loaded.
        """
        self._check_loaded()
        sizes = [self._states[name].nbytes for name in self._saved_keys]
        bytes_max = sum(sizes) + _CHECKPOINT_OVERHEAD_BYTES + 16 * len(sizes)
        fields = codec.decode(data, bytes_max=bytes_max)
        match fields:
            case {1: 1, 2: self.artifact.digest, 3: bytes(base), 4: int(steps_done), 5: list(states), **more} if (
                not more
            ):
                pass
            case _:
                raise DecodeError("checkpoint: not one of this artifact")
        if base != self._start_digest() or steps_done < 0:
            raise DecodeError("checkpoint: its base is not the loaded model")
        if [len(s) if isinstance(s, bytes) else -1 for s in states] != sizes:
            raise DecodeError("checkpoint: the states do not fit the artifact's tensors")
        for name, state in zip(self._saved_keys, states, strict=True):
            kept = self._states[name]
            self._states[name] = np.frombuffer(state, kept.dtype).reshape(kept.shape)
        self._check_finite()
        self.steps_done = steps_done

    def release(self) -> None:
        """Drop sessions, states and free heap pages: an idle device should not hold what training needed."""
        self._backend.release()
        self._start, self._states, self._scales = {}, {}, {}
        self._loaded = self._chance = None
        return_memory()

    def _inference(
        self, params: ModelParams | Mapping[str, npt.NDArray[np.float32]]
    ) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """What gives the outputs for some rows."""
        if not isinstance(params, ModelParams) or not self.artifact.grids:
            arrays = dequantize(params) if isinstance(params, ModelParams) else params
            return lambda rows: self._backend.logits(rows, arrays)
        states, scales = int8_model(params)
        return lambda rows: self._backend.int8_logits(rows, states, scales)

    @property
    def _saved_keys(self) -> tuple[str, ...]:
        """States that a checkpoint holds: tensors, then velocities."""
        return (*(spec.name for spec in self.artifact.network.tensors), *self.artifact.velocity_keys.values())

    def _job_states(self) -> dict[str, npt.NDArray[Any]]:
        """States beside the tensors' at the start of a job: velocities of zero, and the base."""
        velocities: dict[str, npt.NDArray[Any]] = {
            key: np.zeros(self._start[name].shape, np.int16 if name in self._scales else np.float32)
            for name, key in self.artifact.velocity_keys.items()
        }
        return velocities | {key: self._start[name] for name, key in self.artifact.base_keys.items()}

    def _count_saturated(self) -> int:
        if not self._scales:
            return 0
        low, high, _ = STATE_LIMITS[self.artifact.scheme]
        return sum(int(np.isin(self._states[name], (low, high)).sum()) for name in self._scales)

    def _start_digest(self) -> bytes:
        digest = hashlib.sha256()
        for spec in self.artifact.network.tensors:
            digest.update(np.ascontiguousarray(self._start[spec.name]).data)
        return digest.digest()

    def _draws(self, rng: np.random.Generator) -> tuple[DropoutMasks, RoundingNoise]:
        masks = DropoutMasks(self.artifact.network, batch=self.artifact.batch, rng=rng)
        return masks, RoundingNoise(self.artifact, rng=rng)

    def _advance(self, step: int, batch: Batch, lr: float, dropout: DropoutMasks, noise: RoundingNoise) -> float:
        """Take one step; the loss before it."""
        self._states, loss = self._backend.step(
            batch, lr, self._states, self._scales, dropout.draw(step), noise.draw(step)
        )
        if not math.isfinite(loss):
            raise NonFiniteError(f"loss is {loss} at step {step}")
        self.steps_done = step + 1
        return loss

    def _base(self) -> ModelParams:
        if self._loaded is None:
            raise LocalProtocolError("no model is loaded")
        return self._loaded

    def _check_loaded(self) -> None:
        if not self._states:
            raise LocalProtocolError("no model is loaded")

    def _check_finite(self) -> None:
        """Refuse a job that diverged: clipping would turn its delta into a small step in a meaningless direction."""
        for spec in self.artifact.network.tensors:
            state = self._states[spec.name]
            if state.dtype != np.float32:
                continue  # a quantized state saturates
            largest = float(np.abs(state).max(initial=0.0))
            if not largest <= MODEL_VALUE_MAX * 2.0**spec.exponent:
                raise NonFiniteError(f"tensor {spec.name}: {largest:g} is no value that a model can hold")


def _judge(
    loss: Op, logits: npt.NDArray[np.float64], targets: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Loss of each example, and whether it is correct."""
    match loss:
        case Op.MEAN_SQUARED_ERROR:
            return np.square(logits - targets).mean(axis=1), np.zeros(len(logits), np.bool_)
        case Op.BINARY_CROSS_ENTROPY:
            losses = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
            return losses.mean(axis=1), ((logits > 0) == (targets > 0.5)).all(axis=1)
        case _:
            shifted = logits - logits.max(axis=1, keepdims=True)
            losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(targets)), targets]
            return losses, logits.argmax(axis=1) == targets
