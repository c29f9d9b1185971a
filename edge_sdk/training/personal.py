"""Personal models: a mix of what a board has learned alone and of the global model, judged on examples held out there.

    w_i <- alpha w_i + (1 - alpha) w_glob

w_i are the parameters at the end of a job, w_glob the newest global model. The original keeps one alpha for all, the
one of a grid with the largest summed local accuracy; its released search never stores the maximum and so always
returns 0.77. Here each board chooses for itself, or is told.

Source: SCEI, arXiv:2103.07050; grid and constants from its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from edge_sdk.protocol.messages import ModelParams
from edge_sdk.training.quantize import check_params, dequantize, to_params

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.dataset import ArrayDataset
    from edge_sdk.training.trainer import Evaluation, Trainer

Arrays = Mapping[str, "npt.NDArray[np.float32]"]

ALPHAS: Final = tuple(round(0.50 + 0.03 * step, 2) for step in range(10))
"""0.50, 0.53 ... 0.77."""
HELD_OUT_SHARE: Final = 5
"""One example of so many is held out of training, and decides."""
HELD_OUT_MAX: Final = 512
"""Examples that decide; a board must not spend its time on counting."""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """The best mix, and what the held-out examples say of it and of the global model alone."""

    alpha: float
    params: ModelParams
    personal: Evaluation
    global_: Evaluation

    @property
    def is_better(self) -> bool:
        """Whether the mix is the one to use here: more correct, or as many with a smaller loss."""
        return _merit(self.personal) > _merit(self.global_)


def held_out(numbers: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.bool_]:
    """Which examples are held out: one of ``HELD_OUT_SHARE``, by a hash of number and seed, so always the same ones.

    Args:
        numbers: Row in the file, or place in the stream, of each example.
        seed: Of the board.

    Returns:
        A mask; of two examples or more some are held out and some are not.
    """
    mixed = (numbers.astype(np.uint64) + np.uint64(seed % 2**63)) * _GOLDEN  # SplitMix64, Steele et al. 2014
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mask: npt.NDArray[np.bool_] = (mixed ^ (mixed >> np.uint64(31))) % np.uint64(HELD_OUT_SHARE) == 0
    if mask.all() or not mask.any():  # of a handful: the last one, and the others are for training
        mask[:] = False
        mask[1:][-1:] = True
    return mask


def mix(
    trainer: Trainer,
    local: Arrays,
    global_: ModelParams,
    dataset: ArrayDataset,
    rows: npt.NDArray[np.int64],
    *,
    alphas: Sequence[float],
) -> Mixed:
    """Mix with each alpha and keep the one that the held-out examples like best.

    Args:
        trainer: Evaluates; its job is left alone.
        local: Parameters at the end of a job, by tensor name.
        global_: Newest global model.
        dataset: Local examples.
        rows: Those that are held out, at least one; the first ``HELD_OUT_MAX`` decide.
        alphas: To try, in 0..1; of equal ones the first is kept.

    Raises:
        QuantizationError: the model does not fit the artifact.
        NonFiniteError: an evaluation is not finite.
    """
    specs = trainer.artifact.network.tensors
    check_params(global_, specs)
    rows = rows[:HELD_OUT_MAX]
    x, y = dataset.features(rows), dataset.y[rows]
    base = dequantize(global_)
    best: tuple[float, ModelParams, Evaluation] | None = None
    for alpha in alphas:
        mixed = {name: base[name] + np.float32(alpha) * (local[name] - base[name]) for name in base}
        params = to_params(specs, mixed)
        found = trainer.evaluate(params, x, y)
        if best is None or _merit(found) > _merit(best[2]):
            best = (alpha, params, found)
    assert best is not None, "no alpha"
    return Mixed(alpha=best[0], params=best[1], personal=best[2], global_=trainer.evaluate(global_, x, y))


def _merit(evaluation: Evaluation) -> tuple[int, float]:
    return evaluation.correct, -evaluation.loss_sum
