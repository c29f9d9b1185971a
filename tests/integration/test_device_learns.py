"""A real device process against a real broker: models in, updates out, and what happens to each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sdk.protocol.messages import Reason, Verdict
from tests.support.device_process import DeviceProcess, make_model, wait_until
from tests.support.fake_miners import FakeMiners, Keys, make_genesis, running_mosquitto

pytestmark = pytest.mark.network

IDLE_MIB_MAX = 45
"""Connected, before the first model: no numpy, no runtime."""
PEAK_MIB_MAX = 100
IDLE_AFTER_MIB_MAX = 80


@pytest.fixture
def world(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int) -> Iterator[tuple[FakeMiners, DeviceProcess]]:
    artifact, params = make_model()
    keys = Keys()
    genesis = make_genesis(keys, artifact_digest=artifact.digest, params=params)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port):
        miners = FakeMiners(genesis, keys, params, artifact.data, broker_port=free_tcp_port)
        device = DeviceProcess(tmp_path / "d1", genesis, broker_port=free_tcp_port, urls=(miners.url,))
        with miners.running():
            yield miners, device
            device.kill()


def test_device_trains_version_after_version(world: tuple[FakeMiners, DeviceProcess]) -> None:
    miners, device = world
    device.start()
    wait_until(lambda: miners.version >= 4, what="four versions")
    wait_until(lambda: device.query("SELECT count(*) FROM updates WHERE verdict = 1")[0][0] >= 3)
    assert device.terminate() == 0
    # Every update of the device is merged once, in the order of its sequence numbers.
    assert len(set(miners.merged)) == len(miners.merged)
    seqs = [miners.manifests[digest].seq for digest in miners.merged]
    assert seqs == list(range(1, len(seqs) + 1))
    bases = [miners.manifests[digest].base_version for digest in miners.merged]
    assert bases == sorted(set(bases))
    wal = device.folder / "state.sqlite3-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    phases = {line["phase"] for line in device.phases()}
    assert {"fetch", "self_test", "install", "train", "make_update", "store", "publish", "receipt", "outcome"} <= phases
    train = next(line for line in device.phases() if line["phase"] == "train")
    assert train["energy_quality"] == "modelled"
    assert train["energy_mj"] > 0
    memory_mib = {line["moment"]: line["rss_kib"] / 1024 for line in device.phases() if line["phase"] == "memory"}
    peak_mib = max(line["peak_kib"] for line in device.phases() if line["phase"] == "memory") / 1024
    assert memory_mib["connected"] <= IDLE_MIB_MAX
    assert memory_mib["released"] <= IDLE_AFTER_MIB_MAX
    assert peak_mib <= PEAK_MIB_MAX
    certified = [line["version"] for line in device.phases() if line["phase"] == "certificate_verified"]
    assert certified[:3] == [1, 2, 3]


def test_only_the_mqtt_port_is_open(world: tuple[FakeMiners, DeviceProcess]) -> None:
    """Models come in MQTT chunks where HTTP does not answer; the artifact is on the image."""
    miners, device = world
    miners.serves_http = False
    (device.folder / "artifact.flm").write_bytes(miners.artifact)
    device.start()
    wait_until(lambda: miners.version >= 2, what="two versions")
    assert device.terminate() == 0


def test_stale_delta_returns_to_the_residual(world: tuple[FakeMiners, DeviceProcess]) -> None:
    miners, device = world
    miners.verdict = (Verdict.REFUSED, Reason.STALE)
    device.start()
    wait_until((device.folder / "run.jsonl").exists)
    wait_until(lambda: any(line["phase"] == "outcome" for line in device.phases()), what="an outcome")
    assert device.terminate() == 0
    assert device.query("SELECT verdict, reason FROM updates")[0] == (int(Verdict.REFUSED), int(Reason.STALE))
    (data,) = device.query("SELECT data FROM residual")[0]
    from edge_sdk.training.artifact import Artifact
    from edge_sdk.training.delta import unpack_residual

    specs = Artifact.load(miners.artifact).network.tensors
    residual = unpack_residual(data, specs)
    # A residual of quantization alone stays below one grid step; the whole delta is larger.
    assert max(float(abs(value).max()) for value in residual.values()) > 1e-3


def test_broker_restart_loses_nothing(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int) -> None:
    artifact, params = make_model()
    keys = Keys()
    genesis = make_genesis(keys, artifact_digest=artifact.digest, params=params)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port) as restart:
        miners = FakeMiners(genesis, keys, params, artifact.data, broker_port=free_tcp_port)
        device = DeviceProcess(tmp_path / "d1", genesis, broker_port=free_tcp_port, urls=(miners.url,))
        with miners.running():
            device.start()
            wait_until(lambda: miners.version >= 1, what="first version")
            restart()
            before = miners.version
            wait_until(lambda: miners.version >= before + 2, what="versions after the restart")
            assert device.terminate() == 0
        assert len(set(miners.merged)) == len(miners.merged)
