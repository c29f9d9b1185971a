"""Convolutions and poolings for the flatbuffer, with gradients made of builtin operators only.

tensorflow's own gradients (Conv2DBackpropFilter, MaxPoolGrad, ...) have no builtin counterpart. Here the gradient of a
convolution's input is a convolution of the spread-out dy with the mirrored kernel; that of its weight is a convolution
of x with dy, batch and channel exchanged and stride exchanged for dilation; a pooling passes dy on position by position
of its window.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import tensorflow as tf

from coordinator.authoring.litert_step import LitertStep
from edge_sdk.training.network import Node
from edge_sdk.training.numpy_windows import average_divisors

COLUMNS_BYTES_MAX: Final = 2 * 1024 * 1024
"""Of the matrix that the kernel of a convolution unfolds its input into, where a gradient is cut into slices."""


class _Window(NamedTuple):
    """A node's window over (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Positions from the first to the last under the window."""
        height, width = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return height, width


def _window(node: Node) -> _Window:
    begin, end = node.pads

    def pair(sizes: tuple[int, ...], missing: int) -> tuple[int, int]:
        return (missing, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])

    return _Window(pair(node.kernel, 1), pair(node.stride, 1), pair(node.dilations, 1), pair(begin, 0), pair(end, 0))


def _padded(x: Any, begin: tuple[int, int], end: tuple[int, int]) -> Any:
    if not any(begin) and not any(end):
        return x
    return tf.pad(x, ((0, 0), (begin[0], end[0]), (begin[1], end[1]), (0, 0)))


def _is_depthwise(node: Node, weight: Any) -> bool:
    return node.groups > 1 and weight.shape[0] == node.groups and weight.shape[1] == 1


def _as_image_kernel(weight: Any) -> Any:
    """(out, in, height, width), also of a series."""
    return weight if len(weight.shape) == 4 else tf.expand_dims(weight, 2)


def _convolve(x: Any, kernel: Any, stride: tuple[int, int], dilation: tuple[int, int]) -> Any:
    """Plain convolution; kernel (out, in, height, width), no padding."""
    return tf.nn.conv2d(x, tf.transpose(kernel, (2, 3, 1, 0)), stride, "VALID", dilations=dilation)


def _convolve_channels(x: Any, kernel: Any, stride: tuple[int, int], dilation: tuple[int, int]) -> Any:
    """Each channel with its own kernel, (channels, 1, height, width), no padding.

    The operator takes equal strides, and no stride with a dilation; others are computed at stride 1 and thinned out.
    """
    is_plain = stride == (1, 1) or (stride[0] == stride[1] and dilation == (1, 1))
    y = tf.raw_ops.DepthwiseConv2dNative(
        input=x,
        filter=tf.transpose(kernel, (2, 3, 0, 1)),
        strides=[1, *(stride if is_plain else (1, 1)), 1],
        padding="VALID",
        dilations=[1, *dilation, 1],
    )
    return y if is_plain else y[:, :: stride[0], :: stride[1], :]


def conv_forward(step: LitertStep, node: Node) -> Any:
    """Convolution: y = x * W + b."""
    w, (weight, bias) = _window(node), (step.states[name] for name in node.tensors)
    x = _padded(step.values[node.values[0]], w.begin, w.end)
    kernel = _as_image_kernel(weight)
    if _is_depthwise(node, kernel):
        return _convolve_channels(x, kernel, w.stride, w.dilation) + bias
    parts = zip(tf.split(x, node.groups, axis=3), tf.split(kernel, node.groups, axis=0), strict=True)
    outputs = [_convolve(part, own, w.stride, w.dilation) for part, own in parts]
    return (outputs[0] if node.groups == 1 else tf.concat(outputs, axis=3)) + bias


