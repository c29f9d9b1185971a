"""What became of every update, counted from the files that a run leaves behind.

The auditor trusts no counter of the running code. It reads the devices' databases with statements of its own, verifies
each receipt and certificate again, and looks every digest up in the miners' ledgers. ``lost`` counts digests for which
a device holds signed ``stored`` receipts of more than 2/3 of the voting power and of which no miner knows.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from coordinator.ledger.store import LedgerStore
from edge_sdk.errors import CorruptStoreError, InvalidCertificateError, RemoteProtocolError
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.certificate import quorum_power, verify_certificate
from edge_sdk.protocol.cose import Envelope
from edge_sdk.protocol.digest import update_digest
from edge_sdk.protocol.ids import DeviceId, Digest
from edge_sdk.protocol.messages import (
    BlockEntry,
    Certificate,
    Domain,
    Genesis,
    MinerRecord,
    Reason,
    Receipt,
    ReceiptStatus,
    Verdict,
)

DEVICE_STATE: Final = "state.sqlite3"
LEDGER: Final = "ledger.sqlite3"
JUDGED_ON_CONTENT: Final = frozenset({Reason.QUALITY, Reason.OUT_OF_BOUNDS})
"""Refusals by cross-validation. An honest update that came too late was refused rightly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUpdate:
    """One update as its device remembers it."""

    digest: Digest
    device_id: DeviceId
    blob_bytes: int
    envelope_bytes: int
    stored_power: int
    """Voting power of the miners whose valid ``stored`` receipts the device holds."""
    refused_power: int
    refused_reason: Reason
    """The most frequent reason among refusing receipts."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the miners' files hold together."""

    decided: Mapping[Digest, BlockEntry]
    merged_bases: Counter[tuple[DeviceId, int]]
    """How often each device was merged on each base version; a digest that is merged twice counts twice here."""
    open: frozenset[Digest]
    """On a ledger without a verdict, or stored durably and not yet ordered."""


@dataclass(slots=True)
class Audit:
    """Counts over distinct digests: published = merged + refused + pending + unreceipted + lost."""

    published: int = 0
    merged: int = 0
    refused: Counter[Reason] = field(default_factory=Counter)
    pending: int = 0
    unreceipted: int = 0
    lost: int = 0
    duplicated: int = 0
    hostile_published: int = 0
    hostile_merged: int = 0
    honest_judged: int = 0
    honest_refused_on_content: int = 0
    certificates_verified: int = 0
    payload_bytes: list[int] = field(default_factory=list)
    envelope_bytes: list[int] = field(default_factory=list)

    @property
    def refused_honest(self) -> float:
        """Share of the honest updates with a verdict that cross-validation refused."""
        return self.honest_refused_on_content / self.honest_judged if self.honest_judged else 0.0


def audit(root: Path, genesis: Genesis, *, hostile: frozenset[DeviceId]) -> Audit:
    """Count the updates of a kept run.

    Args:
        root: Folder with ``devices/<id>/`` and ``miners/<id>/``.
        genesis: The trust anchor: keys and powers of the miners.
        hostile: Devices that attacked on purpose.

    Raises:
        CorruptStoreError: a database cannot be read.
        CorruptLedgerError: a ledger contradicts itself.
    """
    miners: dict[str, MinerRecord] = {record.miner_id: record for record in genesis.miners}
    known = read_ledgers(sorted((root / "miners").glob(f"*/{LEDGER}")))
    result = Audit(duplicated=sum(count - 1 for count in known.merged_bases.values()))
    for path in sorted((root / "devices").glob(f"*/{DEVICE_STATE}")):
        result.certificates_verified += _count_certificates(path, genesis)
        for update in read_device(path, genesis, miners):
            _count(result, update, known, quorum_power(genesis.miners), is_hostile=update.device_id in hostile)
    return result


def _count(result: Audit, update: DeviceUpdate, known: Knowledge, quorum: int, *, is_hostile: bool) -> None:
    entry = known.decided.get(update.digest)
    result.published += 1
    result.hostile_published += is_hostile
    result.payload_bytes.append(update.blob_bytes)
    result.envelope_bytes.append(update.envelope_bytes)
    if entry is not None:
        is_merged = entry.verdict is Verdict.MERGED
        result.merged += is_merged
        result.hostile_merged += is_merged and is_hostile
        if not is_merged:
            result.refused[entry.reason] += 1
        if not is_hostile and (is_merged or entry.reason in JUDGED_ON_CONTENT):
            result.honest_judged += 1
            result.honest_refused_on_content += not is_merged
    elif update.digest in known.open:
        result.pending += 1
    elif update.refused_power >= quorum:
        result.refused[update.refused_reason] += 1
    elif update.stored_power >= quorum:
        result.lost += 1
    else:
        result.unreceipted += 1


# --- the miners' files ---


