"""Four miner processes, a sequencer and a real broker: the way of an update from manifest to certified outcome."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from coordinator.broker.local import BrokerKind
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Codec, Reason, ReceiptStatus, Verdict
from tests.support.fleet import Fleet, Rules, until_same_height
from tests.support.ordering import until
from tests.support.scripted_device import ScriptedDevice

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]


@pytest.mark.parametrize("broker", list(BrokerKind))
def test_a_block_is_merged_certified_and_served(broker: BrokerKind) -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=3, block_size=3, broker=broker)) as fleet:
            first, second, third = (ScriptedDevice(fleet, device) for device in fleet.device_ids)
            async with first, second, third:
                honest = [wire.to_bytes(device.train(fleet.model, seed=n)) for n, device in enumerate((first, second))]
                hostile = wire.to_bytes(third.train(fleet.model, seed=9, scale=-1.0))
                digests = [
                    first.publish(honest[0], seq=0),
                    second.publish(honest[1], seq=0),
                    third.publish(hostile, seq=0),
                ]
                await first.until_stored(digests[0], 4)
                entries = [
                    await device.until_outcome(digest)
                    for device, digest in zip((first, second, third), digests, strict=True)
                ]
            assert [entry.verdict for entry in entries] == [Verdict.MERGED, Verdict.MERGED, Verdict.REFUSED]
            assert entries[2].reason is Reason.QUALITY
            await until_same_height(fleet, version=1)

    asyncio.run(scenario())


def test_bad_input_is_refused_with_a_reason_and_the_loop_goes_on() -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=3, block_size=1)) as fleet:
            device, other, revoked = (ScriptedDevice(fleet, name) for name in fleet.device_ids)
            async with device, other, revoked:
                payload = device.train(fleet.model, seed=1)
                blob = wire.to_bytes(payload)
                refused = {
                    Reason.WRONG_CHAIN: device.manifest(blob, seq=1, chain_id="chain-other"),
                    Reason.WRONG_TASK: device.manifest(blob, seq=2, task="other-task"),
                    Reason.FUTURE_BASE: device.manifest(blob, seq=3, base_version=7),
                    Reason.BASE_ROOT: device.manifest(blob, seq=4, base_root=bytes(32)),
                    Reason.CODEC: device.manifest(blob, seq=5, codec=Codec.INT16_DENSE),
                    Reason.EXPIRED: device.manifest(blob, seq=6, expiry_height=0),
                    Reason.OVERSIZE: device.manifest(blob, seq=7, blob_bytes=10_000_000),
                }
                for reason, manifest in refused.items():
                    digest = device.publish_manifest(device.seal(manifest))
                    receipt = await device.until_receipt(digest, ReceiptStatus.REFUSED)
                    assert receipt.reason is reason, reason.name
                for reason, wrong in (
                    (Reason.SHAPE, replace(payload, tensors=payload.tensors[:-1])),
                    (
                        Reason.EXPONENT,
                        replace(payload, tensors=(replace(payload.tensors[0], exponent=25), *payload.tensors[1:])),
                    ),
                ):
                    digest = device.publish(wire.to_bytes(wrong), seq=10 + int(reason))
                    assert (await device.until_receipt(digest, ReceiptStatus.REFUSED)).reason is reason

                stranger = device.seal(device.manifest(blob, seq=20))
                digest = other.publish_manifest(stranger)
                assert (await other.until_receipt(digest, ReceiptStatus.REFUSED)).reason is Reason.WRONG_TOPIC

                await fleet.submit(fleet.revocation(revoked.device_id))
                digest = revoked.publish(blob, seq=0)
                assert (await revoked.until_receipt(digest, ReceiptStatus.REFUSED)).reason is Reason.REVOKED_DEVICE

                for noise in (b"", b"\xff" * 900, b"\x5f" * 60_000, device.seal(device.manifest(blob, seq=21))[:-1]):
                    other.publish_raw("update", noise)
                    other.publish_raw("chunk", noise)
                false = bytearray(device.seal(device.manifest(blob, seq=22)))
                false[-1] ^= 1
                device.publish_raw("update", bytes(false))

                digest = device.publish(blob, seq=0)  # after all that, an honest update goes its way
                assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
                count = len(device.receipt_envelopes)
                device.publish(blob, seq=0)  # again: the certified end, no further effect
                second = device.seal(device.manifest(blob, seq=0, local_steps=99))
                digest = device.publish_manifest(second)
                assert (await device.until_receipt(digest, ReceiptStatus.REFUSED)).reason is Reason.EQUIVOCATION
                assert len(device.receipt_envelopes) <= count + 4

            async def is_evident() -> bool:
                return "flchain_evidence_total 1.0" in await fleet.metrics("miner-0")

            await until(is_evident)  # the refusal was said at once; the evidence goes through the log
            metrics = await fleet.metrics("miner-0")
            assert 'flchain_messages_refused_total{reason="bad_signature"} 1.0' in metrics
            await until_same_height(fleet, version=1)

    asyncio.run(scenario())


def test_missing_chunks_come_from_the_device_or_from_a_peer() -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=1, block_size=1, width=700)) as fleet:
            (device,) = (ScriptedDevice(fleet, name) for name in fleet.device_ids)
            async with device:
                fleet.kill("miner-3", number=signal.SIGKILL)
                blob = wire.to_bytes(device.train(fleet.model, seed=1, steps=3))
                digest = device.publish_manifest(device.seal(device.manifest(blob, seq=0)))
                device.publish_chunks(digest, blob, ranges=[(0, 1_000), (2_000, 50_000)])
                resume = await device.until_resume(digest)
                assert resume.ranges == ((1_000, 2_000), (50_000, len(blob)))
                device.publish_chunks(digest, blob, ranges=list(resume.ranges))
                assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
                # The fourth was away: it replays the log and fetches what the ledger names from its peers.
                fleet.start("miner-3")
                await until_same_height(fleet, version=1)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("behaviour", "sign"),
    [
        ("lying-scores", "score-outlier by miner-2"),
        ("lying-receipts", "receipt-without-blob by miner-2"),
        ("lying-roots", "root-dissent by miner-2"),
        ("silent", "absent by miner-2"),
    ],
)
def test_one_lying_miner_of_four_is_outvoted_and_named(behaviour: str, sign: str) -> None:
    async def scenario() -> None:
        rules = Rules(devices=2, block_size=2, phase_ms=1_000, behaviours={"miner-2": behaviour})
        async with Fleet(rules) as fleet:
            first, second = (ScriptedDevice(fleet, name) for name in fleet.device_ids)
            async with first, second:
                digests = [
                    device.publish(wire.to_bytes(device.train(fleet.model, seed=n)), seq=0)
                    for n, device in enumerate((first, second))
                ]
                for device, digest in zip((first, second), digests, strict=True):
                    assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
            await until_same_height(fleet, version=1)
            assert sign in fleet.log_text("miner-0")

    asyncio.run(scenario())
