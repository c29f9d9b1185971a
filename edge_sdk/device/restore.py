"""What a device finds on its disk when it starts, with a rollback where the newest slot is broken."""

from __future__ import annotations

import logging
from typing import Final

from edge_sdk.adapters.outbox import OutboxRow
from edge_sdk.adapters.slots import Slots
from edge_sdk.device.parts import Parts
from edge_sdk.errors import DecodeError, RemoteProtocolError
from edge_sdk.participant import events as e
from edge_sdk.protocol import cose
from edge_sdk.protocol.messages import Domain

log: Final = logging.getLogger(__name__)

AGE_PLAUSIBLE: Final = 2
"""Times the age limit: an update that seems older than this was dated by another clock, or this clock is wrong."""
MS_PER_S: Final = 1_000


def restored(parts: Parts, *, now_ms: int) -> e.Restored:
    """Read slots, outbox and job.

    Raises:
        StoreError: the disk cannot be read, or the outbox lies.
    """
    outbox = parts.outbox
    job = parts.trainers.files.pinned()
    now_s = parts.clock.time_s()
    return e.Restored(
        now_ms=now_ms,
        installed=installed(parts.slots),
        version_floor=outbox.version_floor,
        last_trained=outbox.last_trained,
        next_seq=outbox.next_seq,
        updates=tuple(_saved(row, now_s, parts) for row in outbox.rows()),
        job_base=None if job is None else job.version,
    )


def installed(slots: Slots) -> e.Model | None:
    """The model that runs: that of the current slot, else of the other one, else none.

    A rollback is to a model that this device verified and tested before; the version floor still refuses older offers.
    """
    current = slots.current()
    for model in (current, slots.other()):
        if model is None:
            continue
        try:
            slots.read(model)
        except DecodeError as error:
            log.warning("slot %s: %s", model.slot, error)
            continue
        if model is not current:
            log.warning("rolled back to version %d in slot %s", model.version, model.slot)
            slots.switch(model)
        return e.Model(model.version, model.root)
    return None


def _saved(row: OutboxRow, now_s: int, parts: Parts) -> e.SavedUpdate:
    age_s, age_max_s = now_s - row.created_s, parts.config.outbox_age_s
    return e.SavedUpdate(
        digest=row.digest,
        seq=row.seq,
        base_version=row.base_version,
        blob_bytes=row.blob_bytes,
        expiry_height=row.expiry_height,
        age_ms=age_s * MS_PER_S if 0 <= age_s <= AGE_PLAUSIBLE * age_max_s else 0,
        stored_by=row.stored_by,
        refused_by=row.refused_by,
        is_of_old_key=not _is_signed_now(row.envelope, parts),
    )


def _is_signed_now(envelope: bytes, parts: Parts) -> bool:
    """Whether the key that this device has now signed an envelope: after a second enrolment it may be another one."""
    try:
        cose.verify(envelope, key=parts.signer.public_key, domain=Domain.UPDATE, chain_id=parts.genesis.chain_id)
    except RemoteProtocolError:
        return False
    return True