def conv_backward(step: LitertStep, node: Node, dy: Any) -> None:
    """Gradients of weight, bias and input."""
    value, (weight_name, bias_name) = node.values[0], node.tensors
    w, weight = _window(node), step.states[weight_name]
    kernel = _as_image_kernel(weight)
    if step.is_trained(bias_name):
        step.gradients[bias_name] = tf.reduce_sum(dy, axis=(0, 1, 2))
    if step.is_trained(weight_name):
        x = _padded(step.values[value], w.begin, w.end)
        if _is_depthwise(node, kernel):
            gradient = _channel_kernel_gradient(w, x, dy)
        else:
            parts = zip(tf.split(x, node.groups, axis=3), tf.split(dy, node.groups, axis=3), strict=True)
            gradients = [_kernel_gradient(w, part, own) for part, own in parts]
            gradient = gradients[0] if node.groups == 1 else tf.concat(gradients, axis=0)
        step.gradients[weight_name] = tf.reshape(gradient, weight.shape)
    if step.needs_gradient(value):
        step.flow(value, _input_gradient(node, w, kernel, dy, step.values[value].shape))


def _kernel_gradient(w: _Window, x: Any, dy: Any) -> Any:
    """(out, in, height, width), of x with its padding."""
    exchanged, filters = tf.transpose(x, (3, 1, 2, 0)), tf.transpose(dy, (1, 2, 0, 3))
    gradient = tf.nn.conv2d(exchanged, filters, w.dilation, "VALID", dilations=w.stride)
    # Positions that no window started from make the result larger than the kernel.
    return tf.transpose(gradient[:, : w.kernel[0], : w.kernel[1], :], (3, 0, 1, 2))


def _channel_kernel_gradient(w: _Window, x: Any, dy: Any) -> Any:
    """(channels, 1, height, width): one sum per position of the kernel."""
    sums = [tf.reduce_sum(part * dy, axis=(0, 1, 2)) for part in _positions(w, x, dy.shape)]
    return tf.transpose(tf.stack(sums))


def _positions(w: _Window, x: Any, shape: Any) -> list[Any]:
    """For each position of the kernel, row by row: what lies under it in all windows, as large as the output."""
    height, width = shape[1:3]
    parts = []
    for row in range(w.kernel[0]):
        for column in range(w.kernel[1]):
            top, left = row * w.dilation[0], column * w.dilation[1]
            bottom, right = top + (height - 1) * w.stride[0] + 1, left + (width - 1) * w.stride[1] + 1
            parts.append(x[:, top : bottom : w.stride[0], left : right : w.stride[1], :])
    return parts


def _input_gradient(node: Node, w: _Window, kernel: Any, dy: Any, shape: Any) -> Any:
    """Every dy times the kernel, added up where the window lay."""
    spread = _spread_for(w, dy, shape)
    # One axis at a time: older runtimes reverse the first of several, without a word.
    mirrored = tf.reverse(tf.reverse(kernel, (2,)), (3,))
    if _is_depthwise(node, kernel):
        return _convolve_channels(spread, mirrored, (1, 1), w.dilation)
    outputs = []
    for part, own in zip(tf.split(spread, node.groups, axis=3), tf.split(mirrored, node.groups, axis=0), strict=True):
        exchanged = tf.transpose(own, (1, 0, 2, 3))
        slices = tf.split(part, _slice_count(part.shape, math.prod(w.kernel)), axis=0)
        convolved = [_convolve(rows, exchanged, (1, 1), w.dilation) for rows in slices]
        outputs.append(convolved[0] if len(convolved) == 1 else tf.concat(convolved, axis=0))
    return outputs[0] if node.groups == 1 else tf.concat(outputs, axis=3)


def _slice_count(shape: Any, kernel_size: int) -> int:
    """Into how many equal slices of the batch a convolution is cut, so that its columns stay small."""
    batch = int(shape[0])
    wanted = math.ceil(4 * math.prod(shape) * kernel_size / COLUMNS_BYTES_MAX)
    return next(count for count in range(min(wanted, batch), batch + 1) if batch % count == 0)


def _spread_for(w: _Window, dy: Any, shape: Any) -> Any:
    """Spread dy by the stride, and pad it so that a window of this reach and stride 1 gives the shape of the input."""
    wide = _spread(dy, w.stride)
    before = tuple(reach - 1 - begin for reach, begin in zip(w.reach, w.begin, strict=True))
    sizes = zip(shape[1:3], w.reach, wide.shape[1:3], before, strict=True)
    after = tuple(size + reach - 1 - have - lead for size, reach, have, lead in sizes)
    return _padded(wide, (before[0], before[1]), (after[0], after[1]))


