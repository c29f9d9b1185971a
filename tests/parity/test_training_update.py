"""Momentum, clipping, the proximal term and the states of the weights: graph, oracle and torch take the same steps."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from coordinator.authoring.builder import build_artifact
from coordinator.authoring.zoo import genesis_params, network
from edge_sdk.training.artifact import Artifact, base_key, noise_names, velocity_key
from edge_sdk.training.backend import Batch
from edge_sdk.training.dataset import ArrayDataset
from edge_sdk.training.network import Op, Scheme
from edge_sdk.training.quantize import STATES_PER_STEP, align, dequantize
from edge_sdk.training.rounding_noise import RoundingNoise
from edge_sdk.training.trainer import Trainer
from edge_sdk.training.update_rule import PLAIN_SGD, VELOCITY_UNITS, UpdateRule

BATCH, STEPS, RATE, CLASSES = 4, 5, 0.1, 4
RULES = tuple(
    UpdateRule(momentum=momentum, clip_norm=clip_norm, prox=prox)
    for momentum, clip_norm, prox in itertools.product((0.0, 0.875), (0.0, 0.5), (0.0, 0.25))
)
NAMES = tuple(f"m{rule.momentum:g}-c{rule.clip_norm:g}-p{rule.prox:g}" for rule in RULES)
INT8_SCHEMES = (Scheme.INT8, Scheme.INT8_SR)


def made(scheme: Scheme, rule: UpdateRule, *, model: str = "lenet", batch: int = BATCH) -> tuple[Artifact, Any]:
    shape = (1, 8, 8) if model == "lenet" else (6,)
    forward = network(model, shape, CLASSES)
    artifact = build_artifact(model, forward, batch=batch, scheme=scheme, rule=rule)
    return artifact, genesis_params(forward.tensors, seed=3)


def examples(artifact: Artifact, count: int = 18) -> ArrayDataset:
    rng = np.random.default_rng(7)
    shape = artifact.network.input_shape
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    return ArrayDataset(x, rng.integers(0, CLASSES, count), input_shape=shape, class_count=CLASSES)


def batches(artifact: Artifact) -> Iterator[Batch]:
    return examples(artifact).batches(np.random.default_rng(1), size=artifact.batch)


def trained(artifact: Artifact, params: Any, backend: str) -> Trainer:
    trainer = Trainer(artifact, backend=backend)
    trainer.load(params)
    trainer.train(examples(artifact), steps=STEPS, lr=RATE, rng=np.random.default_rng(1))
    return trainer


def torch_steps(artifact: Artifact, start: dict[str, Any]) -> dict[str, Any]:
    """``torch.optim.SGD`` with its own momentum, ``clip_grad_norm_``, and the proximal term as part of the loss."""
    import torch
    from torch.nn import functional

    rule = artifact.rule
    params = {name: torch.tensor(value, requires_grad=True) for name, value in start.items()}
    optimizer = torch.optim.SGD(params.values(), lr=RATE, momentum=rule.momentum)
    for batch in itertools.islice(batches(artifact), STEPS):
        value = torch.tensor(batch.x)
        for node in artifact.network.nodes[:-1]:
            tensors = [params[name] for name in node.tensors]
            match node.op:
                case Op.GEMM:
                    value = value @ tensors[0] + tensors[1]
                case Op.CONV:
                    value = functional.conv2d(value, *tensors, padding=1)
                case Op.RELU:
                    value = functional.relu(value)
                case Op.MAX_POOL:
                    value = functional.max_pool2d(value, 2)
                case _:
                    value = value.flatten(1)
        weight = torch.tensor(batch.weight)
        losses = functional.cross_entropy(value, torch.tensor(batch.y), reduction="none")
        loss = (losses * weight).sum() / weight.sum()
        away = sum(((p - torch.tensor(start[name])) ** 2).sum() for name, p in params.items())
        optimizer.zero_grad()
        torch.autograd.backward(loss + rule.prox / 2 * away)
        if rule.clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), rule.clip_norm)
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


@pytest.mark.torch
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_float_steps_are_those_of_torch(rule: UpdateRule) -> None:
    artifact, params = made(Scheme.FP32, rule)
    expected = torch_steps(artifact, dequantize(params))
    for backend in ("onnxruntime", "numpy"):
        states = trained(artifact, params, backend)._states
        for name, value in expected.items():
            np.testing.assert_allclose(states[name], value, rtol=0, atol=2e-6, err_msg=f"{backend} {name}")


@pytest.mark.parametrize("scheme", INT8_SCHEMES)
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_int8_graph_is_the_oracle_step_by_step(rule: UpdateRule, scheme: Scheme) -> None:
    """From one state and one noise, few states differ, by few units: a rounding that tips moves a whole gradient."""
    artifact, params = made(scheme, rule)
    graph, oracle = Trainer(artifact), Trainer(artifact, backend="numpy")
    graph.load(params)
    states, scales = graph._states, graph._scales
    noise = RoundingNoise(artifact, rng=np.random.default_rng(2))
    for step, batch in zip(range(STEPS), batches(artifact), strict=False):
        drawn = noise.draw(step)
        found, found_loss = graph._backend.step(batch, RATE, states, scales, {}, drawn)
        expected, expected_loss = oracle._backend.step(batch, RATE, states, scales, {}, drawn)
        assert found.keys() == expected.keys() == states.keys()
        assert found_loss == pytest.approx(expected_loss, abs=1e-5)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype == states[name].dtype
            difference = np.abs(found[name].astype(np.float64) - value)
            if value.dtype == np.float32:
                assert difference.max() <= 1e-5
            else:
                assert difference.max() <= (16 if name in artifact.velocity_keys.values() else 4)
        tipped = [found[name] != value for name, value in expected.items() if value.dtype != np.float32]
        assert np.concatenate([value.ravel() for value in tipped]).mean() <= 5e-3
        states = found


@pytest.mark.parametrize("scheme", INT8_SCHEMES)
def test_int8_steps_follow_the_float_steps(scheme: Scheme) -> None:
    """All terms at once. The rounding of a state that is int8 is noise of the size of a step: it has to average."""
    rule = UpdateRule(momentum=0.5, clip_norm=2.0, prox=0.5)
    moves = []
    for kind in (Scheme.FP32, scheme):
        artifact, params = made(kind, rule, model="mlp")
        delta = trained(artifact, params, "onnxruntime").delta()
        moves.append(np.concatenate([value.ravel() for value in delta.values()]).astype(np.float64))
    cosine = moves[0] @ moves[1] / np.linalg.norm(moves[0]) / np.linalg.norm(moves[1])
    assert cosine > (0.99 if scheme is Scheme.INT8 else 0.8)


def test_a_proximal_step_is_the_slope_of_the_loss_with_the_term() -> None:
    """Central differences of loss + mu / 2 ||p - base||^2 along the step that was taken."""
    rule = UpdateRule(prox=0.75)
    artifact, params = made(Scheme.FP32, rule, model="mlp")
    base = dequantize(params)
    rng = np.random.default_rng(4)
    away = {name: value + rng.normal(0, 0.1, value.shape).astype(np.float32) for name, value in base.items()}
    batch = next(batches(artifact))
    backend = Trainer(artifact)._backend
    bases = {base_key(name): value for name, value in base.items()}
    after, _ = backend.step(batch, 1.0, away | bases, {})
    gradient = {name: (away[name] - after[name]).astype(np.float64) for name in base}

    def objective(shift: float) -> float:
        at = {name: (away[name] + shift * gradient[name]).astype(np.float32) for name in base}
        distance = sum(float(np.square(at[name].astype(np.float64) - base[name]).sum()) for name in base)
        return backend.step(batch, 1.0, at | bases, {})[1] + rule.prox / 2 * distance

    slope = (objective(1e-3) - objective(-1e-3)) / 2e-3
    assert slope == pytest.approx(sum(float(np.square(g).sum()) for g in gradient.values()), rel=1e-2)


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_clipping_bounds_the_step_over_all_tensors(backend: str) -> None:
    for scheme in (Scheme.FP32, Scheme.INT8):
        norms = []
        for clip_norm in (0.0, 0.125):
            artifact, params = made(scheme, UpdateRule(clip_norm=clip_norm))
            trainer = Trainer(artifact, backend=backend)
            trainer.load(params)
            trainer._states, _ = trainer._backend.step(next(batches(artifact)), 1.0, trainer._states, trainer._scales)
            norms.append(np.sqrt(sum(float(np.square(d).sum()) for d in trainer.delta().values())))
        assert norms[0] > 0.5
        assert norms[1] == pytest.approx(0.125, rel=1e-3 if scheme is Scheme.FP32 else 0.05)


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_stochastic_rounding_is_right_on_average(backend: str) -> None:
    """Mean over many noises of the int8 step = the step before rounding, within 5 standard errors of each element."""
    artifact, params = made(Scheme.INT8_SR, PLAIN_SGD, model="mlp", batch=8)
    reference, _ = made(Scheme.INT8, PLAIN_SGD, model="mlp", batch=8)
    fine, coarse = Trainer(reference), Trainer(artifact, backend=backend)
    fine.load(params)
    coarse.load(params)
    # The same weights: the fine state starts at the int8 values.
    fine._states = {
        name: (state.astype(np.int16) * 256 if name in fine._scales else state)
        for name, state in coarse._states.items()
    }
    batch = next(batches(artifact))
    exact, _ = fine._backend.step(batch, RATE, fine._states, fine._scales)
    noise = RoundingNoise(artifact, rng=np.random.default_rng(6))
    draws = 400
    name = "dense0_weight"
    rounded = np.stack(
        [
            coarse._backend.step(batch, RATE, coarse._states, coarse._scales, {}, noise.draw(k))[0][name]
            for k in range(draws)
        ]
    ).astype(np.float64)
    mean = exact[name].astype(np.float64) / 256
    share = mean - np.floor(mean)
    error = np.sqrt(np.maximum(share * (1 - share), 1 / draws) / draws)
    # The fine state is itself rounded to 2**-8.
    assert (np.abs(rounded.mean(axis=0) - mean) <= 5 * error + 2**-9).all()
    assert np.ptp(rounded, axis=0).max() == 1


def test_noise_is_uniform_and_pairwise_independent_and_the_same_for_a_step() -> None:
    artifact, _ = made(Scheme.INT8_SR, PLAIN_SGD)
    noise = RoundingNoise(artifact, rng=np.random.default_rng(8))
    again = RoundingNoise(artifact, rng=np.random.default_rng(8))
    rows, columns = noise_names("dense2_weight")
    drawn = noise.draw(5)
    assert all((again.draw(5)[name] == value).all() for name, value in drawn.items())
    assert any((noise.draw(6)[name] != value).any() for name, value in drawn.items())
    values = np.stack([np.mod(d[rows] + d[columns], 1.0).ravel()[:12] for d in map(noise.draw, range(4_000))])
    assert np.abs(values.mean(axis=0) - 0.5).max() < 5 / np.sqrt(12 * 4_000)
    correlation = np.corrcoef(values.T) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(4_000)
    assert RoundingNoise(made(Scheme.INT8, PLAIN_SGD)[0], rng=np.random.default_rng(8)).draw(0) == {}


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("scheme", INT8_SCHEMES)
def test_a_velocity_without_gradient_decays_to_zero(backend: str, scheme: Scheme) -> None:
    """Rounded to nearest, it would stay at up to 1 / (2 (1 - momentum)) units and push the weight for ever."""
    artifact, params = made(scheme, UpdateRule(momentum=0.9), model="mlp")
    trainer = Trainer(artifact, backend=backend)
    trainer.load(params)
    nothing = Batch(
        np.zeros((BATCH, 6), np.float32), np.zeros(BATCH, np.int64), np.zeros(BATCH, np.float32)
    )  # no example counts
    key = velocity_key("dense0_weight")
    states = trainer._states | {key: np.full((6, 128), 300, np.int16)}
    start = states["dense0_weight"]
    noise = RoundingNoise(artifact, rng=np.random.default_rng(0))
    for step in range(60):
        states, _ = trainer._backend.step(nothing, RATE, states, trainer._scales, {}, noise.draw(step))
    assert not states[key].any()
    # 300 (0.9 + 0.81 + ...) = 2,700 of 4,096 units of a step of the grid, less what truncation takes.
    moved = (start.astype(np.float64) - states["dense0_weight"]).mean() / STATES_PER_STEP[scheme]
    assert moved == pytest.approx(2_700 / VELOCITY_UNITS, abs=0.1)


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
def test_a_resumed_job_ends_in_the_same_bytes(scheme: Scheme, backend: str) -> None:
    artifact, params = made(scheme, UpdateRule(momentum=0.875, clip_norm=1.0, prox=0.25))
    through = trained(artifact, params, backend)
    first, second = (Trainer(artifact, backend=backend) for _ in range(2))
    for trainer in (first, second):
        trainer.load(params)
    first.train(examples(artifact), steps=2, lr=RATE, rng=np.random.default_rng(1))
    second.restore(first.state_bytes())
    second.train(examples(artifact), steps=STEPS, lr=RATE, rng=np.random.default_rng(1), start_step=2)
    assert second.state_bytes() == through.state_bytes()
    through.load(params)
    assert not any(through._states[key].any() for key in artifact.velocity_keys.values()), "a new job starts at rest"


@pytest.mark.parametrize("backend", ["onnxruntime", "numpy"])
@pytest.mark.parametrize("scheme", Scheme)
def test_a_masked_batch_is_the_smaller_batch(backend: str, scheme: Scheme) -> None:
    """The last batch of an epoch is filled up; what fills it up must not count. All rules at once."""
    rule = UpdateRule(momentum=0.875, clip_norm=0.25, prox=0.25)
    deltas = []
    artifact, params = made(scheme, rule, batch=BATCH)
    smaller, _ = made(scheme, rule, batch=3)
    data = examples(artifact, count=3)
    full, small = (Trainer(chosen, backend=backend) for chosen in (artifact, smaller))
    for size, trainer in ((BATCH, full), (3, small)):
        trainer.load(params)
        batch = next(data.batches(np.random.default_rng(1), size=size))
        noise = RoundingNoise(artifact, rng=np.random.default_rng(2)).draw(0)
        trainer._states, _ = trainer._backend.step(batch, RATE, trainer._states, trainer._scales, {}, noise)
        deltas.append(trainer.delta())
        assert batch.weight.sum() == 3
    for name, value in deltas[0].items():
        if scheme is Scheme.FP32:
            np.testing.assert_allclose(value, deltas[1][name], rtol=0, atol=1e-7)
        else:
            if name not in full._scales:
                np.testing.assert_allclose(value, deltas[1][name], rtol=0, atol=1e-6)
                continue
            spec = next(s for s in artifact.network.tensors if s.name == name)
            grid = align(full._scales[name], spec) / STATES_PER_STEP[scheme]
            np.testing.assert_allclose(value / grid, deltas[1][name] / grid, rtol=0, atol=1.0)
