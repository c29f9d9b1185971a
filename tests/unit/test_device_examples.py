"""The board's examples and its personal model: what fits the artifact, and what is forgotten."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_sdk.adapters.personal_file import PersonalFile, PersonalModel
from edge_sdk.adapters.replay_buffer import ReplayBuffer
from edge_sdk.adapters.replay_form import RowForm
from edge_sdk.device.config import DeviceConfig
from edge_sdk.device.examples import LocalExamples
from edge_sdk.device.job import Trainers
from edge_sdk.errors import ConfigError, StoreError, TrainingError
from edge_sdk.protocol.messages import Codec, Genesis
from tests.support.device_process import CLASSES, FEATURES, make_model, write_data
from tests.support.fake_miners import Keys, make_genesis

ARTIFACT, PARAMS = make_model()
GENESIS: Genesis = make_genesis(Keys(), artifact_digest=ARTIFACT.digest, params=PARAMS)


def configured(folder: Path, *, data: str = "replay.sqlite3", extra: str = "") -> DeviceConfig:
    path = folder / "device.toml"
    path.write_text(f'[device]\nid = "d1"\ntask = "digits"\ndata = "{data}"\n[[broker]]\nhost = "127.0.0.1"\n{extra}')
    (folder / "artifact.flm").write_bytes(ARTIFACT.data)
    return DeviceConfig.load(path)


def filled(config: DeviceConfig, form: RowForm, *, label: int = 0, count: int = 30) -> None:
    x = np.zeros((count, *form.input_shape), np.float32)
    y = np.zeros((count, form.target_count), np.float32) if form.target_count else np.full(count, label)
    with ReplayBuffer.open(config.data, form) as buffer:
        buffer.add(x, y)


def test_a_file_is_numbered_by_its_rows(tmp_path: Path) -> None:
    config = configured(tmp_path, data="data.npz")
    write_data(tmp_path / "data.npz", count=40)
    local = LocalExamples(config)
    assert local.count(ARTIFACT) == 40
    assert local.of_job(ARTIFACT).numbers.tolist() == list(range(40))
    assert not config.job_dir.exists(), "a file is not copied"


def test_a_buffer_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    local = LocalExamples(configured(tmp_path))
    assert local.count(ARTIFACT) == 0
    assert local.some(ARTIFACT, 10) is None
    with pytest.raises(StoreError, match="flchain device feed"):
        local.of_job(ARTIFACT)


def test_a_job_has_its_own_copy(tmp_path: Path) -> None:
    config = configured(tmp_path)
    config.job_dir.mkdir()
    local, form = LocalExamples(config), RowForm(input_shape=(FEATURES,))
    filled(config, form)
    assert len(local.of_job(ARTIFACT).dataset) == 30
    filled(config, form, label=1)
    assert len(local.of_job(ARTIFACT).dataset) == 30
    assert local.count(ARTIFACT) == 60
    some = local.some(ARTIFACT, 45)
    assert some is not None
    assert some.numbers.tolist() == list(range(45))


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (config.job_dir / "examples.part").mkdir(parents=True)
    (config.job_dir / "examples.part" / "x.npy").write_bytes(b"half")
    filled(config, RowForm(input_shape=(FEATURES,)))
    assert len(LocalExamples(config).of_job(ARTIFACT).dataset) == 30
    assert [path.name for path in config.job_dir.iterdir()] == ["examples"]


@pytest.mark.parametrize(
    ("form", "label", "message"),
    [
        (RowForm(input_shape=(FEATURES + 1,)), 0, "rows of shape"),
        (RowForm(input_shape=(FEATURES,), target_count=2), 0, "rows with 2 targets, the artifact takes 0"),
        (RowForm(input_shape=(FEATURES,)), CLASSES, f"a row of class {CLASSES}, the artifact has {CLASSES}"),
    ],
)
def test_a_buffer_of_another_network_is_refused(tmp_path: Path, form: RowForm, label: int, message: str) -> None:
    config = configured(tmp_path)
    filled(config, form, label=label)
    local = LocalExamples(config)
    for use in (local.count, local.of_job, lambda artifact: local.some(artifact, 5)):
        with pytest.raises(TrainingError, match=message):
            use(ARTIFACT)


def test_a_model_is_tested_on_zeros_while_there_are_no_rows(tmp_path: Path) -> None:
    trainers = Trainers(configured(tmp_path), GENESIS, stopping=threading.Event())
    assert 0 < trainers.self_test(PARAMS, 0) < 10


PERSONAL = PersonalModel(
    local=PARAMS,
    mix=make_model(seed=2)[1],
    version=7,
    alpha=0.53,
    held_out=40,
    correct_personal=38,
    correct_global=30,
    is_better=True,
)


def test_a_personal_model_is_there_again(tmp_path: Path) -> None:
    file = PersonalFile(tmp_path / "personal.cbor", GENESIS)
    assert file.read() is None
    file.write(PERSONAL)
    assert PersonalFile(tmp_path / "personal.cbor", GENESIS).read() == PERSONAL
    assert (tmp_path / "personal.cbor").stat().st_mode & 0o777 == 0o600
    assert PERSONAL.summary() == {
        "version": 7,
        "alpha": 0.53,
        "held_out": 40,
        "accuracy": 0.95,
        "accuracy_global": 0.75,
        "chosen": "personal",
    }


def test_a_personal_model_of_another_chain_or_a_damaged_one_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "personal.cbor"
    PersonalFile(path, GENESIS).write(PERSONAL)
    assert PersonalFile(path, replace(GENESIS, created_s=GENESIS.created_s + 1)).read() is None
    data = path.read_bytes()
    for damaged in (b"", data[:-1], data + b"\0", data[: len(data) // 2]):
        path.write_bytes(damaged)
        assert PersonalFile(path, GENESIS).read() is None


def test_a_task_without_local_models_refuses_personal_ones(tmp_path: Path) -> None:
    genesis = replace(GENESIS, params=replace(GENESIS.params, codec=Codec.SPSA))
    config = configured(tmp_path, extra="[training]\npersonal_alpha = 0.5\n")
    with pytest.raises(ConfigError, match="personal_alpha: a task with SPSA"):
        Trainers(config, genesis, stopping=threading.Event())
