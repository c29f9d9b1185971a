"""A participant on its own: a small chain, messages for it, and effects carried out at once and in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache

from edge_sdk.participant import events as e
from edge_sdk.participant.machine import apply
from edge_sdk.participant.state import Rules, State
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import DeviceId, Digest, MinerId
from edge_sdk.protocol.messages import (
    Announcement,
    Codec,
    EnergyQuality,
    Genesis,
    Outcome,
    Reason,
    Receipt,
    ReceiptStatus,
    Resume,
    UpdateManifest,
    Verdict,
)
from tests.support.fake_miners import CHAIN, MINERS, TASK, Chain, Keys, make_genesis

DEVICE = DeviceId("d1")
NOW_S = 1_800_000_000
KEYS = Keys()
GENESIS: Genesis = make_genesis(KEYS, artifact_digest=Digest(b"\7" * 32))
CHAIN_OF = Chain(KEYS, GENESIS)


def rules(**changes: object) -> Rules:
    return replace(Rules(genesis=GENESIS, device_id=DEVICE), **changes)  # type: ignore[arg-type]


def root(version: int) -> Digest:
    return GENESIS.model_root if version == 0 else sha256(b"root%d" % version)


@cache
def announcement(version: int, miner: MinerId = MINERS[0], **changes: object) -> Announcement:
    certificate = None
    if version:
        certificate = CHAIN_OF.certify(version, root(version), expiry_s=NOW_S + 3_600)
    whole = Announcement(
        miner_id=miner,
        certificate=certificate,
        version=version,
        height=10 * version + 1,
        model_digest=GENESIS.model_digest if version == 0 else sha256(b"blob%d" % version),
        model_bytes=GENESIS.model_bytes,
        artifact_digest=GENESIS.artifact_digest,
        urls=("http://miner",),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def receipt(digest: Digest, seq: int, miner: MinerId, reason: Reason = Reason.NONE, height: int = 5) -> Receipt:
    return Receipt(
        miner_id=miner,
        device_id=DEVICE,
        seq=seq,
        update_digest=digest,
        status=ReceiptStatus.STORED if reason is Reason.NONE else ReceiptStatus.REFUSED,
        reason=reason,
        height=height,
    )


def resume(digest: Digest, *ranges: tuple[int, int], miner: MinerId = MINERS[0]) -> Resume:
    return Resume(miner_id=miner, device_id=DEVICE, update_digest=digest, ranges=ranges)


def manifest(seq: int, base_version: int) -> UpdateManifest:
    return UpdateManifest(
        task=TASK,
        chain_id=CHAIN,
        device_id=DEVICE,
        seq=seq,
        base_version=base_version,
        base_root=root(base_version),
        codec=Codec.INT8_DENSE,
        blob_bytes=1,
        blob_digest=sha256(b""),
        example_count=1,
        local_steps=1,
        training_ms=1,
        energy_mj=0,
        energy_quality=EnergyQuality.MODELLED,
        expiry_height=100,
    )


@cache
def outcome(
    digest: Digest,
    seq: int,
    base_version: int,
    *,
    verdict: Verdict = Verdict.MERGED,
    reason: Reason = Reason.NONE,
) -> Outcome:
    version = base_version + 1
    return CHAIN_OF.outcome(
        manifest(seq, base_version), digest, version=version, root=root(version), verdict=verdict, reason=reason
    )


@dataclass
class Driver:
    """Steps a participant, answers its effects as a perfect app would, and remembers everything it asked for."""

    state: State = field(default_factory=lambda: State(rules=rules()))
    now_ms: int = 0
    blob_bytes: int = 150_000
    effects: list[e.Effect] = field(default_factory=list)
    withheld: frozenset[type] = frozenset()
    """Effects that are not answered."""
    disk: dict[Digest, e.SavedUpdate] = field(default_factory=dict)
    settled: dict[Digest, e.Settle] = field(default_factory=dict)
    installed: e.Model | None = None
    floor: int = -1
    last_trained: int = -1
    next_seq: int = 1
    job_base: int | None = None

    def feed(self, event: e.Event) -> list[e.Effect]:
        """Feed an event and everything that follows at once; the effects in order."""
        before = len(self.effects)
        events = [event]
        while events:
            self.state, effects = apply(self.state, events.pop(0))
            for effect in effects:
                self.effects.append(effect)
                if type(effect) not in self.withheld:
                    events += self._answer(effect)
        return self.effects[before:]

    def tick(self, step_ms: int) -> list[e.Effect]:
        self.now_ms += step_ms
        return self.feed(e.Tick(self.now_ms))

    def restart(self) -> list[e.Effect]:
        """Lose all memory; keep the disk."""
        self.state = State(rules=self.state.rules)
        return self.feed(
            e.Restored(
                now_ms=self.now_ms,
                installed=self.installed,
                version_floor=self.floor,
                last_trained=self.last_trained,
                next_seq=self.next_seq,
                updates=tuple(self.disk.values()),
                job_base=self.job_base,
            )
        )

    def ready(self, version: int = 0) -> list[e.Effect]:
        """Start, connect, install a version, train once and publish."""
        self.restart()
        self.feed(e.LinkUp(self.now_ms))
        return self.feed(e.ModelAnnounced(self.now_ms, NOW_S, announcement(version)))

    def of(self, kind: type) -> list[e.Effect]:
        return [effect for effect in self.effects if type(effect) is kind]

    def _answer(self, effect: e.Effect) -> list[e.Event]:
        now = self.now_ms
        match effect:
            case e.FetchModel():
                return [e.ModelFetched(now, effect.model.version)]
            case e.SelfTest():
                return [e.ModelTested(now, effect.version)]
            case e.InstallModel():
                self.installed, self.floor = effect.model, max(self.floor, effect.model.version)
                return [e.ModelInstalled(now, effect.model)]
            case e.TrainLocally():
                self.job_base = effect.base_version
                return [e.TrainingEnded(now, effect.base_version)]
            case e.MakeUpdate():
                digest = sha256(b"update%d" % effect.seq)
                made = e.UpdateMade(
                    now_ms=now,
                    digest=digest,
                    seq=effect.seq,
                    base_version=effect.base_version,
                    blob_bytes=self.blob_bytes,
                    expiry_height=effect.expiry_height,
                )
                self._made = made
                return [made]
            case e.StoreInOutbox():
                made = self._made
                self.disk[made.digest] = e.SavedUpdate(
                    digest=made.digest,
                    seq=made.seq,
                    base_version=made.base_version,
                    blob_bytes=made.blob_bytes,
                    expiry_height=made.expiry_height,
                    age_ms=0,
                    stored_by=frozenset(),
                    refused_by=(),
                )
                self.next_seq, self.last_trained = made.seq + 1, made.base_version
                return [e.UpdateStored(now, made.digest)]
            case e.DropJob():
                self.job_base = None
            case e.SaveReceipt():
                self._save(effect.receipt)
            case e.Settle():
                assert effect.digest not in self.settled, "settled twice"
                self.settled[effect.digest] = effect
                del self.disk[effect.digest]
                return [e.UpdateSettled(now, effect.digest)]
            case _:
                pass
        return []

    def _save(self, message: Receipt) -> None:
        saved = self.disk[message.update_digest]
        if message.status is ReceiptStatus.STORED:
            saved = replace(saved, stored_by=saved.stored_by | {message.miner_id})
        else:
            others = tuple(item for item in saved.refused_by if item[0] != message.miner_id)
            saved = replace(saved, refused_by=(*others, (message.miner_id, message.reason)))
        self.disk[message.update_digest] = saved
