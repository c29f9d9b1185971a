"""The output layer of a network: the last node that has tensors. Updates of the codec ``output`` carry it alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_sdk.training.network import Network


def output_positions(network: Network) -> tuple[int, ...] | None:
    """Positions of the tensors of the last layer that has any; None if those are all there are."""
    last = next(node for node in reversed(network.nodes) if node.tensors)
    positions = tuple(position for position, spec in enumerate(network.tensors) if spec.name in last.tensors)
    return None if len(positions) == len(network.tensors) else positions


def train_output_only(network: Network) -> Network:
    """The network with everything but its output layer frozen."""
    positions = output_positions(network)
    tensors = tuple(
        replace(spec, is_trainable=positions is None or position in positions)
        for position, spec in enumerate(network.tensors)
    )
    return replace(network, tensors=tensors)
