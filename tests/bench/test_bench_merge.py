"""A miner's work per update of 1 M int8 parameters against Flower's server on 1 M fp32 ones: same run, in turns.

Ours: read and verify the signed manifest, hash the blob against it, decode it, merge. Both sides start from bytes and
end with the next model; transport and storage are left out. One thread on each side.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.aggregation import fedbuff
from coordinator.aggregation.merge import merge
from coordinator.heap import keep_freed_memory
from edge_sdk.protocol import cose, wire
from edge_sdk.protocol.cose import SoftwareSigner
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.ids import ChainId, DeviceId, TaskId
from edge_sdk.protocol.messages import (
    Codec,
    Domain,
    EnergyQuality,
    ModelParams,
    ModelTensor,
    PayloadTensor,
    UpdateManifest,
    UpdatePayload,
)
from edge_sdk.protocol.model import model_root
from edge_sdk.training.quantize import channel_scales
from tests.conftest import ROOT, miss
from tests.support.measurements import Row, of_values, record

pytestmark = pytest.mark.bench

SIDE: Final = 1_000
PARAMETERS: Final = SIDE * SIDE
UPDATES: Final = 10
"""Of one block."""
STALENESS: Final = (0, 0, 0, 1, 0, 1, 0, 2, 0, 1)
SHIFTS: Final = (10, 10, 11, 10, 9, 11, 10, 10, 9, 10)
"""Exponents differ from device to device."""
EXPONENT: Final = -24
ROUNDS: Final = 40
CHAIN: Final = ChainId("chain-bench")
PEER: Final = Path(os.environ.get("FLCHAIN_FLWR_PYTHON", ROOT / ".venv-flwr" / "bin" / "python"))


def make_model() -> ModelParams:
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 0.05, (SIDE, SIDE)) * 2**-EXPONENT).astype("<i4")
    m, k = channel_scales(values, EXPONENT, 0)
    tensor = ModelTensor(
        name="w",
        shape=(SIDE, SIDE),
        exponent=EXPONENT,
        channel_axis=0,
        values=values.tobytes(),
        scale_m=m.tobytes(),
        scale_k=k.tobytes(),
    )
    return ModelParams(tensors=(tensor,))


def make_update(model: ModelParams, signer: SoftwareSigner, index: int) -> tuple[bytes, bytes]:
    """Envelope of the manifest, and the blob."""
    rng = np.random.default_rng(index + 1)
    values = np.clip(np.rint(rng.normal(0, 30, PARAMETERS)), -127, 127).astype("<i1")
    tensor = PayloadTensor(name="w", exponent=EXPONENT + SHIFTS[index], values=values.tobytes())
    blob = wire.to_bytes(UpdatePayload(codec=Codec.INT8_DENSE, tensors=(tensor,)))
    manifest = UpdateManifest(
        task=TaskId("bench"),
        chain_id=CHAIN,
        device_id=DeviceId("device"),
        seq=index,
        base_version=0,
        base_root=model_root(model),
        codec=Codec.INT8_DENSE,
        blob_bytes=len(blob),
        blob_digest=sha256(blob),
        example_count=100,
        local_steps=10,
        training_ms=100,
        energy_mj=10,
        energy_quality=EnergyQuality.MODELLED,
        expiry_height=1_000,
    )
    payload = wire.to_bytes(manifest)
    return cose.sign(payload, signer=signer, domain=Domain.UPDATE, chain_id=CHAIN, sender="device"), blob


class Ours:
    """One block of updates, from bytes to the next model."""

    def __init__(self) -> None:
        self.model = make_model()
        self.signer = SoftwareSigner(Ed25519PrivateKey.generate())
        self.updates = [make_update(self.model, self.signer, index) for index in range(UPDATES)]
        self.weights = [fedbuff.weight(staleness) for staleness in STALENESS]

    def admit(self) -> None:
        """Verify the envelope, read the manifest, hash the blob."""
        for envelope, blob in self.updates:
            payload = cose.verify(envelope, key=self.signer.public_key, domain=Domain.UPDATE, chain_id=CHAIN)
            manifest = wire.from_bytes(UpdateManifest, payload)
            assert hashlib.sha256(blob).digest() == manifest.blob_digest

    def merge(self) -> ModelParams:
        """Decode the blobs and merge them."""
        payloads = [wire.from_bytes(UpdatePayload, blob) for _, blob in self.updates]
        total = fedbuff.total_weight(UPDATES)
        return merge(self.model, list(zip(self.weights, payloads, strict=True)), total, 1 << 16)

    def whole(self) -> None:
        """Admit and merge."""
        self.admit()
        self.merge()

    def certify(self) -> None:
        """What else a merge costs: both model roots and the new model's bytes."""
        wire.to_bytes(self.model)
        model_root(self.model)
        model_root(self.model)


