"""Runs an artifact's graphs with ONNX Runtime: on one thread of the CPU, or on the GPU of a Jetson.

One thread by default: with other load on the cores, thread pools of numerical libraries were measured many times
slower than one thread. What a GPU provider does not run (MaxUnpool, integer products), the runtime places on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime

from edge_sdk.errors import ConfigError, TrainingError
from edge_sdk.training.artifact import (
    LEARNING_RATE,
    LOGITS,
    LOSS,
    SAMPLE_WEIGHT,
    Artifact,
    X,
    Y,
    mask_name,
    next_name,
    scale_name,
    state_name,
)
from edge_sdk.training.backend import NO_MASKS, NO_NOISE
from edge_sdk.training.graph_constants import with_constants

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from edge_sdk.training.backend import Batch

_ERRORS_ONLY = 3
_REORDERING: Final = ["GemmActivationFusion", "MatMulIntegerToFloatFusion"]
"""Optimizers that put a fused node at the end of the order, behind everything that could wait."""
_ACTIVATIONS: Final = "ConvActivationFusion"
"""Another one; but behind a frozen convolution nothing else could run, and there an activation of its own takes two
changes of layout."""
_NO_QUANTIZED_PAIRS: Final = "session.disable_quant_qdq"
"""With it the runtime puts no pair of QuantizeLinear and DequantizeLinear around what it moves."""
GPU_BYTES_MAX: Final = 512 * 1024 * 1024
"""A Jetson has one memory for both processors: without a bound the provider's arena may take half of it."""
_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = ("CUDAExecutionProvider", {"gpu_mem_limit": GPU_BYTES_MAX, "arena_extend_strategy": "kSameAsRequested"})
_TENSORRT: Final = ("TensorrtExecutionProvider", {"trt_max_workspace_size": GPU_BYTES_MAX})
_PROVIDERS: Final[dict[str, tuple[tuple[str, dict[str, Any]], ...]]] = {
    "cpu": (),
    "cuda": (_CUDA,),
    "tensorrt": (_TENSORRT, _CUDA),
}
RUNTIME: Final = f"onnxruntime {onnxruntime.__version__}"
# A board talks to its miners and to nobody else.
onnxruntime.disable_telemetry_events()


def check_device(device: str) -> None:
    """Look for the providers of a device.

    Raises:
        ConfigError: this build of the runtime has no such provider.
    """
    available = onnxruntime.get_available_providers()
    missing = [name for name, _ in _PROVIDERS[device] if name not in available]
    if missing:
        raise ConfigError(
            f"backend onnxruntime:{device}: this onnxruntime has {', '.join(available)} and not "
            f"{', '.join(missing)}; install the build for the board's GPU, or use onnxruntime on the CPU"
        )


