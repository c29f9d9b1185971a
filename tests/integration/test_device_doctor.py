"""``flchain device doctor`` and ``status`` against real files, a real broker and a miner."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_sdk.cli import main
from edge_sdk.protocol.digest import key_fingerprint
from edge_sdk.protocol.messages import Genesis
from tests.support.board_trees import FAMILIES, write_tree
from tests.support.device_process import DeviceProcess, make_model
from tests.support.fake_miners import Keys, make_genesis, running_mosquitto

pytestmark = pytest.mark.network


@pytest.fixture
def miner_url() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def genesis() -> Genesis:
    artifact, params = make_model()
    return make_genesis(Keys(), artifact_digest=artifact.digest, params=params)


def diagnose(device: DeviceProcess, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    """On a healthy board: what this machine is like must not matter."""
    board = write_tree(device.folder / "board", FAMILIES["rpi-5"])
    code = main(["doctor", "--config", str(device.config), "--root", str(board)])
    lines = capsys.readouterr().out.splitlines()
    findings = [line for line in lines if not line.startswith(" ")]
    # Worst of each kind: a later line of the same check replaces a better one.
    found: dict[str, str] = {}
    for line in findings:
        level, what = line.split(":")[0].split()
        if found.get(what) != "fail":
            found[what] = level
    assert all(line.startswith(("ok", "warn", "fail", "      -> ")) for line in lines)
    return code, found


def test_healthy_device(
    mosquitto_path: Path,
    tmp_path: Path,
    free_tcp_port: int,
    miner_url: str,
    genesis: Genesis,
    capsys: pytest.CaptureFixture[str],
) -> None:
    device = DeviceProcess(tmp_path / "d1", genesis, broker_port=free_tcp_port, urls=(miner_url,))
    (device.folder / "artifact.flm").write_bytes(make_model()[0].data)
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port):
        code, found = diagnose(device, capsys)
    assert set(found.values()) == {"ok"}, found
    assert code == 0
    assert set(found) == {
        "board",
        "power",
        "heat",
        "storage",
        "time",
        "memory",
        "swap",
        "mode",
        "watchdog",
        "genesis",
        "clock",
        "disk",
        "key",
        "certificate",
        "state",
        "backend",
        "artifact",
        "data",
        "broker",
        "miner",
    }


def artifact_findings(device: DeviceProcess, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines about the artifact, with their advice."""
    main(["doctor", "--config", str(device.config)])
    lines = capsys.readouterr().out.splitlines()
    return [line for at, line in enumerate(lines) if " artifact: " in line or " artifact: " in lines[at - 1]][:2]


def test_an_artifact_comes_over_http_or_with_the_board(
    tmp_path: Path, miner_url: str, genesis: Genesis, capsys: pytest.CaptureFixture[str]
) -> None:
    open_site = DeviceProcess(tmp_path / "open", genesis, broker_port=1, urls=("http://127.0.0.1:1", miner_url))
    assert artifact_findings(open_site, capsys)[0] == (
        "ok    artifact: not here yet; it comes over HTTP with the first model"
    )
    closed = DeviceProcess(tmp_path / "closed", genesis, broker_port=1, urls=("http://127.0.0.1:1",))
    finding, advice = artifact_findings(closed, capsys)
    assert finding.startswith(f"fail  artifact: {closed.folder / 'artifact.flm'} is not there, and no configured miner")
    assert advice.startswith("      -> copy artifact.flm from the operator of a miner to ")
    nowhere = DeviceProcess(tmp_path / "nowhere", genesis, broker_port=1)
    assert artifact_findings(nowhere, capsys)[0].startswith("warn  artifact: ")


def test_an_artifact_whose_length_is_signed_comes_over_mqtt_too(
    tmp_path: Path, genesis: Genesis, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = DeviceProcess(
        tmp_path / "d1", replace(genesis, artifact_bytes=5_000), broker_port=1, urls=("http://127.0.0.1:1",)
    )
    assert artifact_findings(closed, capsys)[0] == (
        "ok    artifact: not here yet; 5000 bytes come with the first model, over HTTP or MQTT"
    )


def test_the_author_of_an_artifact_is_named_and_another_one_refused(
    tmp_path: Path, genesis: Genesis, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Keys()
    author, other = (keys.signers[name] for name in list(keys.signers)[:2])
    signed = make_model()[0].signed(author)
    pinned = replace(genesis, artifact_digest=signed.digest, artifact_author=author.public_key)
    devices = [
        DeviceProcess(tmp_path / name, anchor, broker_port=1)
        for name, anchor in (("d1", pinned), ("d2", replace(pinned, artifact_author=other.public_key)))
    ]
    for device in devices:
        (device.folder / "artifact.flm").write_bytes(signed.data)
    fingerprint = key_fingerprint(author.public_key)
    assert artifact_findings(devices[0], capsys)[0].endswith(f"artifact.flm, signed by {fingerprint}")
    refused = artifact_findings(devices[1], capsys)[0]
    assert refused.startswith("fail  artifact: ")
    assert refused.endswith(f"is signed by {fingerprint}, expected {key_fingerprint(other.public_key)}")


def test_an_artifact_of_another_task_is_named(
    tmp_path: Path, genesis: Genesis, capsys: pytest.CaptureFixture[str]
) -> None:
    device = DeviceProcess(tmp_path / "d1", genesis, broker_port=1)
    path = device.folder / "artifact.flm"
    path.write_bytes(make_model(seed=2)[0].data[:-1])
    finding, advice = artifact_findings(device, capsys)
    assert finding.startswith(f"fail  artifact: {path} is not the one that genesis names: artifact digest is ")
    assert advice == "      -> remove it, or copy artifact.flm from the operator of a miner"


def test_everything_is_wrong(tmp_path: Path, genesis: Genesis, capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceProcess(tmp_path / "d1", genesis, broker_port=1, urls=("http://127.0.0.1:1",))
    (device.folder / "key.pem").chmod(0o644)
    (device.folder / "state.sqlite3").write_bytes(b"garbage" * 1_000)
    (device.folder / "data.npz").unlink()
    (device.folder / "genesis.cbor").write_bytes(b"\x00")
    (device.folder / "cert.pem").write_text("nonsense")
    code, found = diagnose(device, capsys)
    assert code == 1
    for what in ("genesis", "key", "state", "data", "broker", "certificate"):
        assert found[what] == "fail"
    assert found["miner"] == "warn"


def test_status_of_a_new_device(tmp_path: Path, genesis: Genesis, capsys: pytest.CaptureFixture[str]) -> None:
    device = DeviceProcess(tmp_path / "d1", genesis, broker_port=1)
    assert main(["status", "--config", str(device.config)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document.pop("key")) == 64
    assert document == {"device": "d1", "task": "digits", "model": None, "state": None}


def test_corrupt_state_stops_the_device_with_advice(tmp_path: Path, genesis: Genesis) -> None:
    device = DeviceProcess(tmp_path / "d1", genesis, broker_port=1)
    (device.folder / "state.sqlite3").write_bytes(b"garbage" * 1_000)
    device.start()
    assert device.wait() == 1
    assert "move it away and enrol" in device.log()
    assert "Traceback" not in device.log()
