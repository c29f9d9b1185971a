"""Examples that never leave the device: arrays, or files mapped into memory, served in batches of fixed size."""

from __future__ import annotations

import math
import os
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np

from edge_sdk.errors import TrainingError
from edge_sdk.training.backend import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

    import numpy.typing as npt

EXAMPLES_MAX: Final = 10_000_000
UNMAPPED_BYTES_MAX: Final = 256 * 1024 * 1024
"""A compressed array has to be unpacked into memory; a stored one is mapped and may be larger."""
_CHECK_ROWS: Final = 4_096
_BYTE_SCALE: Final = np.float32(1.0 / 255.0)
_ZIP_LOCAL_HEADER_BYTES: Final = 30


class Dataset(Protocol):
    """Anything that can count its examples and serve them in a reproducible order."""

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def batches(self, rng: np.random.Generator, *, size: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches from number ``start`` on; with an equally seeded generator, number k is always the same."""
        ...


class ArrayDataset:
    """Examples as two arrays. uint8 features mean value / 255; others are converted to float32 per batch."""

    def __init__(
        self,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        *,
        input_shape: tuple[int, ...],
        class_count: int,
        has_labels: bool = True,
    ) -> None:
        """Check the arrays.

        Args:
            x: Features, (n, *input_shape), uint8, float16, float32 or float64; may be mapped, is read in slices.
            y: Labels, (n,), any integer type; without labels targets, (n, class_count), float16, float32 or float64.
            input_shape: Shape of one example.
            class_count: Labels must lie in 0..class_count - 1.
            has_labels: Whether the network is a classifier.

        Raises:
            TrainingError: wrong shape, type, label or a value that is not finite; the text names array and row.
        """
        _check_header("x", x.shape, x.dtype, input_shape)
        if has_labels:
            _check_labels(y, class_count)
        else:
            _check_targets(y, class_count)
        if len(x) != len(y):
            raise TrainingError(f"array x has {len(x)} rows, array y has {len(y)}")
        if x.dtype.kind == "f":
            _check_finite("x", x)
        self.x = x
        self._file = _RowFile(x) if isinstance(x, np.memmap) and x.flags.c_contiguous and len(x) else None
        self.y = y.astype(np.int64 if has_labels else np.float32)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.y)

    def batches(self, rng: np.random.Generator, *, size: int, start: int = 0) -> Iterator[Batch]:
        """Each epoch is a fresh permutation; its last batch is filled up with weight 0."""
        for rows in _epochs(len(self), rng, size=size, start=start):
            yield self.batch(rows, size)

    def features(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows as the network takes them."""
        chosen = self.x[rows] if self._file is None or isinstance(rows, slice) else self._file.read(rows)
        floats = chosen.astype(np.float32)
        return floats * _BYTE_SCALE if self.x.dtype == np.uint8 else floats

    def batch(self, rows: npt.NDArray[np.int64], size: int) -> Batch:
        """Some rows, filled up to ``size`` with weight 0."""
        x = np.zeros((size, *self.x.shape[1:]), np.float32)
        y = np.zeros((size, *self.y.shape[1:]), self.y.dtype)
        weight = np.zeros(size, np.float32)
        x[: len(rows)], y[: len(rows)], weight[: len(rows)] = self.features(rows), self.y[rows], 1.0
        return Batch(x, y, weight)


class _RowFile:
    """Rows of a mapped file, read instead of mapped: an epoch's random rows would make all of it resident.

    That was 5 MiB on a board with 7 000 images. Unmapping after each batch saves as much and costs five times the time.
    """

    def __init__(self, x: np.memmap[Any, np.dtype[Any]]) -> None:
        assert x.filename is not None
        self._file = os.open(x.filename, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        self._shape, self._dtype = x.shape[1:], x.dtype
        self._count, self._offset, self._row_bytes = len(x), x.offset, x.nbytes // len(x)

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Copy of rows 0 <= row < count."""
        if len(rows) and not 0 <= rows.min() <= rows.max() < self._count:
            raise IndexError(f"row outside of 0..{self._count - 1}")
        data = bytearray(len(rows) * self._row_bytes)
        view, size = memoryview(data), self._row_bytes
        for place, row in enumerate(rows.tolist()):
            part = view[place * size : (place + 1) * size]
            if os.preadv(self._file, [part], self._offset + row * size) != size:
                raise TrainingError(f"row {row}: the file of the examples has become shorter")
        return np.frombuffer(data, self._dtype).reshape(len(rows), *self._shape)


class Selection:
    """Some rows of a dataset, left where they are."""

    def __init__(self, whole: ArrayDataset, rows: npt.NDArray[np.int64]) -> None:
        """Choose the rows.

        Raises:
            TrainingError: none is chosen.
        """
        if not len(rows):
            raise TrainingError("no row is chosen")
        self.whole = whole
        self.rows = rows

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.rows)

    def batches(self, rng: np.random.Generator, *, size: int, start: int = 0) -> Iterator[Batch]:
        """As of a dataset that holds these rows alone."""
        for chosen in _epochs(len(self), rng, size=size, start=start):
            yield self.whole.batch(self.rows[chosen], size)


def load_dataset(
    path: Path, *, input_shape: tuple[int, ...], class_count: int, has_labels: bool = True
) -> ArrayDataset:
    """Open ``x`` and ``y`` of an ``.npz`` file, or ``x.npy`` and ``y.npy`` of a folder; pickled content is refused.

    Arrays that are stored uncompressed are mapped, so that memory holds only the pages in use.

    Raises:
        TrainingError: unreadable, too large, or an array that ``ArrayDataset`` refuses.
    """
    try:
        if path.is_dir():
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("x", "y")}
        else:
            with zipfile.ZipFile(path) as archive:
                arrays = {name: _read_member(path, archive, name) for name in ("x", "y")}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        # RuntimeError: an encrypted member, or a compression that is not built in.
        raise TrainingError(f"dataset {path}: {error}") from error
    try:
        return ArrayDataset(
            arrays["x"], arrays["y"], input_shape=input_shape, class_count=class_count, has_labels=has_labels
        )
    except TrainingError as error:
        raise TrainingError(f"dataset {path}: {error}") from error


def _epochs(count: int, rng: np.random.Generator, *, size: int, start: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows of each batch, endlessly, from batch number ``start`` on."""
    per_epoch = math.ceil(count / size)
    for _ in range(start // per_epoch):
        rng.permutation(count)
    first = start % per_epoch
    while True:
        order = rng.permutation(count)
        for index in range(first, per_epoch):
            yield order[index * size : (index + 1) * size]
        first = 0


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """One array of an ``.npz``: mapped when stored, unpacked within ``UNMAPPED_BYTES_MAX`` when compressed."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        shape, fortran, dtype = _read_header(member)
        header_bytes = member.tell()
        if dtype.hasobject:
            raise ValueError(f"array {name} holds Python objects")
        need = math.prod(shape) * dtype.itemsize
        if info.file_size != header_bytes + need:
            raise ValueError(f"array {name}: {info.file_size} bytes, its header says {header_bytes + need}")
        order = "F" if fortran else "C"
        if info.compress_type == zipfile.ZIP_STORED and need:
            with path.open("rb") as raw:
                raw.seek(info.header_offset)
                local = raw.read(_ZIP_LOCAL_HEADER_BYTES)
            names = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
            offset = info.header_offset + _ZIP_LOCAL_HEADER_BYTES + names + header_bytes
            return np.memmap(path, dtype, "r", offset, shape, cast("Any", order))
        if need > UNMAPPED_BYTES_MAX:
            raise ValueError(
                f"array {name} unpacks to {need} bytes, at most {UNMAPPED_BYTES_MAX}; save it uncompressed"
            )
        return np.frombuffer(member.read(need), dtype).reshape(shape, order=cast("Any", order))


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f"npy format {version} is not supported")


def _check_header(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], input_shape: tuple[int, ...]) -> None:
    if shape[1:] != input_shape or not 1 <= shape[0] <= EXAMPLES_MAX:
        raise TrainingError(
            f"array {name}: shape {shape}, expected (1..{EXAMPLES_MAX}, {', '.join(map(str, input_shape))})"
        )
    if dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise TrainingError(f"array {name}: type {dtype}, expected uint8, float16, float32 or float64")


def _check_labels(y: npt.NDArray[Any], class_count: int) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise TrainingError(f"array y: shape {y.shape}, type {y.dtype}: expected one integer label per example")
    wrong = np.flatnonzero((y < 0) | (y >= class_count))
    if wrong.size:
        raise TrainingError(f"array y, row {wrong[0]}: label {y[wrong[0]]} is outside 0..{class_count - 1}")


def _check_targets(y: npt.NDArray[Any], output_count: int) -> None:
    if y.ndim != 2 or y.shape[1] != output_count or y.dtype not in (np.float16, np.float32, np.float64):
        raise TrainingError(f"array y: shape {y.shape}, type {y.dtype}: expected {output_count} floats per example")
    _check_finite("y", y)


def _check_finite(name: str, x: npt.NDArray[Any]) -> None:
    for start in range(0, len(x), _CHECK_ROWS):
        rows = x[start : start + _CHECK_ROWS]
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            raise TrainingError(f"array {name}, row {start + int(np.argmin(finite))}: a value is not finite")
