"""A small chain for tests: keys from names, a toy model, and signed transactions of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.application import Application, Finalized
from coordinator.ledger.block import candidates_digest
from coordinator.ledger.state import Round
from coordinator.ledger.store import LedgerStore
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.cose import SENDER_REGISTRAR, SoftwareSigner
from edge_sdk.protocol.digest import commitment, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId, TaskId
from edge_sdk.protocol.messages import (
    CertificateStatement,
    Codec,
    Commit,
    Domain,
    EnergyQuality,
    Enrol,
    Genesis,
    MinerRecord,
    ModelParams,
    ModelTensor,
    PayloadTensor,
    Phase,
    Reason,
    Receipt,
    ReceiptStatus,
    Reveal,
    Revoke,
    Scores,
    TaskParams,
    Tick,
    UpdateManifest,
    UpdatePayload,
)
from edge_sdk.protocol.model import model_root
from edge_sdk.training.quantize import channel_scales

CHAIN = ChainId("test-chain")
TASK = TaskId("digits")
CREATED_S = 1_800_000_000
SALT = bytes(range(16))
PARAMS = TaskParams(
    block_size=3,
    tau_ms=1_000,
    phase_ms=1_000,
    reveal_extensions_max=1,
    staleness_max=4,
    margin_permille=10,
    method="fedbuff",
    server_rate_q16=1 << 16,
    clip_norm_q16=1 << 20,
    codec=Codec.INT8_DENSE,
    expiry_heights=1_000,
    certificate_ttl_s=3_600,
    local_steps=1,
    batch=1,
    learning_rate_q24=1,
    example_count_max=1_000,
)


def signer(name: str) -> SoftwareSigner:
    """Return the key of a name, always the same."""
    return SoftwareSigner(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest()))


def toy_model() -> ModelParams:
    """Return a model of one weight with two channels and one bias."""
    weight = np.array([[1_000, -2_000, 3_000], [4_000, 5_000, -6_000]], np.int32)
    m, k = channel_scales(weight, -12, 0)
    bias = np.array([7, -8], np.int32)
    return ModelParams(
        tensors=(
            ModelTensor(
                name="w",
                shape=(2, 3),
                exponent=-12,
                channel_axis=0,
                values=weight.astype("<i4").tobytes(),
                scale_m=m.tobytes(),
                scale_k=k.tobytes(),
            ),
            ModelTensor(
                name="b",
                shape=(2,),
                exponent=-12,
                channel_axis=-1,
                values=bias.astype("<i4").tobytes(),
                scale_m=b"",
                scale_k=b"",
            ),
        )
    )


def toy_payload(seed: int) -> UpdatePayload:
    """Return an update of the toy model, drawn from a seed."""
    rng = np.random.default_rng(seed)
    return UpdatePayload(
        codec=Codec.INT8_DENSE,
        tensors=(
            PayloadTensor(name="w", exponent=-10, values=rng.integers(-127, 128, 6, dtype=np.int8).tobytes()),
            PayloadTensor(name="b", exponent=-12, values=rng.integers(-127, 128, 2, dtype=np.int8).tobytes()),
        ),
    )


class Names:
    """Who takes part: genesis, miners, devices, and what they sign."""

    def __init__(
        self, miner_count: int = 4, *, powers: Sequence[int] | None = None, params: TaskParams = PARAMS
    ) -> None:
        self.miners = tuple(MinerId(f"miner-{i}") for i in range(miner_count))
        self.model = toy_model()
        blob = wire.to_bytes(self.model)
        self.genesis = Genesis(
            chain_id=CHAIN,
            task=TASK,
            created_s=CREATED_S,
            miners=tuple(
                MinerRecord(
                    miner_id=miner,
                    key=signer(miner).public_key,
                    power=1 if powers is None else powers[i],
                    organisation=f"org-{i}",
                )
                for i, miner in enumerate(self.miners)
            ),
            registrar=signer(SENDER_REGISTRAR).public_key,
            params=params,
            artifact_digest=sha256(b"artifact"),
            model_root=model_root(self.model),
            model_digest=sha256(blob),
            model_bytes=len(blob),
        )

    def sign(self, message: object, domain: Domain, sender: str, *, key: str | None = None) -> bytes:
        """Sign any message as ``sender``, with the key of another name when ``key`` is given."""
        return cose.sign(
            wire.to_bytes(message), signer=signer(key or sender), domain=domain, chain_id=CHAIN, sender=sender
        )

    def enrol(self, device: str, *, serial: int = 1, key: str | None = None) -> bytes:
        """Admit a device."""
        message = Enrol(device_id=DeviceId(device), key=signer(key or device).public_key, serial=serial)
        return self.sign(message, Domain.ENROL, SENDER_REGISTRAR)

    def revoke(self, device: str, *, serial: int = 1) -> bytes:
        """Withdraw a device."""
        return self.sign(Revoke(device_id=DeviceId(device), serial=serial), Domain.REVOKE, SENDER_REGISTRAR)

    def manifest(self, device: str, seq: int, *, blob: bytes | None = None) -> UpdateManifest:
        """Return a manifest on the genesis model."""
        blob = wire.to_bytes(toy_payload(seq)) if blob is None else blob
        return UpdateManifest(
            task=TASK,
            chain_id=CHAIN,
            device_id=DeviceId(device),
            seq=seq,
            base_version=0,
            base_root=self.genesis.model_root,
            codec=Codec.INT8_DENSE,
            blob_bytes=len(blob),
            blob_digest=sha256(blob),
            example_count=10,
            local_steps=1,
            training_ms=5,
            energy_mj=6,
            energy_quality=EnergyQuality.MODELLED,
            expiry_height=500,
        )

    def update(self, device: str, seq: int, *, key: str | None = None, **changes: Any) -> bytes:
        """Return a signed update; ``changes`` replace fields of its manifest."""
        manifest = replace(self.manifest(device, seq), **changes)
        return self.sign(manifest, Domain.UPDATE, device, key=key)

    def receipt(self, miner: str, update: bytes, device: str, seq: int, **changes: Any) -> bytes:
        """Return a miner's receipt ``stored``."""
        message = Receipt(
            miner_id=MinerId(miner),
            device_id=DeviceId(device),
            seq=seq,
            update_digest=update_digest(update),
            status=ReceiptStatus.STORED,
            reason=Reason.NONE,
            height=0,
        )
        return self.sign(replace(message, **changes), Domain.RECEIPT, miner)

    def tick(self, miner: str, block_index: int, phase: Phase, attempt: int = 0) -> bytes:
        """Return a miner's tick."""
        message = Tick(miner_id=MinerId(miner), block_index=block_index, phase=phase, attempt=attempt)
        return self.sign(message, Domain.TICK, miner)

    def commit(self, miner: str, round_: Round, scores: Scores, *, salt: bytes = SALT) -> bytes:
        """Return a miner's commitment to scores."""
        digest = commitment(
            CHAIN, round_.block_index, candidates_digest(round_.candidates), MinerId(miner), scores, salt
        )
        message = Commit(miner_id=MinerId(miner), block_index=round_.block_index, commitment=digest)
        return self.sign(message, Domain.COMMIT, miner)

    def reveal(self, miner: str, round_: Round, scores: Scores, *, salt: bytes = SALT) -> bytes:
        """Return a miner's reveal."""
        message = Reveal(miner_id=MinerId(miner), block_index=round_.block_index, scores=scores, salt=salt)
        return self.sign(message, Domain.REVEAL, miner)

    def vote(self, miner: str, statement: CertificateStatement) -> bytes:
        """Return a miner's vote."""
        return self.sign(statement, Domain.CERTIFICATE, miner)


