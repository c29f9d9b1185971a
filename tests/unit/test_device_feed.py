"""``flchain device feed``: rows in, what is refused, and how a feeder goes on that was cut off."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.adapters.replay_form import RowForm
from edge_sdk.cli import main
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.feed import LINE_BYTES_MAX, feed
from edge_sdk.errors import ConfigError, TrainingError
from tests.support.device_process import CLASSES, FEATURES, make_model


def configured(folder: Path, *, data: str = "replay.sqlite3", artifact: bool = False, extra: str = "") -> DeviceConfig:
    path = folder / "device.toml"
    path.write_text(f'[device]\nid = "d1"\ntask = "digits"\ndata = "{data}"\n[[broker]]\nhost = "127.0.0.1"\n{extra}')
    if artifact:
        (folder / "artifact.flm").write_bytes(make_model()[0].data)
    return DeviceConfig.load(path)


def row(x: Any, y: Any) -> str:
    return json.dumps({"x": x, "y": y})


def fed(config: DeviceConfig, lines: Sequence[str | bytes], *, is_resumed: bool = False) -> str:
    reading, writing = os.pipe()
    data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return feed(config, reading, is_resumed=is_resumed)
    finally:
        os.close(reading)
        writer.join()


def held(config: DeviceConfig) -> tuple[int, int]:
    with ReplayBuffer.open_existing(config.data) as buffer:
        return buffer.seen, len(buffer)


def test_rows_come_in_and_the_summary_says_what_is_held(tmp_path: Path) -> None:
    config = configured(tmp_path, extra="[replay]\nrows_max = 100\n")
    lines = [row([n, 0.5], n % 3) for n in range(150)]
    summary = fed(config, [*lines, ""])
    assert summary.startswith(f"{config.data}: holds 100 of 150 rows (class 0: 3")
    assert summary.endswith(" of 50)")
    assert held(config) == (150, 100)
    with ReplayBuffer.open_existing(config.data) as buffer:
        assert buffer.form == RowForm(input_shape=(2,))


def test_without_rows_nothing_is_made(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert fed(config, ["", ""]) == "no rows came"
    assert not config.data.exists()


def test_targets_of_a_network_without_classes(tmp_path: Path) -> None:
    config = configured(tmp_path)
    fed(config, [row([[1, 2], [3, 4]], [0.5, -1])])
    with ReplayBuffer.open_existing(config.data) as buffer:
        assert buffer.form == RowForm(input_shape=(2, 2), target_count=2)


def test_a_stream_that_begins_anew_is_fed_once(tmp_path: Path) -> None:
    config = configured(tmp_path)
    lines = [row([n, 0], 0) for n in range(90)]
    fed(config, lines[:30])
    fed(config, lines, is_resumed=True)
    assert held(config) == (90, 90)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", 'expected {"x": '),
        ("[" * 100_000, 'expected {"x": '),
        ("[1, 2]", 'expected {"x": '),
        ('{"x": [1, 2]}', 'expected {"x": '),
        (row([1, "a"], 0), 'expected {"x": '),
        (row([[1], [1, 2]], 0), 'expected {"x": '),
        ('{"x": [1, NaN], "y": 0}', "not finite"),
        (row([1, 1e300], 0), "not finite"),
        (row([1, 2], [1e300]), "not finite"),
        (row(1, 0), "no list"),
        (row([1, 2, 3], 0), "another form"),
        (row([1, 2], [1.0]), "another form"),
        (row([1, 2], "cat"), "a label, or a list of numbers"),
        (row([1, 2], None), "a label, or a list"),
        (b'{"x": [1, 2], "y": \xff}', 'expected {"x": '),
    ],
)
def test_a_bad_row_is_named_and_the_rows_before_it_are_kept(tmp_path: Path, line: str | bytes, message: str) -> None:
    config = configured(tmp_path)
    with pytest.raises(TrainingError, match=r"row 3: .*the rows before it are kept") as caught:
        fed(config, [row([1, 2], 0), row([1, 2], 1), line, row([1, 2], 2)])
    assert message in str(caught.value)
    assert held(config) == (2, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row([0.0] * (FEATURES + 1), 0), "the artifact takes"),
        (row([0.0] * FEATURES, CLASSES), f"a label in 0..{CLASSES - 1}"),
        (row([0.0] * FEATURES, [0.5]), "expected a label"),
    ],
)
def test_rows_are_held_against_the_artifact_where_there_is_one(tmp_path: Path, line: str, message: str) -> None:
    config = configured(tmp_path, artifact=True)
    with pytest.raises(TrainingError, match=message):
        fed(config, [line])
    fed(config, [row([0.0] * FEATURES, 0)])
    assert held(config) == (1, 1)


def test_an_endless_line_is_not_collected(tmp_path: Path) -> None:
    config = configured(tmp_path)
    with pytest.raises(TrainingError, match=f"more than {LINE_BYTES_MAX} bytes"):
        fed(config, [b"1" * (LINE_BYTES_MAX + 100_000)])


def test_a_device_without_a_buffer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, data="data.npz")
    with pytest.raises(ConfigError, match=r"expected a replay buffer, NAME\.sqlite3"):
        fed(config, [])
    assert main(["feed", "--config", str(config.path)]) == 2
    assert "expected a replay buffer" in capsys.readouterr().err
