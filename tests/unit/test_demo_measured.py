"""A run on measurements: targets are numbers, owners are dealt whole, and the curve says what it shows."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import genesis_params, network
from coordinator.datasets.labelled import LabelledData
from coordinator.datasets.measured import MeasuredData
from coordinator.datasets.split import split
from coordinator.datasets.task import classes_of, measure_of, quality
from coordinator.demo.layout import place_devices, place_miners
from coordinator.demo.live import sparkline
from coordinator.demo.material import gather, write_examples
from coordinator.demo.observer import Point, Progress
from coordinator.demo.options import parse
from coordinator.demo.workspace import Workspace
from edge_sdk.errors import ConfigError
from edge_sdk.training.dataset import load_dataset
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.trainer import Trainer

HEADER = "No,year,month,day,hour,PM2.5,PM10,SO2,NO2,CO,O3,TEMP,PRES,DEWP,RAIN,wd,WSPM,station"


@pytest.fixture
def stations(tmp_path: Path) -> Path:
    """Six stations, 120 hours before and 30 after the cut; dust follows PM10."""
    rng = np.random.default_rng(3)
    for name in "ABCDEF":
        lines = [HEADER]
        for hour in range(150):
            year = 2015 if hour < 120 else 2016
            coarse = rng.uniform(10, 200)
            others = ",".join(f"{value:.2f}" for value in rng.uniform(1, 50, 8))
            lines.append(f"{hour},{year},6,5,{hour % 24},{0.7 * coarse:.2f},{coarse:.2f},{others},NE,1.5,{name}")
        folder = tmp_path / "stations"
        folder.mkdir(exist_ok=True)
        (folder / f"PRSA_Data_{name}_x.csv").write_text("\n".join(lines))
    return tmp_path / "stations"


def test_stations_become_devices_and_folds(stations: Path, tmp_path: Path) -> None:
    options = parse(["--dataset", "beijing", "--data", str(stations), "--devices", "4", "--miners", "2"])
    assert (options.model, str(options.partition)) == ("regressor", "natural")
    material = gather(options)
    data = material.data
    assert isinstance(data, MeasuredData)
    assert [len(np.unique(data.groups[share])) for share in material.split.shares] == [1] * 4
    held = {int(owner) for fold in material.split.folds for owner in data.groups[fold]}
    assert len(held) == 2
    assert held.isdisjoint(int(owner) for share in material.split.shares for owner in data.groups[share])
    assert not material.artifact.network.is_classifier
    with Workspace(tmp_path / "run") as workspace:
        miners, devices = place_miners(workspace, [1, 2]), place_devices(options, workspace)
        for folder in (*(miner.folder for miner in miners), *(device.folder for device in devices)):
            folder.mkdir()
        write_examples(material, miners, devices)
        read = load_dataset(devices[0].data, input_shape=(16,), class_count=1, has_labels=False)
        np.testing.assert_array_equal(read.y, data.y_train[material.split.shares[0]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--byzantine", "labelflip:1"], "no labels to flip"),
        (["--personal", "0.5"], "judged by labels"),
        (["--model", "mlp"], "expected one of autoencoder, regressor"),
        (["--model", "autoencoder"], "expected one per value, 16"),
    ],
)
def test_what_needs_labels_is_refused(stations: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        gather(parse(["--dataset", "beijing", "--data", str(stations), "--devices", "4", *arguments]))


def test_a_regression_is_refused_for_labels() -> None:
    with pytest.raises(ConfigError, match="--model regressor with --dataset digits: expected one of mlp, lenet"):
        parse(["--model", "regressor"])


def measured(*, anomalies: bool) -> MeasuredData:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (320, 4)).astype(np.float32)
    flags = np.arange(320) >= 160
    x[flags] *= 5
    y = x if anomalies else x[:, :1]
    return MeasuredData(
        name="m",
        x_train=x,
        y_train=y,
        x_test=x,
        y_test=y,
        groups=np.repeat(np.arange(8), 40),
        owner_names=tuple("abcdefgh"),
        is_anomaly=flags if anomalies else None,
    )


def test_quality_is_explained_variance_or_area_under_the_curve() -> None:
    regression, anomaly = measured(anomalies=False), measured(anomalies=True)
    assert (measure_of(regression), measure_of(anomaly)) == ("R2", "AUC")
    for model, data, expected in (("regressor", regression, 0.0), ("autoencoder", anomaly, 1.0)):
        forward = network(model, (4,), data.class_count)
        zeros = {
            name: np.zeros_like(array) for name, array in dequantize(genesis_params(forward.tensors, seed=0)).items()
        }
        trainer = Trainer(build_artifact("m", forward, batch=4, scheme=Scheme.FP32))
        assert quality(trainer, zeros, data) == pytest.approx(expected, abs=0.05)


def test_labelled_data_are_judged_by_accuracy() -> None:
    x, y = np.eye(2, dtype=np.float32).repeat(4, axis=0), np.arange(2).repeat(4)
    data = LabelledData(name="l", x_train=x, y_train=y, x_test=x, y_test=y, groups=None, class_names=("a", "b"))
    assert measure_of(data) == "accuracy"
    assert classes_of(data) is data.y_train
    forward = network("mlp", (2,), 2)
    zeros = {name: np.zeros_like(array) for name, array in dequantize(genesis_params(forward.tensors, seed=0)).items()}
    assert quality(Trainer(build_artifact("m", forward, batch=4, scheme=Scheme.FP32)), zeros, data) == 0.5


def test_measurements_may_be_dealt_without_owners() -> None:
    data = measured(anomalies=False)
    options = parse(["--partition", "iid"])
    parts = split(
        data, miners=2, devices=4, fold_examples=20, partition=options.partition, rng=np.random.default_rng(1)
    )
    assert [len(fold) for fold in parts.folds] == [20, 20]
    assert sum(len(share) for share in parts.shares) == 280


def test_a_curve_below_zero_is_drawn_at_the_bottom() -> None:
    curve = (Point(0.0, 0, -3.2), Point(1.0, 1, 0.9))
    assert sparkline(Progress(measure="R2", curve=curve)).startswith("R2  ")
    assert sparkline(Progress()) == ""