def _spread(dy: Any, stride: tuple[int, int]) -> Any:
    """Put stride - 1 zeros between neighbours."""
    n, height, width, channels = dy.shape
    if stride[1] > 1:
        rows = tf.pad(tf.reshape(dy, (n * height, width, 1, channels)), ((0, 0), (0, 0), (0, stride[1] - 1), (0, 0)))
        width *= stride[1]
        dy = tf.reshape(rows, (n, height, width, channels))[:, :, : width - stride[1] + 1, :]
        width -= stride[1] - 1
    if stride[0] > 1:
        rows = tf.pad(tf.reshape(dy, (n, height, 1, width * channels)), ((0, 0), (0, 0), (0, stride[0] - 1), (0, 0)))
        height *= stride[0]
        dy = tf.reshape(rows, (n, height, width, channels))[:, : height - stride[0] + 1, :, :]
    return dy


def max_pool_forward(step: LitertStep, node: Node) -> Any:
    """Largest value of each window."""
    w = _window(node)
    return tf.nn.max_pool2d(step.values[node.values[0]], w.kernel, w.stride, "VALID")


def max_pool_backward(step: LitertStep, node: Node, dy: Any) -> None:
    """Gradient: dy at the first maximum of each window; windows do not overlap."""
    w, y, x = _window(node), step.values[node.output], step.values[node.values[0]]
    free, parts = 1.0, []
    for part in _positions(w, x, y.shape):
        is_first = tf.cast(tf.equal(part, y), tf.float32) * free
        free = free - is_first
        parts.append(dy * is_first)
    n, height, width, channels = y.shape
    rows = [
        tf.reshape(tf.stack(parts[start : start + w.kernel[1]], axis=3), (n, height, width * w.kernel[1], channels))
        for start in range(0, len(parts), w.kernel[1])
    ]
    covered = tf.reshape(tf.stack(rows, axis=2), (n, height * w.kernel[0], width * w.kernel[1], channels))
    rest = [size - have for size, have in zip(x.shape[1:3], covered.shape[1:3], strict=True)]
    step.flow(node.values[0], _padded(covered, (0, 0), (rest[0], rest[1])))


def average_pool_forward(step: LitertStep, node: Node) -> Any:
    """Mean of each window."""
    w = _window(node)
    x = _padded(step.values[node.values[0]], w.begin, w.end)
    means = tf.nn.avg_pool2d(x, w.kernel, w.stride, "VALID")  # divided by the whole window
    return means / tf.constant(_kept_divisors(step, node) / np.float32(math.prod(node.kernel)))


def average_pool_backward(step: LitertStep, node: Node, dy: Any) -> None:
    """Gradient: dy / divisor at every position of its window, added up."""
    w, value = _window(node), node.values[0]
    share = dy * tf.constant(np.float32(math.prod(node.kernel)) / _kept_divisors(step, node))
    spread = _spread_for(w, share, step.values[value].shape)
    step.flow(value, tf.nn.avg_pool2d(spread, w.kernel, (1, 1), "VALID"))


def _kept_divisors(step: LitertStep, node: Node) -> Any:
    """What each window is divided by, (1, height, width, 1)."""
    divisors = average_divisors(node, step.input_shape(node))
    return divisors.reshape(1, *((1,) * (2 - len(node.kernel))), *divisors.shape[2:], 1)


def global_average_pool_forward(step: LitertStep, node: Node) -> Any:
    """Mean over space."""
    return tf.reduce_mean(step.values[node.values[0]], axis=(1, 2), keepdims=True)


def global_average_pool_backward(step: LitertStep, node: Node, dy: Any) -> None:
    """Gradient: dy / positions everywhere."""
    _, height, width, _ = step.values[node.values[0]].shape
    step.flow(node.values[0], tf.tile(dy * (1.0 / (height * width)), (1, height, width, 1)))
