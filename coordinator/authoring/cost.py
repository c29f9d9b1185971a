"""What a training step costs: multiply-accumulates from the network, bytes from the graph's tensors and their lives.

The memory of the runtime and of the process is not in these figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.authoring.runtime_plan import plan_step
from edge_sdk.training.artifact import LOSS
from edge_sdk.training.network import Op, infer_shapes

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.network import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One node of the forward network."""

    node: Node
    output_shape: tuple[int, ...]
    """Without the batch axis."""
    parameters: int
    trainable: int
    forward_macs: int
    """Of a batch."""
    backward_macs: int
    """Of a batch; 0 where nothing at or before the node is trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A whole training step."""

    layers: tuple[LayerCost, ...]
    parameter_bytes: int
    """States and scales that go in, and the states that come out."""
    activation_bytes: int
    """Largest sum of the other tensors alive at the same time, when each is freed after its last use."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates, forward and backward."""
        return sum(layer.forward_macs + layer.backward_macs for layer in self.layers)


def step_cost(artifact: Artifact) -> StepCost:
    """Predict a step of an artifact."""
    network = artifact.network
    shapes = infer_shapes(network, batch=artifact.batch)
    specs = {spec.name: spec for spec in network.tensors}
    reached = network.trainable_values
    layers = []
    for node in network.nodes:
        tensors = [specs[name] for name in node.tensors]
        forward = 0
        if node.op in {Op.GEMM, Op.CONV}:
            weight = tensors[0]
            positions = artifact.batch * math.prod(shapes[node.output][2:])
            forward = positions * weight.size
        products = int(bool(tensors) and tensors[0].is_trainable) + int(node.values[0] in reached)
        layers.append(
            LayerCost(
                node=node,
                output_shape=shapes[node.output][1:],
                parameters=sum(spec.size for spec in tensors),
                trainable=sum(spec.size for spec in tensors if spec.is_trainable),
                forward_macs=forward,
                backward_macs=forward * products,
            )
        )
    parameters, activations = _graph_bytes(artifact)
    return StepCost(layers=tuple(layers), parameter_bytes=parameters, activation_bytes=activations)


def _graph_bytes(artifact: Artifact) -> tuple[int, int]:
    """Bytes of the state in and out, and the peak of all other tensors."""
    plan = plan_step(artifact)
    state = {name: size for name, size in plan.inputs.items() if name.endswith((".state", ".scale"))}
    results = sum(size for name, size in plan.outputs.items() if name != LOSS)
    return sum(state.values()) + results, sum(plan.inputs.values()) - sum(state.values()) + max(plan.lives())
