"""Datasets: order and padding of batches, mapped files, and arrays that must be refused."""

import itertools
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk.errors import TrainingError
from edge_sdk.training import dataset as module
from edge_sdk.training.dataset import ArrayDataset, load_dataset

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10) % 3


def make(x: Any = X, y: Any = Y) -> ArrayDataset:
    return ArrayDataset(x, y, input_shape=(2,), class_count=3)


def test_an_epoch_serves_every_example_once() -> None:
    batches = list(itertools.islice(make().batches(np.random.default_rng(0), size=4), 6))
    for epoch in (batches[:3], batches[3:]):
        served = np.concatenate([batch.x[batch.weight > 0] for batch in epoch])
        assert sorted(map(tuple, served)) == sorted(map(tuple, X))
        assert [int(batch.weight.sum()) for batch in epoch] == [4, 4, 2]
    assert not batches[2].x[2:].any()
    assert not batches[2].y[2:].any()
    assert any((a.y != b.y).any() for a, b in zip(batches[:3], batches[3:], strict=True))


@pytest.mark.parametrize("start", [0, 2, 3, 7])
def test_start_skips_whole_batches(start: int) -> None:
    every = itertools.islice(make().batches(np.random.default_rng(5), size=4), start + 4)
    late = itertools.islice(make().batches(np.random.default_rng(5), size=4, start=start), 4)
    for expected, found in zip(itertools.islice(every, start, None), late, strict=True):
        np.testing.assert_array_equal(expected.x, found.x)


def test_bytes_are_scaled_to_one() -> None:
    data = make(np.full((10, 2), 255, np.uint8))
    batch = next(data.batches(np.random.default_rng(0), size=10))
    assert batch.x.dtype == np.float32
    assert (batch.x == 1.0).all()


def nan_at(row: int) -> Any:
    x = X.copy()
    x[row, 1] = np.nan
    return x


REFUSED = {
    "shape": (X.reshape(5, 4), Y[:5], "array x: shape"),
    "no rows": (X[:0], Y[:0], "array x: shape"),
    "type": (X.astype(np.int64), Y, "array x: type int64"),
    "objects": (X.astype(object), Y, "array x: type object"),
    "rows": (X, Y[:9], "10 rows, array y has 9"),
    "label type": (X, Y.astype(np.float32), "one integer label"),
    "label axis": (X, Y.reshape(10, 1), "one integer label"),
    "label": (X, np.where(np.arange(10) == 7, 3, Y), "array y, row 7: label 3"),
    "negative label": (X, np.where(np.arange(10) == 4, -1, Y), "array y, row 4: label -1"),
    "NaN": (nan_at(6), Y, "array x, row 6"),
}


@pytest.mark.parametrize(("x", "y", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_array_is_refused_by_name_and_row(x: Any, y: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        make(x, y)


def load(path: Path) -> ArrayDataset:
    return load_dataset(path, input_shape=(2,), class_count=3)


def test_stored_arrays_are_mapped(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    data = load(tmp_path / "d.npz")
    assert isinstance(data.x, np.memmap)
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.y, Y)


def test_column_major_arrays_are_read_right(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asfortranarray(X), y=Y)
    np.savez_compressed(tmp_path / "c.npz", x=np.asfortranarray(X), y=Y)
    np.testing.assert_array_equal(load(tmp_path / "d.npz").x, X)
    np.testing.assert_array_equal(load(tmp_path / "c.npz").x, X)


def test_folder_of_npy_files_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    assert isinstance(load(tmp_path).x, np.memmap)


def test_compressed_array_is_bounded_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=X, y=Y)
    np.testing.assert_array_equal(load(tmp_path / "d.npz").x, X)
    monkeypatch.setattr(module, "UNMAPPED_BYTES_MAX", X.nbytes - 1)
    with pytest.raises(TrainingError, match=r"array x unpacks to 80 bytes"):
        load(tmp_path / "d.npz")


def test_pickled_content_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}], object), y=Y)
    with pytest.raises(TrainingError, match="Python objects"):
        load(tmp_path / "d.npz")
    np.save(tmp_path / "x.npy", np.array([{}], object))
    np.save(tmp_path / "y.npy", Y)
    with pytest.raises(TrainingError, match="Python objects"):
        load(tmp_path)


def test_file_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK")
    with pytest.raises(TrainingError, match="zip"):
        load(tmp_path / "d.npz")
    with pytest.raises(TrainingError, match="absent"):
        load(tmp_path / "absent.npz")
    np.savez(tmp_path / "e.npz", x=X)
    with pytest.raises(TrainingError, match=r"y\.npy"):
        load(tmp_path / "e.npz")


def test_damaged_compressed_array_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.random.default_rng(0).random((500, 2)).astype(np.float32), y=Y)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[1500] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(TrainingError, match=r"d\.npz"):
        load(tmp_path / "d.npz")


def test_header_that_promises_more_than_there_is_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    with zipfile.ZipFile(tmp_path / "d.npz") as source, zipfile.ZipFile(tmp_path / "e.npz", "w") as target:
        target.writestr("x.npy", source.read("x.npy").replace(b"(10, 2)", b"(99, 2)"))
        target.writestr("y.npy", source.read("y.npy"))
    with pytest.raises(TrainingError, match="208 bytes, its header says 920"):
        load(tmp_path / "e.npz")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="skipped: no /proc")
def test_an_epoch_over_a_mapped_file_leaves_no_pages_of_it(tmp_path: Path) -> None:
    path = tmp_path / "large.npz"
    x = np.random.default_rng(0).integers(0, 256, (4_000, 1, 28, 28), dtype=np.uint8)
    np.savez(path, x=x, y=np.zeros(4_000, np.int64))
    dataset = load_dataset(path, input_shape=(1, 28, 28), class_count=10)
    batches = dataset.batches(np.random.default_rng(0), size=32)
    total = sum(float(next(batches).x.sum(dtype=np.float64)) for _ in range(125))
    assert total == pytest.approx(x.sum() / 255, rel=1e-6)
    _, _, after = Path("/proc/self/smaps").read_text().partition(str(path))
    resident_kib = int(re.search(r"Rss:\s+(\d+)", after)[1])  # type: ignore[index]
    assert resident_kib < 512


def test_a_file_that_becomes_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 1, 28, 28), np.uint8))
    np.save(tmp_path / "y.npy", np.zeros(100, np.int64))
    dataset = load_dataset(tmp_path, input_shape=(1, 28, 28), class_count=10)
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(TrainingError, match="shorter"):
        next(dataset.batches(np.random.default_rng(0), size=32))
