"""One example of every message, all of one small chain: four miners, one device, one block that merges one update.

Keys come from fixed seeds, so every byte of the vectors can be made again; nothing here is a secret.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from edge_sdk.protocol import cose, merkle
from edge_sdk.protocol import messages as m
from edge_sdk.protocol.certificate import assemble
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.digest import block_hash, commitment, miner_set_hash, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId, TaskId
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.wire import to_bytes

CHAIN: Final = ChainId("harbour-1")
TASK: Final = TaskId("digits")
DEVICE: Final = DeviceId("rpi-17")
MINERS: Final = tuple(MinerId(f"miner-{number}") for number in range(4))
CREATED_S: Final = 1_767_225_600
"""2026-01-01."""
SALT: Final = bytes(range(32))


class RepeatableEs256(SoftwareSigner):
    """P-256 with the nonces of RFC 6979, so that a vector stays the same; boards use random nonces."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        super().__init__(private_key)
        self._p256_key = private_key

    def sign(self, data: bytes) -> bytes:
        """Sign ``data``; 64 bytes."""
        r, s = decode_dss_signature(self._p256_key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32) + s.to_bytes(32)


@cache
def signer(name: str) -> SoftwareSigner:
    """Key of a member: P-256 for ``miner-3``, the member with a secure element; else Ed25519."""
    seed = sha256(b"edge-flchain vector key", name.encode())
    if name == MINERS[3]:
        return RepeatableEs256(ec.derive_private_key(int.from_bytes(seed[:31]), ec.SECP256R1()))
    return SoftwareSigner(Ed25519PrivateKey.from_private_bytes(seed))


def params() -> m.ModelParams:
    """A model of one weight with scales and one bias."""
    weight = m.ModelTensor(
        name="fc.weight",
        shape=(2, 3),
        exponent=-16,
        channel_axis=0,
        values=b"".join(value.to_bytes(4, "little", signed=True) for value in (65536, -65536, 1, 0, -1, 1 << 30)),
        scale_m=b"\x81\xff",
        scale_k=b"\x0e\x07",
    )
    bias = m.ModelTensor(
        name="fc.bias", shape=(2,), exponent=-20, channel_axis=-1, values=bytes(8), scale_m=b"", scale_k=b""
    )
    return m.ModelParams(tensors=(weight, bias))


def payload() -> m.UpdatePayload:
    """An update of that model."""
    return m.UpdatePayload(
        codec=m.Codec.INT8_DENSE,
        tensors=(
            m.PayloadTensor(name="fc.weight", exponent=-12, values=b"\x01\xff\x7f\x81\x00\x02"),
            m.PayloadTensor(name="fc.bias", exponent=-14, values=b"\x05\xfb"),
        ),
    )


@cache
def genesis() -> m.Genesis:
    """The trust anchor."""
    model_bytes = to_bytes(params())
    return m.Genesis(
        chain_id=CHAIN,
        task=TASK,
        created_s=CREATED_S,
        miners=tuple(
            m.MinerRecord(miner_id=name, key=signer(name).public_key, power=1, organisation=f"harbour {number}")
            for number, name in enumerate(MINERS)
        ),
        registrar=signer(cose.SENDER_REGISTRAR).public_key,
        params=m.TaskParams(
            block_size=8,
            tau_ms=5_000,
            phase_ms=3_000,
            reveal_extensions_max=2,
            staleness_max=16,
            margin_permille=20,
            method="fedbuff",
            server_rate_q16=1 << 16,
            clip_norm_q16=10 << 16,
            codec=m.Codec.INT8_DENSE,
            expiry_heights=1_000,
            certificate_ttl_s=86_400,
            local_steps=40,
            batch=16,
            learning_rate_q24=838_861,
            example_count_max=10_000,
        ),
        artifact_digest=sha256(b"artifact"),
        model_root=model_root(params()),
        model_digest=sha256(model_bytes),
        model_bytes=len(model_bytes),
    )


@cache
def manifest() -> m.UpdateManifest:
    """What the device signs."""
    blob = to_bytes(payload())
    return m.UpdateManifest(
        task=TASK,
        chain_id=CHAIN,
        device_id=DEVICE,
        seq=1,
        base_version=0,
        base_root=genesis().model_root,
        codec=m.Codec.INT8_DENSE,
        blob_bytes=len(blob),
        blob_digest=sha256(blob),
        example_count=120,
        local_steps=40,
        training_ms=850,
        energy_mj=2_700,
        energy_quality=m.EnergyQuality.MODELLED,
        expiry_height=1_000,
    )


@cache
def update_envelope() -> bytes:
    """The manifest as it goes over MQTT and into the ledger."""
    return cose.sign(to_bytes(manifest()), signer=signer(DEVICE), domain=m.Domain.UPDATE, chain_id=CHAIN, sender=DEVICE)


