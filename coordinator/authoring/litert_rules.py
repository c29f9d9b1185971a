"""One forward and one backward rule per operator for the flatbuffer, out of builtin operators only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf

from coordinator.authoring import litert_windows as windows
from coordinator.authoring.litert_step import LitertStep, from_kept, kept_axis, to_kept
from edge_sdk.training.network import Node, Op

Forward = Callable[[LitertStep, Node], Any]
Backward = Callable[[LitertStep, Node, Any], None]


def _gemm_forward(step: LitertStep, node: Node) -> Any:
    weight, bias = (step.states[name] for name in node.tensors)
    return tf.matmul(step.values[node.values[0]], weight) + bias


def _gemm_backward(step: LitertStep, node: Node, dy: Any) -> None:
    value, weight, bias = node.inputs
    if step.is_trained(weight):
        step.gradients[weight] = tf.matmul(step.values[value], dy, transpose_a=True)
    if step.is_trained(bias):
        step.gradients[bias] = tf.reduce_sum(dy, axis=0)
    if step.needs_gradient(value):
        step.flow(value, tf.matmul(dy, step.states[weight], transpose_b=True))


def _affine_forward(step: LitertStep, node: Node) -> Any:
    scale, shift = (step.states[name] for name in node.tensors)  # channels are the last axis here
    return step.values[node.values[0]] * scale + shift


def _affine_backward(step: LitertStep, node: Node, dy: Any) -> None:
    value, scale, shift = node.inputs
    others = tuple(range(len(dy.shape) - 1))
    if step.is_trained(scale):
        step.gradients[scale] = tf.reduce_sum(dy * step.values[value], axis=others)
    if step.is_trained(shift):
        step.gradients[shift] = tf.reduce_sum(dy, axis=others)
    if step.needs_gradient(value):
        step.flow(value, dy * step.states[scale])


def _activated(op: Op, constants: tuple[float, ...], x: Any) -> Any:
    match op:
        case Op.RELU:
            return tf.nn.relu(x)
        case Op.CLIP:
            return tf.minimum(tf.maximum(x, constants[0]), constants[1])
        case Op.LEAKY_RELU:
            return tf.where(x >= 0.0, x, x * constants[0])
        case Op.SIGMOID:
            return tf.sigmoid(x)
        case Op.TANH:
            return tf.tanh(x)
        case _:
            return x * tf.minimum(tf.maximum(x / 6.0 + 0.5, 0.0), 1.0)


def _slope(op: Op, constants: tuple[float, ...], x: Any, y: Any) -> Any:
    match op:
        case Op.RELU:
            return tf.cast(y > 0.0, tf.float32)
        case Op.CLIP:
            return tf.cast(tf.logical_and(y > constants[0], y < constants[1]), tf.float32)
        case Op.LEAKY_RELU:
            return tf.where(x >= 0.0, 1.0, constants[0])
        case Op.SIGMOID:
            return y * (1.0 - y)
        case Op.TANH:
            return 1.0 - y * y
        case _:
            return tf.where(tf.abs(x) < 3.0, x / 3.0 + 0.5, tf.cast(x > 0.0, tf.float32))


def _activation_forward(step: LitertStep, node: Node) -> Any:
    return _activated(node.op, node.constants, step.values[node.values[0]])


def _activation_backward(step: LitertStep, node: Node, dy: Any) -> None:
    value = node.values[0]
    step.flow(value, dy * _slope(node.op, node.constants, step.values[value], step.values[node.output]))


def _dropout_forward(step: LitertStep, node: Node) -> Any:
    x, mask = step.values[node.values[0]], step.masks.get(node.output)
    return x if mask is None else x * mask


def _dropout_backward(step: LitertStep, node: Node, dy: Any) -> None:
    step.flow(node.values[0], dy * step.masks[node.output])


def _add_forward(step: LitertStep, node: Node) -> Any:
    first, second = (step.values[name] for name in node.values)
    return first + second


def _add_backward(step: LitertStep, node: Node, dy: Any) -> None:
    for value in node.values:
        if step.needs_gradient(value):
            step.flow(value, _summed_to(dy, step.values[value].shape))


def _mul_forward(step: LitertStep, node: Node) -> Any:
    first, second = (step.values[name] for name in node.values)
    return first * second


def _mul_backward(step: LitertStep, node: Node, dy: Any) -> None:
    for value, other in (node.values, node.values[::-1]):
        if step.needs_gradient(value):
            step.flow(value, _summed_to(dy * step.values[other], step.values[value].shape))


def _summed_to(dy: Any, shape: Any) -> Any:
    """Adjoint of repeating axes of size 1."""
    axes = [axis for axis, (size, own) in enumerate(zip(dy.shape, shape, strict=True)) if size != own]
    return tf.reduce_sum(dy, axis=axes, keepdims=True) if axes else dy


def _concat_forward(step: LitertStep, node: Node) -> Any:
    axis = kept_axis(node.axes[0], len(step.input_shape(node)))
    return tf.concat([step.values[name] for name in node.values], axis=axis)


def _concat_backward(step: LitertStep, node: Node, dy: Any) -> None:
    axis = kept_axis(node.axes[0], len(step.input_shape(node)))
    sizes = [step.values[name].shape[axis] for name in node.values]
    for value, part in zip(node.values, tf.split(dy, sizes, axis=axis), strict=True):
        if step.needs_gradient(value):
            step.flow(value, part)


def _rearrange_forward(step: LitertStep, node: Node) -> Any:
    """Flatten, Reshape, Transpose: by way of the artifact's order of axes."""
    x = from_kept(step.values[node.values[0]], len(step.input_shape(node)))
    if node.op is Op.TRANSPOSE:
        return to_kept(tf.transpose(x, (0, *node.axes)))
    return to_kept(tf.reshape(x, step.shapes[node.output]))


