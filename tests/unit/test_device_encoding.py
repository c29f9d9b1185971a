"""What leaves the board and what stays, in every codec: an update, its residual, and a delta that comes back."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest

from coordinator.authoring.zoo import build
from coordinator.codec_choice import parse_codec
from coordinator.setup import default_params
from coordinator.task_form import fit_task
from edge_sdk.device import encoding
from edge_sdk.protocol.messages import Codec, ModelParams, TaskParams
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.wire import to_bytes
from edge_sdk.training.artifact import Artifact
from edge_sdk.training.codecs.reading import UpdateForm, check_payload
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.delta import carried_specs, decode_floats, l2_norm, unpack_residual
from edge_sdk.training.spsa_trainer import SpsaTrainer
from edge_sdk.training.trainer import Trainer

CODECS: Final = ("int8", "int16", "topk:0.1", "int4", "sign", "output", "spsa")


def task(codec: str) -> tuple[Artifact, ModelParams, TaskParams]:
    choice = parse_codec(codec)
    artifact, base = build("mlp", (8,), 3, batch=16, seed=3, is_output_only=choice.is_output_only)
    return artifact, base, fit_task(default_params(batch=16, codec=choice), artifact)


def finished_job(artifact: Artifact, base: ModelParams, params: TaskParams) -> encoding.JobTrainer:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 64)
    dataset = ArrayDataset(
        (np.eye(3, 8)[y] + rng.normal(0, 0.3, (64, 8))).astype(np.float32), y, input_shape=(8,), class_count=3
    )
    trainer = encoding.new_trainer(
        artifact, params, backend="numpy", device_id="board-1", root=model_root(base), kind=""
    )
    trainer.load(base)
    trainer.train(dataset, steps=8, lr=0.05, rng=rng)
    return trainer


@pytest.mark.parametrize("codec", CODECS)
def test_a_delta_is_always_in_one_place(codec: str) -> None:
    """Sent + kept is what was learned; a refused update returns what it sent to what was kept."""
    artifact, base, params = task(codec)
    trainer = finished_job(artifact, base, params)
    rng = np.random.default_rng(0)
    encoded = encoding.encode(trainer, base, params, residual=None, kind="", rng=rng)
    check_payload(encoded.payload, base, UpdateForm.of_task(params))
    returned = encoding.returned_residual(
        artifact, params, residual=encoded.residual, blob=to_bytes(encoded.payload), model=base
    )
    if params.codec is Codec.SPSA:
        assert encoded.residual == returned == b"\x80", "nothing is kept: what moves is what is sent"
        return
    assert isinstance(trainer, Trainer)
    specs = carried_specs(artifact.network.tensors, params.carried)
    sent, whole = decode_floats(encoded.payload, base, params.carried), unpack_residual(returned, specs)
    kept, learned = unpack_residual(encoded.residual, specs), trainer.delta()
    assert l2_norm(sent) > 0
    for spec in specs:
        np.testing.assert_allclose(whole[spec.name], learned[spec.name], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(sent[spec.name] + kept[spec.name], learned[spec.name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("codec", ["topk:0.1", "int4", "sign"])
def test_what_was_left_out_comes_with_the_next_updates(codec: str) -> None:
    """A constant delta: the mean of what is sent approaches it."""
    artifact, base, params = task(codec)
    trainer = finished_job(artifact, base, params)
    assert isinstance(trainer, Trainer)
    learned, residual, rounds = trainer.delta(), None, 60
    total = {name: np.zeros_like(value) for name, value in learned.items()}
    for _ in range(rounds):
        encoded = encoding.encode(trainer, base, params, residual=residual, kind="", rng=np.random.default_rng(0))
        residual = encoded.residual
        for name, value in decode_floats(encoded.payload, base).items():
            total[name] += value
    missing = {name: total[name] / rounds - learned[name] for name in learned}
    assert l2_norm(missing) < 0.15 * l2_norm(learned)


def test_the_residual_of_a_returned_delta_is_bounded() -> None:
    artifact, base, params = task("int8")
    encoded = encoding.encode(
        finished_job(artifact, base, params), base, params, residual=None, kind="", rng=np.random.default_rng(0)
    )
    blob, residual = to_bytes(encoded.payload), encoded.residual
    for _ in range(200):
        residual = encoding.returned_residual(artifact, params, residual=residual, blob=blob, model=base)
    bound = params.clip_norm_q16 / 65_536
    assert 0.9 * bound < l2_norm(unpack_residual(residual, artifact.network.tensors)) <= bound * (1 + 1e-5)


def test_seeds_differ_by_device_and_base() -> None:
    artifact, base, params = task("spsa")

    def seed(device_id: str, version: ModelParams) -> bytes:
        trainer = encoding.new_trainer(
            artifact, params, backend="numpy", device_id=device_id, root=model_root(version), kind=""
        )
        trainer.load(version)
        assert isinstance(trainer, SpsaTrainer)
        return trainer.payload().tensors[0].values

    other = build("mlp", (8,), 3, batch=16, seed=4)[1]
    assert len({seed("a", base), seed("b", base), seed("a", other)}) == 3
    assert seed("a", base) == seed("a", base), "a job that is resumed goes on along the same directions"
