"""The update of float32 states in the flatbuffer; equations in ``edge_sdk.training.update_rule``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from edge_sdk.training.artifact import base_key, velocity_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_sdk.training.artifact import Artifact


def updated(artifact: Artifact, gradients: Mapping[str, Any], lr: Any, states: Mapping[str, Any]) -> dict[str, Any]:
    """The states that change, by key.

    Args:
        artifact: Its update rule.
        gradients: dL/d(tensor) of each trained tensor.
        lr: Learning rate, a scalar.
        states: All, by key.
    """
    rule, total = artifact.rule, dict(gradients)
    if rule.prox:
        for name, gradient in gradients.items():
            total[name] = gradient + rule.prox * (states[name] - states[base_key(name)])
    rate = lr
    if rule.clip_norm:
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(gradient * gradient) for gradient in total.values()]))
        rate = lr * (rule.clip_norm / tf.maximum(norm, rule.clip_norm))
    after: dict[str, Any] = {}
    for name, gradient in total.items():
        move = rate * gradient
        if rule.momentum:
            key = velocity_key(name)
            move = after[key] = rule.momentum * states[key] + move
        after[name] = states[name] - move
    return after
