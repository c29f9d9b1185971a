"""A board that sees its data once: rows come while it runs, it trains on what it kept, and has a model of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.adapters.personal_file import PersonalFile
from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.device.config import DeviceConfig
from edge_sdk.protocol.digest import key_fingerprint
from tests.support.device_process import ROOT, DeviceProcess, make_model, wait_until
from tests.support.fake_miners import FakeMiners, Keys, make_genesis, running_mosquitto

pytestmark = pytest.mark.network


@pytest.fixture
def world(mosquitto_path: Path, tmp_path: Path, free_tcp_port: int) -> Iterator[tuple[FakeMiners, DeviceProcess]]:
    unsigned, params = make_model()
    keys = Keys()
    artifact = unsigned.signed(keys.registrar)
    genesis = replace(
        make_genesis(keys, artifact_digest=artifact.digest, params=params),
        artifact_bytes=len(artifact.data),
        artifact_author=artifact.author,
    )
    with running_mosquitto(mosquitto_path, tmp_path / "broker", free_tcp_port):
        miners = FakeMiners(genesis, keys, params, artifact.data, broker_port=free_tcp_port)
        device = DeviceProcess(tmp_path / "d1", genesis, broker_port=free_tcp_port, urls=(miners.url,))
        text = device.config.read_text().replace("data.npz", "replay.sqlite3")
        device.config.write_text(text + "[training]\npersonal_search = true\n[replay]\nrows_max = 64\n")
        with miners.running():
            yield miners, device
            device.kill()


def command(device: DeviceProcess, name: str, *options: str, rows: str = "") -> str:
    arguments = [sys.executable, "-m", "edge_sdk.entry", "device", name, "--config", str(device.config), *options]
    done = subprocess.run(arguments, input=rows, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(device: DeviceProcess) -> str:
    with np.load(device.folder / "data.npz") as data:
        return "".join(
            json.dumps({"x": x.tolist(), "y": int(y)}) + "\n" for x, y in zip(data["x"], data["y"], strict=True)
        )


def marks(device: DeviceProcess, phase: str) -> list[dict[str, Any]]:
    return [line for line in device.phases() if line["phase"] == phase]


def test_rows_that_come_while_it_runs_are_trained_on(world: tuple[FakeMiners, DeviceProcess]) -> None:
    miners, device = world
    device.start()
    wait_until(lambda: "no replay buffer yet" in device.log(), 60, what="the job fails for want of rows")
    assert miners.version == 0
    assert marks(device, "install"), "a board without rows installs the model all the same"
    assert "holds 64 of 96 rows" in command(device, "feed", rows=lines(device))
    wait_until(lambda: miners.version >= 2, 60, what="two versions")
    assert device.terminate() == 0
    assert f"signed by {key_fingerprint(miners.chain.keys.registrar.public_key)}" in device.log()
    personal = marks(device, "personal")
    assert {line["held_out"] for line in personal} != {0}

    config = DeviceConfig.load(device.config)
    kept = PersonalFile(config.personal_file, miners.genesis).read()
    assert kept is not None
    assert kept.alpha >= 0.5
    status = json.loads(command(device, "status"))
    assert status["replay"] == {"rows": 64, "capacity": 64, "seen": 96}
    shown = status["personal"]
    assert shown == kept.summary()
    assert {key: personal[-1][key] for key in shown} == shown

    # It is there again after a restart, also when the power was cut.
    device.start()
    wait_until(lambda: len(marks(device, "memory")) > len(personal), 60, what="the restarted device works")
    device.kill()
    again = PersonalFile(config.personal_file, miners.genesis).read()
    assert again is not None
    assert again.version >= kept.version


def test_a_job_keeps_its_rows_over_a_kill_while_the_stream_goes_on(world: tuple[FakeMiners, DeviceProcess]) -> None:
    miners, device = world
    command(device, "feed", rows=lines(device))
    device.start(failpoint="device.mid_training:3")
    device.wait()
    copy = device.folder / "base" / "examples"
    before = np.load(copy / "number.npy").tolist()
    # Class 0 as often again as all there was: other rows are held now.
    command(device, "feed", rows="".join(line + "\n" for line in lines(device).splitlines() if line.endswith("0}")) * 2)
    with ReplayBuffer.open_existing(device.folder / "replay.sqlite3") as buffer:
        assert buffer.read()[2].tolist() != before
    device.start(failpoint="device.after_training")
    device.wait()
    assert np.load(copy / "number.npy").tolist() == before
    device.start()
    wait_until(lambda: miners.version >= 1, 60, what="a version")
    assert device.terminate() == 0
