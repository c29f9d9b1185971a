"""Hourly air quality and weather of twelve stations in Beijing: fine dust from everything else that is measured.

Source: S. Zhang et al., "Cautionary Tales on Air-Quality Improvement in Beijing", Proc. Royal Society A 473, 2017 (UCI
data set 501, CC BY 4.0); 35,064 hours per station, March 2013 to February 2017. One natural device per station. The
last year is the test part. Rows with a missing cell are left out.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from coordinator.datasets.measured import MeasuredData, check_measured
from coordinator.datasets.tables import find_tables, read_table
from edge_sdk.errors import ConfigError

PATTERN: Final = "PRSA_Data_*"
TARGET: Final = "PM2.5"
MEASURED: Final = ("PM10", "SO2", "NO2", "CO", "O3", "TEMP", "PRES", "DEWP", "RAIN", "WSPM")
_TIME: Final = ("year", "month", "day", "hour")
_WIND: Final = "wd"
FEATURES: Final = (*MEASURED, "wind_east", "wind_north", "hour_sin", "hour_cos", "year_sin", "year_cos")
TEST_FROM: Final = (2016, 3)
"""Year and month of the first test hour."""
STATIONS_MAX: Final = 64
_COMPASS: Final = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
_MONTH_DAYS: Final = 30.44


def load_beijing(folder: Path) -> MeasuredData:
    """Read the stations' files in ``folder`` or its subfolder ``beijing_air_quality``.

    Returns:
        x (n, 16): ``FEATURES``; y (n, 1): PM2.5; each column scaled by mean and deviation of the training hours.

    Raises:
        ConfigError: no files, or a file that is not what it should be.
    """
    inner = folder / "beijing_air_quality"
    place = inner if inner.is_dir() else folder
    paths = find_tables(place, PATTERN, count_max=STATIONS_MAX)
    if not paths:
        raise ConfigError(f"{folder}: no file {PATTERN}.csv or {PATTERN}.csv.gz: expected one per station")
    parts = [_station(path) for path in paths]
    x = np.concatenate([features for features, _, _ in parts])
    y = np.concatenate([target for _, target, _ in parts])
    is_test = np.concatenate([later for _, _, later in parts])
    owners = np.repeat(np.arange(len(parts)), [len(target) for _, target, _ in parts])
    if is_test.all() or not is_test.any():
        raise ConfigError(f"{folder}: expected hours before and after {TEST_FROM[0]}-{TEST_FROM[1]:02d}")
    x, y = _scaled(x, ~is_test), _scaled(y[:, np.newaxis], ~is_test)
    data = MeasuredData(
        name="beijing",
        x_train=x[~is_test],
        y_train=y[~is_test],
        x_test=x[is_test],
        y_test=y[is_test],
        groups=owners[~is_test].astype(np.int64),
        owner_names=tuple(path.name.split("_")[2] for path in paths),
        is_anomaly=None,
    )
    return check_measured(data, place=str(folder))


def _station(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Features, target, and whether an hour belongs to the test part; complete rows only."""
    table, texts = read_table(path, (*_TIME, TARGET, *MEASURED, _WIND), delimiter=",", texts=frozenset({_WIND}))
    angle = np.array([_angle(name) for name in texts[_WIND]])
    year, month, day, hour = table[:, : len(_TIME)].T
    of_day = 2 * math.pi * hour / 24
    of_year = 2 * math.pi * (month - 1 + (day - 1) / _MONTH_DAYS) / 12
    circles = (np.sin(angle), np.cos(angle), np.sin(of_day), np.cos(of_day), np.sin(of_year), np.cos(of_year))
    x = np.column_stack([table[:, len(_TIME) + 1 :], *circles])
    y = table[:, len(_TIME)]
    is_whole = np.isfinite(x).all(axis=1) & np.isfinite(y)
    if not is_whole.any():
        raise ConfigError(f"{path}: no hour has every measurement")
    later = (year > TEST_FROM[0]) | ((year == TEST_FROM[0]) & (month >= TEST_FROM[1]))
    return x[is_whole], y[is_whole], later[is_whole]


def _angle(name: str) -> float:
    """Direction in radians, clockwise from north; NaN where it is missing."""
    return math.tau * _COMPASS.index(name) / len(_COMPASS) if name in _COMPASS else math.nan


def _scaled(values: npt.NDArray[np.float64], is_train: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """By the statistics of the training hours: nothing of the test year leaks in."""
    train = values[is_train]
    scaled: npt.NDArray[np.float32] = ((values - train.mean(axis=0)) / np.maximum(train.std(axis=0), 1e-6)).astype(
        np.float32
    )
    return scaled
