"""What ONNX Runtime allocates while it runs a graph: tensor by tensor, in the order in which the nodes are written.

Follows the runtime's allocation planner (``onnxruntime/core/framework/allocation_planner.cc``, 1.16 to 1.31) for
the sessions of ``onnx_backend``, whose nodes run as they are written: Reshape and its like give the same bytes another
shape; an activation writes over an input that nobody needs any more; a tensor of the same shape takes over one that is
no longer needed; arithmetic of two tensors does neither in place. Inputs belong to the caller.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import onnx

from coordinator.authoring.runtime_preparation import prepare
from coordinator.authoring.runtime_tensors import Tensor, graph_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import GraphProto, NodeProto

    from edge_sdk.training.artifact import Artifact

_SAME_BYTES: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
_IN_PLACE: Final = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Clip", "Neg", "Exp", "Abs", "Round", "Sqrt", "Cast"}
)
_SEGMENT_BYTES: Final = 64 * 1024
"""Columns that a convolution gathers at a time where its output is larger than its number of filters."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node: what is allocated before it runs, and what is given back after."""

    operator: str
    makes: str
    reads: tuple[str, ...]
    taken: tuple[str, ...]
    workspace_bytes: int
    ended: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePlan:
    """One run of a graph."""

    steps: tuple[Step, ...]
    sizes: dict[str, int]
    """Bytes of each allocation."""
    inputs: dict[str, int]
    outputs: dict[str, int]
    constant_bytes: int

    def lives(self) -> tuple[int, ...]:
        """Bytes of the tensors that are alive while each node runs, with the node's workspace."""
        live, found = 0, []
        for step in self.steps:
            live += sum(self.sizes[name] for name in step.taken)
            found.append(live + step.workspace_bytes)
            live -= sum(self.sizes[name] for name in step.ended)
        return tuple(found)


@dataclass(slots=True)
class _Planner:
    """Walks through the nodes."""

    tensors: dict[str, Tensor]
    outside: frozenset[str]
    """Inputs, constants and outputs of the graph: never written over, never reused."""
    uses: Counter[str]
    owner: dict[str, str] = field(default_factory=dict)
    """Whose memory a tensor lies in."""
    left: Counter[str] = field(default_factory=Counter)
    """By owner: uses that are still to come."""
    free: list[str] = field(default_factory=list)
    """Owners whose memory waits for a tensor of the same shape, the latest first."""
    sizes: dict[str, int] = field(default_factory=dict)
    ended_at: dict[str, int] = field(default_factory=dict)

    def visit(self, place: int, node: NodeProto) -> list[str]:
        """Owners that the node newly takes."""
        taken = []
        for index, name in enumerate(node.output):
            if not name:
                continue
            source = self._source(node, name) if index == 0 else None
            if source is None and name not in self.outside:
                source = self._same_shape(name)
            if source is not None:
                self.owner[name] = source
                if source not in self.outside:
                    self.left[source] += self.uses[name]
            else:
                self.owner[name] = name
                self.sizes[name] = self.tensors[name].size_bytes
                taken.append(name)
                self.left[name] = self.uses[name]
        self._end(place, node)
        return taken

    def _source(self, node: NodeProto, name: str) -> str | None:
        """Memory of an input that the first output takes over."""
        if name in self.outside:
            return None
        first = self.owner.get(node.input[0], node.input[0])
        if node.op_type in _SAME_BYTES:
            return first
        if node.op_type not in _IN_PLACE or first in self.outside or self.left[first] != 1:
            return None
        return first if self._are_alike(node.input[0], name) else None

    def _same_shape(self, name: str) -> str | None:
        if not self.tensors[name].shape:
            return None
        for candidate in self.free:
            if self._are_alike(candidate, name):
                self.free.remove(candidate)
                return candidate
        return None

    def _are_alike(self, one: str, other: str) -> bool:
        return self.tensors[one].is_foreseen and self.tensors[one] == self.tensors[other]

    def _end(self, place: int, node: NodeProto) -> None:
        unread = [name for name in node.output if name and not self.uses[name]]
        for name in (*filter(None, node.input), *unread):
            owner = self.owner.get(name, name)
            if owner in self.outside:
                continue
            self.left[owner] -= name not in unread
            if self.left[owner] == 0 and owner not in self.free:
                self.free.insert(0, owner)
                self.ended_at[owner] = place


def plan_step(artifact: Artifact) -> RuntimePlan:
    """Plan a training step of an artifact."""
    return plan_run(artifact.train_onnx, frozen=artifact.frozen_inputs)


def plan_run(graph_onnx: bytes, *, frozen: Iterable[str] = ()) -> RuntimePlan:
    """Plan a run of a serialized graph.

    Args:
        graph_onnx: The graph.
        frozen: Inputs that the session has as constants.

    Raises:
        TrainingError: a tensor has no fixed shape.
    """
    graph, tensors = graph_tensors(onnx.load_model_from_string(graph_onnx))
    returned = {value.name for value in graph.output}
    constants = {*frozen, *(tensor.name for tensor in graph.initializer)}
    nodes, renamed = _without_ends(graph, returned)
    nodes = prepare(nodes, tensors, constants)
    given = {value.name for value in graph.input} | constants
    uses = Counter(name for node in nodes for name in node.input if name)
    planner = _Planner(tensors, frozenset(given | set(renamed)), uses)
    taken = [planner.visit(place, node) for place, node in enumerate(nodes)]
    ended: dict[int, list[str]] = {}
    for name, place in planner.ended_at.items():
        ended.setdefault(place, []).append(name)
    return RuntimePlan(
        steps=tuple(
            Step(
                node.op_type,
                node.output[0],
                tuple(filter(None, node.input)),
                tuple(taken[place]),
                _workspace(node, tensors),
                tuple(ended.get(place, ())),
            )
            for place, node in enumerate(nodes)
        ),
        sizes=planner.sizes,
        inputs={value.name: tensors[value.name].size_bytes for value in graph.input},
        outputs={output: tensors[name].size_bytes for name, output in renamed.items()},
        constant_bytes=sum(tensors[tensor.name].size_bytes for tensor in graph.initializer),
    )


def _without_ends(graph: GraphProto, returned: set[str]) -> tuple[list[NodeProto], dict[str, str]]:
    """Nodes without the Identity that hands each result out; and what it hands out, under which name."""
    nodes, results = [], {}
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] in returned:
            results[node.input[0]] = node.output[0]
        else:
            nodes.append(node)
    return nodes, results


def _workspace(node: NodeProto, tensors: dict[str, Tensor]) -> int:
    """Bytes that a convolution takes for the columns of one image and group.

    Source: ``onnxruntime/core/mlas/lib/convolve.cpp`` and ``providers/cpu/nn/conv_transpose.cc``.
    """
    if node.op_type not in {"Conv", "ConvTranspose"}:
        return 0
    image, weight, out = (tensors[name].shape for name in (*node.input[:2], node.output[0]))
    item_bytes = tensors[node.input[0]].item_bytes
    columns = weight[1] * math.prod(weight[2:])
    if node.op_type == "ConvTranspose":
        return columns * math.prod(image[2:]) * item_bytes
    positions = math.prod(out[2:])
    if math.prod(weight[2:]) == 1:
        return 0
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    gathered = columns * positions * item_bytes
    return gathered if weight[0] // groups > positions else min(gathered, _SEGMENT_BYTES)
