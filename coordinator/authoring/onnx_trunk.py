"""The network while it is imported: values, constants, tensors, and folding into the layer before."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from coordinator.authoring.onnx_folding import BATCH_MARK
from coordinator.authoring.parameters import EXPONENT, exponent_for
from edge_sdk.errors import TrainingError
from edge_sdk.protocol.limits import PARAMETERS_MAX
from edge_sdk.training.network import INPUT, NODES_MAX
from edge_sdk.training.operators import Node, Op, Role, TensorSpec
from edge_sdk.training.shape_rules import output_shape

if TYPE_CHECKING:
    from collections import Counter

    import numpy.typing as npt

    from coordinator.authoring.onnx_reader import OnnxFile

_NAME_CHARS: Final = 40
_GENERATED: Final = re.compile(r"(onnx::|_?v_|val_|/)|.*__?\d+$|^\d+$")
"""Names that exporters make up; the operator and its number say more."""


@dataclass(frozen=True, slots=True)
class Padded:
    """What a Pad node makes, until a convolution takes it."""

    value: str
    begin: tuple[int, ...]
    end: tuple[int, ...]


class Trunk:
    """Collects nodes and tensors. Shapes are for a batch of 1."""

    def __init__(self, file: OnnxFile, *, consumers: Counter[str]) -> None:
        self.file = file
        self.nodes: list[Node] = []
        self.shapes: dict[str, tuple[int, ...]] = {INPUT: (1, *file.input_shape)}
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self.padded: dict[str, Padded] = {}
        self.fixed: set[str] = set()
        self.notes: list[str] = []
        self._values: dict[str, str] = {file.input_name: INPUT}
        self._consumers = consumers
        self._readers: dict[str, int] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._arrays: dict[str, npt.NDArray[np.float64]] = {}
        self._initializers_used: set[str] = set()

    def is_constant(self, name: str) -> bool:
        """Whether an ONNX name is a weight or folded."""
        return name in self.constants or name in self.file.initializers

    def constant(self, name: str) -> npt.NDArray[Any]:
        """Array of an ONNX name.

        Raises:
            TrainingError: it is computed from the input, or broken.
        """
        if name not in self.constants:
            if name not in self.file.initializers:
                raise TrainingError(f"{name[:80]!r} has to be a constant")
            self.constants[name] = self.file.array(self.file.initializers[name])
        return self.constants[name]

    def weight(self, name: str) -> npt.NDArray[np.float64]:
        """Array of an ONNX name that becomes a trainable tensor, which one node may use.

        Raises:
            TrainingError: it is shared, or as ``constant``.
        """
        if name in self._initializers_used:
            raise TrainingError(f"weight {name[:80]!r} is shared with another node: give each its own copy")
        self._initializers_used.add(name)
        return self.constant(name).astype(np.float64)

    def value(self, name: str) -> str:
        """Network value of an ONNX name.

        Raises:
            TrainingError: it is a constant, padded, or nothing makes it.
        """
        if name in self.padded:
            raise TrainingError("padding is supported only before Conv: give the window its padding")
        if name not in self._values:
            what = "is a constant" if self.is_constant(name) else "is made by no node before"
            raise TrainingError(f"input {name[:80]!r} {what}: expected a value that depends on the input")
        return self._values[name]

    def alias(self, name: str, value: str) -> None:
        """Let an ONNX name mean a value that exists; its readers then read that value."""
        self._values[name] = value
        self._readers[value] = self._readers.get(value, 1) + self._consumers[name] - 1

    def add(self, op: Op, *inputs: str, name: str = "", **fields: Any) -> str:
        """Append a node and return its value; ``name`` is the ONNX name of its output.

        Raises:
            TrainingError: its shapes do not fit, or there are too many nodes.
        """
        if len(self.nodes) >= NODES_MAX:
            raise TrainingError(f"more than {NODES_MAX} nodes")
        node = Node(op=op, inputs=inputs, output=f"h{len(self.nodes)}", **fields)
        shapes = [self.shapes[value] for value in node.values]
        shape = output_shape("its shapes", node, shapes, [self._specs[name] for name in node.tensors])
        if math.prod(shape) > PARAMETERS_MAX:
            raise TrainingError(f"its output {shape[1:]} has more than {PARAMETERS_MAX} elements")
        self.shapes[node.output] = shape
        self.nodes.append(node)
        if name:
            self._values[name] = node.output
            self._readers[node.output] = self._consumers[name]
        return node.output

    def tensor(self, label: str, array: npt.NDArray[Any], *, axis: int = -1, is_fixed: bool = False) -> str:
        """Append a tensor and return its name."""
        name, number = label[:_NAME_CHARS], 1
        while name in self._specs:
            number += 1
            name = f"{label[:_NAME_CHARS]}_{number}"
        role = Role.BIAS if axis < 0 else Role.WEIGHT
        self._specs[name] = TensorSpec(name=name, shape=array.shape, role=role, channel_axis=axis, exponent=EXPONENT)
        self._arrays[name] = array.astype(np.float64)
        if is_fixed:
            self.fixed.add(name)
        return name

    def label(self, op: Op, weight_name: str) -> str:
        """How a layer's tensors are named: after the exporter's weight, else after the operator and its number."""
        stem = re.sub(r"[._/:]?(weight|kernel|w|coefficients)(:0)?$", "", weight_name, flags=re.IGNORECASE)
        if not stem or _GENERATED.match(stem):
            return f"{op.name.lower()}{sum(node.op is op for node in self.nodes)}"
        clean = re.sub(r"\W+", "_", stem, flags=re.ASCII).strip("_")
        return clean if re.match(r"[A-Za-z]", clean) and not re.fullmatch(r"h\d+|x", clean) else f"layer_{clean}"

    def layer(self, op: Op, value: str, label: str, weight: Any, bias: Any, *, name: str, **fields: Any) -> None:
        """Append a Gemm or Conv; without a bias, one of zeros that stays zero unless a fold or its name needs it."""
        axis = 1 if op is Op.GEMM else 0
        has_bias = bias is not None
        shift = bias if has_bias else np.zeros(weight.shape[axis])
        tensors = (
            self.tensor(f"{label}_weight", weight, axis=axis),
            self.tensor(f"{label}_bias", shift, is_fixed=not has_bias),
        )
        self.add(op, value, *tensors, name=name, **fields)

    def affine(self, source: str, name: str, scale: npt.NDArray[Any], shift: npt.NDArray[Any]) -> None:
        """Scale and shift per channel, x * scale + shift: into the layer before where possible, else a frozen node."""
        value = self.value(source)
        maker = next((node for node in self.nodes if node.output == value), None)
        if maker is not None and maker.op in {Op.GEMM, Op.CONV} and self._readers[value] == 1:
            weight, bias = maker.tensors
            axis = self._specs[weight].channel_axis
            shape = [1] * self._arrays[weight].ndim
            shape[axis] = -1
            self._arrays[weight] = self._arrays[weight] * scale.reshape(shape)
            self._arrays[bias] = self._arrays[bias] * scale + shift
            if shift.any():
                self.fixed.discard(bias)
            self.alias(name, value)
            return
        label = f"affine{sum(node.op is Op.AFFINE for node in self.nodes)}"
        tensors = [
            self.tensor(f"{label}_{part}", array, is_fixed=True) for part, array in (("scale", scale), ("shift", shift))
        ]
        self.add(Op.AFFINE, value, *tensors, name=name)

    def finish(self) -> tuple[tuple[TensorSpec, ...], dict[str, npt.NDArray[np.float32]]]:
        """Tensors with their exponents, and their float32 values.

        Raises:
            TrainingError: a value is not finite or too large.
        """
        for name, array in self._arrays.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"tensor {name}: folding gives a value that is not finite")
            self._specs[name] = replace(self._specs[name], exponent=exponent_for(name, array))
        arrays = {name: array.astype(np.float32) for name, array in self._arrays.items()}
        return tuple(self._specs.values()), arrays

    def is_batch(self, size: int) -> bool:
        """Whether an entry of a target shape means the batch axis."""
        return size in {0, self.file.batch, BATCH_MARK}
