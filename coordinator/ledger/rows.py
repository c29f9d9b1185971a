"""Rows of a miner's ledger, as values, and the hash that chains the heights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import codec, wire
from edge_sdk.protocol.digest import genesis_digest, sha256
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.limits import BLOCK_UPDATES_MAX, HEIGHT_BYTES_MAX, HEIGHT_TXS_MAX
from edge_sdk.protocol.messages import BlockEntry, BlockHeader, Certificate, Genesis, Scores

_LABEL: Final = "fl/height"
_HEAD_BYTES_MAX: Final = 16
"""Largest CBOR head of one item."""
_ENTRY_BYTES_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HeightRow:
    """One height of the ordered log and the state root after it."""

    height: int
    time_s: int
    proposer: str
    txs: tuple[bytes, ...]
    state_root: Digest
    chain_hash: Digest
    """Covers this row and all before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRow:
    """One decided block; ``certificate`` is None until more than 2/3 of the power have signed it."""

    header: BlockHeader
    entries: tuple[BlockEntry, ...]
    certificate: Certificate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One certified version of the model and the blob with its bytes (``ModelParams`` on the wire)."""

    version: int
    model_root: Digest
    blob_digest: Digest
    blob_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRow:
    """An update that this miner holds and has receipted; it goes when its block is certified."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    envelope: bytes
    blob_digest: Digest
    blob_bytes: int
    received_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScores:
    """This miner's scores and salt, durable before the commitment leaves."""

    block_index: int
    scores: Scores
    salt: bytes


def first_link(genesis: Genesis, miner_id: MinerId) -> Digest:
    """What the chain of one miner's heights starts from."""
    return sha256(genesis_digest(genesis), miner_id.encode())


def chain_hash(previous: Digest, *, height: int, time_s: int, proposer: str, txs: bytes, state_root: Digest) -> Digest:
    """Hash of a height and all before it; ``txs`` as they are stored."""
    return sha256(codec.encode([_LABEL, previous, height, time_s, proposer, sha256(txs), state_root]))


def pack_txs(txs: Sequence[bytes]) -> bytes:
    """Bytes of a height's transactions."""
    return codec.encode(list(txs))


def unpack_txs(data: bytes) -> tuple[bytes, ...]:
    """Transactions of a height.

    Raises:
        DecodeError: the bytes are not a list of byte strings.
    """
    return _byte_strings(data, bytes_max=HEIGHT_BYTES_MAX + _HEAD_BYTES_MAX * (HEIGHT_TXS_MAX + 1))


def pack_entries(entries: Sequence[BlockEntry]) -> bytes:
    """Bytes of a block's entries."""
    return codec.encode([wire.to_bytes(entry) for entry in entries])


def unpack_entries(data: bytes) -> tuple[BlockEntry, ...]:
    """Entries of a block.

    Raises:
        DecodeError: the bytes are not entries.
    """
    items = _byte_strings(data, bytes_max=_ENTRY_BYTES_MAX * (BLOCK_UPDATES_MAX + 1))
    return tuple(wire.from_bytes(BlockEntry, item) for item in items)


def _byte_strings(data: bytes, *, bytes_max: int) -> tuple[bytes, ...]:
    items = codec.decode(data, bytes_max=bytes_max)
    if not isinstance(items, list):
        raise DecodeError("expected an array of byte strings")
    strings = tuple(item for item in items if isinstance(item, bytes))
    if len(strings) != len(items):
        raise DecodeError("expected an array of byte strings")
    return strings
