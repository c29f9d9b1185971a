"""Runs the flatbuffer of an artifact on LiteRT: ``ai_edge_litert``, or ``tflite_runtime`` where a board has that.

The interpreter keeps the states in variables. They are set only when the trainer comes with others than those that the
last step gave: at the start of a job, after a restored checkpoint, and for an evaluation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import LEARNING_RATE, LOGITS, LOSS, SAMPLE_WEIGHT, X, Y
from edge_sdk.training.backend import NO_MASKS, NO_NOISE
from edge_sdk.training.litert_signatures import INFER, RESTORE, SAVE, TRAIN, mask_names, state_names

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.backend import Batch

    F32 = npt.NDArray[np.float32]

RUNTIME: Final = Interpreter.__module__.partition(".")[0]


class LitertBackend:
    """``Backend`` over one lazily built interpreter, on one thread."""

    def __init__(self, artifact: Artifact) -> None:
        """Keep the artifact; nothing is built yet.

        Raises:
            TrainingError: the artifact brings no flatbuffer.
        """
        if not artifact.litert:
            raise TrainingError(
                f"backend litert: artifact {artifact.name} has no flatbuffer; "
                "build it with flchain model build --target litert --state fp32"
            )
        self._artifact = artifact
        self._states = state_names(artifact)
        self._masks = mask_names(artifact)
        self._interpreter: Any = None
        self._runners: dict[str, Any] = {}
        self._held: dict[str, npt.NDArray[Any]] = {}
        """By key: the arrays that the variables are equal to."""

    def step(
        self,
        batch: Batch,
        lr: float,
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, F32],
        masks: Mapping[str, F32] = NO_MASKS,
        noise: Mapping[str, F32] = NO_NOISE,
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend.step``."""
        del scales, noise  # float32 has neither
        self._hold(states)
        feed = {X: batch.x, Y: batch.y, SAMPLE_WEIGHT: batch.weight, LEARNING_RATE: np.array(lr, np.float32)}
        feed.update((self._masks[output], mask) for output, mask in masks.items())
        loss = float(self._run(TRAIN, feed)[LOSS])
        saved = self._run(SAVE, {})
        self._held = {key: saved[name] for key, name in self._states.items()}
        return dict(self._held), loss

    def logits(self, x: F32, params: Mapping[str, F32]) -> F32:
        """See ``Backend.logits``; in slices of the artifact's batch, the last one filled up with zeros."""
        self._hold(params)
        size = self._artifact.batch
        slices = []
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            full = np.zeros((size, *rows.shape[1:]), np.float32)
            full[: len(rows)] = rows
            slices.append(self._run(INFER, {X: full})[LOGITS][: len(rows)])
        return np.concatenate(slices)

    def release(self) -> None:
        """See ``Backend.release``."""
        self._interpreter, self._runners, self._held = None, {}, {}

    def _hold(self, states: Mapping[str, npt.NDArray[Any]]) -> None:
        """Set the variables, unless they are equal to these arrays already. What is not given becomes zero."""
        if self._held and all(self._held.get(key) is array for key, array in states.items()):
            return
        shapes = {spec.name: spec.shape for spec in self._artifact.network.tensors}
        for keys in (self._artifact.velocity_keys, self._artifact.base_keys):
            shapes |= {key: shapes[name] for name, key in keys.items()}
        arrays = {key: states.get(key, None) for key in self._states}
        feed = {
            self._states[key]: np.zeros(shapes[key], np.float32) if array is None else array
            for key, array in arrays.items()
        }
        self._run(RESTORE, feed)
        self._held = dict(states)

    def _run(self, signature: str, feed: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._interpreter is None:
                self._interpreter = Interpreter(model_content=self._artifact.litert, num_threads=1)
            if signature not in self._runners:
                self._runners[signature] = self._interpreter.get_signature_runner(signature)
            outputs: dict[str, Any] = self._runners[signature](**feed)
        except (ValueError, RuntimeError) as error:
            raise TrainingError(f"litert, {signature}: {error}") from error
        return outputs
