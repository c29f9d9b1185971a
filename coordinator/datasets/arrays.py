"""A user's own arrays in one ``.npz`` file.

Arrays: ``x`` (n, ...) and ``y`` (n,) with integer labels; optionally ``x_test`` and ``y_test`` (else every fifth
example of each class is held out) and ``group`` (n,), the natural owner of each training example.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.labelled import Features, LabelledData, check_examples
from edge_sdk.errors import ConfigError

ARRAYS: Final = ("x", "y", "x_test", "y_test", "group")
ARRAY_BYTES_MAX: Final = 2 * 1024**3
TEST_STRIDE: Final = 5


def load_npz(path: Path) -> LabelledData:
    """Read and check a user's arrays; bytes are scaled by 1/255, other types are taken as they are.

    Raises:
        ConfigError: no such file, not an npz, an object array, or a wrong shape, type, label or value (array and row
            are named).
    """
    arrays = read_arrays(path)
    for name in ("x", "y"):
        if name not in arrays:
            raise ConfigError(f"{path}: no array {name!r}: expected x and y, optionally x_test, y_test, group")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise ConfigError(f"{path}: x_test and y_test come together or not at all")
    x, y = arrays["x"], arrays["y"]
    class_count = 1 + max(_label_max(arrays[name], f"{path}: {name}") for name in ("y", "y_test") if name in arrays)
    check_examples(x, y, place=f"{path}: x, y", class_count=class_count)
    groups = arrays.get("group")
    if groups is not None and (groups.shape != y.shape or not np.issubdtype(groups.dtype, np.integer)):
        raise ConfigError(
            f"{path}: group has shape {groups.shape} and type {groups.dtype}: expected integers, {y.shape}"
        )
    if "x_test" in arrays:
        check_examples(arrays["x_test"], arrays["y_test"], place=f"{path}: x_test, y_test", class_count=class_count)
        if arrays["x_test"].shape[1:] != x.shape[1:]:
            raise ConfigError(f"{path}: x_test rows are {arrays['x_test'].shape[1:]}, x rows {x.shape[1:]}")
        x_test, y_test, kept = arrays["x_test"], arrays["y_test"], np.ones(len(y), dtype=bool)
    else:
        kept = ~_held_out(y)
        x_test, y_test = x[~kept], y[~kept]
        check_examples(x_test, y_test, place=f"{path}: held-out part of x, y", class_count=class_count)
    return LabelledData(
        name="npz",
        x_train=features(x[kept]),
        y_train=y[kept].astype(np.int64),
        x_test=features(x_test),
        y_test=y_test.astype(np.int64),
        groups=None if groups is None else groups[kept].astype(np.int64),
        class_names=tuple(str(label) for label in range(class_count)),
    )


def features(x: npt.NDArray[np.generic]) -> Features:
    """As networks take them: bytes divided by 255, others as they are."""
    scaled: Features = x.astype(np.float32)
    return scaled / np.float32(255.0) if x.dtype == np.uint8 else scaled


def _held_out(y: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """Every ``TEST_STRIDE``-th example of each class, counted from its first."""
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        held[np.flatnonzero(y == label)[::TEST_STRIDE]] = True
    return held


def _label_max(y: npt.NDArray[np.generic], place: str) -> int:
    if y.ndim != 1 or len(y) == 0 or not np.issubdtype(y.dtype, np.integer):
        raise ConfigError(f"{place} has shape {y.shape} and type {y.dtype}: expected integers, shape (n,), n >= 1")
    return int(y.max())


def read_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Read the known arrays after their unpacked sizes were checked; pickled objects are never loaded.

    Raises:
        ConfigError: no such file, or no npz of plain arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max((entry.file_size for entry in archive.infolist()), default=0)
        _check_size(path, largest)
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ARRAYS if name in archive.files}
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: expected an .npz with arrays x and y") from error
    except ConfigError:
        raise  # a ValueError as well, but already in its final words
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{path}: not a readable .npz of plain arrays: {error}") from error


def _check_size(path: Path, unpacked_bytes: int) -> None:
    if unpacked_bytes > ARRAY_BYTES_MAX:
        raise ConfigError(f"{path}: an array unpacks to {unpacked_bytes} bytes: expected at most {ARRAY_BYTES_MAX}")
