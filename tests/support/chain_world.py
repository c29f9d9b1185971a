"""Miners and devices of a toy chain in one process: real application, store and merge, a seeded, faulty network.

Checkers stand beside the scenario and look at every height: equal state roots, no update merged twice, nothing lost
that a storage quorum has receipted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np

from coordinator.aggregation.merge import check_update, merge
from coordinator.application import Application, Finalized
from coordinator.events import BlockCertified, RoundVoided
from coordinator.ledger.blobs import BlobStore
from coordinator.ledger.rows import ModelRow, OwnScores, UploadRow
from coordinator.ledger.state import Candidate, State
from coordinator.ledger.store import LedgerStore
from coordinator.rounds import MergeBlock, RevealScores, ScoreBlock, duties, open_phase
from edge_sdk.errors import DecodeError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import sha256, update_digest
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.limits import SCORE_OUT_OF_BOUNDS, SCORE_UNAVAILABLE
from edge_sdk.protocol.messages import (
    BlockEntry,
    Codec,
    ModelParams,
    Reason,
    Scores,
    UpdateManifest,
    UpdatePayload,
    Verdict,
)
from edge_sdk.protocol.model import model_root
from edge_sdk.training.codecs.reading import UpdateForm
from tests.support.chain import CREATED_S, SALT, Names, toy_payload

PATIENCE_STEPS = 4
"""A miner ticks a phase that has lasted this many steps."""
RENEWAL_STEPS = 12
"""It asks for a new certificate when no block was opened for this many steps."""


class Behaviour(Enum):
    HONEST = "honest"
    SILENT = "silent"
    LYING_SCORES = "lying-scores"
    LYING_ROOTS = "lying-roots"
    LYING_RECEIPTS = "lying-receipts"


@dataclass
class MinerTwin:
    """One miner: the real application, and what the miner's app does around it."""

    names: Names
    miner_id: MinerId
    behaviour: Behaviour = Behaviour.HONEST
    folder: Path | None = None
    is_down: bool = False
    app: Application = field(init=False)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    uploads: dict[Digest, tuple[UpdateManifest, bytes]] = field(default_factory=dict)
    own: dict[int, Scores] = field(default_factory=dict)
    models: dict[int, ModelParams] = field(default_factory=dict)
    phase_since: tuple[tuple[object, ...], int] = ((), 0)
    store: LedgerStore | None = None
    blob_store: BlobStore | None = None

    def __post_init__(self) -> None:
        self.app = Application(self.names.genesis)
        self.models[0] = self.names.model
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.blob_store = BlobStore(self.folder / "blobs")
            self.store = LedgerStore.open(
                self.folder / "ledger.sqlite3", genesis=self.names.genesis, miner_id=self.miner_id
            )
            self._keep_model(0, self.names.model)

    def restart(self) -> None:
        """Lose the memory, keep the disk."""
        assert self.store is not None
        assert self.blob_store is not None
        state = self.store.load_state()
        self.app = Application(self.names.genesis, state=state)
        self.own.clear()
        self.uploads = {row.update_digest: (_manifest(row.envelope), row.envelope) for row in self.store.uploads()}
        self.blobs = {sha256(data): data for data in (path.read_bytes() for path in self.blob_store.files())}
        self.models = {
            row.version: wire.from_bytes(ModelParams, self.blobs[row.blob_digest]) for row in self.store.models()
        }

    def take(self, envelope: bytes, blob: bytes) -> bool:
        """Receive an update; True means a receipt `stored` to the device."""
        digest = update_digest(envelope)
        if digest in self.uploads or self.behaviour is Behaviour.LYING_RECEIPTS:
            self.uploads.setdefault(digest, (_manifest(envelope), envelope))
            return True
        if self.app.admit(envelope) not in (Reason.NONE, Reason.DUPLICATE):
            return False
        manifest = _manifest(envelope)
        self.keep_blob(blob)
        if self.store is not None:
            self.store.put_upload(
                UploadRow(
                    update_digest=digest,
                    device_id=manifest.device_id,
                    seq=manifest.seq,
                    envelope=envelope,
                    blob_digest=manifest.blob_digest,
                    blob_bytes=manifest.blob_bytes,
                    received_s=CREATED_S,
                )
            )
        self.uploads[digest] = (manifest, envelope)
        return True

    def keep_blob(self, blob: bytes) -> None:
        self.blobs[sha256(blob)] = blob
        if self.blob_store is not None:
            self.blob_store.put(blob)

    def wants(self, world: World) -> list[bytes]:
        """Transactions that this miner owes the log in its committed state."""
        if self.behaviour is Behaviour.SILENT:
            return []
        state, txs = self.app.state, []
        for digest, (manifest, envelope) in list(self.uploads.items()):
            record = state.updates.get(digest)
            if record is None and self.app.check(envelope).code is Reason.NONE:
                txs.append(envelope)
            elif record is not None and self.miner_id not in record.stored_by:
                txs.append(self.names.receipt(self.miner_id, envelope, manifest.device_id, manifest.seq))
        for duty in duties(state, self.miner_id, self.names.genesis):
            match duty:
                case ScoreBlock():
                    scores = self._score(world, duty)
                    assert state.round is not None
                    txs.append(self.names.commit(self.miner_id, state.round, scores))
                case RevealScores(block_index=index):
                    assert state.round is not None
                    recorded = None if self.store is None else self.store.own_scores(index)
                    scores = self.own[index] if recorded is None else recorded.scores
                    txs.append(self.names.reveal(self.miner_id, state.round, scores))
                case MergeBlock():
                    root = self._merge(world, duty)
                    txs.append(self.names.vote(self.miner_id, duty.statement(root)))
        return txs + self._ticks(world.steps)

    def _ticks(self, step: int) -> list[bytes]:
        phase = open_phase(self.app.state)
        key = (phase.block_index, phase.phase, phase.attempt, phase.tick_is_due)
        if self.phase_since[0] != key:
            self.phase_since = (key, step)
        lasted = step - self.phase_since[1]
        is_renewal_due = phase.certified_until_s is not None and lasted >= RENEWAL_STEPS
        is_due = is_renewal_due or (phase.tick_is_due and lasted >= PATIENCE_STEPS)
        if is_due and self.miner_id not in phase.ticked:
            return [self.names.tick(self.miner_id, phase.block_index, phase.phase, phase.attempt)]
        return []

    def _score(self, world: World, duty: ScoreBlock) -> Scores:
        if duty.block_index not in self.own:
            values = []
            for candidate in duty.candidates:
                blob = world.fetch(self, candidate.blob_digest)
                values.append(SCORE_UNAVAILABLE if blob is None else self._quality(world, candidate, blob))
            if self.behaviour is Behaviour.LYING_SCORES:
                values = [900 if value < 500 else 0 for value in values]
            scores = Scores(base=500, updates=tuple(values), classes=())
            if self.store is not None:
                own = OwnScores(block_index=duty.block_index, scores=scores, salt=SALT)
                scores = self.store.put_own_scores(own).scores
            self.own[duty.block_index] = scores
        return self.own[duty.block_index]

    def _quality(self, world: World, candidate: Candidate, blob: bytes) -> int:
        """Stands for a fold: hostile devices score low, honest ones about the base, each miner a little different."""
        try:
            payload = wire.from_bytes(UpdatePayload, blob)
            check_update(world.model(self, self.app.state.version), payload, UpdateForm(codec=Codec.INT8_DENSE))
        except DecodeError:
            return SCORE_OUT_OF_BOUNDS
        noise = sha256(self.miner_id.encode(), blob)[0] % 7
        return (200 if candidate.device_id.startswith("evil") else 497) + noise

    def _merge(self, world: World, duty: MergeBlock) -> Digest:
        if duty.plan is None:
            return duty.base_root
        updates = []
        for entry in duty.plan.entries:
            blob = world.fetch(self, entry.blob_digest)
            assert blob is not None
            updates.append((entry.weight, wire.from_bytes(UpdatePayload, blob)))
        base = world.model(self, duty.plan.base_version)
        merged = merge(base, updates, duty.plan.total_weight, duty.plan.server_rate_q16)
        self._keep_model(duty.plan.version, merged)
        root = model_root(merged)
        return sha256(b"lie", root) if self.behaviour is Behaviour.LYING_ROOTS else root

    def _keep_model(self, version: int, params: ModelParams) -> None:
        self.models[version] = params
        blob = wire.to_bytes(params)
        self.keep_blob(blob)
        if self.store is not None:
            row = ModelRow(
                version=version, model_root=model_root(params), blob_digest=sha256(blob), blob_bytes=len(blob)
            )
            self.store.put_model(row)


