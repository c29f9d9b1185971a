"""The examples of the training README run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest

from coordinator.authoring.zoo import build
from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.protocol.wire import to_bytes

README = Path(__file__).parents[2] / "edge_sdk" / "training" / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_there_are_two() -> None:
    assert len(BLOCKS) == 2


def test_a_loop_of_your_own_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    artifact, params = build("mlp", (6,), 3, batch=16, seed=0)
    Path("net.flm").write_bytes(artifact.data)
    Path("net.model.cbor").write_bytes(to_bytes(params))
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    np.savez("data.npz", x=rng.normal(0, 0.4, (600, 6)) + np.eye(6)[y] * 3, y=y)
    found: dict[str, object] = {}
    exec(compile(BLOCKS[0], str(README), "exec"), found)
    trainer, x, labels = found["trainer"], found["x"], found["y"]
    assert trainer.evaluate(trainer.parameters(), x, labels).accuracy > 0.9  # type: ignore[attr-defined]
    assert set(found["delta"]) == {spec.name for spec in artifact.network.tensors}  # type: ignore[call-overload]


def test_a_sensor_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(compile(BLOCKS[1], str(README), "exec"), found)
    assert len(found["dataset"]) == 1  # type: ignore[arg-type]
    with ReplayBuffer.open_existing(Path("replay.sqlite3")) as buffer:
        assert (len(buffer), buffer.seen) == (1, 1)
