"""The miner's one worker thread: arrays are touched here and nowhere else, so that the event loop stays free."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from coordinator.ledger.state import MergePlan
from coordinator.merging import MergedModel, merge_block
from coordinator.validation.folds import fold_of
from coordinator.validation.score import ScoredUpdate, score_block
from edge_sdk.errors import DecodeError
from edge_sdk.protocol import wire
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import ModelParams, Scores, UpdatePayload
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.dataset import load_dataset
from edge_sdk.training.trainer import Trainer

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Work order for the scores of a block."""

    base: ModelParams
    weights: tuple[int, ...]
    blobs: tuple[bytes | None, ...]
    """One per candidate; None where none could be had."""
    total_weight: int
    server_rate_q16: int
    clip_norm_q16: int
    form: UpdateForm


class Worker:
    """Scores and merges, one job at a time."""

    def __init__(self, artifact: Artifact, fold_file: Path, *, backend: str) -> None:
        """Load the evaluation engine and the fold.

        Raises:
            ConfigError: unknown backend.
            TrainingError: the fold is not one for this artifact.
        """
        network = artifact.network
        dataset = load_dataset(
            fold_file,
            input_shape=network.input_shape,
            class_count=network.class_count,
            has_labels=network.is_classifier,
        )
        self._fold = fold_of(dataset)
        self._trainer = Trainer(artifact, backend=backend)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arrays")

    async def score(self, order: Scoring) -> Scores:
        """Score a block on this miner's fold."""
        return await self.run(self._score, order)

    async def merge(
        self, base: ModelParams, plan: MergePlan, blobs: Mapping[Digest, bytes], carried: tuple[int, ...] | None
    ) -> MergedModel:
        """Compute the next model; raises as ``merge_block``."""
        return await self.run(merge_block, base, plan, blobs, carried)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run any other piece of heavy work in the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Wait for the job that runs and end the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _score(self, order: Scoring) -> Scores:
        updates: Sequence[ScoredUpdate] = [
            ScoredUpdate(weight=weight, payload=_payload(blob), is_available=blob is not None)
            for weight, blob in zip(order.weights, order.blobs, strict=True)
        ]
        return score_block(
            self._trainer,
            self._fold,
            order.base,
            updates,
            total_weight=order.total_weight,
            server_rate_q16=order.server_rate_q16,
            clip_norm_q16=order.clip_norm_q16,
            form=order.form,
        )


def _payload(blob: bytes | None) -> UpdatePayload | None:
    if blob is None:
        return None
    try:
        return wire.from_bytes(UpdatePayload, blob)
    except DecodeError:
        return None  # reported by another code than a blob that could not be had
