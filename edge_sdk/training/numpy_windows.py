"""Sliding windows over arrays: views, columns, and the adjoint that adds them back. One spatial axis has height 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_sdk.training.operators import Node

    F32 = npt.NDArray[np.float32]

_IMAGE_RANK = 4


class _Window(NamedTuple):
    """A node's window over (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]


def _window(node: Node) -> _Window:
    begin, end = node.pads

    def pair(sizes: tuple[int, ...], missing: int) -> tuple[int, int]:
        return (missing, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    return _Window(pair(node.kernel, 1), pair(node.stride, 1), pair(node.dilations, 1), pair(begin, 0), pair(end, 0))


def as_image(x: F32) -> F32:
    """(n, c, h, w), also for a series."""
    return x if x.ndim == _IMAGE_RANK else x[:, :, np.newaxis, :]


def output_sizes(node: Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Positions of the window over the spatial axes of ``shape``."""
    windows = zip(shape[2:], node.reach, node.stride, *node.pads, strict=True)
    return tuple((size + begin + end - reach) // stride + 1 for size, reach, stride, begin, end in windows)


def windows(node: Node, x: F32, *, writeable: bool = False) -> F32:
    """View of every window: (n, c, out_h, out_w, kernel_h, kernel_w); a copy of x where padding is needed."""
    w = _window(node)
    image = as_image(x)
    if any(w.begin) or any(w.end):
        image = np.pad(image, ((0, 0), (0, 0), *zip(w.begin, w.end, strict=True)))
    reach = tuple((k - 1) * d + 1 for k, d in zip(w.kernel, w.dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(image, reach, axis=(2, 3), writeable=writeable)
    return view[:, :, :: w.stride[0], :: w.stride[1], :: w.dilation[0], :: w.dilation[1]]


def columns(node: Node, x: F32) -> F32:
    """(group, row per output position (n, out_h, out_w), column per weight of a channel (c, kernel_h, kernel_w))."""
    view = windows(node, x)
    n, channels, out_h, out_w, kernel_h, kernel_w = view.shape
    width = channels // node.groups
    split = view.reshape(n, node.groups, width, out_h, out_w, kernel_h, kernel_w).transpose(1, 0, 3, 4, 2, 5, 6)
    return split.reshape(node.groups, n * out_h * out_w, width * kernel_h * kernel_w)


def add_columns(node: Node, rows: F32, shape: tuple[int, ...]) -> F32:
    """Adjoint of ``columns``: add every column back to where it came from in an array of ``shape``."""
    w = _window(node)
    n, channels = shape[:2]
    width = channels // node.groups
    out = output_sizes(node, shape)
    out_h, out_w = out if len(out) == 2 else (1, out[0])
    split = rows.reshape(node.groups, n, out_h, out_w, width, *w.kernel).transpose(5, 6, 1, 0, 4, 2, 3)
    return add_windows(node, split.reshape(*w.kernel, n, channels, out_h, out_w), shape)


def add_windows(node: Node, blocks: F32, shape: tuple[int, ...]) -> F32:
    """Adjoint of ``windows``; ``blocks`` is (kernel_h, kernel_w, n, c, out_h, out_w)."""
    w = _window(node)
    n, channels, height, width = shape if len(shape) == _IMAGE_RANK else (*shape[:2], 1, shape[2])
    out_h, out_w = blocks.shape[-2:]
    padded = np.zeros((n, channels, height + w.begin[0] + w.end[0], width + w.begin[1] + w.end[1]), np.float32)
    for row in range(w.kernel[0]):
        for column in range(w.kernel[1]):
            top, left = row * w.dilation[0], column * w.dilation[1]
            padded[
                :, :, top : top + w.stride[0] * out_h : w.stride[0], left : left + w.stride[1] * out_w : w.stride[1]
            ] += blocks[row, column]
    inner = padded[:, :, w.begin[0] : w.begin[0] + height, w.begin[1] : w.begin[1] + width]
    return inner.reshape(shape)


def average_divisors(node: Node, shape: tuple[int, ...]) -> F32:
    """What each window of an average is divided by, broadcast over (n, c, *out)."""
    sizes = output_sizes(node, shape)
    if node.counts_padding:
        return np.full((1, 1, *sizes), math.prod(node.kernel), np.float32)
    ones = np.ones((1, 1, *shape[2:]), np.float32)
    counts: F32 = windows(node, ones).sum(axis=(4, 5)).reshape(1, 1, *sizes)
    return counts
