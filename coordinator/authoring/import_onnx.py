"""From a forward ONNX model of any exporter to a network and its parameters.

Nodes that the chosen output does not need are ignored; constants are folded; BatchNormalization, and scales and shifts
per channel, go into the layer before them. A softmax or sigmoid at the end belongs to the loss and is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from coordinator.authoring.onnx_folding import BATCH_MARK, FOLDED, attribute, fold
from coordinator.authoring.onnx_layers import LAYERS
from coordinator.authoring.onnx_operators import OPERATORS
from coordinator.authoring.onnx_reader import OnnxFile, ReadExternal, read_onnx, refuse_external
from coordinator.authoring.onnx_refusals import refuse_operator
from coordinator.authoring.onnx_trunk import Trunk
from edge_sdk.errors import TrainingError
from edge_sdk.training.network import INPUT, Network
from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import NodeProto, ValueInfoProto

LOSSES: Final = {"ce": Op.SOFTMAX_CROSS_ENTROPY, "mse": Op.MEAN_SQUARED_ERROR, "bce": Op.BINARY_CROSS_ENTROPY}
_HANDLERS: Final = {**OPERATORS, **LAYERS}
_TAILS: Final = {
    Op.SOFTMAX_CROSS_ENTROPY: frozenset({"Softmax", "LogSoftmax"}),
    Op.MEAN_SQUARED_ERROR: frozenset[str](),
    Op.BINARY_CROSS_ENTROPY: frozenset({"Sigmoid"}),
}
"""What a loss brings itself."""
_PACKAGING: Final = frozenset({"ZipMap", "Normalizer", "Identity"})
"""How skl2onnx hands probabilities out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A forward network with its parameters; every tensor is marked as the exporter leaves it, none is chosen yet."""

    network: Network
    arrays: dict[str, npt.NDArray[np.float32]]
    layers: tuple[tuple[str, ...], ...]
    """Tensors of each Gemm and Conv, in order."""
    fixed: frozenset[str]
    """Tensors that are trained only if named: zero biases that the exporter did not have, and constants."""
    notes: tuple[str, ...]
    """What was left out, for people."""


def import_onnx(
    data: bytes, *, loss: str, smoothing: float = 0.0, read_external: ReadExternal = refuse_external
) -> Imported:
    """Read a model and attach a loss.

    Args:
        data: The bytes of the model.
        loss: ``ce``, ``mse`` or ``bce``.
        smoothing: Label smoothing of ``ce``, 0 <= smoothing < 1.
        read_external: Reads what the model keeps outside.

    Raises:
        TrainingError: it cannot be trained; the text names the node or tensor and the nearest alternative.
    """
    if loss not in LOSSES:
        raise TrainingError(f"loss {loss!r}: expected one of {', '.join(LOSSES)}")
    if smoothing and loss != "ce":
        raise TrainingError(f"label smoothing belongs to the loss ce, not to {loss}")
    file = read_onnx(data, read_external=read_external)
    output, notes = _choose_output(file, LOSSES[loss])
    nodes = _needed(file, output)
    trunk = Trunk(file, consumers=_consumers(nodes, output))
    for node in nodes:
        _import_node(trunk, node)
    logits = _as_logits(trunk, output, LOSSES[loss])
    trunk.add(LOSSES[loss], logits, constants=(smoothing,) if smoothing else ())
    specs, arrays = trunk.finish()
    network = Network(
        input_shape=file.input_shape,
        class_count=trunk.shapes[logits][1],
        tensors=specs,
        nodes=tuple(trunk.nodes),
    )
    layers = tuple(node.tensors for node in network.nodes if node.op in {Op.GEMM, Op.CONV})
    return Imported(
        network=network, arrays=arrays, layers=layers, fixed=frozenset(trunk.fixed), notes=(*notes, *trunk.notes)
    )


def _import_node(trunk: Trunk, node: NodeProto) -> None:
    place = f"node {node.name or node.output[0]!r} ({node.op_type})"
    names = [name for name in node.input if name]
    try:
        if node.op_type == "Constant":
            trunk.constants[node.output[0]] = _constant(trunk, node)
        elif node.op_type == "Shape" and not trunk.is_constant(names[0]):
            _, *sizes = trunk.shapes[trunk.value(names[0])]
            trunk.constants[node.output[0]] = np.array([trunk.file.batch or BATCH_MARK, *sizes], np.int64)
        elif node.op_type in FOLDED and names and all(map(trunk.is_constant, names)):
            trunk.constants[node.output[0]] = fold(node, [trunk.constant(name) for name in names])
        elif node.op_type in _HANDLERS:
            _HANDLERS[node.op_type](trunk, node)
        else:
            refuse_operator(node)
    except TrainingError as error:
        raise TrainingError(f"{place}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        # Inputs are missing or an attribute has another type: the file was made by no exporter.
        raise TrainingError(f"{place}: not a valid node: {error}") from error


def _constant(trunk: Trunk, node: NodeProto) -> npt.NDArray[Any]:
    tensor = attribute(node, "value")
    if tensor is not None:
        return trunk.file.array(tensor, name=node.output[0])
    for name, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        value = attribute(node, name)
        if value is not None:
            return np.array(value, kind)
    raise TrainingError("a constant of a kind that is not supported")


def _choose_output(file: OnnxFile, loss: Op) -> tuple[str, list[str]]:
    """The tensor that becomes the logits, and what was left out behind it."""
    makers = {name: node for node in file.nodes for name in node.output}
    candidates = [value for value in file.outputs if _is_float(value)]
    if len(candidates) != 1:
        names = [value.name for value in file.outputs][:8]
        raise TrainingError(f"outputs {names}: expected exactly one of floats: export the model with one output")
    name, notes = candidates[0].name, []
    while name in makers and makers[name].op_type in _TAILS[loss] | _PACKAGING | {"Cast"}:
        node = makers[name]
        if node.op_type in _TAILS[loss]:
            notes.append(f"{node.op_type} {node.name!r} is part of the loss")
        name = node.input[0]
    return name, notes


def _is_float(value: ValueInfoProto) -> bool:
    """Float tensors, and the maps of class to probability that ZipMap makes; not labels."""
    if value.type.HasField("sequence_type"):
        return True
    return bool(value.type.tensor_type.elem_type in {0, 1, 10, 11})


def _needed(file: OnnxFile, output: str) -> list[NodeProto]:
    """Nodes that ``output`` depends on, in order."""
    wanted, kept = {output}, []
    for node in reversed(file.nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _consumers(nodes: list[NodeProto], output: str) -> Counter[str]:
    """How often each ONNX name is read."""
    return Counter([output, *(name for node in nodes for name in node.input)])


def _as_logits(trunk: Trunk, output: str, loss: Op) -> str:
    value = trunk.value(output)
    shape = trunk.shapes[value]
    if value == INPUT:
        raise TrainingError(f"output {output!r} is the input: nothing is left to train")
    if len(shape) == 2:
        return value
    if loss is Op.SOFTMAX_CROSS_ENTROPY and any(size != 1 for size in shape[2:]):
        raise TrainingError(
            f"output {output!r} has shape {shape[1:]}: expected one row of classes; pool or flatten before the end"
        )
    return trunk.add(Op.FLATTEN, value)
