"""What each field of each message may hold: the one table of types and bounds.

What depends on the state of the chain (a base version, a quota, the size of an announced blob) is for admission to
judge, because a refusal of that kind is answered with a receipt.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from edge_sdk.errors import DecodeError
from edge_sdk.protocol import limits
from edge_sdk.protocol import messages as m
from edge_sdk.protocol.fields import Array, Bool, Bytes, Choice, Int, Name, Nullable, Record, Text, record
from edge_sdk.protocol.messages import Reason

_KEY_BYTES: Final = {m.Algorithm.EDDSA: 32, m.Algorithm.ES256: 65}
_UNCOMPRESSED_POINT: Final = 4
"""First byte of a P-256 key, SEC 1 section 2.3.3."""


def _check_key(key: m.PublicKey) -> None:
    expected = _KEY_BYTES[key.algorithm]
    if len(key.data) != expected:
        raise _mismatch(f"a key of {len(key.data)} bytes, {key.algorithm.name} has {expected}")
    if key.algorithm is m.Algorithm.ES256 and key.data[0] != _UNCOMPRESSED_POINT:
        raise _mismatch("a P-256 key that is not an uncompressed point")


def _check_miners(miners: tuple[m.MinerRecord, ...]) -> None:
    if len({miner.miner_id for miner in miners}) != len(miners):
        raise _mismatch("two miners of one name")
    if len({miner.key for miner in miners}) != len(miners):
        raise _mismatch("two miners with one key")


def _check_ranges(ranges: tuple[tuple[int, int], ...]) -> None:
    """Refuse what is not a list of half-open ranges: non-empty, ascending, disjoint."""
    previous = 0
    for start, stop in ranges:
        if not previous <= start < stop:
            raise _mismatch("byte ranges that are empty, overlap or go back")
        previous = stop


def _check_proof(proof: m.InclusionProof) -> None:
    if proof.index >= proof.size:
        raise _mismatch(f"leaf {proof.index} of a tree of {proof.size}")


def _check_scores(scores: m.Scores) -> None:
    if scores.classes and len(scores.classes) != len(scores.updates) + 1:
        raise _mismatch("class scores that do not match the updates")


def _check_carried(carried: tuple[int, ...]) -> None:
    if any(b <= a for a, b in itertools.pairwise(carried)):
        raise _mismatch("positions of tensors that are not ascending, each once")


def _check_params(params: m.TaskParams) -> None:
    if (params.codec is m.Codec.INT8_TOPK) != (params.top_share_q16 is not None):
        raise _mismatch(f"codec {params.codec.name} with a share of values of {params.top_share_q16}")


def check_tensor(tensor: m.ModelTensor) -> None:
    """Refuse a tensor whose parts contradict each other, before anybody allocates for its shape."""
    count = 1
    for extent in tensor.shape:
        count *= extent
    if count > limits.PARAMETERS_MAX or len(tensor.values) != 4 * count:
        raise _mismatch(f"{len(tensor.values)} bytes of values for a shape of {count} parameters", Reason.SHAPE)
    if tensor.channel_axis >= len(tensor.shape):
        raise _mismatch(f"channel axis {tensor.channel_axis} of {len(tensor.shape)} dimensions", Reason.SHAPE)
    channels = 0 if tensor.channel_axis < 0 else tensor.shape[tensor.channel_axis]
    if not len(tensor.scale_m) == len(tensor.scale_k) == channels:
        raise _mismatch(f"scales for other than {channels} channels", Reason.SHAPE)


def _mismatch(text: str, reason: Reason = Reason.MALFORMED) -> DecodeError:
    return DecodeError(text, reason=reason)


class _Range:
    """A half-open byte range, an array of two on the wire."""

    _offset = Int(0, limits.BLOB_BYTES_MAX)

    def lower(self, value: Any) -> object:
        """Check a pair."""
        if not isinstance(value, tuple) or len(value) != 2:
            raise _mismatch("a range is a pair")
        return [self._offset.lower(value[0]), self._offset.lower(value[1])]

    def lift(self, plain: object) -> tuple[int, int]:
        """Check an array of two."""
        if not isinstance(plain, list) or len(plain) != 2:
            raise _mismatch("a range is an array of two")
        return self._offset.lift(plain[0]), self._offset.lift(plain[1])


_NAME: Final = Name()
_DIGEST: Final = Bytes(limits.DIGEST_BYTES, limits.DIGEST_BYTES)
_COUNT: Final = Int(0, limits.SEQ_MAX)
"""Versions, heights, sequence numbers, seconds: exact in every language's number type."""
_POSITIVE: Final = Int(1, limits.SEQ_MAX)
_EXPONENT: Final = Int(limits.EXPONENT_MIN, limits.EXPONENT_MAX, reason=Reason.EXPONENT)
_BLOB_BYTES: Final = Int(1, limits.BLOB_BYTES_MAX, reason=Reason.OVERSIZE)
_BLOB: Final = Bytes(0, limits.BLOB_BYTES_MAX)
_TENSOR_NAME: Final = Text(1, limits.TENSOR_NAME_BYTES_MAX)
_SCORE: Final = Int(limits.SCORE_OUT_OF_BOUNDS, limits.SCORE_MAX)
_RANGES: Final = Array(_Range(), 1, limits.RESUME_RANGES_MAX, check=_check_ranges)

