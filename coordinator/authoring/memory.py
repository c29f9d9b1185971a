"""Predicted peak of the resident memory of a process that trains an artifact, by backend.

What is counted: interpreter, numpy, the runtime, the artifact, the model, one batch of examples, and the tensors of a
step. What is not: transport, the examples beyond one batch, evaluation. The constants are fits to VmHWM of fresh
processes (``tests/support/memory_probe.py``) over the networks of the zoo at batches of 8 and 32: CPython 3.11, numpy
2.4, onnxruntime 1.31 on x86_64 with glibc. No Arm board has been measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from coordinator.authoring.arena import Arena, Piece
from coordinator.authoring.numpy_record import numpy_step_bytes
from coordinator.authoring.runtime_plan import RuntimePlan, plan_step
from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact

MIB: Final = 1024 * 1024
BACKENDS: Final = ("onnxruntime", "numpy")
_FLOOR_BYTES: Final = {"onnxruntime": int(65.2 * MIB), "numpy": int(37.6 * MIB)}
"""A process that trains the smallest network: interpreter 11 MiB, numpy 15, our modules and random numbers 10, the
runtime's library and first session 28."""
_SIGNATURE_BYTES: Final = int(7.4 * MIB)
"""``cryptography``, which a signed artifact loads."""
_NODE_BYTES: Final = 3_000
"""A node of a session: its kernel, names and edges."""
_CONSTANT_COPIES: Final = 2
"""Frozen tensors in a session, as floats: as they came, and laid out for the kernels."""
_MODEL_COPIES: Final = 2.3
"""The model as it was read, as floats at the start of the job, and as state; some of it is freed in time."""
_BATCH_COPIES: Final = {"onnxruntime": 5.3, "numpy": 1.0}
"""Examples, the rows chosen, the batch; with numpy the record of a step holds the last two."""
_FLOAT_BYTES: Final = 4
_RUNS: Final = 3
"""Results of a run stay until the next has ended; from the second on each run finds the arena alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakMemory:
    """Parts of the peak, in bytes."""

    backend: str
    floor_bytes: int
    session_bytes: int
    model_bytes: int
    examples_bytes: int
    tensors_bytes: int

    @property
    def total_bytes(self) -> int:
        """Predicted VmHWM."""
        return self.floor_bytes + self.session_bytes + self.model_bytes + self.examples_bytes + self.tensors_bytes


def peak_memory(artifact: Artifact, *, backend: str = "onnxruntime") -> PeakMemory:
    """Predict the peak of a process that trains an artifact.

    Raises:
        TrainingError: a backend whose memory is not modelled.
    """
    if backend == "onnxruntime":
        plan = plan_step(artifact)
        frozen = sum(spec.size for spec in artifact.network.tensors if not spec.is_trainable)
        session = _NODE_BYTES * len(plan.steps) + _CONSTANT_COPIES * _FLOAT_BYTES * frozen
        tensors = arena_bytes(plan)
    elif backend == "numpy":
        session, tensors = 0, numpy_step_bytes(artifact)
    else:
        raise TrainingError(f"backend {backend!r}: memory is modelled for {', '.join(BACKENDS)}")
    network = artifact.network
    signature = 0 if artifact.author is None else signature_bytes()
    return PeakMemory(
        backend=backend,
        floor_bytes=_FLOOR_BYTES[backend] + signature,
        session_bytes=session,
        model_bytes=int(_MODEL_COPIES * _FLOAT_BYTES * network.parameter_count) + _extra_state_bytes(artifact),
        examples_bytes=int(_BATCH_COPIES[backend] * _FLOAT_BYTES * artifact.batch * math.prod(network.input_shape)),
        tensors_bytes=tensors,
    )


def signature_bytes() -> int:
    """What checking the signature of an artifact adds."""
    return _SIGNATURE_BYTES


def arena_bytes(plan: RuntimePlan) -> int:
    """Memory that the runtime's arena has touched when the same run has been repeated."""
    arena = Arena()
    results: list[Piece] = []
    for _ in range(_RUNS):
        held: dict[str, Piece] = {}
        for step in plan.steps:
            for name in step.taken:
                held[name] = arena.take(plan.sizes[name])
            if step.workspace_bytes:
                arena.give(arena.take(step.workspace_bytes))
            for name in step.ended:
                arena.give(held.pop(name))
        for piece in results:
            arena.give(piece)
        results = list(held.values())
    return arena.touched_bytes


def _extra_state_bytes(artifact: Artifact) -> int:
    """Velocities and bases that the update rule keeps."""
    extra = (*artifact.velocity_keys, *artifact.base_keys)
    specs = {spec.name: spec for spec in artifact.network.tensors}
    return sum(_FLOAT_BYTES * specs[name].size for name in extra)
