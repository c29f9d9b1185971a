"""JSON documents of the HTTP interface: one function per value, digests as lower-case hex, signed bytes as base64."""

from __future__ import annotations

import base64
from typing import Any

from coordinator.ledger.rows import BlockRow
from coordinator.serving.view import Health, ModelView
from edge_sdk.protocol import digest, wire
from edge_sdk.protocol.messages import BlockEntry, BlockHeader, Certificate


def base64_text(data: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def model_document(model: ModelView) -> dict[str, Any]:
    """Describe one version; ``certificate`` is null for version 0."""
    return {
        "version": model.version,
        "model_root": model.model_root.hex(),
        "model_digest": model.model_digest.hex(),
        "model_bytes": model.model_bytes,
        "model_path": f"/v1/blobs/sha256/{model.model_digest.hex()}",
        "artifact_digest": model.artifact_digest.hex(),
        "certificate": None if model.certificate is None else base64_text(model.certificate),
        "announcement": base64_text(model.announcement),
    }


def block_document(block: BlockRow) -> dict[str, Any]:
    """Describe one decided block; header and certificate also as the bytes that were hashed and signed."""
    certificate = block.certificate
    return {
        "index": block.header.index,
        "block_hash": digest.block_hash(block.header).hex(),
        "header": _header(block.header),
        "header_bytes": base64_text(wire.to_bytes(block.header)),
        "entries": [_entry(entry) for entry in block.entries],
        "certificate": None if certificate is None else _certificate(certificate),
    }


def health_document(health: Health) -> dict[str, Any]:
    """Describe a miner's state."""
    return {
        "status": "ok" if health.ready else "unavailable",
        "note": health.note,
        "miner": health.miner_id,
        "chain": health.chain_id,
        "height": health.height,
        "version": health.version,
        "block_index": health.block_index,
        "pending": health.pending,
    }


def error_document(code: str, message: str) -> dict[str, Any]:
    """Every answer that is not a success has this form."""
    return {"error": {"code": code, "message": message}}


def _header(header: BlockHeader) -> dict[str, Any]:
    return {
        "chain_id": header.chain_id,
        "task": header.task,
        "index": header.index,
        "cut_height": header.cut_height,
        "decided_height": header.decided_height,
        "cause": header.cause.name.lower(),
        "base_version": header.base_version,
        "version": header.version,
        "base_root": header.base_root.hex(),
        "base_score": header.base_score,
        "entry_count": header.entry_count,
        "entries_root": header.entries_root.hex(),
        "previous_hash": header.previous_hash.hex(),
    }


def _entry(entry: BlockEntry) -> dict[str, Any]:
    return {
        "update_digest": entry.update_digest.hex(),
        "device_id": entry.device_id,
        "seq": entry.seq,
        "base_version": entry.base_version,
        "verdict": entry.verdict.name.lower(),
        "reason": entry.reason.name.lower(),
        "score": entry.score,
        "weight": entry.weight,
    }


def _certificate(certificate: Certificate) -> dict[str, Any]:
    statement = certificate.statement
    return {
        "version": statement.version,
        "height": statement.height,
        "model_root": statement.model_root.hex(),
        "expiry_s": statement.expiry_s,
        "signers": [signature.miner_id for signature in certificate.signatures],
        "bytes": base64_text(wire.to_bytes(certificate)),
    }