_KEY: Final = record(
    m.PublicKey, check=_check_key, algorithm=Choice(m.Algorithm), data=Bytes(32, limits.PUBLIC_KEY_BYTES_MAX)
)
_MINER: Final = record(
    m.MinerRecord, miner_id=_NAME, key=_KEY, power=Int(1, limits.POWER_MAX), organisation=Text(1, limits.NAME_CHARS_MAX)
)
_PARAMS: Final = record(
    m.TaskParams,
    check=_check_params,
    appended=2,
    block_size=Int(1, limits.BLOCK_UPDATES_MAX),
    tau_ms=_POSITIVE,
    phase_ms=_POSITIVE,
    reveal_extensions_max=Int(0, limits.STALENESS_MAX),
    staleness_max=Int(0, limits.STALENESS_MAX),
    margin_permille=Int(0, limits.SCORE_MAX),
    method=_NAME,
    server_rate_q16=Int(1, 1 << 16),
    clip_norm_q16=_POSITIVE,
    codec=Choice(m.Codec),
    expiry_heights=_POSITIVE,
    certificate_ttl_s=_POSITIVE,
    local_steps=_POSITIVE,
    batch=_POSITIVE,
    learning_rate_q24=_POSITIVE,
    example_count_max=_POSITIVE,
    carried=Nullable(Array(Int(0, limits.TENSORS_MAX - 1), 1, limits.TENSORS_MAX, check=_check_carried)),
    top_share_q16=Nullable(Int(1, 1 << 16)),
)
_STATEMENT: Final = record(
    m.CertificateStatement,
    chain_id=_NAME,
    task=_NAME,
    version=_COUNT,
    height=_COUNT,
    block_index=_POSITIVE,
    block_hash=_DIGEST,
    model_root=_DIGEST,
    miner_set_hash=_DIGEST,
    expiry_s=_COUNT,
)
_SIGNATURE: Final = record(
    m.MinerSignature, miner_id=_NAME, signature=Bytes(limits.SIGNATURE_BYTES, limits.SIGNATURE_BYTES)
)
_CERTIFICATE: Final = record(m.Certificate, statement=_STATEMENT, signatures=Array(_SIGNATURE, 1, limits.MINERS_MAX))
_ENTRY: Final = record(
    m.BlockEntry,
    update_digest=_DIGEST,
    device_id=_NAME,
    seq=_COUNT,
    base_version=_COUNT,
    verdict=Choice(m.Verdict),
    reason=Choice(Reason),
    score=Int(-2 * limits.SCORE_MAX, limits.SCORE_MAX),
    weight=Int(0, 1 << 32),
)
_HEADER: Final = record(
    m.BlockHeader,
    chain_id=_NAME,
    task=_NAME,
    index=_POSITIVE,
    cut_height=_COUNT,
    decided_height=_COUNT,
    cause=Choice(m.CutCause),
    base_version=_COUNT,
    version=_COUNT,
    base_root=_DIGEST,
    base_score=_SCORE,
    entry_count=Int(0, limits.BLOCK_UPDATES_MAX),
    entries_root=_DIGEST,
    previous_hash=_DIGEST,
)
_PROOF: Final = record(
    m.InclusionProof,
    check=_check_proof,
    index=_COUNT,
    size=_POSITIVE,
    path=Array(_DIGEST, 0, limits.PROOF_NODES_MAX),
)
_SCORES: Final = record(
    m.Scores,
    check=_check_scores,
    base=_SCORE,
    updates=Array(_SCORE, 0, limits.BLOCK_UPDATES_MAX),
    classes=Array(Bytes(0, limits.CLASS_SCORES_MAX), 0, limits.BLOCK_UPDATES_MAX + 1),
)
_PAYLOAD_TENSOR: Final = record(
    m.PayloadTensor, bytes_max=limits.BLOB_BYTES_MAX, name=_TENSOR_NAME, exponent=_EXPONENT, values=_BLOB
)
_MODEL_TENSOR: Final = record(
    m.ModelTensor,
    check=check_tensor,
    bytes_max=limits.BLOB_BYTES_MAX,
    name=_TENSOR_NAME,
    shape=Array(Int(1, limits.PARAMETERS_MAX, reason=Reason.SHAPE), 0, limits.TENSOR_RANK_MAX),
    exponent=_EXPONENT,
    channel_axis=Int(-1, limits.TENSOR_RANK_MAX - 1),
    values=_BLOB,
    scale_m=Bytes(0, limits.PARAMETERS_MAX),
    scale_k=Bytes(0, limits.PARAMETERS_MAX),
)

