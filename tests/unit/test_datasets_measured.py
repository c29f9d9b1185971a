"""Readers of measurements, against files made by hand, and what they refuse; the measures, by hand."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coordinator.datasets import tables
from coordinator.datasets.beijing import FEATURES, load_beijing
from coordinator.datasets.measures import f1_score, r_squared, roc_auc
from coordinator.datasets.skab import SENSORS, load_skab
from edge_sdk.errors import ConfigError

BEIJING_HEADER = (
    '"No","year","month","day","hour","PM2.5","PM10","SO2","NO2","CO","O3","TEMP","PRES","DEWP","RAIN","wd","WSPM"'
)


def hour(year: int, month: int, *, dust: str = "10", wind: str = "E", pressure: str = "1000") -> str:
    return f'1,{year},{month},5,6,{dust},20,3,4,300,50,-2.5,{pressure},-18,0,"{wind}",1.5'


def write_beijing(folder: Path) -> Path:
    early = [hour(2014, 3, dust=str(dust)) for dust in (10, 20, 30)]
    late = [hour(2016, 3, dust="40"), hour(2017, 1, wind="NA"), hour(2016, 12, dust="NA")]
    path = folder / "PRSA_Data_Dongsi_20130301-20170228.csv.gz"
    path.write_bytes(gzip.compress("\n".join([BEIJING_HEADER, *early, hour(2015, 1, pressure=" "), *late]).encode()))
    (folder / "PRSA_Data_Wanliu_x.csv").write_text("\n".join([BEIJING_HEADER, hour(2013, 4, wind="N"), hour(2016, 5)]))
    return path


def test_beijing_splits_by_time_and_leaves_incomplete_hours_out(tmp_path: Path) -> None:
    write_beijing(tmp_path)
    data = load_beijing(tmp_path)
    assert data.owner_names == ("Dongsi", "Wanliu")
    assert data.groups.tolist() == [0, 0, 0, 1]
    assert (data.x_train.shape, data.x_test.shape) == ((4, len(FEATURES)), (2, len(FEATURES)))
    dust = np.array([10, 20, 30, 10])
    assert data.y_train[:, 0] == pytest.approx((dust - dust.mean()) / dust.std())
    assert data.y_test[:, 0] == pytest.approx((np.array([40, 10]) - dust.mean()) / dust.std())
    east, north = data.x_train[:, FEATURES.index("wind_east")], data.x_train[:, FEATURES.index("wind_north")]
    assert (east[0] > east[3], north[0] < north[3]) == (True, True)
    assert data.is_anomaly is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (BEIJING_HEADER + "\n" + hour(2014, 3, dust="abc"), "line 2, column PM2.5: 'abc' is no number"),
        (BEIJING_HEADER + "\n1,2,3", "line 2: 3 cells, expected 17"),
        (BEIJING_HEADER.replace("SO2", "SO3") + "\n" + hour(2014, 3), "line 1: no column 'SO2'"),
        (BEIJING_HEADER + "\n" + hour(2014, 3, dust="NA"), "no hour has every measurement"),
        (BEIJING_HEADER + "\n" + hour(2014, 3), "before and after 2016-03"),
        ("", "no column 'year'"),
    ],
)
def test_beijing_names_file_line_and_column(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "PRSA_Data_Dongsi_x.csv").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_beijing(tmp_path)


def test_folder_without_tables_is_refused(tmp_path: Path) -> None:
    for load in (load_beijing, load_skab):
        with pytest.raises(ConfigError, match=r"no (file|recordings)"):
            load(tmp_path)


def test_table_is_bounded_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_beijing(tmp_path)
    monkeypatch.setattr(tables, "FILE_BYTES_MAX", 100)
    with pytest.raises(ConfigError, match=r"more than 100 bytes"):
        load_beijing(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(tables, "ROWS_MAX", 2)
    with pytest.raises(ConfigError, match="more than 2 rows"):
        load_beijing(tmp_path)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_beijing(tmp_path)


def write_skab(folder: Path, *, change: Callable[[list[str]], None] | None = None, first_anomaly: int = 450) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, (500, len(SENSORS)))
    values[first_anomaly:460] += 30
    header = ";".join(("datetime", *SENSORS))
    rows = [f"2020-03-09 10:00:00;{';'.join(map(str, row))}" for row in values]
    for name, extra in (("anomaly-free/anomaly-free.csv.gz", None), ("valve1/0.csv", first_anomaly)):
        lines = [header if extra is None else f"{header};anomaly;changepoint"]
        lines += [row if extra is None else f"{row};{float(extra <= i < 460)};0.0" for i, row in enumerate(rows)]
        if change is not None and extra is not None:
            change(lines)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        data = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_skab_learns_the_normal_beginning_and_labels_windows(tmp_path: Path) -> None:
    write_skab(tmp_path)
    data = load_skab(tmp_path)
    assert data.owner_names == ("anomaly-free-anomaly-free", "valve1-0")
    assert np.bincount(data.groups).tolist() == [500 - 15, 400 - 15]
    assert data.x_train.shape[1:] == data.input_shape == (8, 16)
    assert np.array_equal(data.y_train, data.x_train.reshape(len(data.x_train), 128))
    assert data.is_anomaly is not None
    assert len(data.x_test) == 100 - 15 == len(data.is_anomaly)
    assert np.flatnonzero(data.is_anomaly).tolist() == list(range(35, 60))  # a sample of 450..459 lies in the window
    steady = data.x_train[data.groups == 1][:, :, 0]
    assert steady.mean(axis=0) == pytest.approx(np.zeros(8), abs=0.1)
    shifted = np.square(data.x_test).mean(axis=(1, 2))
    assert roc_auc(shifted, data.is_anomaly) > 0.99


def test_skab_shortens_the_beginning_to_what_is_normal(tmp_path: Path) -> None:
    write_skab(tmp_path, first_anomaly=100)
    assert np.bincount(load_skab(tmp_path).groups).tolist() == [485, 100 - 15]
    write_skab(tmp_path, first_anomaly=20)
    with pytest.raises(ConfigError, match=r"0.csv: 20 normal samples at the beginning, expected 32"):
        load_skab(tmp_path)


def test_skab_names_a_missing_number(tmp_path: Path) -> None:
    def blank(lines: list[str]) -> None:
        cells = lines[7].split(";")
        lines[7] = ";".join([*cells[:3], "", *cells[4:]])

    write_skab(tmp_path, change=blank)
    with pytest.raises(ConfigError, match="line 8, column Current: expected a number"):
        load_skab(tmp_path)


def test_measures_by_hand() -> None:
    is_anomaly = np.array([False, False, True, True])
    assert roc_auc(np.array([0.1, 0.4, 0.35, 0.8]), is_anomaly) == 0.75
    assert roc_auc(np.array([1.0, 1.0, 1.0, 2.0]), is_anomaly) == 0.75  # ties count one half
    assert f1_score(np.array([True, False, True, False]), is_anomaly) == 0.5
    assert f1_score(np.array([True, False, False, False]), is_anomaly) == 0.0
    targets = np.array([[0.0], [2.0]])
    assert (r_squared(0.0, targets), r_squared(1.0, targets), r_squared(2.0, targets)) == (1.0, 0.0, -1.0)
