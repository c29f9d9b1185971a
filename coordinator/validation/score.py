"""One miner's measure of a block: how well the model does on its fold, as it is and with each update merged alone.

    score = round(1000 * exp(-mean cross-entropy))

the geometric mean of the probability that the model gives to the true label, per mille. Accuracy would not do: an
untrained model guesses whatever is merged into it, and a small step towards the truth changes no label at first. Each
candidate is measured at the share that it gets if all of the block are accepted, since that is the dose in which it
would be taken.

Floats are welcome here: miners never need to agree on a score, and what is revealed is an integer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.aggregation.merge import check_update
from edge_sdk.errors import DecodeError, NonFiniteError
from edge_sdk.protocol.limits import CLASS_SCORES_MAX, SCORE_MAX, SCORE_OUT_OF_BOUNDS, SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import ModelParams, Scores, UpdatePayload
from edge_sdk.training.delta import decode_floats, l2_norm
from edge_sdk.training.quantize import dequantize

if TYPE_CHECKING:
    import numpy.typing as npt

    from coordinator.validation.folds import Fold
    from edge_sdk.training.codecs.reading import UpdateForm
    from edge_sdk.training.trainer import Evaluation, Trainer

NORM_TOLERANCE: Final = 1.02
"""Rounding to the int8 grid may lengthen a clipped delta by this much; normal, Laplace and Cauchy ones: below 1.01."""
CLASS_ABSENT: Final = 255
PERCENT: Final = 100
_Q16: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredUpdate:
    """A candidate with its content; ``payload`` is None where the blob could not be had or is no payload at all."""

    weight: int
    payload: UpdatePayload | None
    is_available: bool = True
    """Whether the blob could be had."""


def score_block(
    trainer: Trainer,
    fold: Fold,
    base: ModelParams,
    updates: Sequence[ScoredUpdate],
    *,
    total_weight: int,
    server_rate_q16: int,
    clip_norm_q16: int,
    form: UpdateForm,
) -> Scores:
    """Score a model and every update of a block.

    Args:
        trainer: Evaluates the artifact of this task.
        fold: This miner's examples.
        base: Model that the block starts from.
        updates: Candidates in the order of the block, at least one.
        total_weight: W of the merge if all of them are accepted, > 0.
        server_rate_q16: eta_g of the merge, times 2**16.
        clip_norm_q16: L2 bound that devices are to keep, times 2**16.
        form: Codec and tensors of the task's updates.

    Returns:
        Integers per mille; ``SCORE_UNAVAILABLE`` without a blob, ``SCORE_OUT_OF_BOUNDS`` for one that does not fit the
        model, would take it out of its range, or is longer than the clip allows.

    Cost: one forward pass over the fold for the base and each update.
    """
    values = dequantize(base)
    start = trainer.evaluate(values, fold.x, fold.y)
    scores, classes = [], [_recalls(start)]
    for update in updates:
        share = update.weight / total_weight * (server_rate_q16 / _Q16)
        score, evaluation = _score_update(
            trainer, fold, base, values, update, share=share, norm_max=clip_norm_q16 / _Q16 * NORM_TOLERANCE, form=form
        )
        scores.append(score)
        classes.append(bytes([CLASS_ABSENT]) * len(classes[0]) if evaluation is None else _recalls(evaluation))
    return Scores(base=_permille(start), updates=tuple(scores), classes=tuple(classes) if classes[0] else ())


def _score_update(
    trainer: Trainer,
    fold: Fold,
    base: ModelParams,
    values: dict[str, npt.NDArray[np.float32]],
    update: ScoredUpdate,
    *,
    share: float,
    norm_max: float,
    form: UpdateForm,
) -> tuple[int, Evaluation | None]:
    if not update.is_available:
        return SCORE_UNAVAILABLE, None
    if update.payload is None:
        return SCORE_OUT_OF_BOUNDS, None
    try:
        # A merge that fails fails for every miner, and then the block is never certified: refuse its cause here. The
        # check is exact, so all honest miners say the same and the median with them, however harmless the loss is.
        check_update(base, update.payload, form)
        delta = decode_floats(update.payload, base, form.carried)
    except DecodeError:
        return SCORE_OUT_OF_BOUNDS, None
    if not l2_norm(delta) <= norm_max:
        return SCORE_OUT_OF_BOUNDS, None
    try:
        merged = {name: values[name] + part * np.float32(share) for name, part in delta.items()}
        evaluation = trainer.evaluate({**values, **merged}, fold.x, fold.y)
    except NonFiniteError:
        return SCORE_OUT_OF_BOUNDS, None
    return _permille(evaluation), evaluation


def _permille(evaluation: Evaluation) -> int:
    return round(SCORE_MAX * math.exp(-evaluation.loss_mean))


def _recalls(evaluation: Evaluation) -> bytes:
    """Recall per class in percent; empty where there are too many classes to carry."""
    if len(evaluation.class_count) > CLASS_SCORES_MAX:
        return b""
    return bytes(
        CLASS_ABSENT if count == 0 else round(PERCENT * correct / count)
        for count, correct in zip(evaluation.class_count, evaluation.class_correct, strict=True)
    )
