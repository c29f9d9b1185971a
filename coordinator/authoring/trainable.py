"""Which tensors of an imported network are trained: all, the last layers, the biases, or those named."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_sdk.errors import TrainingError
from edge_sdk.training.network import Role

if TYPE_CHECKING:
    from coordinator.authoring.import_onnx import Imported
    from edge_sdk.training.network import Network

_LAST = re.compile(r"last:([0-9]{1,4})")


def with_trainable(imported: Imported, choice: str) -> Network:
    """The network with its other tensors frozen.

    Args:
        imported: Tensors that the exporter did not have as parameters are trained only if named.
        choice: ``all``, ``last:N`` for the last N layers, ``biases``, or names of tensors or layers with commas.

    Raises:
        TrainingError: a name or number that does not exist, or nothing would be trained.
    """
    network = imported.network
    names = _chosen(imported, choice)
    if not names:
        raise TrainingError(f"trainable {choice!r}: no tensor would be trained")
    tensors = tuple(replace(spec, is_trainable=spec.name in names) for spec in network.tensors)
    return replace(network, tensors=tensors)


def _chosen(imported: Imported, choice: str) -> set[str]:
    tensors = imported.network.tensors
    if choice == "all":
        return {spec.name for spec in tensors} - imported.fixed
    if choice == "biases":
        layers = {name for layer in imported.layers for name in layer}
        return {spec.name for spec in tensors if spec.role is Role.BIAS and spec.name in layers} - imported.fixed
    last = _LAST.fullmatch(choice)
    if last is not None:
        count = int(last[1])
        if not 1 <= count <= len(imported.layers):
            raise TrainingError(f"trainable {choice!r}: the network has {len(imported.layers)} layers")
        return {name for layer in imported.layers[-count:] for name in layer} - imported.fixed
    by_layer = {layer[0].removesuffix("_weight"): set(layer) - imported.fixed for layer in imported.layers}
    known = {spec.name: {spec.name} for spec in tensors} | by_layer
    chosen: set[str] = set()
    for name in choice.split(","):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
            raise TrainingError(f"trainable {name[:60]!r}: expected all, last:N, biases, or names such as {near}")
        chosen |= known[name]
    return chosen
