"""A miner's read side in memory: the twin of the ledger behind the HTTP interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coordinator.ledger.rows import BlockRow
from coordinator.serving.view import DeviceView, Health, ModelView
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId, TaskId
from edge_sdk.protocol.messages import (
    BlockEntry,
    BlockHeader,
    Certificate,
    CertificateStatement,
    CutCause,
    MinerSignature,
    Reason,
    Verdict,
)

CHAIN = ChainId("chain-1")
TASK = TaskId("digits")
MINER = MinerId("m0")


def make_block(index: int) -> BlockRow:
    """A decided and certified block; its signatures are not real."""
    entry = BlockEntry(
        update_digest=sha256(b"update", bytes([index])),
        device_id=DeviceId("d1"),
        seq=index,
        base_version=index - 1,
        verdict=Verdict.MERGED,
        reason=Reason.NONE,
        score=700,
        weight=65_536,
    )
    header = BlockHeader(
        chain_id=CHAIN,
        task=TASK,
        index=index,
        cut_height=10 * index,
        decided_height=10 * index + 3,
        cause=CutCause.TAU,
        base_version=index - 1,
        version=index,
        base_root=sha256(b"root", bytes([index - 1])),
        base_score=650,
        entry_count=1,
        entries_root=sha256(b"entries"),
        previous_hash=sha256(b"previous"),
    )
    statement = CertificateStatement(
        chain_id=CHAIN,
        task=TASK,
        version=index,
        height=header.decided_height,
        block_index=index,
        block_hash=sha256(b"hash"),
        model_root=sha256(b"root", bytes([index])),
        miner_set_hash=sha256(b"miners"),
        expiry_s=2_000_000_000,
    )
    signatures = (MinerSignature(miner_id=MINER, signature=bytes(64)),)
    return BlockRow(
        header=header, entries=(entry,), certificate=Certificate(statement=statement, signatures=signatures)
    )


@dataclass
class FakeView:
    """``ChainView`` over dictionaries."""

    blob_dir: Path
    models: list[ModelView] = field(default_factory=list)
    decided: list[BlockRow] = field(default_factory=list)
    outcomes: dict[Digest, bytes] = field(default_factory=dict)
    devices: dict[DeviceId, DeviceView] = field(default_factory=dict)
    note: str = ""

    def put_blob(self, data: bytes) -> Digest:
        digest = sha256(data)
        (self.blob_dir / digest.hex()).write_bytes(data)
        return digest

    def add_model(self, data: bytes) -> ModelView:
        version = len(self.models)
        model = ModelView(
            version=version,
            model_root=sha256(b"root", bytes([version])),
            model_digest=self.put_blob(data),
            model_bytes=len(data),
            artifact_digest=sha256(b"artifact"),
            certificate=b"certificate" if version else None,
            announcement=b"announcement",
        )
        self.models.append(model)
        return model

    def latest(self) -> ModelView:
        return self.models[-1]

    def model(self, version: int) -> ModelView | None:
        return self.models[version] if version < len(self.models) else None

    def block(self, index: int) -> BlockRow | None:
        return self.decided[index - 1] if 1 <= index <= len(self.decided) else None

    def blocks(self, first: int, limit: int) -> Sequence[BlockRow]:
        return self.decided[first - 1 : first - 1 + limit]

    def outcome(self, update_digest: Digest) -> bytes | None:
        return self.outcomes.get(update_digest)

    def blob_path(self, digest: Digest) -> Path | None:
        return self.blob_dir / digest.hex()

    def genesis(self) -> bytes:
        return b"genesis"

    def device(self, device_id: DeviceId) -> DeviceView | None:
        return self.devices.get(device_id)

    def health(self) -> Health:
        return Health(
            ready=not self.note,
            note=self.note,
            miner_id=MINER,
            chain_id=CHAIN,
            height=42,
            version=len(self.models) - 1,
            block_index=len(self.decided) + 1,
            pending=0,
        )


@dataclass(frozen=True)
class Answer:
    """What a submission came to."""

    code: Reason
    info: str = ""


class Log:
    """An ordered log that keeps what it is given."""

    def __init__(self, answer: Answer | Exception = Answer(Reason.NONE)) -> None:
        self.answer = answer
        self.transactions: list[bytes] = []

    async def __call__(self, tx: bytes, /) -> Answer:
        if isinstance(self.answer, Exception):
            raise self.answer
        self.transactions.append(tx)
        return self.answer
