"""SPSA on the device: what it moves is what its bytes say, also after a restart, and never further than the clip."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import pytest

from coordinator.aggregation.merge import check_update, merge
from coordinator.authoring.zoo import build
from edge_sdk.device import adversary
from edge_sdk.errors import DecodeError, LocalProtocolError, NonFiniteError, TrainingError
from edge_sdk.protocol.limits import SPSA_CODES_MAX
from edge_sdk.protocol.messages import Codec, ModelParams
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.codecs.reading import UpdateForm
from edge_sdk.training.codecs.spsa import CODE_MAX, STEPS, read_probes, signs
from edge_sdk.training.codecs.values import BLOCK
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.delta import decode_aligned, decode_floats, l2_norm, trained_positions
from edge_sdk.training.quantize import dequantize
from edge_sdk.training.spsa_trainer import SpsaTrainer
from edge_sdk.training.trainer import Trainer

SEED: Final = b"01234567"
ONE: Final = 1 << 16


@pytest.fixture(scope="module")
def model() -> tuple[Artifact, ModelParams]:
    return build("mlp", (8,), 3, batch=16, seed=3)


@pytest.fixture(scope="module")
def dataset() -> ArrayDataset:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 200)
    x = (np.eye(3, 8)[y] * 3 + rng.normal(0, 0.4, (200, 8))).astype(np.float32)
    return ArrayDataset(x, y, input_shape=(8,), class_count=3)


def trainer(artifact: Artifact, *, clip_norm: float = 4.0, carried: tuple[int, ...] | None = None) -> SpsaTrainer:
    return SpsaTrainer(artifact, backend="numpy", carried=carried, clip_norm=clip_norm, seed=SEED)


def test_the_model_learns_from_a_few_bytes(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    judge, newest = Trainer(artifact, backend="numpy"), base
    before = judge.evaluate(base, dataset.x, dataset.y).loss_mean
    for version in range(3):
        probing = trainer(artifact)
        probing.load(newest)
        probing.train(dataset, steps=SPSA_CODES_MAX, lr=0.003, rng=np.random.default_rng(version))
        payload = probing.payload()
        assert len(to_bytes(payload)) <= 64
        check_update(newest, payload, UpdateForm(codec=Codec.SPSA))
        newest = merge(newest, [(ONE, payload)], ONE, ONE)
    assert judge.evaluate(newest, dataset.x, dataset.y).loss_mean < 0.8 * before


def test_what_it_moves_is_what_its_bytes_say(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    probing = trainer(artifact)
    probing.load(base)
    probing.train(dataset, steps=12, lr=0.01, rng=np.random.default_rng(0))
    here = probing._at({position: np.zeros_like(m, np.int8) for position, m in probing._moved.items()}, 0.0)
    replayed = decode_floats(probing.payload(), base)
    for name, values in dequantize(base).items():
        np.testing.assert_array_equal(here[name], values + replayed[name])


def test_a_resumed_job_sends_the_same_bytes(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    whole, first, second = trainer(artifact), trainer(artifact), trainer(artifact)
    for probing in (whole, first, second):
        probing.load(base)
    whole.train(dataset, steps=10, lr=0.01, rng=np.random.default_rng(7))
    first.train(dataset, steps=4, lr=0.01, rng=np.random.default_rng(7))
    second.restore(first.state_bytes())
    assert second.steps_done == 4
    second.train(dataset, steps=10, lr=0.01, rng=np.random.default_rng(7), start_step=4)
    assert second.payload() == whole.payload()


def test_checkpoints_of_others_are_refused(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    probing, stranger = (
        trainer(artifact),
        SpsaTrainer(artifact, backend="numpy", carried=None, clip_norm=4.0, seed=b"76543210"),
    )
    for one in (probing, stranger):
        one.load(base)
    probing.restore(probing.state_bytes())
    assert probing.steps_done == 0
    stranger.train(dataset, steps=1, lr=0.01, rng=np.random.default_rng(0))
    for data in (stranger.state_bytes(), b"", b"\xa0", probing.state_bytes()[:-1] + b"\x80"):
        with pytest.raises(DecodeError):
            probing.restore(data)
    assert probing.steps_done == 0


def test_the_clip_bounds_the_whole_move(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    probing = trainer(artifact, clip_norm=0.5)
    probing.load(base)
    probing.train(dataset, steps=SPSA_CODES_MAX, lr=1.0, rng=np.random.default_rng(0))
    norm = l2_norm(decode_floats(probing.payload(), base))
    assert 0.25 < norm <= 0.5


def test_frozen_tensors_stay(dataset: ArrayDataset) -> None:
    artifact, base = build("mlp", (8,), 3, batch=16, seed=3, is_output_only=True)
    carried = trained_positions(artifact.network.tensors)
    assert carried == (4, 5)
    probing = trainer(artifact, carried=carried)
    probing.load(base)
    probing.train(dataset, steps=3, lr=0.05, rng=np.random.default_rng(0))
    assert set(decode_aligned(probing.payload(), base, carried)) == {base.tensors[4].name, base.tensors[5].name}
    merged = merge(base, [(ONE, probing.payload())], ONE, ONE, carried)
    assert merged.tensors[:4] == base.tensors[:4]
    assert merged.tensors[4].values != base.tensors[4].values


def test_wrong_use(model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    probing, rng = trainer(artifact), np.random.default_rng(0)
    with pytest.raises(LocalProtocolError):
        probing.train(dataset, steps=1, lr=0.1, rng=rng)
    probing.load(base)
    with pytest.raises(TrainingError, match="at most 32 steps"):
        probing.train(dataset, steps=SPSA_CODES_MAX + 1, lr=0.1, rng=rng)
    with pytest.raises(NonFiniteError):
        probing.train(dataset, steps=4, lr=1e308, rng=rng)


def test_directions_are_balanced_and_differ() -> None:
    first = signs(SEED, 0, 0, 0, BLOCK)
    assert set(np.unique(first)) == {-1, 1}
    others = [signs(SEED, 1, 0, 0, BLOCK), signs(SEED, 0, 1, 0, BLOCK), signs(SEED, 0, 0, BLOCK, 2 * BLOCK)]
    others.append(signs(b"12345678", 0, 0, 0, BLOCK))
    for other in (*others, np.ones_like(first)):
        assert abs(int(first.astype(np.int64) @ other)) < 5 * math.sqrt(BLOCK)


@pytest.mark.parametrize("kind", ["signflip", "scaled", "randomizer"])
def test_attacks_on_the_codes(kind: str, model: tuple[Artifact, ModelParams], dataset: ArrayDataset) -> None:
    artifact, base = model
    probing = trainer(artifact)
    probing.load(base)
    probing.train(dataset, steps=8, lr=0.001, rng=np.random.default_rng(0))
    honest = probing.payload()
    codes = read_probes(honest.tensors[0].values).codes
    attack = adversary.corrupt_probes(kind, honest, np.random.default_rng(0))
    found = read_probes(attack.tensors[0].values).codes
    assert adversary.corrupt_probes("labelflip", honest, np.random.default_rng(0)) == honest
    if kind == "randomizer":
        assert set(map(abs, found)) == {CODE_MAX}
        return
    turned = -1 if kind == "signflip" else 1
    for code, other in zip(codes, found, strict=True):
        assert np.sign(other) == turned * np.sign(code)
        if 0 < abs(code) <= 100:
            assert STEPS[abs(other)] == pytest.approx(10 * STEPS[abs(code)], rel=0.15)
