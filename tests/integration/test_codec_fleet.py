"""Four miner processes and a broker with updates in other codecs: merged, certified, and merged again by an auditor."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from coordinator.codec_choice import parse_codec
from coordinator.ledger.replay import verify_directory
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Codec, PayloadTensor, Reason, ReceiptStatus, UpdatePayload, Verdict
from tests.support.fleet import Fleet, Rules, until_same_height
from tests.support.scripted_device import ScriptedDevice

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("mosquitto_path")]


@pytest.mark.parametrize("codec", [pytest.param("topk:0.1", marks=pytest.mark.slow), "output", "spsa"])
def test_updates_of_a_codec_are_merged_and_others_refused(codec: str) -> None:
    async def scenario() -> None:
        async with Fleet(Rules(devices=3, block_size=2, codec=parse_codec(codec))) as fleet:
            first, second, third = (ScriptedDevice(fleet, device) for device in fleet.device_ids)
            async with first, second, third:
                honest = third.train(fleet.model, seed=3)
                for payload, claimed, reason in (
                    (_without_the_last(honest), honest.codec, Reason.SHAPE),
                    (_with_all_tensors(fleet, honest), honest.codec, Reason.OVERSIZE),
                    (honest, Codec.INT16_DENSE, Reason.CODEC),
                ):
                    blob = wire.to_bytes(payload)
                    manifest = third.manifest(blob, seq=int(reason), codec=claimed)
                    digest = third.publish_manifest(third.seal(manifest))
                    third.publish_chunks(digest, blob)
                    assert (await third.until_receipt(digest, ReceiptStatus.REFUSED)).reason is reason
                digests = [
                    device.publish(wire.to_bytes(device.train(fleet.model, seed=seed)), seq=0)
                    for seed, device in enumerate((first, second), start=1)
                ]
                for device, digest in zip((first, second), digests, strict=True):
                    assert (await device.until_outcome(digest)).verdict is Verdict.MERGED
            await until_same_height(fleet, version=1)
            for miner in fleet.miner_ids:
                fleet.kill(miner, number=signal.SIGTERM)
            report = await asyncio.to_thread(verify_directory, fleet.root)
            assert [miner.merges_recomputed for miner in report.miners] == [1] * 4

    asyncio.run(scenario())


def _without_the_last(honest: UpdatePayload) -> UpdatePayload:
    """A tensor less; of SPSA, which has one message, one more."""
    return replace(honest, tensors=honest.tensors[:-1] or 2 * honest.tensors)


def _with_all_tensors(fleet: Fleet, honest: UpdatePayload) -> UpdatePayload:
    """A dense update of every tensor under the codec's number: what no task of these codecs carries."""
    dense = tuple(
        PayloadTensor(name=tensor.name, exponent=tensor.exponent, values=bytes(len(tensor.values) // 4))
        for tensor in fleet.model.tensors
    )
    return replace(honest, tensors=dense)
