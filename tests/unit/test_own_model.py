"""A user's own artifact: read with its parameters, held against the data, refused with what differs."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.author_key import ALGORITHMS, default_key_file, open_author_key, read_author
from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import build, network
from coordinator.datasets.labelled import LabelledData
from coordinator.own_model import fit_data, load_own_model, parameters_file
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import key_fingerprint
from edge_sdk.training.network import Scheme
from edge_sdk.training.quantize import to_params


@pytest.fixture
def model(tmp_path: Path) -> Path:
    artifact, params = build("mlp", (6,), 3, batch=4, seed=0)
    path = tmp_path / "net.flm"
    path.write_bytes(artifact.data)
    parameters_file(path).write_bytes(wire.to_bytes(params))
    return path


def labelled(width: int = 6, classes: int = 3) -> LabelledData:
    x = np.zeros((classes, width), np.float32)
    y = np.arange(classes)
    names = tuple(map(str, range(classes)))
    return LabelledData(name="npz", x_train=x, y_train=y, x_test=x, y_test=y, groups=None, class_names=names)


def test_what_was_built_is_loaded(model: Path) -> None:
    own = load_own_model(model)
    assert own.artifact.data == model.read_bytes()
    assert wire.to_bytes(own.params) == (model.parent / "net.model.cbor").read_bytes()
    data = labelled()
    assert fit_data(own.artifact, data, model=model) == data


def test_classes_that_only_the_network_has_are_added(model: Path) -> None:
    fitted = fit_data(load_own_model(model).artifact, labelled(classes=2), model=model)
    assert fitted.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (labelled(width=7), "takes examples of 6, the data has 7"),
        (labelled(classes=4), "has 3 classes, the data labels up to 3"),
        (replace(labelled(), x_train=np.zeros((3, 2, 3), np.float32)), "takes examples of 6, the data has 2x3"),
    ],
    ids=["width", "labels", "rank"],
)
def test_data_that_does_not_fit_is_refused_with_both_sides(model: Path, data: LabelledData, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_data(load_own_model(model).artifact, data, model=model)


def test_a_network_that_is_no_classifier_is_refused_for_labelled_data(model: Path) -> None:
    artifact, _ = build("regressor", (6,), 1, batch=4, seed=0)
    with pytest.raises(ConfigError, match="its loss is mean_squared_error"):
        fit_data(artifact, labelled(), model=model)


def test_an_artifact_that_does_not_hold_is_named(model: Path) -> None:
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match=f"{model}: .*hash"):
        load_own_model(model)


def test_missing_files_are_named(model: Path) -> None:
    parameters_file(model).unlink()
    with pytest.raises(ConfigError, match=r"net\.model\.cbor: no such file"):
        load_own_model(model)
    model.unlink()
    with pytest.raises(ConfigError, match=r"net\.flm: no such file"):
        load_own_model(model)


def test_parameters_of_another_network_are_refused(model: Path) -> None:
    other = network("mlp", (5,), 3)
    params = to_params(other.tensors, {spec.name: np.zeros(spec.shape) for spec in other.tensors})
    parameters_file(model).write_bytes(wire.to_bytes(params))
    with pytest.raises(ConfigError, match=r"net\.model\.cbor: not the parameters of net\.flm"):
        load_own_model(model)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_author_key_is_made_once_and_pins_its_artifacts(model: Path, algorithm: str) -> None:
    key_file = model.parent / "keys" / "author.pem"
    signer, is_new = open_author_key(key_file, ALGORITHMS[algorithm])
    assert is_new
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    again, is_new = open_author_key(key_file, ALGORITHMS[algorithm])
    assert (again.public_key, is_new) == (signer.public_key, False)
    author = read_author(key_file.with_suffix(".pub"))
    assert author == signer.public_key
    with pytest.raises(ConfigError, match="signed by nobody"):
        load_own_model(model, author=author)
    model.write_bytes(load_own_model(model).artifact.signed(signer).data)
    assert load_own_model(model, author=author).artifact.authored_by == key_fingerprint(author)


def test_wrong_key_files_are_refused(tmp_path: Path) -> None:
    open_author_key(tmp_path / "author.pem", ALGORITHMS["eddsa"])
    (tmp_path / "author.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_author_key(tmp_path / "author.pem", ALGORITHMS["eddsa"])
    for name, content in {"private.pub": (tmp_path / "author.pem").read_bytes(), "text.pub": b"none"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="public key"):
            read_author(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        read_author(tmp_path / "nowhere.pub")


def test_the_key_is_one_per_author(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_key_file() == tmp_path / "flchain" / "author.pem"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_key_file() == tmp_path / ".config" / "flchain" / "author.pem"


def test_frozen_tensors_stay_frozen(tmp_path: Path) -> None:
    forward = network("mlp", (6,), 3)
    tensors = tuple(replace(spec, is_trainable=spec.name.startswith("dense2")) for spec in forward.tensors)
    artifact = build_artifact("net", replace(forward, tensors=tensors), batch=4, scheme=Scheme.INT8)
    path = tmp_path / "net.flm"
    path.write_bytes(artifact.data)
    parameters_file(path).write_bytes(wire.to_bytes(build("mlp", (6,), 3, batch=4, seed=0)[1]))
    assert [spec.is_trainable for spec in load_own_model(path).artifact.network.tensors] == [False] * 4 + [True] * 2
