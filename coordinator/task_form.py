"""What the codec of a task asks of its rules and its artifact, and which tensors its updates carry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.authoring.output_layer import output_positions
from edge_sdk.errors import ConfigError
from edge_sdk.protocol.limits import EXPONENT_SPAN_MAX, SPSA_CODES_MAX
from edge_sdk.protocol.messages import Codec, TaskParams
from edge_sdk.training.delta import carried_specs, trained_positions

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact


def fit_task(params: TaskParams, artifact: Artifact) -> TaskParams:
    """The rules with the tensors that updates are to carry: those that the artifact trains.

    Raises:
        ConfigError: as ``check_task``.
    """
    fitted = replace(params, carried=trained_positions(artifact.network.tensors))
    check_task(fitted, artifact)
    return fitted


def check_task(params: TaskParams, artifact: Artifact) -> None:
    """Check that artifact and rules of a task belong together.

    A task without a list of tensors is one of before there were any: its updates carry all, frozen ones as zeros.

    Raises:
        ConfigError: they do not; the text says why.
    """
    specs, codec = artifact.network.tensors, params.codec
    trained = trained_positions(specs)
    if params.carried is not None and params.carried != trained:
        raise ConfigError(f"artifact {artifact.name}: it does not train the tensors that the task's updates carry")
    if codec is Codec.INT8_OUTPUT and params.carried != output_positions(artifact.network):
        raise ConfigError(
            f"codec output: artifact {artifact.name} does not train its output layer alone, and what else it learned "
            "would never travel: expected one that was built with --trainable last:1"
        )
    if codec is Codec.SPSA:
        if params.local_steps > SPSA_CODES_MAX:
            raise ConfigError(f"codec spsa: {params.local_steps} local steps: expected at most {SPSA_CODES_MAX}")
        exponents = [spec.exponent for spec in carried_specs(specs, params.carried)]
        if max(exponents) - min(exponents) > EXPONENT_SPAN_MAX:
            raise ConfigError(f"codec spsa: exponents {min(exponents)}..{max(exponents)} do not fit into one message")