_RECORDS: Final = (
    _KEY,
    _MINER,
    _PARAMS,
    _STATEMENT,
    _SIGNATURE,
    _CERTIFICATE,
    _ENTRY,
    _HEADER,
    _PROOF,
    _SCORES,
    _PAYLOAD_TENSOR,
    _MODEL_TENSOR,
    record(
        m.Genesis,
        appended=2,
        chain_id=_NAME,
        task=_NAME,
        created_s=_COUNT,
        miners=Array(_MINER, 1, limits.MINERS_MAX, check=_check_miners),
        registrar=_KEY,
        params=_PARAMS,
        artifact_digest=_DIGEST,
        model_root=_DIGEST,
        model_digest=_DIGEST,
        model_bytes=_BLOB_BYTES,
        artifact_bytes=Nullable(Int(1, limits.ARTIFACT_BYTES_MAX, reason=Reason.OVERSIZE)),
        artifact_author=Nullable(_KEY),
    ),
    record(
        m.AuthoredArtifact,
        bytes_max=limits.ARTIFACT_BYTES_MAX,
        author=_KEY,
        artifact=Bytes(1, limits.ARTIFACT_BYTES_MAX),
    ),
    record(
        m.UpdateManifest,
        bytes_max=limits.UPDATE_ENVELOPE_BYTES_MAX,
        task=_NAME,
        chain_id=_NAME,
        device_id=_NAME,
        seq=_COUNT,
        base_version=_COUNT,
        base_root=_DIGEST,
        codec=Choice(m.Codec),
        blob_bytes=_COUNT,  # admission refuses an oversize blob by name, with a receipt
        blob_digest=_DIGEST,
        example_count=_COUNT,
        local_steps=_COUNT,
        training_ms=_COUNT,
        energy_mj=_COUNT,
        energy_quality=Choice(m.EnergyQuality),
        expiry_height=_COUNT,
    ),
    record(
        m.UpdatePayload,
        bytes_max=limits.BLOB_BYTES_MAX,
        codec=Choice(m.Codec),
        tensors=Array(_PAYLOAD_TENSOR, 1, limits.TENSORS_MAX),
    ),
    record(
        m.Chunk,
        bytes_max=limits.CHUNK_MESSAGE_BYTES_MAX,
        digest=_DIGEST,
        offset=Int(0, limits.BLOB_BYTES_MAX - 1),
        data=Bytes(1, limits.CHUNK_DATA_BYTES_MAX),
    ),
    record(m.Fetch, device_id=_NAME, blob_digest=_DIGEST, ranges=_RANGES),
    record(m.Status, sender=_NAME, session=_COUNT, online=Bool(), installed_version=_COUNT, note=Text()),
    record(
        m.Receipt,
        miner_id=_NAME,
        device_id=_NAME,
        seq=_COUNT,
        update_digest=_DIGEST,
        status=Choice(m.ReceiptStatus),
        reason=Choice(Reason),
        height=_COUNT,
    ),
    record(m.Resume, miner_id=_NAME, device_id=_NAME, update_digest=_DIGEST, ranges=_RANGES),
    record(m.Outcome, entry=_ENTRY, proof=_PROOF, header=_HEADER, certificate=_CERTIFICATE),
    record(
        m.Announcement,
        miner_id=_NAME,
        certificate=Nullable(_CERTIFICATE),
        version=_COUNT,
        height=_COUNT,
        model_digest=_DIGEST,
        model_bytes=_BLOB_BYTES,
        artifact_digest=_DIGEST,
        urls=Array(Text(1), 0, limits.URLS_MAX),
    ),
    record(m.Tick, miner_id=_NAME, block_index=_POSITIVE, phase=Choice(m.Phase), attempt=_COUNT),
    record(m.Commit, miner_id=_NAME, block_index=_POSITIVE, commitment=_DIGEST),
    record(
        m.Reveal,
        miner_id=_NAME,
        block_index=_POSITIVE,
        scores=_SCORES,
        salt=Bytes(limits.SALT_BYTES_MIN, limits.SALT_BYTES_MAX),
    ),
    record(m.Enrol, device_id=_NAME, key=_KEY, serial=_COUNT),
    record(m.Revoke, device_id=_NAME, serial=_COUNT),
    record(
        m.ModelParams,
        bytes_max=limits.BLOB_BYTES_MAX,
        tensors=Array(_MODEL_TENSOR, 1, limits.TENSORS_MAX),
    ),
)
TABLE: Final[dict[type, Record]] = {entry.cls: entry for entry in _RECORDS}