def time_ms(job: Callable[[], Any]) -> tuple[float, float]:
    """[wall, processor] milliseconds per update."""
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    job()
    wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return 1e3 * wall_s / UPDATES, 1e3 * cpu_s / UPDATES


@contextmanager
def running_peer() -> Iterator[tuple[str, Callable[[], dict[str, tuple[float, float]]]]]:
    """Flower's version, and a function that runs one round there."""
    if not PEER.is_file():
        miss("flwr (make .venv-flwr)")
    arguments = [str(PEER), str(Path(__file__).with_name("flower_peer.py")), str(PARAMETERS), str(UPDATES)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines_in, lines_out = process.stdin, process.stdout
        version: str = json.loads(lines_out.readline())["version"]

        def run_round() -> dict[str, tuple[float, float]]:
            lines_in.write("\n")
            lines_in.flush()
            answer: dict[str, tuple[float, float]] = json.loads(lines_out.readline())
            return answer

        try:
            yield version, run_round
        finally:
            lines_in.close()


@pytest.mark.timeout(600)
def test_work_per_update_against_flower() -> None:
    keep_freed_memory()  # as a miner does
    ours = Ours()
    parts = {"whole": ours.whole, "admit": ours.admit, "merge": ours.merge, "certify": ours.certify}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    peer: dict[str, list[tuple[float, float]]] = {}
    for job in parts.values():
        job()
    with running_peer() as (version, run_peer):
        for index in range(ROUNDS):
            theirs = run_peer() if index % 2 else {}
            for name, job in parts.items():
                taken[name].append(time_ms(job))
            for name, times in (theirs or run_peer()).items():
                peer.setdefault(name, []).append(times)

    def ratios(way: str, clock: int) -> list[float]:
        return [own[clock] / other[clock] for own, other in zip(taken["whole"], peer[way], strict=True)]

    def of_clock(times: list[tuple[float, float]], clock: int) -> dict[str, Any]:
        return of_values([pair[clock] for pair in times])

    ways = {
        "grid": "a ServerApp's way: pull responses, inflate, aggregate",
        "server": "the same with the SuperLink's SHA-256 check, which ours includes",
        "recorddict": "the shortest way: one RecordDict message",
    }
    for place, (way, text) in enumerate(ways.items(), start=1):
        cpu = of_clock(peer[way], 1)["figure"]
        record(
            Row(
                key=f"1-merge-{place}-{way}",
                what=f"verify + hash + decode + merge of an update of 1 M int8 parameters / Flower {version}, {way}",
                unit="ratio",
                bar=0.35 if way == "grid" else None,
                **of_values(ratios(way, 0)),
                note=f"{text}; Flower {of_clock(peer[way], 0)['figure']:.2f} ms; "
                f"ratio of processor time {of_values(ratios(way, 1))['figure']:.2f} (Flower {cpu:.2f} ms)",
            )
        )
    for place, name in enumerate(parts):
        cpu = of_clock(taken[name], 1)["figure"]
        record(
            Row(
                key=f"1-merge-ms-{place}-{name}",
                what=f"miner's work per update of 1 M int8 parameters: {name}",
                unit="ms",
                **of_clock(taken[name], 0),
                note=f"blocks of {UPDATES}; processor time {cpu:.2f} ms",
            )
        )
    assert len(peer["grid"]) == ROUNDS
