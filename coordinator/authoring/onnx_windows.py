"""Attributes of ONNX windows: explicit or automatic padding, checked for the modes that are not supported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.authoring.onnx_folding import attribute
from edge_sdk.errors import TrainingError

if TYPE_CHECKING:
    from onnx import NodeProto


def window_of(
    node: NodeProto,
    shape: tuple[int, ...],
    *,
    kernel: tuple[int, ...],
    begin: tuple[int, ...] = (),
    end: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Fields of a network node.

    Args:
        node: Conv or a pooling.
        shape: Of its input.
        kernel: Sizes of the window.
        begin: Padding that a node before has added at the beginnings.
        end: Likewise at the ends.

    Raises:
        TrainingError: attributes contradict each other, or the last window would be cut off (``ceil_mode``).
    """
    axes = len(kernel)
    stride = tuple(attribute(node, "strides", (1,) * axes))
    dilation = tuple(attribute(node, "dilations", (1,) * axes))
    found = tuple(attribute(node, "kernel_shape", kernel))
    if found != tuple(kernel) or not axes == len(stride) == len(dilation) == len(shape) - 2:
        raise TrainingError(f"window {found}, strides {stride}, dilations {dilation} do not fit {shape[1:]}")
    if min(*kernel, *stride, *dilation) < 1:
        raise TrainingError(f"window {found}, strides {stride}, dilations {dilation}: expected 1 or more")
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    starts, ends = _padding(node, shape, reach, stride)
    if begin:
        starts = tuple(a + b for a, b in zip(starts, begin, strict=True))
        ends = tuple(a + b for a, b in zip(ends, end, strict=True))
    if attribute(node, "ceil_mode", 0):
        windows = zip(shape[2:], reach, stride, starts, ends, strict=True)
        if any((size + a + b - r) % s for size, r, s, a, b in windows):
            raise TrainingError("ceil_mode cuts the last window off: pad the input, or use sizes that divide")
    padding = starts if starts == ends else (*starts, *ends)
    window: dict[str, Any] = {"kernel": tuple(kernel), "stride": stride, "padding": padding}
    return window | ({"dilation": dilation} if max(dilation) > 1 else {})


def _padding(
    node: NodeProto, shape: tuple[int, ...], reach: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = len(reach)
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        totals = [
            max((-(-size // s) - 1) * s + r - size, 0) for size, r, s in zip(shape[2:], reach, stride, strict=True)
        ]
        small, large = tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
        return (small, large) if mode == "SAME_UPPER" else (large, small)
    pads = tuple(attribute(node, "pads", (0,) * (2 * axes))) if mode == "NOTSET" else (0,) * (2 * axes)
    if mode not in {"NOTSET", "VALID"} or len(pads) != 2 * axes:
        raise TrainingError(f"padding {mode} {pads} does not fit {axes} spatial axes")
    return pads[:axes], pads[axes:]