@dataclass
class DeviceTwin:
    """One device: publishes on the newest version, resends until a quorum has receipted."""

    names: Names
    device_id: DeviceId
    seq: int = 0
    last_base: int = -1
    receipts: dict[Digest, set[MinerId]] = field(default_factory=dict)
    outbox: dict[Digest, tuple[bytes, bytes]] = field(default_factory=dict)

    def publish(self, state: State) -> None:
        if state.version <= self.last_base or len(self.outbox) >= 2:
            return
        self.seq += 1
        self.last_base = state.version
        self._queue(state, seed=sha256(self.device_id.encode())[0] * 1_000 + self.seq)
        if self.device_id.endswith("twoface"):
            self._queue(state, seed=self.seq)

    def _queue(self, state: State, *, seed: int) -> None:
        blob = wire.to_bytes(toy_payload(seed))
        envelope = self.names.update(
            self.device_id,
            self.seq,
            base_version=state.version,
            base_root=state.model_root,
            blob_bytes=len(blob),
            blob_digest=sha256(blob),
            expiry_height=state.height + 400,
        )
        self.outbox[update_digest(envelope)] = (envelope, blob)


class World:
    """The network, the log and the checkers."""

    def __init__(
        self,
        names: Names,
        *,
        seed: int,
        devices: tuple[str, ...],
        behaviours: Mapping[int, Behaviour] | None = None,
        drop: float = 0.2,
        duplicate: float = 0.1,
        folder: Path | None = None,
    ) -> None:
        self.names = names
        self.rng = np.random.default_rng(seed)
        self.drop, self.duplicate = drop, duplicate
        self.miners = [
            MinerTwin(
                names,
                miner,
                (behaviours or {}).get(i, Behaviour.HONEST),
                None if folder is None else folder / "miners" / miner,
            )
            for i, miner in enumerate(names.miners)
        ]
        self.devices = [DeviceTwin(names, DeviceId(device)) for device in devices]
        self.log: list[tuple[int, tuple[bytes, ...], str]] = []
        self.entries: list[BlockEntry] = []
        self.finalized: list[Finalized] = []
        self.quorum_receipted: set[Digest] = set()
        self.void_count = self.renewal_count = 0
        self.steps = 0
        self._decide([names.enrol(device) for device in devices])

    def fetch(self, asker: MinerTwin, digest: Digest) -> bytes | None:
        """A blob from this miner or, over a network that may fail, from another."""
        if digest not in asker.blobs:
            for peer in self.miners:
                honest = peer.behaviour is not Behaviour.SILENT and not peer.is_down
                if honest and digest in peer.blobs:
                    asker.keep_blob(peer.blobs[digest])
                    break
        return asker.blobs.get(digest)

    def model(self, asker: MinerTwin, version: int) -> ModelParams:
        """The model of a certified version, from this miner or another, by its root."""
        root = asker.app.state.model_root
        for holder in (asker, *self.miners):
            params = holder.models.get(version)
            if params is not None and model_root(params) == root:
                if version not in asker.models:
                    asker._keep_model(version, params)
                return params
        raise AssertionError(f"nobody holds version {version}")

    def step(self, *, publish: bool = True) -> None:
        """One round of messages and one height."""
        self.steps += 1
        live = [miner for miner in self.miners if not miner.is_down]
        for miner in live:
            self._execute(miner)
        for device in self.devices:
            if publish:
                device.publish(live[0].app.state)
            self._send(device)
        txs: list[bytes] = []
        for miner in live:
            for tx in miner.wants(self):
                txs += [] if self._lost() else [tx]
                txs += [tx] if self.rng.random() < self.duplicate else []
        self.rng.shuffle(txs)
        if txs:
            self._decide(txs)

    def _send(self, device: DeviceTwin) -> None:
        decided = {entry.update_digest for entry in self.entries}
        for digest, (envelope, blob) in list(device.outbox.items()):
            held = device.receipts.setdefault(digest, set())
            for miner in self.miners:
                if miner.behaviour is Behaviour.SILENT or miner.is_down or miner.miner_id in held or self._lost():
                    continue
                if miner.take(envelope, blob):
                    held.add(miner.miner_id)
            if 3 * len(held) > 2 * len(self.miners) and not device.device_id.endswith("twoface"):
                self.quorum_receipted.add(digest)  # of the two faces of one number only one can be kept
            if digest in decided or (digest not in self.quorum_receipted and self._is_hopeless(device, digest)):
                del device.outbox[digest]

    def _is_hopeless(self, device: DeviceTwin, digest: Digest) -> bool:
        """Whether every live miner refuses for good: the second face of one sequence number."""
        envelope = device.outbox[digest][0]
        reasons = {miner.app.admit(envelope) for miner in self.miners if not miner.is_down}
        return reasons <= {Reason.EQUIVOCATION, Reason.SEQ_WINDOW}

    def _lost(self) -> bool:
        return bool(self.rng.random() < self.drop)

    def _decide(self, txs: list[bytes]) -> None:
        live = [miner for miner in self.miners if not miner.is_down]
        proposer = live[len(self.log) % len(live)]
        proposal = proposer.app.prepare(txs, bytes_max=1 << 20)
        for miner in live:
            assert miner.app.process(proposal).code is Reason.NONE
        if not proposal:
            return
        self.log.append((CREATED_S + len(self.log), tuple(proposal), proposer.miner_id))
        roots = {self._execute(miner) for miner in live}
        assert len(roots) == 1, f"state roots differ at height {len(self.log)}"

    def _execute(self, miner: MinerTwin) -> Digest:
        """Let a miner catch up with the log."""
        while miner.app.state.height < len(self.log):
            height = miner.app.state.height + 1
            time_s, txs, proposer = self.log[height - 1]
            finalized = miner.app.finalize(height, time_s, txs)
            if miner.store is not None:
                miner.store.commit_height(finalized, proposer=proposer)
            miner.app.commit(finalized)
            for event in finalized.events:
                if isinstance(event, BlockCertified):
                    self._settle(miner, event)
            if height > len(self.finalized):
                self.finalized.append(finalized)
                self._check(finalized)
        return miner.app.state.root

    def _settle(self, miner: MinerTwin, event: BlockCertified) -> None:
        for entry in event.entries:
            miner.uploads.pop(entry.update_digest, None)

    def _check(self, finalized: Finalized) -> None:
        for event in finalized.events:
            if isinstance(event, BlockCertified):
                self.entries += event.entries
                self.renewal_count += not event.entries
                merged = [entry.update_digest for entry in self.entries if entry.verdict is Verdict.MERGED]
                assert len(set(merged)) == len(merged), "an update was merged twice"
                bases = [(e.device_id, e.base_version) for e in self.entries if e.verdict is Verdict.MERGED]
                assert len(set(bases)) == len(bases), "a device merged twice on one base"
            elif isinstance(event, RoundVoided):
                self.void_count += 1

    def check_nothing_lost(self) -> None:
        """Every update that a quorum has receipted is decided or open on the ledger, or queued by miners for it."""
        state = self.miners[0].app.state
        known = {entry.update_digest for entry in self.entries} | set(state.updates)
        for miner in self.miners:
            known |= set(miner.uploads)
        round_ = state.round
        if round_ is not None and round_.decision is not None:
            known |= {entry.update_digest for entry in round_.decision.entries}
        assert self.quorum_receipted <= known

    def drain(self, *, heights_max: int = 200) -> None:
        """Stop publishing and losing messages; run until every receipted update is decided."""
        self.drop = self.duplicate = 0.0
        for _ in range(heights_max):
            decided = {entry.update_digest for entry in self.entries}
            if self.quorum_receipted <= decided and not self.miners[0].app.state.round:
                break
            self.step(publish=False)
        assert self.quorum_receipted <= {entry.update_digest for entry in self.entries}, "a receipted update is lost"

    def rest(self, *, steps_max: int = 200) -> None:
        """Publish nothing until an empty block has renewed the certificate."""
        count = self.renewal_count
        for _ in range(steps_max):
            if self.renewal_count > count:
                return
            self.step(publish=False)
        raise AssertionError("the certificate is not renewed")

    def close(self) -> None:
        """Close the stores."""
        for miner in self.miners:
            if miner.store is not None:
                miner.store.close()


def _manifest(envelope: bytes) -> UpdateManifest:
    from edge_sdk.protocol import cose

    return wire.from_bytes(UpdateManifest, cose.peek(envelope).payload)
