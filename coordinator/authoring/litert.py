"""The flatbuffer of an artifact: its training step for LiteRT, out of builtin operators only.

Signatures and names stand in ``edge_sdk.training.litert_signatures``. Written by tensorflow, which no device needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import tensorflow as tf

from coordinator.authoring.litert_file import without_initial_values
from coordinator.authoring.litert_rules import RULES, loss_and_slope
from coordinator.authoring.litert_step import LitertStep, to_kept
from coordinator.authoring.litert_update import updated
from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import LEARNING_RATE, LOGITS, LOSS, SAMPLE_WEIGHT, X, Y
from edge_sdk.training.litert_signatures import DONE, INFER, RESTORE, SAVE, TRAIN, mask_names, state_names
from edge_sdk.training.network import INPUT, Scheme, infer_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_sdk.training.artifact import Artifact


def write_flatbuffer(artifact: Artifact, *, folder: str) -> bytes:
    """The training step of an artifact for LiteRT.

    Args:
        artifact: Artifact with float32 states.
        folder: An empty one, for tensorflow's intermediate files.

    Raises:
        TrainingError: the arithmetic or an operator cannot be said in builtin operators.
    """
    if artifact.scheme is not Scheme.FP32:
        raise TrainingError(
            f"litert: state {artifact.state_kind}: the builtin operators have no integer product with an int32 result; "
            "build with --state fp32, or train int8 on onnxruntime or numpy"
        )
    for index, node in enumerate(artifact.network.nodes[:-1]):
        if node.op not in RULES:
            raise TrainingError(f"litert: node {index} ({node.op.name}): no rule for this operator")
    module = _Module(artifact)
    signatures = module.signatures()
    tf.saved_model.save(module, folder, signatures=signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converter.experimental_enable_resource_variables = True
    try:
        flatbuffer = converter.convert()
    except Exception as error:  # the converter's own type is not public
        raise TrainingError(f"litert: the converter refuses the training step: {str(error)[:400]}") from error
    return without_initial_values(flatbuffer)


class _Module(tf.Module):  # type: ignore[misc]
    """The states as variables, and the four functions over them."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__()
        self._artifact = artifact
        self._shapes = infer_shapes(artifact.network, batch=artifact.batch)
        sizes = {spec.name: spec.shape for spec in artifact.network.tensors}
        sizes |= {
            key: sizes[name] for keys in (artifact.velocity_keys, artifact.base_keys) for name, key in keys.items()
        }
        self._names = state_names(artifact)
        self._states = {key: tf.Variable(tf.zeros(sizes[key]), name=name) for key, name in self._names.items()}

    def signatures(self) -> dict[str, Any]:
        """The concrete functions by the name of their signature."""
        network, batch = self._artifact.network, self._artifact.batch
        x = tf.TensorSpec(self._shapes[INPUT], tf.float32, name=X)
        y_shape, y_type = ((batch,), tf.int64) if network.is_classifier else ((batch, network.class_count), tf.float32)
        inputs = [
            x,
            tf.TensorSpec(y_shape, y_type, name=Y),
            tf.TensorSpec((batch,), tf.float32, name=SAMPLE_WEIGHT),
            tf.TensorSpec((), tf.float32, name=LEARNING_RATE),
        ]
        masks = mask_names(self._artifact)
        inputs += [tf.TensorSpec(self._shapes[output], tf.float32, name=name) for output, name in masks.items()]
        states = [tf.TensorSpec(self._states[key].shape, tf.float32, name=name) for key, name in self._names.items()]
        return {
            TRAIN: tf.function(self._train, autograph=False).get_concrete_function(*inputs),
            INFER: tf.function(self._infer, autograph=False).get_concrete_function(x),
            SAVE: tf.function(self._save, autograph=False).get_concrete_function(),
            RESTORE: tf.function(self._restore, autograph=False).get_concrete_function(*states),
        }

    def _train(self, x: Any, y: Any, sample_weight: Any, lr: Any, *masks: Any) -> dict[str, Any]:
        network = self._artifact.network
        states = {key: variable.read_value() for key, variable in self._states.items()}
        named = dict(zip(mask_names(self._artifact), map(to_kept, masks), strict=True))
        step = self._forward(x, states, named)
        step.trainable = network.trainable_values
        loss, slope = loss_and_slope(network.nodes[-1], step.values[network.logits], y, sample_weight)
        step.upstream[network.logits] = slope
        for node in reversed(network.nodes[:-1]):
            if node.output in step.trainable and node.output in step.upstream:
                RULES[node.op][1](step, node, step.upstream.pop(node.output))
        for key, value in updated(self._artifact, step.gradients, lr, states).items():
            self._states[key].assign(value)
        return {LOSS: loss}

    def _infer(self, x: Any) -> dict[str, Any]:
        states = {spec.name: self._states[spec.name].read_value() for spec in self._artifact.network.tensors}
        return {LOGITS: self._forward(x, states, {}).values[self._artifact.network.logits]}

    def _save(self) -> dict[str, Any]:
        return {name: self._states[key].read_value() for key, name in self._names.items()}

    def _restore(self, *states: Any) -> dict[str, Any]:
        for variable, value in zip(self._states.values(), states, strict=True):
            variable.assign(value)
        return {DONE: tf.constant(1, tf.int32)}

    def _forward(self, x: Any, states: Mapping[str, Any], masks: Mapping[str, Any]) -> LitertStep:
        network = self._artifact.network
        step = LitertStep(network=network, shapes=self._shapes, states=states, masks=masks, values={INPUT: to_kept(x)})
        for node in network.nodes[:-1]:
            step.values[node.output] = RULES[node.op][0](step, node)
        return step
