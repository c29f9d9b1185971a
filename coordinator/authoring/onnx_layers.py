"""ONNX nodes with parameters: layers, normalizations, arithmetic with constants, linear models of skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from coordinator.authoring.onnx_folding import attribute
from coordinator.authoring.onnx_trunk import Padded, Trunk
from coordinator.authoring.onnx_windows import window_of
from edge_sdk.errors import TrainingError
from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    import numpy.typing as npt
    from onnx import NodeProto

    F64 = npt.NDArray[np.float64]

Handler = Callable[[Trunk, Any], None]
_BATCH_NORMALIZATION_INPUTS: Final = 5


def gemm(trunk: Trunk, node: NodeProto) -> None:
    """Gemm: alpha A B + beta C, with B and C constants."""
    if attribute(node, "transA", 0):
        raise TrainingError("transA is not supported: transpose the weights instead (transB)")
    value = trunk.value(node.input[0])
    weight = trunk.weight(node.input[1]) * attribute(node, "alpha", 1.0)
    weight = weight.T if attribute(node, "transB", 0) else weight
    bias = None
    if len(node.input) > 2 and node.input[2]:
        bias = _row(trunk.weight(node.input[2]), weight.shape[-1]) * attribute(node, "beta", 1.0)
    label = trunk.label(Op.GEMM, node.input[1])
    trunk.layer(Op.GEMM, value, label, weight, bias, name=node.output[0])


def matmul(trunk: Trunk, node: NodeProto) -> None:
    """MatMul of rows with a constant matrix; an Add of a constant behind it becomes the bias."""
    if trunk.is_constant(node.input[0]) or not trunk.is_constant(node.input[1]):
        raise TrainingError("a product is supported with weights on the right only: use Gemm, or Mul for elements")
    value, weight = trunk.value(node.input[0]), trunk.weight(node.input[1])
    if len(trunk.shapes[value]) != 2 or weight.ndim != 2:
        raise TrainingError(
            f"a product of {trunk.shapes[value][1:]} and {weight.shape}: flatten before it, or use Conv with kernel 1"
        )
    trunk.layer(Op.GEMM, value, trunk.label(Op.GEMM, node.input[1]), weight, None, name=node.output[0])


def conv(trunk: Trunk, node: NodeProto) -> None:
    """Conv, with the padding of a Pad before it."""
    source = node.input[0]
    around = trunk.padded[source] if source in trunk.padded else Padded(trunk.value(source), (), ())
    value = around.value
    weight = trunk.weight(node.input[1])
    bias = trunk.weight(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight.ndim < 3 or (bias is not None and bias.shape != weight.shape[:1]):
        raise TrainingError(f"weight {weight.shape} and bias do not make a convolution")
    window = window_of(node, trunk.shapes[value], kernel=weight.shape[2:], begin=around.begin, end=around.end)
    groups = attribute(node, "group", 1)
    trunk.layer(
        Op.CONV, value, trunk.label(Op.CONV, node.input[1]), weight, bias, name=node.output[0], groups=groups, **window
    )


def pad(trunk: Trunk, node: NodeProto) -> None:
    """Zeros around the spatial axes, which the convolution behind takes over."""
    value = trunk.value(node.input[0])
    rank = len(trunk.shapes[value])
    pads = trunk.constant(node.input[1]) if len(node.input) > 1 else np.array(attribute(node, "pads", []))
    fill = float(trunk.constant(node.input[2]).item()) if len(node.input) > 2 and node.input[2] else 0.0
    is_plain = attribute(node, "mode", "constant") == "constant" and fill == attribute(node, "value", 0.0) == 0.0
    sizes = tuple(int(size) for size in pads.ravel())
    if not is_plain or len(sizes) != 2 * rank or any((*sizes[:2], *sizes[rank : rank + 2])) or min(sizes) < 0:
        raise TrainingError(f"padding {sizes} is not one of zeros around the spatial axes")
    if len(node.input) > 3 and node.input[3]:
        raise TrainingError("padding with axes is not supported: pad all axes, or give the Conv its padding")
    if any(sizes):
        trunk.padded[node.output[0]] = Padded(value, sizes[2:rank], sizes[rank + 2 :])
    else:
        trunk.alias(node.output[0], value)


def batch_normalization(trunk: Trunk, node: NodeProto) -> None:
    """Inference form: y = (x - mean) / sqrt(var + epsilon) * gamma + beta, per channel."""
    if attribute(node, "training_mode", 0) or len([name for name in node.output if name]) > 1:
        raise TrainingError("is in training mode: export the model for inference (torch: model.eval())")
    if len(node.input) != _BATCH_NORMALIZATION_INPUTS:
        raise TrainingError(f"has {len(node.input)} inputs, expected {_BATCH_NORMALIZATION_INPUTS}")
    channels = trunk.shapes[trunk.value(node.input[0])][1]
    gamma, beta, mean, variance = (_row(trunk.constant(name).astype(np.float64), channels) for name in node.input[1:])
    if (variance < 0).any():
        raise TrainingError(f"a variance is negative: channel {int(np.argmin(variance))}")
    scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    trunk.affine(node.input[0], node.output[0], scale, beta - mean * scale)


def arithmetic(trunk: Trunk, node: NodeProto) -> None:
    """Add and Mul of two values; Add, Sub, Mul, Div with one number per channel."""
    first, second = node.input
    kind = node.op_type
    if not trunk.is_constant(first) and not trunk.is_constant(second):
        if kind not in {"Add", "Mul"}:
            raise TrainingError(f"{kind} of two values is not supported: use Add, or Mul")
        values = trunk.value(first), trunk.value(second)
        trunk.add(Op.ADD if kind == "Add" else Op.MUL, *values, name=node.output[0])
        return
    is_left = trunk.is_constant(first)
    source, constant = (second, first) if is_left else (first, second)
    number = _per_channel(trunk, source, constant)
    ones, zeros = np.ones_like(number), np.zeros_like(number)
    match kind, is_left:
        case "Add", _:
            scale, shift = ones, number
        case "Mul", _:
            scale, shift = number, zeros
        case "Sub", False:
            scale, shift = ones, -number
        case "Sub", True:
            scale, shift = -ones, number
        case "Div", False if number.all():
            scale, shift = 1.0 / number, zeros
        case _:
            raise TrainingError("a division by values, or by zero, is not supported: use Mul")
    trunk.affine(source, node.output[0], scale, shift)


def negative(trunk: Trunk, node: NodeProto) -> None:
    """Neg: a scale of -1."""
    channels = trunk.shapes[trunk.value(node.input[0])][1]
    trunk.affine(node.input[0], node.output[0], -np.ones(channels), np.zeros(channels))


def hard_sigmoid(trunk: Trunk, node: NodeProto) -> None:
    """HardSigmoid: min(max(alpha x + beta, 0), 1), as a frozen scale and a Clip."""
    value = trunk.value(node.input[0])
    channels = trunk.shapes[value][1]
    label = f"hard_sigmoid{len(trunk.nodes)}"
    parts = (("scale", attribute(node, "alpha", 0.2)), ("shift", attribute(node, "beta", 0.5)))
    tensors = [trunk.tensor(f"{label}_{part}", np.full(channels, number), is_fixed=True) for part, number in parts]
    trunk.add(Op.CLIP, trunk.add(Op.AFFINE, value, *tensors), name=node.output[0], constants=(0.0, 1.0))


def scaler(trunk: Trunk, node: NodeProto) -> None:
    """Scaler of skl2onnx: (x - offset) scale."""
    channels = trunk.shapes[trunk.value(node.input[0])][1]
    offset, scale = (
        _row(np.array(attribute(node, name, default), np.float64), channels)
        for name, default in (("offset", [0.0]), ("scale", [1.0]))
    )
    trunk.affine(node.input[0], node.output[0], scale, -offset * scale)


def linear_regressor(trunk: Trunk, node: NodeProto) -> None:
    """LinearRegressor of skl2onnx: one row of coefficients per target."""
    if attribute(node, "post_transform", "NONE") != "NONE":
        raise TrainingError("a transformed regression is not supported: use post_transform NONE")
    weight, bias = _coefficients(trunk, node, attribute(node, "targets", 1))
    trunk.layer(Op.GEMM, trunk.value(node.input[0]), "linear", weight, bias, name=node.output[0])


def linear_classifier(trunk: Trunk, node: NodeProto) -> None:
    """LinearClassifier of skl2onnx: one row of coefficients per class."""
    labels = attribute(node, "classlabels_ints") or attribute(node, "classlabels_strings") or ()
    weight, bias = _coefficients(trunk, node, len(labels))
    if attribute(node, "post_transform", "NONE") == "LOGISTIC" and len(labels) == 2:
        # Rows are -w and w: softmax over half of them gives the probability that the logistic function of w gives.
        weight, bias = weight / 2, bias / 2
    trunk.layer(Op.GEMM, trunk.value(node.input[0]), "linear", weight, bias, name=node.output[-1])


def _coefficients(trunk: Trunk, node: NodeProto, rows: int) -> tuple[F64, F64]:
    columns = trunk.shapes[trunk.value(node.input[0])]
    weight = np.array(attribute(node, "coefficients", []), np.float64)
    bias = np.array(attribute(node, "intercepts") or np.zeros(rows), np.float64)
    if len(columns) != 2 or weight.size != rows * columns[1] or bias.shape != (rows,):
        raise TrainingError(f"{weight.size} coefficients and {bias.size} intercepts do not fit {rows} outputs")
    return weight.reshape(rows, columns[1]).T, bias


def _row(array: npt.NDArray[Any], size: int) -> F64:
    """A bias or one number per channel, repeated where it is a single one."""
    if array.size not in {1, size} or max(array.shape, default=1) != array.size:
        raise TrainingError(f"a constant of shape {array.shape} is not one number for each of {size} channels")
    return np.broadcast_to(array.ravel().astype(np.float64), (size,)).copy()


def _per_channel(trunk: Trunk, source: str, constant: str) -> F64:
    """A constant that is broadcast against a value, as one number per channel (axis 1)."""
    shape = trunk.shapes[trunk.value(source)]
    array = trunk.constant(constant).astype(np.float64)
    aligned = (1,) * (len(shape) - array.ndim) + array.shape
    if len(aligned) != len(shape) or any(size != 1 for axis, size in enumerate(aligned) if axis != 1):
        raise TrainingError(
            f"constant {constant[:80]!r} of shape {array.shape} is not one number per channel of {shape[1:]} (axis 1)"
        )
    return _row(array, shape[1])


LAYERS: Final[dict[str, Handler]] = {
    "Gemm": gemm,
    "MatMul": matmul,
    "Conv": conv,
    "Pad": pad,
    "BatchNormalization": batch_normalization,
    "Add": arithmetic,
    "Sub": arithmetic,
    "Mul": arithmetic,
    "Div": arithmetic,
    "Neg": negative,
    "HardSigmoid": hard_sigmoid,
    "Scaler": scaler,
    "LinearRegressor": linear_regressor,
    "LinearClassifier": linear_classifier,
}
