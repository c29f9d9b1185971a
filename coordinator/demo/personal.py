"""What the personal models of a run are worth, measured on examples that no board has seen.

A board's own examples chose its model and cannot judge it as well. So both models of a board are judged on the test
set, with each class weighted as often as it occurs on that board: the accuracy to be expected on its next examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.datasets.labelled import LabelledData
from coordinator.demo.layout import Role
from edge_sdk.adapters.personal_file import PersonalFile
from edge_sdk.adapters.slots import Slots
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    import numpy.typing as npt

    from coordinator.demo.founding import Fleet
    from edge_sdk.protocol.messages import ModelParams
    from edge_sdk.training.trainer import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonalResult:
    """One board's two models, each as it lies on that board at the end of the run."""

    device: str
    alpha: float
    version: int
    """Of the global model."""
    personal: float
    global_: float
    is_chosen: bool
    """Whether the board's held-out examples preferred the personal model."""

    @property
    def used(self) -> float:
        """Accuracy of the model that the board chose."""
        return self.personal if self.is_chosen else self.global_


def measure_personal(fleet: Fleet) -> list[PersonalResult]:
    """Judge the personal models of the honest boards that have one; none where the run was without."""
    data, trainer = fleet.material.data, Trainer(fleet.material.artifact)
    assert isinstance(data, LabelledData), "options refuse personal models without labels"
    known: dict[bytes, npt.NDArray[np.float64]] = {}

    def recall(params: ModelParams, root: bytes | None = None) -> npt.NDArray[np.float64]:
        """Share of each class that is right; global models are evaluated once."""
        if root is not None and root in known:
            return known[root]
        found = _recall(trainer.evaluate(params, data.x_test, data.y_test))
        if root is not None:
            known[root] = found
        return found

    results: list[PersonalResult] = []
    for place, rows in zip(fleet.devices, fleet.material.split.shares, strict=True):
        kept = PersonalFile(place.folder / "personal.cbor", fleet.genesis).read()
        slots = Slots(place.folder / "slots")
        slot = slots.current()
        if place.role is Role.HOSTILE or kept is None or slot is None:
            continue
        own = np.bincount(data.y_train[rows], minlength=data.class_count)
        results.append(
            PersonalResult(
                device=place.device_id,
                alpha=kept.alpha,
                version=slot.version,
                personal=expected_accuracy(recall(kept.mix), own),
                global_=expected_accuracy(recall(slots.read(slot), slot.root), own),
                is_chosen=kept.is_better,
            )
        )
    trainer.release()
    return results


def expected_accuracy(recall: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> float:
    """Mean recall over classes weighted by their counts; classes without test examples are left out.

    Args:
        recall: Per class, NaN where there is no test example.
        counts: Examples of each class on the board.
    """
    weights = np.where(np.isnan(recall), 0, counts)
    total = weights.sum()
    return float((np.nan_to_num(recall) * weights).sum() / total) if total else 0.0


def report_personal(results: Sequence[PersonalResult]) -> dict[str, Any] | None:
    """The section of the report, None where there are no personal models."""
    if not results:
        return None
    return {
        "accuracy_personal_mean": round(fmean(one.personal for one in results), 4),
        "accuracy_global_mean": round(fmean(one.global_ for one in results), 4),
        "accuracy_used_mean": round(fmean(one.used for one in results), 4),
        "better": sum(one.personal > one.global_ for one in results),
        "worse": sum(one.personal < one.global_ for one in results),
        "devices": [
            {
                "device": one.device,
                "alpha": one.alpha,
                "version": one.version,
                "accuracy_personal": round(one.personal, 4),
                "accuracy_global": round(one.global_, 4),
                "chosen": "personal" if one.is_chosen else "global",
            }
            for one in results
        ],
    }


def _recall(found: Evaluation) -> npt.NDArray[np.float64]:
    counts = np.array(found.class_count, np.float64)
    recall = np.full(len(counts), np.nan)
    np.divide(found.class_correct, counts, out=recall, where=counts > 0)
    return recall
