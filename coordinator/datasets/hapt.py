"""Raw inertial signals of 30 people with a phone at the waist (HAPT): one natural device per person.

Source: J.-L. Reyes-Ortiz et al., "Transition-Aware Human Activity Recognition Using Smartphones", Neurocomputing 171,
2016 (UCI data set 341). 50 Hz, acceleration in g and angular rate in rad/s. Windows of 128 samples (2.56 s) with 50 %
overlap inside a labelled segment, the six basic activities; results are "HAPT raw", not comparable with the 561
features of UCI HAR.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.labelled import Features, LabelledData
from edge_sdk.errors import ConfigError

ARCHIVE: Final = "hapt_raw_data.tar.xz"
FOLDER: Final = "HAPT_RawData"
LABELS: Final = "labels.txt"
WINDOW: Final = 128
STRIDE: Final = 64
CLASS_NAMES: Final = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying")
TEST_PEOPLE: Final = frozenset({2, 4, 9, 10, 12, 13, 18, 20, 24})
RECORDING_BYTES_MAX: Final = 16 * 1024 * 1024
RECORDINGS_MAX: Final = 256
_NAME = re.compile(r"(acc|gyro)_exp(\d{2})_user(\d{2})\.txt")

Signal = npt.NDArray[np.float32]


def load_hapt(folder: Path) -> LabelledData:
    """Read ``folder`` with ``hapt_raw_data.tar.xz`` or the unpacked ``HAPT_RawData`` (or that folder itself).

    Returns:
        x (n, 6, 128): acceleration and rotation, each channel scaled by mean and deviation of the training people only;
        groups: the person.

    Raises:
        ConfigError: files missing or not what they should be.
    """
    recordings, labels = _read(folder)
    windows: list[Signal] = []
    classes: list[int] = []
    people: list[int] = []
    for experiment, person, activity, first, last in labels:
        if not 1 <= activity <= len(CLASS_NAMES):
            continue  # postural transitions are short and are dropped, as usual
        for start in range(first - 1, last - WINDOW + 1, STRIDE):
            windows.append(_window(recordings, experiment, person, start, folder))
            classes.append(activity - 1)
            people.append(person)
    if not windows:
        raise ConfigError(f"{folder}: no window of {WINDOW} samples in any labelled segment")
    x = np.stack(windows)
    y = np.asarray(classes, dtype=np.int64)
    groups = np.asarray(people, dtype=np.int64)
    is_test = np.isin(groups, sorted(TEST_PEOPLE))
    if is_test.all() or not is_test.any():
        raise ConfigError(f"{folder}: expected training and test people, found {sorted(set(people))}")
    x = _standardised(x, ~is_test)
    return LabelledData(
        name="hapt",
        x_train=x[~is_test],
        y_train=y[~is_test],
        x_test=x[is_test],
        y_test=y[is_test],
        groups=groups[~is_test],
        class_names=CLASS_NAMES,
    )


def _standardised(x: Features, is_train: npt.NDArray[np.bool_]) -> Features:
    """Scale each channel by the statistics of the training people: nothing of the test people leaks in."""
    train = x[is_train].astype(np.float64)
    mean = train.mean(axis=(0, 2), keepdims=True)
    deviation = train.std(axis=(0, 2), keepdims=True)
    scaled: Features = ((x - mean) / np.maximum(deviation, 1e-6)).astype(np.float32)
    return scaled


def _window(
    recordings: dict[tuple[str, int, int], Signal], experiment: int, person: int, start: int, folder: Path
) -> Signal:
    parts = []
    for sensor in ("acc", "gyro"):
        signal = recordings.get((sensor, experiment, person))
        if signal is None or start + WINDOW > len(signal):
            have = 0 if signal is None else len(signal)
            raise ConfigError(
                f"{folder}: {sensor}_exp{experiment:02d}_user{person:02d}.txt has {have} samples, "
                f"{LABELS} needs {start + WINDOW}"
            )
        parts.append(signal[start : start + WINDOW].T)
    return np.concatenate(parts)


def _read(folder: Path) -> tuple[dict[tuple[str, int, int], Signal], list[tuple[int, ...]]]:
    recordings: dict[tuple[str, int, int], Signal] = {}
    labels: list[tuple[int, ...]] = []
    for name, data in _files(folder):
        match = _NAME.fullmatch(name)
        if match is not None:
            table = _table(data, columns=3, place=f"{folder}: {name}")
            recordings[match[1], int(match[2]), int(match[3])] = table.astype(np.float32)
        elif name == LABELS:
            table = _table(data, columns=5, place=f"{folder}: {name}")
            labels = [tuple(int(value) for value in row) for row in table]
        if len(recordings) > RECORDINGS_MAX:
            raise ConfigError(f"{folder}: more than {RECORDINGS_MAX} recordings")
    if not labels or not recordings:
        raise ConfigError(f"{folder}: expected {ARCHIVE} or {FOLDER}/ with recordings and {LABELS}")
    return recordings, labels


def _table(data: bytes, *, columns: int, place: str) -> npt.NDArray[np.float64]:
    try:
        table = np.loadtxt(io.BytesIO(data), dtype=np.float64, ndmin=2)
    except ValueError as error:
        raise ConfigError(f"{place}: not a table of numbers: {error}") from error
    if table.ndim != 2 or table.shape[1] != columns or not np.isfinite(table).all():
        raise ConfigError(f"{place}: expected {columns} columns of finite numbers, found shape {table.shape}")
    return table


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Base names and contents; the archive is streamed and nothing of it is written, so its paths cannot escape."""
    unpacked = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    archive = folder / ARCHIVE
    if (unpacked / LABELS).is_file() and next(unpacked.glob("acc_*.txt"), None) is not None:
        for path in sorted(unpacked.glob("*.txt")):
            if path.stat().st_size <= RECORDING_BYTES_MAX:
                yield path.name, path.read_bytes()
        return
    if not archive.is_file():
        raise ConfigError(f"{folder}: expected {ARCHIVE} or {FOLDER}/ with recordings and {LABELS}")
    try:
        with tarfile.open(archive, "r|xz") as stream:
            for member in stream:
                source = stream.extractfile(member) if member.isfile() and member.size <= RECORDING_BYTES_MAX else None
                if source is not None:
                    yield member.name.rsplit("/", 1)[-1], source.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f"{archive}: cannot be read: {error}") from error
