"""Attacks that a device can play, to demonstrate and test the defence: ``[behaviour] byzantine`` in device.toml.

Sources: sign flip and scaling as in Blanchard et al. 2017 (arXiv:1703.02757); label flip as in Tolpegin et al. 2020
(arXiv:2007.08432). A hostile device ignores the clip that an honest one applies.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edge_sdk.protocol.messages import UpdatePayload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_sdk.training.dataset import ArrayDataset

    Arrays = dict[str, npt.NDArray[np.float32]]

SCALE: Final = 10.0
UNCLIPPED_NORM: Final = 1e9
DIVERGING_RATE: Final = 3e38
"""Learning rate just below the largest float32: training leaves the finite numbers within a few steps.

With 1e30 the quantized weights saturate and the biases stay finite: that is divergence, not NaN.
"""


def clip_norm(kind: str, honest: float) -> float:
    """L2 bound that the device applies."""
    return UNCLIPPED_NORM if kind in {"signflip", "scaled", "nullifier", "randomizer"} else honest


def learning_rate(kind: str, honest: float) -> float:
    """Step size that the device uses."""
    return DIVERGING_RATE if kind == "nan" else honest


def corrupt_dataset(kind: str, dataset: ArrayDataset, class_count: int) -> None:
    """Flip labels in place: class c becomes class C - 1 - c."""
    if kind == "labelflip":
        dataset.y = class_count - 1 - dataset.y


def corrupt_delta(kind: str, delta: Arrays, base: Arrays, rng: np.random.Generator) -> Arrays:
    """What the device publishes instead of its delta.

    Args:
        kind: Of ``[behaviour] byzantine``; those that act elsewhere leave the delta as it is.
        delta: Parameters after training minus before, by tensor.
        base: Parameters before training.
        rng: For the randomizer.
    """
    match kind:
        case "signflip":
            return {name: -SCALE * value for name, value in delta.items()}
        case "scaled":
            return {name: SCALE * value for name, value in delta.items()}
        case "nullifier":
            return {name: -base[name] for name in delta}
        case "randomizer":
            return {name: rng.normal(0.0, 1.0, value.shape).astype(value.dtype) for name, value in delta.items()}
        case _:
            return delta


def corrupt_probes(kind: str, payload: UpdatePayload, rng: np.random.Generator) -> UpdatePayload:
    """What the device publishes instead of its SPSA message; a nullifier's delta is none that such a message can say.

    Args:
        kind: Of ``[behaviour] byzantine``; those that act elsewhere leave the message as it is.
        payload: Of the finished job.
        rng: For the randomizer.
    """
    from edge_sdk.training.codecs.spsa import CODE_MAX, CODES_PER_OCTAVE, Probes, read_probes

    (message,) = payload.tensors
    probes, louder = read_probes(message.values), round(math.log2(SCALE) * CODES_PER_OCTAVE)

    def scaled(code: int) -> int:
        return int(math.copysign(min(abs(code) + louder, CODE_MAX), code)) if code else 0

    match kind:
        case "signflip":
            codes = tuple(-scaled(code) for code in probes.codes)
        case "scaled":
            codes = tuple(scaled(code) for code in probes.codes)
        case "randomizer":
            codes = tuple(int(code) for code in rng.choice((-CODE_MAX, CODE_MAX), len(probes.codes)))
        case _:
            return payload
    values = Probes(probes.seed, codes).to_bytes()
    return replace(payload, tensors=(replace(message, values=values),))
