"""A water pump with eight sensors and labelled anomalies (SKAB): an autoencoder learns what is normal.

Source: I. Katser, V. Kozitsin, "Skoltech Anomaly Benchmark (SKAB)", Kaggle, 2020, doi:10.34740/KAGGLE/DSV/1693952
(v0.9, GPL-3.0); about one sample per second, 35 recordings. One natural device per recording: it learns its normal
beginning, the first 400 samples as the benchmark has them (fewer where an anomaly comes earlier), and scales by them;
the rest is the test part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.measured import MeasuredData, check_measured
from coordinator.datasets.tables import find_tables, read_table
from edge_sdk.errors import ConfigError

FOLDERS: Final = ("anomaly-free", "valve1", "valve2", "other")
SENSORS: Final = (
    "Accelerometer1RMS",
    "Accelerometer2RMS",
    "Current",
    "Pressure",
    "Temperature",
    "Thermocouple",
    "Voltage",
    "Volume Flow RateRMS",
)
_ANOMALY: Final = "anomaly"
WINDOW: Final = 16
NORMAL_SAMPLES: Final = 400
RECORDINGS_MAX: Final = 256


def load_skab(folder: Path) -> MeasuredData:
    """Read the recordings in the folders ``FOLDERS`` of ``folder`` or its subfolder ``skab``.

    Returns:
        x (n, 8, 16): windows of the sensors, each scaled by the normal beginning of its recording; y (n, 128): the same
        values; a test window is anomalous when one of its samples is.

    Raises:
        ConfigError: no recordings, or a file that is not what it should be.
    """
    place = folder / "skab" if (folder / "skab").is_dir() else folder
    paths = [path for name in FOLDERS for path in find_tables(place / name, "*", count_max=RECORDINGS_MAX)]
    if not paths:
        raise ConfigError(f"{folder}: no recordings: expected the folders {', '.join(FOLDERS)} with .csv or .csv.gz")
    train: list[npt.NDArray[np.float32]] = []
    test: list[npt.NDArray[np.float32]] = []
    labels: list[npt.NDArray[np.bool_]] = []
    for path in paths:
        normal, later, is_anomaly = _recording(path, is_labelled=path.parent.name != FOLDERS[0])
        train.append(normal)
        test.append(later)
        labels.append(is_anomaly)
    x_train, x_test = np.concatenate(train), np.concatenate(test)
    data = MeasuredData(
        name="skab",
        x_train=x_train,
        y_train=x_train.reshape(len(x_train), -1),
        x_test=x_test,
        y_test=x_test.reshape(len(x_test), -1),
        groups=np.repeat(np.arange(len(train)), [len(part) for part in train]).astype(np.int64),
        owner_names=tuple(f"{path.parent.name}-{path.name.partition('.')[0]}" for path in paths),
        is_anomaly=np.concatenate(labels),
    )
    return check_measured(data, place=str(folder))


def _recording(
    path: Path, *, is_labelled: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Windows of the normal beginning, windows of the rest, and whether those are anomalous."""
    columns = (*SENSORS, _ANOMALY) if is_labelled else SENSORS
    table, _ = read_table(path, columns, delimiter=";")
    if not np.isfinite(table).all():
        row, column = map(int, np.argwhere(~np.isfinite(table))[0])
        raise ConfigError(f"{path}: line {row + 2}, column {columns[column]}: expected a number")
    anomalous = table[:, len(SENSORS)] > 0 if is_labelled else np.zeros(len(table), np.bool_)
    first = int(np.argmax(anomalous)) if anomalous.any() else len(table)
    end = min(NORMAL_SAMPLES, first) if is_labelled else len(table)
    if end < 2 * WINDOW:
        raise ConfigError(f"{path}: {end} normal samples at the beginning, expected {2 * WINDOW} or more")
    sensors = table[:, : len(SENSORS)]
    mean, deviation = sensors[:end].mean(axis=0), sensors[:end].std(axis=0)
    scaled = ((sensors - mean) / np.maximum(deviation, 1e-3)).astype(np.float32)
    later, flags = scaled[end:], anomalous[end:]
    if len(later) < WINDOW:
        return _windows(scaled[:end]), np.empty((0, len(SENSORS), WINDOW), np.float32), np.empty(0, np.bool_)
    touched: npt.NDArray[np.bool_] = np.lib.stride_tricks.sliding_window_view(flags, WINDOW).max(axis=1)
    return _windows(scaled[:end]), _windows(later), touched


def _windows(series: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(time, sensors) as (windows, sensors, time), one window per sample."""
    view = np.lib.stride_tricks.sliding_window_view(series, WINDOW, axis=0)
    return np.ascontiguousarray(view, np.float32)