def read_ledgers(paths: Iterable[Path]) -> Knowledge:
    """Join what the miners know. Verdicts come from the longest ledger: the others are its beginnings.

    Raises:
        CorruptLedgerError: a ledger contradicts itself.
    """
    decided: dict[Digest, BlockEntry] = {}
    bases: Counter[tuple[DeviceId, int]] = Counter()
    still_open: set[Digest] = set()
    height_best = -1
    for path in paths:
        with closing(LedgerStore.open(path, read_only=True)) as store:
            state = store.load_state()
            still_open.update(() if state is None else state.updates)
            still_open.update(upload.update_digest for upload in store.uploads())
            if store.height() <= height_best:
                continue
            height_best = store.height()
            entries = [entry for block in _all_blocks(store) for entry in block]
            decided = {entry.update_digest: entry for entry in entries}
            bases = Counter(
                (entry.device_id, entry.base_version) for entry in entries if entry.verdict is Verdict.MERGED
            )
    return Knowledge(decided, bases, frozenset(still_open - decided.keys()))


def _all_blocks(store: LedgerStore) -> Iterator[tuple[BlockEntry, ...]]:
    first = 1
    while blocks := store.blocks(first=first):
        for block in blocks:
            yield block.entries
        first = blocks[-1].header.index + 1


# --- the devices' files ---


def read_device(path: Path, genesis: Genesis, miners: Mapping[str, MinerRecord]) -> Iterator[DeviceUpdate]:
    """Yield every update that a device has signed and stored, with the power behind its receipts.

    Raises:
        CorruptStoreError: the database cannot be read, or an envelope is not what its row says.
    """
    with _open(path) as database:
        receipts: dict[bytes, list[Receipt]] = {}
        for digest, envelope in _rows(database, path, "SELECT digest, envelope FROM receipts"):
            receipt = _verified_receipt(envelope, genesis, miners)
            if receipt is not None and receipt.update_digest == digest:
                receipts.setdefault(digest, []).append(receipt)
        for digest, blob_bytes, envelope in _rows(database, path, "SELECT digest, blob_bytes, envelope FROM updates"):
            yield _device_update(path, digest, blob_bytes, envelope, receipts.get(digest, []), miners)


def _device_update(
    path: Path,
    digest: bytes,
    blob_bytes: int,
    envelope: bytes,
    receipts: list[Receipt],
    miners: Mapping[str, MinerRecord],
) -> DeviceUpdate:
    opened = _peek(envelope)
    if opened is None or update_digest(envelope) != digest:
        raise CorruptStoreError(f"{path}: the envelope of update {digest.hex()[:16]} has another digest")
    refusals = [receipt for receipt in receipts if receipt.status is ReceiptStatus.REFUSED]
    reasons = Counter(receipt.reason for receipt in refusals)
    return DeviceUpdate(
        digest=Digest(digest),
        device_id=DeviceId(opened.sender),
        blob_bytes=blob_bytes,
        envelope_bytes=len(envelope),
        stored_power=sum(miners[r.miner_id].power for r in receipts if r.status is ReceiptStatus.STORED),
        refused_power=sum(miners[r.miner_id].power for r in refusals),
        refused_reason=reasons.most_common(1)[0][0] if reasons else Reason.NONE,
    )


def _verified_receipt(envelope: bytes, genesis: Genesis, miners: Mapping[str, MinerRecord]) -> Receipt | None:
    """The receipt, if a miner of the genesis signed it; a receipt that does not verify counts for nothing."""
    opened = _peek(envelope)
    record = None if opened is None else miners.get(opened.sender)
    if record is None:
        return None
    try:
        payload = cose.verify(envelope, key=record.key, domain=Domain.RECEIPT, chain_id=genesis.chain_id)
        receipt = wire.from_bytes(Receipt, payload)
    except RemoteProtocolError:
        return None
    return receipt if receipt.miner_id == record.miner_id else None


def _peek(envelope: bytes) -> Envelope | None:
    try:
        return cose.peek(envelope)
    except RemoteProtocolError:
        return None


def _count_certificates(path: Path, genesis: Genesis) -> int:
    """Certificates under which the device installed models, as far as they hold today."""
    count = 0
    with _open(path) as database:
        for version, root, data in _rows(database, path, "SELECT version, model_root, certificate FROM installs"):
            if data is None:
                continue  # version 0 is fixed by the trust anchor
            try:
                certificate = wire.from_bytes(Certificate, data)
                verify_certificate(certificate, genesis)
            except (RemoteProtocolError, InvalidCertificateError):
                continue
            count += (certificate.statement.version, certificate.statement.model_root) == (version, root)
    return count


def _open(path: Path) -> closing[sqlite3.Connection]:
    try:
        return closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True))
    except sqlite3.Error as error:
        raise CorruptStoreError(f"{path}: {error}") from error


def _rows(database: sqlite3.Connection, path: Path, query: str) -> list[tuple[Any, ...]]:
    try:
        return database.execute(query).fetchall()
    except sqlite3.Error as error:
        raise CorruptStoreError(f"{path}: {error}") from error
