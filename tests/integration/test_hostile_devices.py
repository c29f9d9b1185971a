"""What hostile or broken devices send to four running miners, one row of the table of refusals after the other.

Each blow is refused with its own reason: in a signed receipt of every miner where the sender is known, in a counter
where it is not. Right after it honest updates are merged.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from edge_sdk.protocol import codec, wire
from edge_sdk.protocol.cose import peek
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, Digest, TaskId
from edge_sdk.protocol.limits import (
    ASSEMBLIES_PER_DEVICE_MAX,
    BLOB_BYTES_MAX,
    DIGEST_RETRIES_MAX,
    EXPONENT_MAX,
    SEQ_WINDOW,
)
from edge_sdk.protocol.messages import Chunk, Codec, Reason, ReceiptStatus, UpdatePayload, Verdict
from tests.support.arena import STALENESS_MAX, Arena
from tests.support.ordering import until

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]

MIB: Final = 1024 * 1024
FLOOD_BYTES_MAX: Final = 24 * MIB
"""Growth of a miner under a flood of 60 MiB: its inbox holds 16 MiB at most, the allocator keeps some of it."""
SCENE_S: Final = 110.0

Scene = Callable[[Arena], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Stage:
    """The fleet of this module and the event loop in which it lives."""

    runner: asyncio.Runner
    arena: Arena

    def play(self, scene: Scene) -> None:
        """Run a scene, then see that the loop goes on."""

        async def whole() -> None:
            async with asyncio.timeout(SCENE_S):
                await scene(self.arena)
                await self.arena.check_loop_goes_on()

        self.runner.run(whole())


@pytest.fixture(scope="module")
def stage(mosquitto_path: object) -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        arena = runner.run(_enter())
        try:
            yield Stage(runner, arena)
        finally:
            runner.run(arena.__aexit__(None, None, None))


async def _enter() -> Arena:
    return await Arena().__aenter__()


# --- the manifest alone decides ---

MANIFESTS: Final[list[tuple[Reason, dict[str, Any]]]] = [
    (Reason.WRONG_CHAIN, {"chain_id": ChainId("chain-other")}),
    (Reason.WRONG_TASK, {"task": TaskId("other-task")}),
    (Reason.BASE_ROOT, {"base_root": Digest(bytes(32))}),
    (Reason.FUTURE_BASE, {"base_version": 1_000}),
    (Reason.CODEC, {"codec": Codec.INT16_DENSE}),
    (Reason.EXPIRED, {"expiry_height": 0}),
    (Reason.OVERSIZE, {"blob_bytes": BLOB_BYTES_MAX + 1}),
    (Reason.OVERSIZE, {"blob_bytes": BLOB_BYTES_MAX}),
    (Reason.OVERSIZE, {"blob_bytes": 0}),
]


def test_a_manifest_that_cannot_hold_is_refused_before_any_chunk(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        for reason, changes in MANIFESTS:
            before = await arena.refused_updates(reason)
            manifest = await arena.manifest(arena.hostile, arena.blob, **changes)
            digest = arena.hostile.publish_manifest(arena.hostile.seal(manifest))
            reasons = await arena.refusals(arena.hostile, digest)
            assert set(reasons.values()) == {reason}, changes
            assert await arena.refused_updates(reason) == [count + 1 for count in before]
        assert await arena.counts("flchain_assembly_bytes") == [0.0] * 4

    stage.play(scene)


def test_a_device_that_nobody_enrolled_gets_no_answer_and_is_counted(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        before = await arena.refused_messages(Reason.UNKNOWN_DEVICE)
        manifest = await arena.manifest(arena.stranger, arena.blob)
        arena.stranger.publish_manifest(arena.stranger.seal(manifest))
        await arena.until_dropped(Reason.UNKNOWN_DEVICE, before)
        assert arena.stranger.receipt_envelopes == []

    stage.play(scene)


def test_a_revoked_device_is_told_so(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device, fleet = arena.revoked, arena.fleet

        def records() -> list[bytes]:
            query = f"SELECT record FROM snapshot_devices WHERE device_id = '{device.device_id}'"
            return [rows[0][0] for rows in _ledgers(arena, query)]

        before = records()

        async def is_revoked() -> bool:
            return all(old != new for old, new in zip(before, records(), strict=True))

        await fleet.submit(fleet.revocation(device.device_id))
        await until(is_revoked)
        manifest = await arena.manifest(device, arena.blob)
        digest = device.publish_manifest(device.seal(manifest))
        assert set((await arena.refusals(device, digest)).values()) == {Reason.REVOKED_DEVICE}

    stage.play(scene)


def test_a_false_signature_is_dropped_and_cannot_end_the_honest_update(stage: Stage) -> None:
    """The digest leaves the signature out: a refusal of it would be a refusal of the honest envelope."""

    async def scene(arena: Arena) -> None:
        device, signer = arena.other, arena.other.signer
        before = await arena.refused_messages(Reason.BAD_SIGNATURE)
        manifest = await arena.manifest(device, arena.blob)
        envelope = device.seal(manifest)
        device.publish_raw("update", envelope[:-1] + bytes([envelope[-1] ^ 1]))
        device.signer = arena.hostile.signer
        digest = device.publish_manifest(device.seal(manifest))
        device.signer = signer
        await arena.until_dropped(Reason.BAD_SIGNATURE, before, 2)
        assert not any(update == digest for update, _ in device.receipts)
        assert device.publish_manifest(envelope) == digest
        device.publish_chunks(digest, arena.blob)
        assert (await device.until_outcome(digest)).verdict is Verdict.MERGED

    stage.play(scene)


def test_nobody_speaks_on_the_topic_or_with_the_envelope_of_another(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        victim, hostile = arena.other, arena.hostile
        envelope = victim.seal(await arena.manifest(victim, arena.blob))
        # The broker does not let it pass: no miner hears of it.
        foreign = await arena.refused_messages(Reason.WRONG_TOPIC)
        hostile.publish_raw("update", envelope, branch=victim.device_id)
        await arena.until(lambda: len(hostile.refused_by_broker) == 1, "the broker's refusal")
        # On its own topic the message passes the broker, and is refused by every miner.
        digest = hostile.publish_manifest(envelope)
        assert set((await arena.refusals(hostile, digest)).values()) == {Reason.WRONG_TOPIC}
        assert await arena.refused_messages(Reason.WRONG_TOPIC) == foreign
        # The victim's transfer takes no chunk from it, and ends well.
        assert victim.publish_manifest(envelope) == digest
        victim.publish_chunks(digest, arena.blob, ranges=[(0, 10)])
        await victim.until_resume(digest)
        hostile.publish_chunks(digest, bytes(len(arena.blob)))
        await arena.until_dropped(Reason.WRONG_TOPIC, foreign)
        victim.publish_chunks(digest, arena.blob, ranges=[(10, len(arena.blob))])
        assert (await victim.until_outcome(digest)).verdict is Verdict.MERGED

    stage.play(scene)


# --- numbers ---


def test_a_number_outside_of_the_window_is_refused(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device = arena.hostile
        top = await _merged(arena)
        for behind, reason in ((SEQ_WINDOW, Reason.SEQ_WINDOW), (SEQ_WINDOW - 1, Reason.EXPIRED)):
            manifest = await arena.manifest(device, arena.blob, seq=top - behind, expiry_height=0)
            digest = device.publish_manifest(device.seal(manifest))
            assert set((await arena.refusals(device, digest)).values()) == {reason}

    stage.play(scene)


def test_a_number_used_twice_is_evidence_once(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device = arena.hostile
        evidence = await arena.counts("flchain_evidence_total")
        seq = await _merged(arena)
        for local_steps in (98, 99):
            manifest = await arena.manifest(device, arena.blob, seq=seq, local_steps=local_steps)
            digest = device.publish_manifest(device.seal(manifest))
            assert set((await arena.refusals(device, digest)).values()) == {Reason.EQUIVOCATION}
        await arena.check_loop_goes_on()
        assert await arena.counts("flchain_evidence_total") == [count + 1 for count in evidence]
        for miner in arena.fleet.miner_ids:
            line = f"device-equivocation by {device.device_id}: seq {seq}"
            assert arena.fleet.log_text(miner).count(line) == 1

    stage.play(scene)


def test_an_update_that_comes_again_gets_the_same_receipts_and_is_merged_once(stage: Stage) -> None:
    """Redelivered by the broker, sent again by the device, and signed again: one update."""

    async def scene(arena: Arena) -> None:
        device = arena.es256
        manifest = await arena.manifest(device, arena.blob)
        first, second = device.seal(manifest), device.seal(manifest)
        assert peek(first).signature != peek(second).signature
        digest = device.publish_manifest(first)
        device.publish_raw("update", first)  # as QoS 1 may do
        device.publish_chunks(digest, arena.blob)
        await device.until_stored(digest, 4)
        receipts = set(device.receipt_envelopes)
        for envelope in (first, second):
            count = len(device.receipt_envelopes)
            assert device.publish_manifest(envelope) == digest
            device.publish_chunks(digest, arena.blob)
            await arena.until(lambda count=count: len(device.receipt_envelopes) >= count + 4, "four receipts again")  # type: ignore[misc]
        assert set(device.receipt_envelopes) == receipts
        assert digest not in device.outcomes, "decided too early for this test: raise TAU_MS"
        assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
        # After its end, too: the certified outcome, and no further effect.
        count = len(device.outcomes[digest])
        device.publish_manifest(second)
        await arena.until(lambda: len(device.outcomes[digest]) >= count + 4, "four outcomes again")
        await arena.check_loop_goes_on()
        for rows in _ledgers(arena, f"SELECT count(*) FROM entries WHERE update_digest = x'{digest.hex()}'"):
            assert rows == [(1,)]

    stage.play(scene)


def test_a_base_that_is_too_old_or_used_up_is_refused(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device = arena.hostile
        version, base = await arena.model()
        digest = device.publish(arena.blob, seq=arena.seq(), base_version=version, base=base)
        assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
        await arena.model()
        used = device.publish(arena.blob, seq=arena.seq(), base_version=version, base=base)
        assert set((await arena.refusals(device, used)).values()) == {Reason.BASE_REUSED}
        while (await arena.model())[0] <= version + STALENESS_MAX:
            await arena.check_loop_goes_on()
        old = device.publish(arena.blob, seq=arena.seq(), base_version=version, base=base)
        assert set((await arena.refusals(device, old)).values()) == {Reason.STALE}

    stage.play(scene)


# --- the blob ---


def _with_first_tensor(payload: UpdatePayload, **changes: Any) -> UpdatePayload:
    return replace(payload, tensors=(replace(payload.tensors[0], **changes), *payload.tensors[1:]))


def _blobs(honest: bytes) -> list[tuple[Reason, bytes]]:
    payload = wire.from_bytes(UpdatePayload, honest)
    exponent = payload.tensors[0].exponent
    # The encoder refuses an exponent outside of the format's bounds; a device need not use it.
    outside = codec.encode({1: 1, 2: [{1: t.name, 2: EXPONENT_MAX + 1, 3: t.values} for t in payload.tensors]})
    return [
        (Reason.SHAPE, wire.to_bytes(replace(payload, tensors=payload.tensors[:-1]))),
        (Reason.SHAPE, wire.to_bytes(replace(payload, tensors=payload.tensors[::-1]))),
        (Reason.SHAPE, wire.to_bytes(_with_first_tensor(payload, name="other"))),
        (Reason.SHAPE, wire.to_bytes(_with_first_tensor(payload, values=payload.tensors[0].values + b"\0"))),
        (Reason.EXPONENT, wire.to_bytes(_with_first_tensor(payload, exponent=EXPONENT_MAX))),
        (Reason.EXPONENT, wire.to_bytes(_with_first_tensor(payload, exponent=exponent - 40))),
        (Reason.EXPONENT, outside),
        (Reason.CODEC, wire.to_bytes(replace(payload, codec=Codec.INT16_DENSE))),
        (Reason.MALFORMED, honest[:-1]),
        (Reason.MALFORMED, honest + b"\0"),
        (Reason.MALFORMED, bytes(100)),
    ]


def test_a_blob_of_the_wrong_form_is_refused_and_forgotten(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device = arena.hostile
        kept = [_blob_names(arena, miner) for miner in arena.fleet.miner_ids]
        for reason, blob in _blobs(arena.blob):
            before = await arena.refused_updates(reason)
            digest = device.publish_manifest(device.seal(await arena.manifest(device, blob)))
            device.publish_chunks(digest, blob)
            assert set((await arena.refusals(device, digest)).values()) == {reason}
            assert await arena.refused_updates(reason) == [count + 1 for count in before]
        assert await arena.counts("flchain_assembly_bytes") == [0.0] * 4
        assert [_blob_names(arena, miner) for miner in arena.fleet.miner_ids] == kept

    stage.play(scene)


def test_chunks_with_another_digest_are_asked_for_again_and_then_refused(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device = arena.hostile
        dropped = await arena.refused_messages(Reason.DIGEST_MISMATCH)
        digest = device.publish_manifest(device.seal(await arena.manifest(device, arena.blob)))
        for attempt in range(1, DIGEST_RETRIES_MAX + 2):
            device.publish_chunks(digest, bytes(len(arena.blob)))
            if attempt <= DIGEST_RETRIES_MAX:
                await arena.until_dropped(Reason.DIGEST_MISMATCH, dropped, attempt)
        assert set((await arena.refusals(device, digest)).values()) == {Reason.DIGEST_MISMATCH}
        asked = [resume for resume in device.resumes if resume.update_digest == digest]
        assert {resume.ranges for resume in asked} == {((0, len(arena.blob)),)}
        assert {resume.miner_id for resume in asked} == set(arena.fleet.miner_ids)

    stage.play(scene)


def test_chunks_that_nobody_announced_are_dropped_and_missing_ones_asked_for(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device, blob = arena.es256, arena.blob
        before = await arena.refused_messages(Reason.FOREIGN_CHUNK)
        device.publish_chunks(sha256(b"never announced"), blob)
        digest = device.publish_manifest(device.seal(await arena.manifest(device, blob)))
        behind_the_end = Chunk(digest=digest, offset=len(blob) - 1, data=b"xx")
        device.publish_raw("chunk", wire.to_bytes(behind_the_end))
        await arena.until_dropped(Reason.FOREIGN_CHUNK, before, 2)
        device.publish_chunks(digest, blob, ranges=[(5, 9), (20, len(blob) - 7)])
        resume = await device.until_resume(digest)
        assert resume.ranges == ((0, 5), (9, 20), (len(blob) - 7, len(blob)))
        device.publish_chunks(digest, blob, ranges=list(resume.ranges))
        assert (await device.until_outcome(digest)).verdict is Verdict.MERGED

    stage.play(scene)


# --- floods ---


def _malformed(envelope: bytes) -> list[bytes]:
    """Messages that no decoder may follow, all shorter than a manifest may be."""
    return [
        b"",
        envelope[:-1],
        envelope + b"\0",
        b"\xd2" + envelope,
        b"\xa2\x01\x01\x01\x02",  # one key twice
        b"\x9f\x01\xff",  # indefinite length
        b"\x81" * 900 + b"\x00",  # nesting
        b"\x5b\x7f" + b"\xff" * 7,  # a string of 2**63 bytes
        b"\x9b\x7f" + b"\xff" * 7,  # an array of as many
        b"\xbb\x00\x00\x00\x10" + bytes(4),  # a map of 2**36
        b"\x18\x01",  # not the shortest form
        b"\xfb" + bytes(8),  # a float
        b"\xff" * 900,
    ]


def test_a_flood_of_malformed_messages_is_counted_and_takes_no_memory(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device, fleet = arena.hostile, arena.fleet
        noise = _malformed(device.seal(await arena.manifest(device, arena.blob)))
        repeats = 20
        malformed = await arena.refused_messages(Reason.MALFORMED)
        sent = 0
        for leaf in ("update", "chunk", "fetch"):
            sent += await device.flood(leaf, noise * repeats)
        await arena.until_dropped(Reason.MALFORMED, malformed, sent)

        rss = [fleet.rss_bytes(miner) for miner in fleet.miner_ids]
        oversize = await arena.refused_messages(Reason.OVERSIZE)
        large = [b"\x5a\x00\x00\xff\x00" + os.urandom(65_280 - 5)] * 500
        sent = await device.flood("update", large) + await device.flood("chunk", large)
        assert sent * len(large[0]) > 60 * MIB
        await arena.until_dropped(Reason.OVERSIZE, oversize, len(large))
        await arena.until_dropped(Reason.MALFORMED, malformed, 3 * len(noise) * repeats + len(large))
        for miner, before in zip(fleet.miner_ids, rss, strict=True):
            assert fleet.rss_bytes(miner) - before < FLOOD_BYTES_MAX
            assert fleet.is_running(miner)

    stage.play(scene)


def test_announcing_without_end_reserves_memory_for_a_few_blobs(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        device, count = arena.hostile, 40
        before = await arena.refused_updates(Reason.QUOTA)
        manifest = await arena.manifest(device, arena.blob)
        digests = [device.publish_manifest(device.seal(replace(manifest, seq=arena.seq()))) for _ in range(count)]
        refused = count - ASSEMBLIES_PER_DEVICE_MAX
        await arena.until(lambda: len({d for d, _ in device.receipts} & set(digests)) >= refused, "refusals")
        for digest in digests[ASSEMBLIES_PER_DEVICE_MAX:]:
            assert set((await arena.refusals(device, digest)).values()) == {Reason.QUOTA}
        assert await arena.refused_updates(Reason.QUOTA) == [value + refused for value in before]
        reserved = ASSEMBLIES_PER_DEVICE_MAX * len(arena.blob)
        assert await arena.counts("flchain_assembly_bytes") == [reserved] * 4
        # A stalled transfer gives way to the next one.
        await asyncio.sleep(5)
        digest = device.publish_manifest(device.seal(await arena.manifest(device, arena.blob)))
        device.publish_chunks(digest, arena.blob)
        assert (await device.until_outcome(digest)).verdict is Verdict.MERGED

    stage.play(scene)


def test_after_all_that_the_ledgers_agree(stage: Stage) -> None:
    async def scene(arena: Arena) -> None:
        version = await arena.check_loop_goes_on()
        rows = _ledgers(arena, f"SELECT model_root FROM models WHERE version = {version}")
        assert len({row for (row,) in rows}) == 1
        for miner in arena.fleet.miner_ids:
            assert "Traceback" not in arena.fleet.log_text(miner)
        for device in (arena.hostile, arena.other, arena.es256):
            stored = {digest for (digest, _), receipt in device.receipts.items() if receipt.status is _STORED}
            assert stored == set(device.outcomes)

    stage.play(scene)


_STORED: Final = ReceiptStatus.STORED


async def _merged(arena: Arena) -> int:
    """Let the hostile device have an update merged, as any device may; its number."""
    device = arena.hostile
    manifest = await arena.manifest(device, arena.blob)
    digest = device.publish_manifest(device.seal(manifest))
    device.publish_chunks(digest, arena.blob)
    assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
    await arena.model()
    return manifest.seq


def _ledgers(arena: Arena, query: str) -> list[list[tuple[Any, ...]]]:
    """Rows of every miner's ledger, while it runs."""
    found = []
    for miner in arena.fleet.miner_ids:
        database = sqlite3.connect(f"file:{arena.fleet.ledger_dir(miner)}/ledger.sqlite3?mode=ro", uri=True)
        found.append(database.execute(query).fetchall())
        database.close()
    return found


def _blob_names(arena: Arena, miner: str) -> set[str]:
    return {path.name for path in (arena.fleet.ledger_dir(miner) / "blobs" / "sha256").iterdir()}