class OnnxBackend:
    """``Backend`` over two lazily built sessions."""

    def __init__(self, artifact: Artifact, *, device: str = "cpu") -> None:
        """Keep the artifact; nothing is built yet.

        Args:
            artifact: Artifact.
            device: ``cpu``, ``cuda`` or ``tensorrt``.

        Raises:
            ConfigError: this build of the runtime has no such provider.
        """
        check_device(device)
        self._artifact = artifact
        self._outputs, self._frozen_inputs = artifact.train_outputs, artifact.frozen_inputs
        self._device = device
        self._training: onnxruntime.InferenceSession | None = None
        self._frozen: dict[str, npt.NDArray[Any]] = {}
        """What ``_training`` has as constants, by input."""
        self._evaluation: onnxruntime.InferenceSession | None = None
        self._inference: onnxruntime.InferenceSession | None = None

    def step(
        self,
        batch: Batch,
        lr: float,
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, npt.NDArray[np.float32]],
        masks: Mapping[str, npt.NDArray[np.float32]] = NO_MASKS,
        noise: Mapping[str, npt.NDArray[np.float32]] = NO_NOISE,
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """See ``Backend.step``."""
        feed: dict[str, npt.NDArray[Any]] = {
            X: batch.x,
            Y: batch.y,
            SAMPLE_WEIGHT: batch.weight,
            LEARNING_RATE: np.array(lr, np.float32),
        }
        feed.update((state_name(name), state) for name, state in states.items())
        feed.update((scale_name(name), scale) for name, scale in scales.items())
        feed.update((mask_name(name), mask) for name, mask in masks.items())
        feed.update(noise)
        session = self._training_session({name: feed.pop(name) for name in self._frozen_inputs})
        outputs = dict(zip(self._outputs, session.run(self._outputs, feed), strict=True))
        moved = {name: outputs.get(next_name(name), state) for name, state in states.items()}
        return moved, float(outputs[LOSS])

    def logits(
        self, x: npt.NDArray[np.float32], params: Mapping[str, npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """See ``Backend.logits``."""
        if self._evaluation is None:
            names = (X, *(state_name(spec.name) for spec in self._artifact.network.tensors))
            self._evaluation = _session(self._artifact.eval_onnx, names, (LOGITS,), self._device)
        feed = {X: x} | {state_name(name): value for name, value in params.items()}
        logits: npt.NDArray[np.float32] = self._evaluation.run((LOGITS,), feed)[0]
        return logits

    def int8_logits(
        self,
        x: npt.NDArray[np.float32],
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, npt.NDArray[np.float32]],
    ) -> npt.NDArray[np.float32]:
        """See ``Backend.int8_logits``."""
        if self._inference is None:
            self._inference = _session(self._artifact.int8_onnx, self._artifact.int8_inputs, (LOGITS,), self._device)
        feed: dict[str, npt.NDArray[Any]] = {X: x}
        feed.update((state_name(name), state) for name, state in states.items())
        feed.update((scale_name(name), scale) for name, scale in scales.items())
        logits: npt.NDArray[np.float32] = self._inference.run((LOGITS,), feed)[0]
        return logits

    def release(self) -> None:
        """See ``Backend.release``."""
        self._training = self._evaluation = self._inference = None
        self._frozen = {}

    def _training_session(self, frozen: dict[str, npt.NDArray[Any]]) -> onnxruntime.InferenceSession:
        """The session of the step, with the frozen tensors as its constants; another one if they are others."""
        if self._training is None or not _are_equal(frozen, self._frozen):
            self._training = None  # the old one goes first: two need twice the memory
            artifact = self._artifact
            inputs = tuple(name for name in artifact.train_inputs if name not in frozen)
            graph = with_constants(artifact.train_onnx, frozen)
            self._training = _session(graph, inputs, self._outputs, self._device, has_constants=bool(frozen))
            self._frozen = frozen
        return self._training


def _are_equal(one: dict[str, npt.NDArray[Any]], other: dict[str, npt.NDArray[Any]]) -> bool:
    """Whether the same names have the same values; in a job they are the same arrays."""
    return all(array is other[name] or np.array_equal(array, other[name]) for name, array in one.items())


def _session(
    graph: bytes, inputs: tuple[str, ...], outputs: tuple[str, ...], device: str, *, has_constants: bool = False
) -> onnxruntime.InferenceSession:
    """Build a session and check that its inputs and outputs are those of the contract.

    Raises:
        ConfigError: the provider is installed, but does not start here.
        TrainingError: inputs or outputs are others.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ERRORS_ONLY
    options.enable_mem_pattern = False  # with the arena, it costs memory and saves no time
    # As the builder has written them: each gradient is used where it is made. The runtime's own order leaves all weight
    # gradients to the end and keeps for them what they need: 7 MiB more with dscnn, at the same speed.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry(_NO_QUANTIZED_PAIRS, "1")
    wanted = [name for name, _ in _PROVIDERS[device]]
    session = onnxruntime.InferenceSession(
        graph,
        options,
        providers=[*_PROVIDERS[device], _CPU],
        disabled_optimizers=_REORDERING if has_constants else [*_REORDERING, _ACTIVATIONS],
    )
    started = session.get_providers()
    if started[: len(wanted)] != wanted:  # the runtime falls back without an error
        raise ConfigError(f"backend onnxruntime:{device}: only {', '.join(started)} started on this machine")
    found = {value.name for value in session.get_inputs()}, {value.name for value in session.get_outputs()}
    if found != (set(inputs), set(outputs)):
        ports = " -> ".join(map(repr, map(sorted, found)))
        raise TrainingError(f"graph has the ports {ports}, expected {sorted(inputs)} -> {sorted(outputs)}")
    return session
