"""From a forward network to an artifact: the training-step graph and the evaluation graph."""

from __future__ import annotations

from typing import Final

from coordinator.authoring.conv_places import pooled_values
from coordinator.authoring.gradients import FLOAT_RULES
from coordinator.authoring.graph import FLOAT, INT8, INT16, INT64, GraphWriter
from coordinator.authoring.inference import int8_inference
from coordinator.authoring.layout import channel_major_values
from coordinator.authoring.quantized import INT8_RULES
from coordinator.authoring.step import Step, write_backward, write_forward
from edge_sdk.errors import TrainingError
from edge_sdk.training.artifact import (
    LEARNING_RATE,
    LOGITS,
    LOSS,
    SAMPLE_WEIGHT,
    Artifact,
    X,
    Y,
    base_key,
    mask_name,
    next_name,
    noise_names,
    scale_name,
    state_name,
    velocity_key,
)
from edge_sdk.training.grids import NO_GRIDS, NOT_CALIBRATED, Calibrated, Grids, check_grids
from edge_sdk.training.network import INPUT, Network, Op, Scheme, TensorSpec, check_network
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule, check_rule

_EVALUATION_BATCH = "n"
_STATE_TYPES: Final = {Scheme.INT8: INT16, Scheme.INT8_SR: INT8}


def build_artifact(
    name: str,
    network: Network,
    *,
    batch: int,
    scheme: Scheme,
    rule: UpdateRule = PLAIN_SGD,
    grids: Grids = NO_GRIDS,
) -> Artifact:
    """Differentiate the network and pack the graphs.

    Args:
        name: Of the artifact.
        network: Forward network.
        batch: Examples per step.
        scheme: Arithmetic of the weights and of their state.
        rule: Momentum, clipping and proximal term of the step.
        grids: Of calibrated activations, for an int8 scheme; adds the int8 inference graph.

    Raises:
        TrainingError: the network breaks a bound or a rule does not apply; the text names the node.
    """
    shapes = check_network(network, batch=batch)
    check_rule(rule)
    if grids:
        check_grids(network, grids)
    return Artifact.pack(
        name=name,
        network=network,
        batch=batch,
        scheme=scheme,
        rule=rule,
        train_onnx=_training_step(network, shapes, batch=batch, scheme=scheme, rule=rule, grids=grids),
        eval_onnx=_evaluation(network, shapes),
        calibrated=Calibrated(grids, int8_inference(network, shapes, grids)) if grids else NOT_CALIBRATED,
    )


def _training_step(
    network: Network,
    shapes: dict[str, tuple[int, ...]],
    *,
    batch: int,
    scheme: Scheme,
    rule: UpdateRule,
    grids: Grids,
) -> bytes:
    """(x, y, sample_weight, lr, states, scales, noise, masks) -> (states after one step, loss)."""
    writer = GraphWriter("training_step")
    writer.input(X, FLOAT, shapes[INPUT])
    if network.is_classifier:
        writer.input(Y, INT64, (batch,))
    else:
        writer.input(Y, FLOAT, (batch, network.class_count))
    writer.input(SAMPLE_WEIGHT, FLOAT, (batch,))
    writer.input(LEARNING_RATE, FLOAT, ())
    step = Step(
        writer=writer,
        network=network,
        shapes=shapes,
        is_training=True,
        values={INPUT: X},
        scheme=scheme,
        rule=rule,
        grids=grids,
        trainable=network.trainable_values,
        channel_major=channel_major_values(network, shapes),
        pooled=pooled_values(network, shapes),
    )
    for spec in network.tensors:
        _declare_states(step, spec)
    for node in network.nodes:
        if node.op is Op.DROPOUT:
            writer.input(mask_name(node.output), FLOAT, shapes[node.output])
    rules = FLOAT_RULES if scheme is Scheme.FP32 else INT8_RULES
    write_forward(step, rules, network.nodes)
    write_backward(step, rules)
    trained = [spec for spec in network.tensors if spec.is_trainable]
    for spec in trained:
        if spec.name not in step.next_states:
            raise TrainingError(f"tensor {spec.name}: the loss does not depend on it")
        writer.output(step.next_states[spec.name], next_name(spec.name), _state_type(step, spec), spec.shape)
    for spec in trained if rule.momentum else ():
        key = velocity_key(spec.name)
        writer.output(step.next_states[key], next_name(key), _velocity_type(step, spec), spec.shape)
    writer.output(step.values[network.nodes[-1].output], LOSS, FLOAT, ())
    return writer.serialize()


def _declare_states(step: Step, spec: TensorSpec) -> None:
    """The inputs that belong to one tensor."""
    writer, inner = step.writer, len(spec.shape) - 1
    writer.input(state_name(spec.name), _state_type(step, spec), spec.shape)
    if step.is_quantized(spec.name):
        writer.input(scale_name(spec.name), FLOAT, (spec.shape[spec.channel_axis],))
    if not spec.is_trainable:
        return
    if step.is_quantized(spec.name) and step.scheme is Scheme.INT8_SR:
        row_name, column_name = noise_names(spec.name)
        writer.input(row_name, FLOAT, (spec.shape[0], *(1 for _ in range(inner))))
        writer.input(column_name, FLOAT, (1, *spec.shape[1:]))
    if step.rule.momentum:
        writer.input(state_name(velocity_key(spec.name)), _velocity_type(step, spec), spec.shape)
    if step.rule.prox:
        writer.input(state_name(base_key(spec.name)), _state_type(step, spec), spec.shape)


def _state_type(step: Step, spec: TensorSpec) -> int:
    return _STATE_TYPES[step.scheme] if step.is_quantized(spec.name) else FLOAT


def _velocity_type(step: Step, spec: TensorSpec) -> int:
    return INT16 if step.is_quantized(spec.name) else FLOAT


def _evaluation(network: Network, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """(x, float32 params) -> logits, for any number of examples."""
    writer = GraphWriter("evaluation")
    writer.input(X, FLOAT, (_EVALUATION_BATCH, *network.input_shape))
    for spec in network.tensors:
        writer.input(state_name(spec.name), FLOAT, spec.shape)
    step = Step(writer=writer, network=network, shapes=shapes, is_training=False, values={INPUT: X})
    write_forward(step, FLOAT_RULES, network.nodes[:-1])
    writer.output(step.values[network.logits], LOGITS, FLOAT, (_EVALUATION_BATCH, network.class_count))
    return writer.serialize()
