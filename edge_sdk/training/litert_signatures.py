"""Names in the flatbuffer of an artifact, shared by who writes it and who runs it.

Four signatures work on one set of variables, one per state of a job:

    restore(s0, s1, ...) -> done        all states; before anything else: the file holds no values
    train(x, y, sample_weight, lr, m0, m1, ...) -> loss
    save() -> s0, s1, ...
    infer(x) -> logits

x, y and sample_weight are those of the graphs, and have the artifact's batch size in every signature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edge_sdk.training.operators import Op

if TYPE_CHECKING:
    from edge_sdk.training.artifact import Artifact

RESTORE: Final = "restore"
TRAIN: Final = "train"
SAVE: Final = "save"
INFER: Final = "infer"
DONE: Final = "done"


def state_names(artifact: Artifact) -> dict[str, str]:
    """s0, s1, ... by the key of the state: tensors, then velocities, then bases."""
    tensors = (spec.name for spec in artifact.network.tensors)
    keys = (*tensors, *artifact.velocity_keys.values(), *artifact.base_keys.values())
    return {key: f"s{index}" for index, key in enumerate(keys)}


def mask_names(artifact: Artifact) -> dict[str, str]:
    """m0, m1, ... by the output of the dropout."""
    dropouts = [node.output for node in artifact.network.nodes if node.op is Op.DROPOUT]
    return {output: f"m{index}" for index, output in enumerate(dropouts)}
