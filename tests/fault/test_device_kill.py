"""SIGKILL of a device at every arrow of an update's way: nothing that was stored is lost, nothing is merged twice."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.protocol.digest import update_digest
from tests.support.device_process import DeviceProcess, make_model, wait_until
from tests.support.fake_miners import FakeMiners, Keys, make_genesis, running_mosquitto, task_params

pytestmark = [pytest.mark.network, pytest.mark.fault]

ONE_PER_ARROW = (
    "device.after_fetch",
    "device.mid_stage",
    "device.before_switch",
    "device.after_switch",
    "device.mid_training:3",
    "device.after_training",
    "device.before_outbox_commit",
    "device.after_outbox_commit",
    "device.after_manifest",
    "device.mid_chunks",
    "device.after_receipt",
    "device.before_settle_commit",
    "device.after_settle_commit",
)
QUICK_ELSEWHERE = ("device.before_switch", "device.mid_training:3", "device.mid_chunks", "device.before_settle_commit")
"""Have their quick case in test_fleet_kills."""
AGAIN = (
    "device.after_fetch:2",
    "device.mid_stage:2",
    "device.before_switch:2",
    "device.after_switch:2",
    "device.mid_training:8",
    "device.after_checkpoint:2",
    "device.before_outbox_commit:2",
    "device.after_outbox_commit:2",
    "device.after_manifest:2",
    "device.mid_chunks:2",
    "device.after_receipt:3",
    "device.after_receipt:6",
    "device.before_settle_commit:2",
    "device.after_settle_commit:2",
)


@pytest.fixture
def world(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int) -> Iterator[tuple[FakeMiners, DeviceProcess]]:
    artifact, params = make_model()
    keys = Keys()
    rules = task_params(local_steps=6)
    genesis = make_genesis(keys, artifact_digest=artifact.digest, params=params, rules=rules)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port):
        miners = FakeMiners(genesis, keys, params, artifact.data, broker_port=free_tcp_port)
        device = DeviceProcess(tmp_path / "d1", genesis, broker_port=free_tcp_port, urls=(miners.url,))
        device.write_config(
            genesis, broker_port=free_tcp_port, urls=(miners.url,), extra="[training]\ncheckpoint_s = 1.0\n"
        )
        with miners.running():
            yield miners, device
            device.kill()


def check_books(miners: FakeMiners, device: DeviceProcess) -> None:
    """Both sides' books agree: checked from the files, after the run."""
    assert len(set(miners.merged)) == len(miners.merged), "merged twice"
    seqs: dict[int, set[bytes]] = {}
    for digest, manifest in miners.manifests.items():
        seqs.setdefault(manifest.seq, set()).add(digest)
    assert all(len(digests) == 1 for digests in seqs.values()), "one seq with two digests"
    bases = [miners.manifests[digest].base_version for digest in miners.merged]
    assert len(set(bases)) == len(bases), "two updates on one base"
    rows = device.query("SELECT digest, envelope, verdict, blob IS NULL FROM updates")
    for digest, envelope, verdict, is_blob_gone in rows:
        assert update_digest(envelope) == digest
        assert (verdict is not None) == bool(is_blob_gone)
    held = {digest for digest, *_ in rows}
    assert set(miners.manifests) <= held, "published but not in the outbox"
    quorum = device.query("SELECT digest FROM receipts WHERE status = 1 GROUP BY digest HAVING count(*) >= 3")
    on_ledger = set(miners.outcomes)
    assert {digest for (digest,) in quorum} <= on_ledger, "stored by a quorum and lost"


def kill_and_go_on(world: tuple[FakeMiners, DeviceProcess], failpoint: str) -> None:
    miners, device = world
    device.start(failpoint=failpoint)
    assert device.wait(60) == -signal.SIGKILL
    if (device.folder / "state.sqlite3").exists():
        check_books(miners, device)
    version = miners.version
    device.start()
    wait_until(lambda: miners.version >= version + 2, timeout_s=60, what="progress after the restart")
    wait_until(lambda: not device.query("SELECT 1 FROM updates WHERE verdict IS NULL AND seq = 1"), timeout_s=60)
    assert device.terminate() == 0
    check_books(miners, device)


@pytest.mark.parametrize(
    "failpoint",
    [pytest.param(point, marks=pytest.mark.slow) if point in QUICK_ELSEWHERE else point for point in ONE_PER_ARROW],
)
def test_killed_once(world: tuple[FakeMiners, DeviceProcess], failpoint: str) -> None:
    kill_and_go_on(world, failpoint)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", AGAIN)
def test_killed_later(world: tuple[FakeMiners, DeviceProcess], failpoint: str) -> None:
    kill_and_go_on(world, failpoint)


def test_sigterm_in_the_middle_of_training(world: tuple[FakeMiners, DeviceProcess]) -> None:
    """The job is saved, the process ends with 0, and the next one takes the job up where it was."""
    miners, device = world
    config = device.config.read_text()
    device.config.write_text(config.replace("[training]\n", "[training]\nsteps = 40000\n"))
    device.start()
    wait_until((device.folder / "base" / "state.cbor").exists, what="a checkpoint")
    assert device.terminate() == 0
    assert device.query("SELECT count(*) FROM updates") == [(0,)]
    job = (device.folder / "base" / "state.cbor").read_bytes()
    assert job
    device.config.write_text(config)  # six steps: the saved job has done more already
    device.start()
    wait_until(lambda: miners.version >= 1, what="the update of the saved job")
    assert device.terminate() == 0
    first = next(line for line in device.phases() if line["phase"] == "train" and "steps" in line)
    assert first["base_version"] == 0
    check_books(miners, device)
