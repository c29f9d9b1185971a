"""The registry of devices: who may publish, and which sequence numbers are used up.

A device numbers its updates; the ledger keeps a window of the last ``SEQ_WINDOW`` numbers with their digests. A
number inside the window is free, used with the same digest (a duplicate: normal), or used with another one
(equivocation: evidence). A number below the window is refused, so that nothing can come back after the window has
forgotten it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from coordinator.ledger import records
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.limits import DIGEST_BYTES, SEQ_WINDOW
from edge_sdk.protocol.messages import Enrol, PublicKey, Reason

_SEQ_BYTES: Final = 8


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """One device. The record is replaced, never changed, so its encoding is computed once."""

    device_id: DeviceId
    key: PublicKey
    serial: int
    """Of the enrolment that brought the key."""
    revoked: bool = False
    seq_top: int = -1
    """Highest number seen under this key."""
    window: bytes = b""
    """Numbers inside the window with their update digests, in the order of arrival: 8 bytes of seq, 32 of digest each.

    One byte string, since a record is encoded and hashed with every update of its device.
    """
    merged_bases: tuple[int, ...] = ()
    """Base versions of merged updates that are not stale yet: at most one merge for each."""
    open_updates: int = 0
    """Updates on the ledger that are not decided."""
    equivocated: bool = False
    """Evidence exists; further equivocation under this key is refused without more."""

    @property
    def recent(self) -> tuple[tuple[int, Digest], ...]:
        """(seq, update digest) of every number inside the window."""
        step, window = _SEQ_BYTES + DIGEST_BYTES, self.window
        return tuple(
            (int.from_bytes(window[at : at + _SEQ_BYTES]), Digest(window[at + _SEQ_BYTES : at + step]))
            for at in range(0, len(window), step)
        )

    @cached_property
    def encoded(self) -> bytes:
        """Canonical bytes."""
        return records.to_bytes(self)

    @cached_property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes."""
        return sha256(self.encoded)


def check_seq(record: DeviceRecord, seq: int, digest: Digest) -> Reason:
    """Judge a sequence number: ``NONE``, ``DUPLICATE``, ``EQUIVOCATION`` or ``SEQ_WINDOW``."""
    for used, used_digest in record.recent:
        if used == seq:
            return Reason.DUPLICATE if used_digest == digest else Reason.EQUIVOCATION
    return Reason.SEQ_WINDOW if seq <= record.seq_top - SEQ_WINDOW else Reason.NONE


def use_seq(record: DeviceRecord, seq: int, digest: Digest) -> DeviceRecord:
    """Record an admitted update: its number is used, and it is open."""
    top = max(record.seq_top, seq)
    kept = [(used, known) for used, known in record.recent if used > top - SEQ_WINDOW]
    window = b"".join(number.to_bytes(_SEQ_BYTES) + name for number, name in (*kept, (seq, digest)))
    return replace(record, seq_top=top, window=window, open_updates=record.open_updates + 1)


def close_update(record: DeviceRecord, *, merged_base: int | None, oldest_base: int) -> DeviceRecord:
    """Record a decided update.

    Args:
        record: Of its device.
        merged_base: Base version if it was merged.
        oldest_base: Oldest base version that is not stale; older ones need no record.
    """
    bases = record.merged_bases if merged_base is None else (*record.merged_bases, merged_base)
    return replace(
        record,
        open_updates=record.open_updates - 1,
        merged_bases=tuple(base for base in bases if base >= oldest_base),
    )


def enrol(record: DeviceRecord | None, message: Enrol) -> DeviceRecord | Reason:
    """Admit a device or replace its key.

    A new key starts a new window: a board that lost its state starts counting again. An update that was merged under
    the old key cannot be merged again under the new one, since its base version stays recorded.
    """
    if record is None:
        return DeviceRecord(device_id=message.device_id, key=message.key, serial=message.serial)
    if message.serial <= record.serial:
        same = (message.serial, message.key) == (record.serial, record.key)
        return Reason.DUPLICATE if same else Reason.SEQ_WINDOW
    renewed = replace(record, key=message.key, serial=message.serial, revoked=False)
    if message.key == record.key:
        return renewed
    return replace(renewed, seq_top=-1, window=b"", equivocated=False)
