"""The forward pass of a torch module as ONNX bytes, for the importer."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import torch

from edge_sdk.errors import TrainingError

OPSET = 17
_MESSAGE_CHARS_MAX = 400


def export_forward(module: Any, input_shape: tuple[int, ...]) -> bytes:
    """Export a module in its evaluation form.

    Args:
        module: A ``torch.nn.Module`` that takes one float tensor, (batch, *input_shape).
        input_shape: Shape of one example.

    Raises:
        TrainingError: the module does not take this shape, or torch cannot export it.
    """
    module = module.eval().to("cpu", torch.float32)
    example = torch.zeros(2, *input_shape)
    try:
        with torch.no_grad():
            output = module(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise TrainingError(f"input of shape {input_shape} per example: {_short(error)}") from error
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        raise TrainingError(f"its forward gives {type(output).__name__}, expected one tensor of floats")
    buffer = BytesIO()
    names = {"input_names": ["input"], "output_names": ["output"]}
    axes = {"input": {0: "batch"}, "output": {0: "batch"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own future
            torch.onnx.export(module, (example,), buffer, dynamo=False, opset_version=OPSET, dynamic_axes=axes, **names)
    except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        raise TrainingError(f"torch cannot export it: {_short(error)}") from error
    return buffer.getvalue()


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:_MESSAGE_CHARS_MAX]
