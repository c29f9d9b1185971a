"""From a forward network to an artifact: the training-step graph and the evaluation graph."""

from __future__ import annotations

from coordinator.authoring.gradients import FLOAT_RULES
from coordinator.authoring.graph import FLOAT, INT16, INT64, GraphWriter
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
    mask_name,
    next_name,
    scale_name,
    state_name,
)
from edge_sdk.training.network import INPUT, Network, Op, Role, Scheme, check_network

_EVALUATION_BATCH = "n"


def build_artifact(name: str, network: Network, *, batch: int, scheme: Scheme) -> Artifact:
    """Differentiate the network and pack both graphs.

    Raises:
        TrainingError: the network breaks a bound or a rule does not apply; the text names the node.
    """
    shapes = check_network(network, batch=batch)
    return Artifact.pack(
        name=name,
        network=network,
        batch=batch,
        scheme=scheme,
        train_onnx=_training_step(network, shapes, batch=batch, scheme=scheme),
        eval_onnx=_evaluation(network, shapes),
    )


def _training_step(network: Network, shapes: dict[str, tuple[int, ...]], *, batch: int, scheme: Scheme) -> bytes:
    """(x, y, sample_weight, lr, state, scales) -> (state after one step of SGD, loss)."""
    writer = GraphWriter("training_step")
    writer.input(X, FLOAT, shapes[INPUT])
    if network.is_classifier:
        writer.input(Y, INT64, (batch,))
    else:
        writer.input(Y, FLOAT, (batch, network.class_count))
    writer.input(SAMPLE_WEIGHT, FLOAT, (batch,))
    writer.input(LEARNING_RATE, FLOAT, ())
    quantized = {spec.name for spec in network.tensors if scheme is Scheme.INT8 and spec.role is Role.WEIGHT}
    for spec in network.tensors:
        writer.input(state_name(spec.name), INT16 if spec.name in quantized else FLOAT, spec.shape)
        if spec.name in quantized:
            writer.input(scale_name(spec.name), FLOAT, (spec.shape[spec.channel_axis],))
    for node in network.nodes:
        if node.op is Op.DROPOUT:
            writer.input(mask_name(node.output), FLOAT, shapes[node.output])
    step = Step(
        writer=writer,
        network=network,
        shapes=shapes,
        is_training=True,
        values={INPUT: X},
        trainable=network.trainable_values,
    )
    rules = INT8_RULES if scheme is Scheme.INT8 else FLOAT_RULES
    write_forward(step, rules, network.nodes)
    write_backward(step, rules)
    for spec in network.tensors:
        if not spec.is_trainable:
            continue
        if spec.name not in step.next_states:
            raise TrainingError(f"tensor {spec.name}: the loss does not depend on it")
        kind = INT16 if spec.name in quantized else FLOAT
        writer.output(step.next_states[spec.name], next_name(spec.name), kind, spec.shape)
    writer.output(step.values[network.nodes[-1].output], LOSS, FLOAT, ())
    return writer.serialize()


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
