"""Readers of data sets: what they return and what they refuse, with file, array and row."""

import gzip
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from coordinator.datasets.arrays import load_npz
from coordinator.datasets.digits import load_digits
from coordinator.datasets.hapt import TEST_PEOPLE, load_hapt
from coordinator.datasets.idx import load_idx
from edge_sdk.errors import ConfigError


def idx_bytes(values: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, *, train: int = 6, test: int = 4) -> None:
    rng = np.random.default_rng(1)
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 5, 5), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 3
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images)))
        (folder / f"{part}-labels.idx1-ubyte").write_bytes(idx_bytes(labels))


def test_digits_hold_out_a_fifth_of_each_class() -> None:
    data = load_digits()
    assert data.x_train.shape == (1433, 1, 8, 8)
    assert data.x_test.shape == (364, 1, 8, 8)
    assert data.input_shape == (1, 8, 8)
    assert 0.0 <= data.x_train.min() <= data.x_train.max() <= 1.0
    assert np.bincount(data.y_test).min() >= 34


def test_idx_reads_both_namings_plain_and_compressed(tmp_path: Path) -> None:
    write_idx(tmp_path)
    data = load_idx(tmp_path)
    assert data.x_train.shape == (6, 1, 5, 5)
    assert data.x_train.max() <= 1.0
    assert data.y_test.tolist() == [0, 1, 2, 0]
    assert data.class_count == 3


def test_idx_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no train-images-idx3-ubyte"):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "starts with nothing"),
        (b"\x00\x00\x0d\x03" + b"\x00" * 16, "starts with 00000d03"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**31, 2**31, 2**31), "header says"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 0, 5, 5), "header says"),
        (gzip.compress(b"x" * 99)[:20], "cannot be read"),
    ],
)
def test_idx_refuses_a_file_that_is_not_what_it_says(tmp_path: Path, content: bytes, expected: str) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_idx(tmp_path)


def test_npz_holds_out_a_fifth_where_there_is_no_test_part(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((50, 4), dtype=np.uint8), y=np.arange(50) % 5)
    data = load_npz(tmp_path / "own.npz")
    assert (len(data.y_train), len(data.y_test)) == (40, 10)
    assert np.bincount(data.y_test).tolist() == [2] * 5
    assert data.x_train.dtype == np.float32


def nan_in_row_3() -> npt.NDArray[np.float64]:
    x = np.zeros((10, 2))
    x[3, 1] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        (lambda: {"x": np.zeros((10, 2))}, "no array 'y'"),
        (lambda: {"x": np.zeros((9, 2)), "y": np.arange(10) % 2}, "9 rows in x and 10 in y"),
        (lambda: {"x": np.zeros(10), "y": np.arange(10) % 2}, "expected real numbers, shape"),
        (lambda: {"x": np.zeros((10, 2)), "y": np.linspace(0, 1, 10)}, "expected integers"),
        (lambda: {"x": np.zeros((10, 2)), "y": np.arange(10) % 2 - 1}, r"y\[0\] = -1"),
        (lambda: {"x": np.zeros((10, 2)), "y": np.ones(10, dtype=int)}, "every label is 1"),
        (lambda: {"x": nan_in_row_3(), "y": np.arange(10) % 2}, r"x\[3\] holds a value that is not finite"),
        (lambda: {"x": np.zeros((10, 2), dtype=object), "y": np.arange(10) % 2}, "not a readable .npz"),
        (lambda: {"x": np.zeros((10, 2)), "y": np.arange(10) % 2, "x_test": np.zeros((4, 2))}, "come together"),
        (lambda: {"x": np.zeros((10, 2)), "y": np.arange(10) % 2, "group": np.zeros(3, dtype=int)}, "group has shape"),
    ],
)
def test_npz_refuses_with_array_and_row(
    tmp_path: Path, arrays: Callable[[], dict[str, npt.NDArray[np.generic]]], expected: str
) -> None:
    np.savez(tmp_path / "own.npz", **arrays())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=expected):
        load_npz(tmp_path / "own.npz")


def test_npz_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match=r"own\.npz: not a readable"):
        load_npz(tmp_path / "own.npz")
    with pytest.raises(ConfigError, match="no such file"):
        load_npz(tmp_path / "absent.npz")


def write_hapt(folder: Path, people: tuple[int, ...], *, samples: int = 320) -> None:
    rng = np.random.default_rng(2)
    labels = ""
    with tarfile.open(folder / "hapt_raw_data.tar.xz", "w:xz") as archive:

        def add(name: str, text: str) -> None:
            entry = tarfile.TarInfo(f"HAPT_RawData/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))

        for experiment, person in enumerate(people, start=1):
            for sensor in ("acc", "gyro"):
                rows = rng.normal(loc=person, size=(samples, 3))
                text = "\n".join(" ".join(f"{value:.4f}" for value in row) for row in rows)
                add(f"{sensor}_exp{experiment:02d}_user{person:02d}.txt", text)
            labels += f"{experiment} {person} {experiment % 6 + 1} 1 {samples}\n{experiment} {person} 9 1 {samples}\n"
        add("labels.txt", labels)


def test_hapt_windows_overlap_by_half_and_scale_by_training_people_only(tmp_path: Path) -> None:
    write_hapt(tmp_path, (1, 3, 2))
    data = load_hapt(tmp_path)
    windows = (320 - 128) // 64 + 1
    assert data.x_train.shape == (2 * windows, 6, 128)
    assert data.x_test.shape == (windows, 6, 128)
    assert data.groups is not None
    assert sorted(set(data.groups.tolist())) == [1, 3]
    assert set(data.groups.tolist()).isdisjoint(TEST_PEOPLE)
    np.testing.assert_array_equal(data.x_train[0][:, 64:], data.x_train[1][:, :64])
    assert abs(float(data.x_train.mean())) < 0.01


def test_hapt_names_the_recording_that_is_too_short(tmp_path: Path) -> None:
    write_hapt(tmp_path, (1, 2))
    folder = tmp_path / "HAPT_RawData"
    folder.mkdir()
    with tarfile.open(tmp_path / "hapt_raw_data.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (folder / "gyro_exp01_user01.txt").write_text("0 0 0\n" * 100)
    with pytest.raises(ConfigError, match=r"gyro_exp01_user01\.txt has 100 samples"):
        load_hapt(tmp_path)


def test_hapt_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected hapt_raw_data\.tar\.xz"):
        load_hapt(tmp_path)


def test_real_mnist_and_hapt(data_dir: Path) -> None:
    mnist = load_idx(data_dir / "mnist")
    assert np.bincount(mnist.y_train).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    hapt = load_hapt(data_dir / "hapt_har")
    assert hapt.groups is not None
    assert len(set(hapt.groups.tolist())) == 21
    assert len(hapt.y_test) == 2996
