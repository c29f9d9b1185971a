"""What the numpy backend allocates in a step: recorded at two small batches, since its arrays grow in proportion.

The backend is a program of array expressions with many temporaries; the interpreter's own account of them (numpy
reports every array to ``tracemalloc``) is exact, where a list of rules would have to be kept in step with the program.
"""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from coordinator.authoring.zoo import genesis_params
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import infer_shapes
from edge_sdk.training.trainer import Trainer

if TYPE_CHECKING:
    from edge_sdk.protocol.messages import ModelParams
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import Network

_SMALL, _LARGE = 8, 16
_HOLES_MAX, _SIZES_OF_MANY = 0.4, 10
"""Heap beyond the arrays where values of a frozen start are freed on the way: holes of many sizes fit few others. Fits
to mobilenetv2 (many sizes) and dscnn (one size, no holes)."""
_RATE: Final = 1e-6
"""The steps are taken for what they allocate; they should not lead anywhere."""


def numpy_step_bytes(artifact: Artifact) -> int:
    """Peak of the arrays of one step, with the batch, without what is there before it."""
    params = genesis_params(artifact.network.tensors, seed=0)
    if artifact.batch <= _LARGE:
        found = _record(artifact, params, artifact.batch)
    else:
        small, large = (_record(artifact, params, batch) for batch in (_SMALL, _LARGE))
        found = large + max(0, large - small) * (artifact.batch - _LARGE) // (_LARGE - _SMALL)
    return int(found * (1 + _HOLES_MAX * min(1.0, _frozen_sizes(artifact.network) / _SIZES_OF_MANY)))


def _frozen_sizes(network: Network) -> int:
    """How many different sizes the values have that no gradient reaches: they are freed on the way forward."""
    shapes, reached = infer_shapes(network, batch=1), network.trainable_values
    return len({math.prod(shapes[node.output]) for node in network.nodes if node.output not in reached})


def _record(artifact: Artifact, params: ModelParams, batch: int) -> int:
    trainer = Trainer(replace(artifact, batch=batch), backend="numpy")
    trainer.load(params)
    rng = np.random.default_rng(0)
    data = _examples(artifact, batch, rng)
    trainer.train(data, steps=1, lr=_RATE, rng=rng)
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        trainer.train(data, steps=2, lr=_RATE, rng=rng, start_step=1)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()


def _examples(artifact: Artifact, batch: int, rng: np.random.Generator) -> ArrayDataset:
    network = artifact.network
    return ArrayDataset(
        rng.random((batch, *network.input_shape), np.float32),
        np.zeros(batch, np.int64) if network.is_classifier else np.zeros((batch, network.class_count), np.float32),
        input_shape=network.input_shape,
        class_count=network.class_count,
        has_labels=network.is_classifier,
    )
