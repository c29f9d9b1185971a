"""The next model of a decided block, as every honest miner computes it: plan and blobs in, bytes and root out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.aggregation.merge import merge
from coordinator.ledger.state import MergePlan
from edge_sdk.errors import LedgerError
from edge_sdk.protocol import model, wire
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.messages import ModelParams, UpdatePayload


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedModel:
    """A model with what identifies it."""

    params: ModelParams
    blob: bytes
    """Wire bytes: what devices download."""
    root: Digest


def merge_block(
    base: ModelParams, plan: MergePlan, blobs: Mapping[Digest, bytes], carried: tuple[int, ...] | None
) -> MergedModel:
    """Merge the accepted updates of a block into its base.

    Args:
        base: Model of ``plan.base_version``.
        plan: Fixed by the ledger.
        blobs: By blob digest, all that the plan names, hashes checked.
        carried: Positions of the tensors that updates of the task carry; None: all.

    Raises:
        LedgerError: the base is not the plan's.
        DecodeError, AggregationError: a blob cannot be merged; the verdict should have refused it.

    Cost: one pass over the parameters for each update.
    """
    if model.model_root(base) != plan.base_root:
        raise LedgerError(f"base of block {plan.block_index} is not version {plan.base_version} of the ledger")
    updates = [(entry.weight, wire.from_bytes(UpdatePayload, blobs[entry.blob_digest])) for entry in plan.entries]
    params = merge(base, updates, plan.total_weight, plan.server_rate_q16, carried)
    return MergedModel(params=params, blob=wire.to_bytes(params), root=model.model_root(params))
