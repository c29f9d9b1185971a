"""Admission of one update: the rules of the ledger, and what a miner may say earlier.

``ledger_reason`` decides whether a manifest may enter the ledger. ``advice`` adds what would make a block refuse the
update anyway - too stale, expired, its base used up - so that a miner can refuse before it takes the blob. Once a
miner has given its receipt the advice no longer counts: the update enters the ledger and gets its certified outcome
there, so that nothing receipted disappears.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.ledger.draft import Overlay
from coordinator.ledger.registry import DeviceRecord, check_seq
from coordinator.ledger.state import Core, State, UpdateRecord
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, PENDING_PER_DEVICE_MAX, PENDING_UPDATES_MAX
from edge_sdk.protocol.messages import Genesis, Reason, UpdateManifest


@dataclass(frozen=True, slots=True)
class AdmissionView:
    """The parts of a state, committed or under change, that admission reads."""

    core: Core
    devices: Overlay[DeviceId, DeviceRecord]
    updates: Overlay[Digest, UpdateRecord]

    @classmethod
    def of(cls, state: State) -> AdmissionView:
        """View of a committed state."""
        return cls(state.core, Overlay(state.registry), Overlay(state.updates))


def sender_reason(view: AdmissionView, genesis: Genesis, manifest: UpdateManifest, sender: str) -> Reason:
    """Judge who speaks, before the signature: ``WRONG_CHAIN``, ``WRONG_TASK``, ``UNKNOWN_DEVICE`` and so on.

    A wrong chain also fails the signature; it is named first, because that tells the device's owner more.
    """
    if manifest.chain_id != genesis.chain_id:
        return Reason.WRONG_CHAIN
    if manifest.task != genesis.task:
        return Reason.WRONG_TASK
    record = view.devices.get(manifest.device_id)
    if record is None:
        return Reason.UNKNOWN_DEVICE
    if sender != manifest.device_id:
        return Reason.BAD_SIGNATURE
    return Reason.REVOKED_DEVICE if record.revoked else Reason.NONE


def ledger_reason(view: AdmissionView, genesis: Genesis, manifest: UpdateManifest, digest: Digest) -> Reason:
    """Judge a manifest whose signature holds; ``NONE`` lets it onto the ledger.

    Args:
        view: State to judge by.
        genesis: Rules of the chain.
        manifest: Of a registered device.
        digest: Of the update.
    """
    record = view.devices[manifest.device_id]
    if digest in view.updates:
        return Reason.DUPLICATE
    used = check_seq(record, manifest.seq, digest)
    if used is not Reason.NONE:
        return used
    if manifest.codec is not genesis.params.codec:
        return Reason.CODEC
    if not 1 <= manifest.blob_bytes <= BLOB_BYTES_MAX:
        return Reason.OVERSIZE
    base = _base_reason(view.core, manifest)
    if base is not Reason.NONE:
        return base
    if record.open_updates >= PENDING_PER_DEVICE_MAX:
        return Reason.QUOTA
    return Reason.CAPACITY if len(view.updates) >= PENDING_UPDATES_MAX else Reason.NONE


def advice(view: AdmissionView, genesis: Genesis, manifest: UpdateManifest) -> Reason:
    """Name why a block would refuse the update if it were cut now, or ``NONE``."""
    return cut_reason(
        view.core,
        view.devices[manifest.device_id],
        base_version=manifest.base_version,
        expiry_height=manifest.expiry_height,
        staleness_max=genesis.params.staleness_max,
    )


def cut_reason(
    core: Core, record: DeviceRecord | None, *, base_version: int, expiry_height: int, staleness_max: int
) -> Reason:
    """Judge an update at the cut of a block, at the height and version of ``core``."""
    if record is None or record.revoked:
        return Reason.REVOKED_DEVICE
    if core.height > expiry_height:
        return Reason.EXPIRED
    if core.version - base_version > staleness_max:
        return Reason.STALE
    return Reason.BASE_REUSED if base_version in record.merged_bases else Reason.NONE


def _base_reason(core: Core, manifest: UpdateManifest) -> Reason:
    """Check the base against the roots of the versions that are not stale; older roots are no longer known."""
    if manifest.base_version > core.version:
        return Reason.FUTURE_BASE
    age = core.version - manifest.base_version
    if age < len(core.model_roots) and core.model_roots[-1 - age] != manifest.base_root:
        return Reason.BASE_ROOT
    return Reason.NONE
