"""What a backend must do, and the values that pass between it and the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NO_MASKS: Final[Mapping[str, Any]] = MappingProxyType({})
NO_NOISE: Final[Mapping[str, Any]] = NO_MASKS


class Batch(NamedTuple):
    """One batch of fixed size; ``weight`` is 0 for padding."""

    x: npt.NDArray[np.float32]
    """(batch, *input_shape)."""
    y: npt.NDArray[Any]
    """A classifier's: int64, (batch,), labels in 0..class_count - 1, also where weight is 0. Else float32, (batch,
    class_count)."""
    weight: npt.NDArray[np.float32]
    """(batch,), 0 or 1."""


class Backend(Protocol):
    """Runs the training step and the evaluation of one artifact. Holds no training state."""

    def step(
        self,
        batch: Batch,
        lr: float,
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, npt.NDArray[np.float32]],
        masks: Mapping[str, npt.NDArray[np.float32]] = NO_MASKS,
        noise: Mapping[str, npt.NDArray[np.float32]] = NO_NOISE,
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """One step by the artifact's update rule.

        Args:
            batch: Examples.
            lr: Learning rate.
            states: By tensor name: int16 Q8.8, int8, or float32; and, where the rule has them, velocities and bases
                under the artifact's ``velocity_keys`` and ``base_keys``.
            scales: By tensor name, one per channel, for the quantized weights.
            masks: By the output of each dropout: what it multiplies with in this step.
            noise: Of stochastic rounding, by the names of ``noise_names``.

        Returns:
            All states after the step, and the mean loss before it.
        """
        ...

    def logits(
        self, x: npt.NDArray[np.float32], params: Mapping[str, npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float32]:
        """Outputs of the float32 network, (n, class_count), for any n >= 1."""
        ...

    def int8_logits(
        self,
        x: npt.NDArray[np.float32],
        states: Mapping[str, npt.NDArray[Any]],
        scales: Mapping[str, npt.NDArray[np.float32]],
    ) -> npt.NDArray[np.float32]:
        """Outputs of the int8 network of a calibrated artifact, (n, class_count), for any n >= 1.

        Args:
            x: (n, *input_shape).
            states: By tensor name: weights int8, others float32.
            scales: By weight, one per channel.
        """
        ...

    def release(self) -> None:
        """Give back sessions and buffers; the next call builds them again."""
        ...