def entries() -> tuple[m.BlockEntry, ...]:
    """Entries of the block: the update, merged, and two more, refused."""
    merged = m.BlockEntry(
        update_digest=update_digest(update_envelope()),
        device_id=DEVICE,
        seq=1,
        base_version=0,
        verdict=m.Verdict.MERGED,
        reason=m.Reason.NONE,
        score=12,
        weight=1 << 16,
    )
    stale, hostile = (
        m.BlockEntry(
            update_digest=sha256(text),
            device_id=DeviceId(text.decode()),
            seq=7,
            base_version=0,
            verdict=m.Verdict.REFUSED,
            reason=reason,
            score=score,
            weight=0,
        )
        for text, reason, score in ((b"rpi-18", m.Reason.STALE, 0), (b"rpi-19", m.Reason.QUALITY, -371))
    )
    return merged, stale, hostile


def header() -> m.BlockHeader:
    """Header of that block."""
    leaves = [to_bytes(entry) for entry in entries()]
    return m.BlockHeader(
        chain_id=CHAIN,
        task=TASK,
        index=1,
        cut_height=9,
        decided_height=12,
        cause=m.CutCause.TAU,
        base_version=0,
        version=1,
        base_root=genesis().model_root,
        base_score=104,
        entry_count=len(leaves),
        entries_root=merkle.root(leaves),
        previous_hash=Digest(bytes(32)),
    )


def statement() -> m.CertificateStatement:
    """What the miners sign."""
    return m.CertificateStatement(
        chain_id=CHAIN,
        task=TASK,
        version=1,
        height=12,
        block_index=1,
        block_hash=block_hash(header()),
        model_root=sha256(b"merged model"),
        miner_set_hash=miner_set_hash(genesis().miners),
        expiry_s=CREATED_S + 86_400,
    )


def vote(miner: MinerId, voted: m.CertificateStatement, *, chain_id: ChainId = CHAIN) -> bytes:
    """One miner's signature over a statement."""
    envelope = cose.sign(
        to_bytes(voted), signer=signer(miner), domain=m.Domain.CERTIFICATE, chain_id=chain_id, sender=miner
    )
    return cose.peek(envelope).signature


@cache
def certificate() -> m.Certificate:
    """Signed by three of four, one of them with ES256."""
    return assemble(statement(), {miner: vote(miner, statement()) for miner in MINERS[1:]})


def outcome() -> m.Outcome:
    """The certified end of the update."""
    proof = merkle.inclusion_proof([to_bytes(entry) for entry in entries()], 0)
    return m.Outcome(entry=entries()[0], proof=proof, header=header(), certificate=certificate())


def messages() -> tuple[object, ...]:
    """One of each message that is sent, signed or stored on its own."""
    digest = update_digest(update_envelope())
    scores = m.Scores(base=104, updates=(116, -1), classes=(b"\x0a\xff", b"\x0b\xff", b""))
    blob = to_bytes(payload())
    return (
        genesis(),
        replace(genesis(), artifact_bytes=8),
        replace(genesis(), artifact_bytes=8, artifact_author=signer(DEVICE).public_key),
        m.AuthoredArtifact(author=signer(DEVICE).public_key, artifact=b"artifact"),
        params(),
        payload(),
        manifest(),
        m.Chunk(digest=digest, offset=16, data=blob[16:32]),
        m.Fetch(device_id=DEVICE, blob_digest=genesis().model_digest, ranges=((0, 64), (128, 130))),
        m.Status(sender=DEVICE, session=3, online=True, installed_version=0, note=""),
        m.Receipt(
            miner_id=MINERS[0],
            device_id=DEVICE,
            seq=1,
            update_digest=digest,
            status=m.ReceiptStatus.STORED,
            reason=m.Reason.NONE,
            height=8,
        ),
        m.Resume(miner_id=MINERS[0], device_id=DEVICE, update_digest=digest, ranges=((16, 32),)),
        *entries(),
        header(),
        statement(),
        certificate(),
        outcome(),
        m.Announcement(
            miner_id=MINERS[0],
            certificate=None,
            version=0,
            height=8,
            model_digest=genesis().model_digest,
            model_bytes=genesis().model_bytes,
            artifact_digest=genesis().artifact_digest,
            urls=("http://10.0.0.2:8480",),
        ),
        m.Tick(miner_id=MINERS[0], block_index=1, phase=m.Phase.COLLECT, attempt=0),
        m.Commit(
            miner_id=MINERS[0],
            block_index=1,
            commitment=commitment(CHAIN, 1, sha256(b"candidates"), MINERS[0], scores, SALT),
        ),
        m.Reveal(miner_id=MINERS[0], block_index=1, scores=scores, salt=SALT),
        m.Enrol(device_id=DEVICE, key=signer(DEVICE).public_key, serial=1),
        m.Revoke(device_id=DEVICE, serial=2),
    )
