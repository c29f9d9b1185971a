"""What the demo hands out: disjoint shares and folds, in files that a device maps, without changing a value."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.demo.layout import place_devices, place_miners
from coordinator.demo.material import gather, write_examples
from coordinator.demo.options import parse
from coordinator.demo.workspace import Workspace
from edge_sdk.errors import ConfigError
from edge_sdk.training.dataset import load_dataset


@pytest.fixture
def pixels(tmp_path: Path) -> Path:
    """An npz of 3x3 images of bytes."""
    rng = np.random.default_rng(7)
    file = tmp_path / "pixels.npz"
    np.savez(file, x=rng.integers(0, 256, (400, 1, 3, 3)).astype(np.uint8), y=np.arange(400) % 4)
    return file


def test_nobody_s_example_is_anybody_else_s() -> None:
    material = gather(parse([]))
    rows = np.concatenate([*material.split.folds, *material.split.shares])
    assert len(np.unique(rows)) == len(rows)
    assert len(material.split.folds) == 4
    assert len(material.split.shares) == 12


@pytest.mark.parametrize("dataset", ["digits", "npz"])
def test_a_device_reads_back_what_it_was_dealt(tmp_path: Path, pixels: Path, dataset: str) -> None:
    source = ["--dataset", "npz", "--data", str(pixels)] if dataset == "npz" else []
    options = parse([*source, "--devices", "4", "--partition", "iid", "--keep", str(tmp_path / "run")])
    material = gather(options)
    with Workspace(options.keep) as workspace:
        miners, devices = place_miners(workspace, [1, 2, 3, 4]), place_devices(options, workspace)
        for folder in (*(miner.folder for miner in miners), *(device.folder for device in devices)):
            folder.mkdir()
        write_examples(material, miners, devices)
        data = material.data
        for device, share in zip(devices, material.split.shares, strict=True):
            read = load_dataset(device.data, input_shape=data.input_shape, class_count=data.class_count)
            np.testing.assert_allclose(read.features(slice(None)), data.x_train[share], rtol=1e-6)
            np.testing.assert_array_equal(read.y, data.y_train[share])
            # Pixels travel as bytes; values that are no bytes keep their floats.
            assert np.load(device.data)["x"].dtype == (np.uint8 if dataset == "npz" else np.float32)


def test_features_that_only_look_like_pixels_keep_their_values(tmp_path: Path) -> None:
    x = np.random.default_rng(1).random((400, 5)).astype(np.float32)
    file = tmp_path / "floats.npz"
    np.savez(file, x=x, y=np.arange(400) % 2)
    options = parse(["--dataset", "npz", "--data", str(file), "--devices", "2", "--partition", "iid"])
    material = gather(options)
    with Workspace(tmp_path / "run") as workspace:
        miners, devices = place_miners(workspace, [1, 2, 3, 4]), place_devices(options, workspace)
        for folder in (*(miner.folder for miner in miners), *(device.folder for device in devices)):
            folder.mkdir()
        write_examples(material, miners, devices)
        np.testing.assert_array_equal(np.load(devices[0].data)["x"], material.data.x_train[material.split.shares[0]])


def test_too_little_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = tmp_path / "few.npz"
    np.savez(file, x=np.zeros((10, 3), np.float32), y=np.arange(10) % 2)
    options = parse(["--dataset", "npz", "--data", str(file), "--devices", "2", "--partition", "iid"])
    with pytest.raises(ConfigError, match="training examples"):
        gather(options)
    with pytest.raises(ConfigError, match="cnn1d"):
        gather(replace(parse([]), model="cnn1d"))
