"""The int8 products with their gradients, for torch autograd; equations in this package's README.

The weight that goes in is int8, held as float32. The gradient that comes out for it is dL/dW of the real weight W S,
not of the integers: what ``updated_states`` takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from edge_sdk.training.grids import Grid

_UINT8_MAX = 255.0


def quantize_dynamic(values: Any) -> tuple[Any, Any]:
    """Centred integers, q - zero point, and their scale, as ONNX DynamicQuantizeLinear has them."""
    low, high = values.min().clamp(max=0.0), values.max().clamp(min=0.0)
    scale = torch.where(high > low, (high - low) / _UINT8_MAX, torch.ones_like(high))
    zero = torch.round((-low / scale).clamp(0.0, _UINT8_MAX))
    return (torch.round(values / scale) + zero).clamp(0.0, _UINT8_MAX) - zero, scale


def quantize_static(values: Any, grid: Grid) -> tuple[Any, Any]:
    """As above, on a calibrated grid."""
    scale = torch.tensor(grid.scale, dtype=torch.float32, device=values.device)
    return (torch.round(values / scale) + grid.zero).clamp(0.0, _UINT8_MAX) - grid.zero, scale


def _quantize(values: Any, grid: Grid | None) -> tuple[Any, Any]:
    return quantize_dynamic(values) if grid is None else quantize_static(values, grid)


def exact_product(a: Any, b: Any) -> Any:
    """Matrix product of integers, exact up to 2**53, rounded once."""
    return (a.double() @ b.double()).float()


class QuantizedGemm(torch.autograd.Function):  # type: ignore[misc]
    """y = (xq - zx) Wq * (sx S)."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, scale: Any, grid: Grid | None) -> Any:
        """Quantize x, multiply."""
        centred, x_scale = _quantize(x, grid)
        ctx.save_for_backward(centred, x_scale, weight, scale)
        return exact_product(centred, weight) * (x_scale * scale)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        """The product with the weight in integers; the other takes the gradient as it is."""
        centred, x_scale, weight, scale = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            scaled, h_scale = quantize_dynamic(dy * scale)
            dx = exact_product(scaled, weight.T) * h_scale
        if ctx.needs_input_grad[1]:
            dw = (centred * x_scale).T @ dy
        return dx, dw, None, None


class QuantizedConv(torch.autograd.Function):  # type: ignore[misc]
    """y = conv(xq - zx, Wq) * (sx S); gradients in float32 through the rounded weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        weight: Any,
        scale: Any,
        grid: Grid | None,
        settings: tuple[list[int], list[int], list[int], int],
    ) -> Any:
        """Quantize x, convolve; settings are stride, padding, dilation, groups."""
        centred, x_scale = _quantize(x, grid)
        ctx.save_for_backward(centred, x_scale, weight, scale)
        stride, padding, dilation, groups = settings
        ctx.settings = (stride, padding, dilation, False, [0] * len(stride), groups)
        product = torch.ops.aten.convolution(centred.double(), weight.double(), None, *ctx.settings).float()
        return product * _per_channel(x_scale * scale, product)

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        """Gradient of the input from dy S, of the weight from dy."""
        centred, x_scale, weight, scale = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = _gradient(dy * _per_channel(scale, dy), centred, weight, ctx.settings, wanted=0)
        if ctx.needs_input_grad[1]:
            dw = _gradient(dy, centred, weight, ctx.settings, wanted=1) * x_scale
        return dx, dw, None, None, None


def _gradient(dy: Any, x: Any, weight: Any, settings: tuple[Any, ...], *, wanted: int) -> Any:
    """One of the gradients of a convolution: of its input (0) or its weight (1)."""
    mask = [wanted == 0, wanted == 1, False]
    return torch.ops.aten.convolution_backward(dy, x, weight, None, *settings, mask)[wanted]


def _per_channel(vector: Any, x: Any) -> Any:
    return vector.reshape(-1, *(1 for _ in x.shape[2:]))