def scores(base: int, *updates: int) -> Scores:
    """Return scores without classes."""
    return Scores(base=base, updates=tuple(updates), classes=())


class Runner:
    """One application, driven height by height, with or without a store."""

    def __init__(self, names: Names, store: LedgerStore | None = None) -> None:
        self.names = names
        self.store = store
        self.app = Application(names.genesis)

    def height(self, *txs: bytes, time_s: int | None = None) -> Finalized:
        """Decide a height with these transactions; returns what it did."""
        height = self.app.state.height + 1
        finalized = self.app.finalize(height, CREATED_S + height if time_s is None else time_s, txs)
        if self.store is not None:
            self.store.commit_height(finalized, proposer=self.names.miners[height % len(self.names.miners)])
        self.app.commit(finalized)
        return finalized

    def ok(self, *txs: bytes) -> Finalized:
        """Decide a height in which every transaction succeeds."""
        finalized = self.height(*txs)
        assert [result.code for result in finalized.results] == [Reason.NONE] * len(txs), finalized.results
        return finalized

    def publish(self, device: str, seq: int, **changes: Any) -> tuple[bytes, Digest]:
        """Put an update on the ledger with the receipts of all miners."""
        update = self.names.update(device, seq, **changes)
        self.ok(update)
        self.ok(*(self.names.receipt(miner, update, device, seq) for miner in self.names.miners))
        return update, update_digest(update)

    def round(self) -> Round:
        """Return the open round."""
        assert self.app.state.round is not None
        return self.app.state.round

    def is_in(self, phase: Phase) -> bool:
        """Whether the open block is in this phase."""
        return self.app.state.phase is phase

    def score(self, revealed: dict[str, Scores]) -> Finalized:
        """Commit and reveal for these miners; the phase closes if they are all."""
        round_ = self.round()
        self.ok(*(self.names.commit(miner, round_, value) for miner, value in revealed.items()))
        return self.ok(*(self.names.reveal(miner, round_, value) for miner, value in revealed.items()))