def _rearrange_backward(step: LitertStep, node: Node, dy: Any) -> None:
    first = from_kept(dy, len(step.shapes[node.output]))
    if node.op is Op.TRANSPOSE:
        back = tf.transpose(first, (0, *(int(axis) + 1 for axis in np.argsort(node.axes))))
    else:
        back = tf.reshape(first, step.input_shape(node))
    step.flow(node.values[0], to_kept(back))


def loss_and_slope(node: Node, z: Any, y: Any, weight: Any) -> tuple[Any, Any]:
    """The loss, mean over the examples that count, and its derivative by the network's outputs."""
    share = tf.expand_dims(weight / tf.maximum(tf.reduce_sum(weight), 1.0), 1)
    outputs = z.shape[1]
    match node.op:
        case Op.MEAN_SQUARED_ERROR:
            error, share = z - y, share * (1.0 / outputs)
            return tf.reduce_sum(error * error * share), 2.0 * error * share
        case Op.BINARY_CROSS_ENTROPY:
            share = share * (1.0 / outputs)
            losses = tf.nn.relu(z) - z * y + tf.math.log(1.0 + tf.exp(-tf.abs(z)))
            return tf.reduce_sum(losses * share), (tf.sigmoid(z) - y) * share
        case _:
            log_p = tf.nn.log_softmax(z)
            wanted = tf.one_hot(tf.cast(y, tf.int32), outputs)
            if node.constants:
                wanted = wanted * (1.0 - node.constants[0]) + node.constants[0] / outputs
            return -tf.reduce_sum(log_p * wanted * share), (tf.exp(log_p) - wanted) * share


_ACTIVATION = (_activation_forward, _activation_backward)
_REARRANGE = (_rearrange_forward, _rearrange_backward)
RULES: Final[dict[Op, tuple[Forward, Backward]]] = {
    Op.GEMM: (_gemm_forward, _gemm_backward),
    Op.CONV: (windows.conv_forward, windows.conv_backward),
    Op.AFFINE: (_affine_forward, _affine_backward),
    Op.MAX_POOL: (windows.max_pool_forward, windows.max_pool_backward),
    Op.AVERAGE_POOL: (windows.average_pool_forward, windows.average_pool_backward),
    Op.GLOBAL_AVERAGE_POOL: (windows.global_average_pool_forward, windows.global_average_pool_backward),
    Op.RELU: _ACTIVATION,
    Op.CLIP: _ACTIVATION,
    Op.LEAKY_RELU: _ACTIVATION,
    Op.SIGMOID: _ACTIVATION,
    Op.TANH: _ACTIVATION,
    Op.HARD_SWISH: _ACTIVATION,
    Op.DROPOUT: (_dropout_forward, _dropout_backward),
    Op.ADD: (_add_forward, _add_backward),
    Op.MUL: (_mul_forward, _mul_backward),
    Op.CONCAT: (_concat_forward, _concat_backward),
    Op.FLATTEN: _REARRANGE,
    Op.RESHAPE: _REARRANGE,
    Op.TRANSPOSE: _REARRANGE,
}
