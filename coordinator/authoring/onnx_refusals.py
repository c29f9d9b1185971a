"""Operators that are refused, with the nearest supported alternative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from onnx import NodeProto

_CONTROL_FLOW: Final = "control flow is not supported: export the branch that runs, for instance by tracing"
_RECURRENT: Final = "recurrent layers are not supported: use Conv over time (1-D)"
_NORMALIZATION: Final = "normalization by statistics of the example is not supported: use BatchNormalization"
_SMOOTH: Final = "use HardSwish, LeakyRelu or Relu"
_QUANTIZED: Final = "already quantized: give the float model, the builder quantizes"
_ATTENTION: Final = "products of two values are not supported: use Conv or Gemm with weights"
ALTERNATIVES: Final = {
    "If": _CONTROL_FLOW,
    "Loop": _CONTROL_FLOW,
    "Scan": _CONTROL_FLOW,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNN": _RECURRENT,
    "LayerNormalization": _NORMALIZATION,
    "InstanceNormalization": _NORMALIZATION,
    "GroupNormalization": _NORMALIZATION,
    "LpNormalization": _NORMALIZATION,
    "LRN": _NORMALIZATION,
    "Elu": _SMOOTH,
    "Selu": _SMOOTH,
    "Celu": _SMOOTH,
    "Gelu": _SMOOTH,
    "Erf": _SMOOTH,
    "Mish": _SMOOTH,
    "Softplus": _SMOOTH,
    "Softsign": "use Tanh",
    "PRelu": "use LeakyRelu",
    "ThresholdedRelu": "use Relu",
    "QuantizeLinear": _QUANTIZED,
    "DequantizeLinear": _QUANTIZED,
    "DynamicQuantizeLinear": _QUANTIZED,
    "QLinearConv": _QUANTIZED,
    "QLinearMatMul": _QUANTIZED,
    "ConvInteger": _QUANTIZED,
    "MatMulInteger": _QUANTIZED,
    "Attention": _ATTENTION,
    "Einsum": _ATTENTION,
    "ConvTranspose": "use Conv, or Gemm and Reshape",
    "Resize": "use Reshape, or a Conv with stride before",
    "Upsample": "use Reshape, or a Conv with stride before",
    "LpPool": "use AveragePool",
    "ReduceMax": "use MaxPool or GlobalMaxPool",
    "ReduceSum": "use GlobalAveragePool and a scale",
    "Max": "use Relu or Clip for bounds",
    "Min": "use Relu or Clip for bounds",
    "Where": "use Clip or Relu",
    "Pow": "use Mul of a value with itself",
    "Split": "use groups of a Conv",
    "Slice": "use Conv or MaxPool with stride",
    "Gather": "embeddings are not supported: feed vectors, and use Gemm",
    "Softmax": "only at the end, where it belongs to the loss; inside, use Sigmoid",
    "LogSoftmax": "only at the end, where it belongs to the loss",
    "TreeEnsembleClassifier": "trees have no gradient: use a linear model or an MLP",
    "TreeEnsembleRegressor": "trees have no gradient: use a linear model or an MLP",
    "SVMClassifier": "use a linear model or an MLP",
}


def refuse_operator(node: NodeProto) -> NoReturn:
    """Raise for an operator that cannot be differentiated.

    Raises:
        TrainingError: always; with the nearest alternative.
    """
    advice = ALTERNATIVES.get(node.op_type, "see the list of operators in coordinator/authoring/README.md")
    raise TrainingError(f"operator {node.op_type} is not supported: {advice}")
